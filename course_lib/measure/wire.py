"""Count what this process has sent to others over TCP, as the operating system counts it.

Every TCP socket knows how many bytes were handed to it, whoever wrote them (gloo, a hand-written `sendall`)
and however; what is printed, logged or saved never passes one.

Seen: messages by a plain TCP socket, and by a `dist.TCPStore`: who sets sends the value, and the rank that
holds the store sends it on to who gets it. Absent, because they are not TCP: UNIX sockets, such as a rank's
own line to the kernel; UDP (between linked hosts the link's own counter sees it, `Job.links`); and a
`dist.FileStore`, or any other file that ranks share. The store of a job that `run` has started is one. What a
socket has sent is lost as well if it is closed before anybody looks: keep it open until the step is over.
"""

import os
import socket
import stat
import struct
import sys

import psutil

__all__ = ["look", "sent_since", "is_counted", "written_bytes", "all_written_bytes"]

# Of Linux's struct tcp_info: bytes that wait to be sent (u32), bytes sent, and how many of these were sent
# again (u64 each).
_NOTSENT, _SENT_AND_AGAIN, _LENGTH = struct.Struct("@I"), struct.Struct("@QQ"), 216
_NOTSENT_AT, _SENT_AT = 144, 200


def look() -> dict[int, int]:
    """Bytes that were handed to each open TCP socket of this process so far, by the socket's inode."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            status = os.fstat(fd := int(name))
            if stat.S_ISSOCK(status.st_mode) and (count := _handed_over(fd)) is not None:
                found[status.st_ino] = count
        except OSError:  # no TCP; or closed by now, by another thread
            pass
    return found


def sent_since(before: dict[int, int]) -> int:
    """Bytes sent since `before`, an earlier `look`. A socket opened since then counts from its birth; of one
    that was closed since then, what it has sent in between is lost.
    """
    return sum(count - before.get(inode, 0) for inode, count in look().items())


def is_counted() -> bool:
    """Whether the system keeps these counts: a byte is sent from this process to itself. (Linux does from
    4.19 on.)
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), 5) as one,
            server.accept()[0],
        ):
            before = look()
            one.sendall(b"x")
            return sent_since(before) >= 1
    except OSError:
        return False


def written_bytes() -> int:
    """Bytes that this process has written so far, to files and to other ranks, without what it has printed;
    0 where nobody counts them.
    """
    if (all_bytes := all_written_bytes()) is None:
        return 0
    printed = {
        status.st_ino: status.st_size for status in map(os.fstat, (1, 2)) if stat.S_ISREG(status.st_mode)
    }
    return all_bytes - sum(printed.values())


def all_written_bytes() -> int | None:
    """The same with what it has printed; None where nobody counts them."""
    process = psutil.Process()
    return process.io_counters().write_chars if hasattr(process, "io_counters") else None


def _handed_over(fd: int) -> int | None:
    """Bytes that were handed to the socket; None if it does not tell, an OSError if it is none of TCP."""
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LENGTH)
    finally:
        connection.detach()  # it was looked at, and is not ours to close
    if len(told) < _LENGTH:
        return None
    sent, again = _SENT_AND_AGAIN.unpack_from(told, _SENT_AT)
    return sent - again + _NOTSENT.unpack_from(told, _NOTSENT_AT)[0]
