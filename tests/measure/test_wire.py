"""What a rank sends is counted, however it is sent; what it prints, logs or saves is not."""

import logging
import os
import socket
import subprocess
import sys
import tempfile
import warnings

import pytest
import torch
import torch.distributed as dist

from course_lib import measure, run
from course_lib.measure import wire

needs_counters = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux counts what one process sends"
)
MB = 1_000_000


def sent_by(job, rank: int = 0) -> list[int]:
    """Bytes that a rank sent, step by step."""
    return job.steps[job.steps["rank"] == rank]["wire_bytes"].tolist()


def write(to, block: str) -> None:
    for _ in range(5):
        print(block, file=to)


def noises() -> dict:
    """Ways to write that reach nobody else."""
    folder, block = tempfile.mkdtemp(), "x" * MB

    def log():
        logger = logging.getLogger("noise")
        logger.addHandler(logging.FileHandler(os.path.join(folder, "log")))
        logger.error(block)
        logging.getLogger().error(block[:1000])

    def to_a_unix_socket():
        one, other = socket.socketpair()
        one.sendall(block[:50_000].encode())
        other.recv(MB)

    return {
        "silence": lambda: None,
        "print": lambda: write(sys.stdout, block),
        "stderr": lambda: write(sys.stderr, block),
        "print and flush": lambda: print(block, flush=True),
        "file descriptor": lambda: os.write(1, block.encode()),
        "torch.save": lambda: torch.save(torch.ones(MB), os.path.join(folder, "weights.pt")),
        "logging": log,
        "warning": lambda: warnings.warn(block[:5000], stacklevel=2),
        "a child's output": lambda: subprocess.run(["echo", block[:100_000]], check=True),
        "a child's pipe": lambda: subprocess.run(
            ["cat"], input=block.encode(), capture_output=True, check=True
        ),
        "UNIX socket": to_a_unix_socket,
        "silence again": lambda: None,
    }


def noisy() -> list[str]:
    made = noises()
    for _step in range(3):
        with measure.step():
            dist.all_reduce(torch.ones(250_000))
    for noise in made.values():
        with measure.step():
            noise()
            dist.all_reduce(torch.ones(250_000))
    return list(made)


@needs_counters
def test_what_a_rank_prints_logs_or_saves_is_no_traffic():
    job = run(noisy, ranks=2)
    for rank in range(2):
        sent = dict(zip(job.results[rank], sent_by(job, rank)[3:]))
        assert sent["silence"] == pytest.approx(MB, rel=0.02)
        assert sent == dict.fromkeys(sent, sent["silence"]), "to the byte"


def by_hand() -> None:
    """Rank 1 listens; rank 0 sends a million bytes in several ways, one way in each step."""
    rank = dist.get_rank()
    server = socket.create_server(("127.0.0.1", 0))
    ports = [None, None]
    dist.all_gather_object(ports, server.getsockname()[1])
    dist.barrier()
    data = bytes(MB)

    def connected():
        return socket.create_connection(("127.0.0.1", ports[1])) if rank == 0 else server.accept()[0]

    def pass_on(line, send):
        if rank == 0:
            send(line)
        else:
            got = 0
            while got < MB:
                got += len(line.recv(MB - got))  # no byte of the next step

    def with_sendmsg(line):
        left = memoryview(data)
        while left:
            left = left[line.sendmsg([left[: len(left) // 2], left[len(left) // 2 :]]) :]

    def with_sendfile(line):
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            file.seek(0)
            line.sendfile(file)

    old = connected()
    for send in (
        lambda line: line.sendall(data),
        with_sendmsg,
        lambda line: os.write(line.fileno(), data),
        with_sendfile,
    ):
        with measure.step():
            pass_on(old, send)
    with measure.step():  # opened within the step
        new = connected()
        pass_on(new, lambda line: line.sendall(data))
    with measure.step():  # one is closed, the other sends
        old.close()
        pass_on(new, lambda line: line.sendall(data))
    with measure.step():  # two names of one socket
        twin = new.dup()
        pass_on(twin, lambda line: line.sendall(data))
    with measure.step():  # closed before the step is over: as Job.steps says, nobody sees that
        short = connected()
        pass_on(short, lambda line: line.sendall(data))
        short.close()
    dist.barrier()


@needs_counters
def test_a_socket_of_the_learners_own_counts_whichever_way_it_sends():
    job = run(by_hand, ranks=2)
    assert sent_by(job, 0) == [MB] * 7 + [0] and sent_by(job, 1) == [0] * 8


def by_stores(folder: str) -> None:
    """Rank 1 gets a million bytes that rank 0 has set, by another store in each step; then by UDP."""
    rank, value = dist.get_rank(), "x" * MB
    ports = [None, None]
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if rank == 0 else None
    mailbox = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    mailbox.bind(("127.0.0.1", 0))
    dist.all_gather_object(ports, (server.port if server else None, mailbox.getsockname()))
    by_tcp = server or dist.TCPStore("127.0.0.1", ports[0][0], is_master=False)
    for store in (by_tcp, dist.FileStore(os.path.join(folder, "store"), 2)):
        store.set(f"opened{rank}", "")
        dist.barrier()
        with measure.step():
            if rank == 0:
                store.set("value", value)
            elif store.get("value") == value.encode():
                store.set("got", "")
            store.wait(["got"])
    with measure.step():
        if rank == 0:
            mailbox.sendto(bytes(50_000), ports[1][1])
        else:
            mailbox.recv(MB)


@needs_counters
def test_a_tcp_store_is_seen_and_files_and_datagrams_are_absent(tmp_path):
    """As wire.py and Job.steps say."""
    job = run(by_stores, str(tmp_path), ranks=2)
    by_tcp, by_file, by_udp = sent_by(job, 0)
    # to the store, which is a thread of this rank, and from there to rank 1
    assert by_tcp == pytest.approx(2 * MB, rel=0.02)
    assert by_file == by_udp == 0
    assert max(sent_by(job, 1)) < 1000, "it asks, and says that it has got it"


@needs_counters
def test_a_system_that_does_not_count_is_told(monkeypatch):
    assert wire.is_counted()
    monkeypatch.setattr(wire, "_LENGTH", 100_000)  # more than any kernel tells
    assert not wire.is_counted()


@needs_counters
def test_where_nothing_counts_the_bytes_are_absent(monkeypatch):
    def blind():
        wire.is_counted = lambda: False
        measure.start_ledger(report=lambda *step: None, meet=lambda *of: None)
        with measure.step():
            pass
        return measure._ledger.steps[0]["wire_bytes"], measure._ledger.absent["wire bytes"]

    assert run(blind, ranks=1).results[0] == (
        None,
        "this operating system does not count what one process sends",
    )


@needs_counters
def test_bytes_written_are_those_in_files_without_what_is_printed():
    def written():
        before = wire.written_bytes()
        write(sys.stdout, "x" * 1000)
        with tempfile.TemporaryFile() as file:
            file.write(bytes(MB))
            file.flush()
        return wire.written_bytes() - before

    assert run(written, ranks=1).results == [MB]
