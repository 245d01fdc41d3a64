"""Messages through files in a folder that the notebook's machine and the nodes share.

One writer for each file, which only grows; every reader remembers how far it has read. A file is opened anew
for each look and closed after each write, because that is when a network file system promises that one
machine sees what another has written (close-to-open consistency, as of NFS: nfs(5)). All files are there
before the job is handed over: a name that was looked up in vain may stay unknown on a node for a while.
"""

import json
import os
import struct
from collections.abc import Iterator

__all__ = ["FILES", "Inbox", "Outbox", "alive", "beat", "path_of"]

FILES = ("orders", "alive", "meeting")  # beside them: "node0", ... and the ranks' own
_HEADER = struct.Struct(">iI")  # the number of a rank, or REPORT; the bytes that follow
REPORT = -1
PIECE = 1 << 22  # bytes that are read at once


def path_of(directory: str, name: str | int) -> str:
    """The path of a file: of its name, or of the number of the node that writes it."""
    return os.path.join(directory, f"node{name}" if isinstance(name, int) else name)


class Outbox:
    """What this process writes. Errors: OSError, and FileNotFoundError once the folder is gone."""

    def __init__(self, path: str):
        self._path = path

    def report(self, **told) -> None:
        """Send something in JSON, told by this process itself."""
        self.send(REPORT, json.dumps(told).encode())

    def send(self, rank: int, content: bytes) -> None:
        """Send bytes of a rank's line, or for it."""
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND)  # never made anew: no folder, no mail
        try:
            message = memoryview(_HEADER.pack(rank, len(content)) + content)
            while message:
                message = message[os.write(handle, message) :]
        finally:
            os.close(handle)


class Inbox:
    """What another process writes."""

    def __init__(self, path: str):
        self._path, self._at, self._buffer = path, 0, bytearray()

    def read(self) -> Iterator[tuple[int, bytes]]:
        """(rank, bytes) or (REPORT, JSON) of all messages that have come. Errors: FileNotFoundError."""
        handle = os.open(self._path, os.O_RDONLY)
        try:
            while piece := os.pread(handle, PIECE, self._at):
                self._at += len(piece)
                self._buffer += piece
        finally:
            os.close(handle)
        while len(self._buffer) >= _HEADER.size:
            rank, length = _HEADER.unpack_from(self._buffer)
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            content = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield rank, content


def beat(directory: str, number: int) -> None:
    """Show the nodes that somebody waits for their ranks: another number than before."""
    handle = os.open(path_of(directory, "alive"), os.O_WRONLY)
    try:
        os.pwrite(handle, b"%12d" % number, 0)
    finally:
        os.close(handle)


def alive(directory: str) -> bytes:
    """What `beat` has written last. Errors: FileNotFoundError once the folder is gone."""
    with open(path_of(directory, "alive"), "rb") as file:
        return file.read()
