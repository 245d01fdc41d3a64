"""Inject every fault many times and print a table: fault, injected, explained, seconds, left over.

    python tests/bench/bench_faults.py [times] [--busy] [kernel] [hard] ...

Words choose the faults with one of them in their name. "left over" counts processes, files, shared memory and
listening sockets, of ranks in sessions of their own too. --busy keeps every core busy with another process
meanwhile. (Row 11, many jobs at once, is bench_classroom.py.)
"""

import contextlib
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import psutil
import torch

from course_lib import RankError, hosts, run
from course_lib.ranks import budget, output

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "ranks")]
import faults  # noqa: E402
from left_behind import Traces  # noqa: E402
from test_kernel import Kernel  # noqa: E402

TIMEOUT_S = 1.5
TWO_HOSTS = hosts.Linked(2, mbit=200)
GONE_S = 4.0  # how long what a kernel leaves behind may take to be gone
# one injection: whether it was explained, seconds, and (of a kernel of its own) how much it left behind
Trial = Callable[[], tuple]


def job(fn: Callable | list[Callable], words: str, timeout: float = 30, **options) -> Trial:
    """A job that fails or warns with these words; seconds from the launch, or past a timeout that it has to
    wait for.
    """

    def trial() -> tuple[bool, float]:
        begin = time.monotonic()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                run(fn, ranks=2, timeout=timeout, **options)
                text = " ".join(str(warning.message) for warning in told)
            except RankError as error:
                text = str(error)
        return words in text, time.monotonic() - begin - (timeout if timeout == TIMEOUT_S else 0)

    return trial


def starts_again() -> tuple[bool, float]:
    """A rank fails once, and the next attempt succeeds; seconds from the launch."""
    begin = time.monotonic()
    done = run(faults.fails_once, ranks=2, restarts=2)
    reasons = [attempt.reason.startswith("rank 1 raised ValueError: boom") for attempt in done.attempts]
    return reasons == [True, False], time.monotonic() - begin


def interrupted() -> tuple[bool, float]:
    """SIGINT to this process, as the Interrupt button sends it; seconds from the signal."""
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    try:
        run(faults.never_arrives, ranks=3)
    except KeyboardInterrupt as error:
        return (
            "was interrupted" in str(error) and "time.sleep(100)" in str(error),
            time.monotonic() - begin - 1.0,
        )
    return False, 0.0


def kernel_ends(how: str) -> Trial:
    """A real kernel ends while three ranks hang, two of them in a native collective, each with a process in a
    session of its own and with shared memory.

    Explained means: all of it was there before, and nothing is afterwards; seconds from the end.
    """

    def trial() -> tuple[bool, float, int]:
        with tempfile.TemporaryDirectory() as place:
            os.mkdir(os.path.join(place, "tmp"))
            traces = Traces(Path(place, "tmp"))
            kernel = Kernel(env=traces.environ)
            job = f"run(faults.hangs_with_everything, {place!r}, ranks=3)"
            again = f"while True:\n    try: {job}\n    except KeyboardInterrupt: pass"
            kernel.run(
                f"import sys; sys.path.insert(0, {str(TESTS / 'ranks')!r})\nimport faults\nfrom course_lib"
                f" import run\n{again if how == 'nbval' else job}",
                wait=False,
            )
            while len([path for path in Path(place).glob("pid*") if path.stat().st_size]) < 3:
                time.sleep(0.05)
            there = (
                len(traces.look()) >= 9
                and len(traces.files()) == 1
                and len(traces.shared_memory()) == 3
                and len(traces.sockets()) >= 3
            )
            # it interrupts a cell that takes too long, and kills the kernel five seconds later
            if how == "nbval":
                kernel.manager.interrupt_kernel()
                time.sleep(5)
            begin = time.monotonic()
            if how == "hard restart":
                kernel.manager.restart_kernel(now=True)
            else:
                os.kill(kernel.manager.provisioner.pid, signal.SIGKILL)
            left = traces.left(GONE_S, {kernel.manager.provisioner.pid} if how == "hard restart" else set())
            seconds = time.monotonic() - begin
            kernel.close()
        return there and not left, seconds, len(left)

    return trial


def nowhere_to_write(fn: Callable, words: str) -> Trial:
    """The folder for temporary files is full from the beginning, or is filled by a rank. (A file system of
    its own, which only root can mount.)
    """

    def trial() -> tuple[bool, float, int]:
        run(faults.addresses, ranks=2)  # its fork server writes where it was begun
        with tempfile.TemporaryDirectory() as place, mock.patch.object(tempfile, "tempdir", place):
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=True)
            try:
                if fn is faults.addresses:
                    with (
                        contextlib.suppress(OSError),
                        open(os.path.join(place, "filler"), "wb", buffering=0) as file,
                    ):
                        while file.write(bytes(4096)):
                            pass
                begin, text = time.monotonic(), ""
                try:
                    run(fn, ranks=2)
                except (OSError, RankError) as error:
                    text = str(error)
                return (
                    words in text,
                    time.monotonic() - begin,
                    len([path for path in Path(place).iterdir() if path.name != "filler"]),
                )
            finally:
                end = time.monotonic() + GONE_S  # the supervisor, which has ended the ranks, ends after them
                while subprocess.run(["umount", place], capture_output=time.monotonic() < end).returncode:
                    if time.monotonic() > end:
                        raise OSError(f"{place}: somebody still writes there")
                    time.sleep(0.02)

    return trial


def prints_much() -> tuple[bool, float]:
    """10 MB of output: its beginning and end come back, and the whole is in a file, which this removes."""
    begin = time.monotonic()
    text = run(faults.prints, 10, ranks=2).output[0]
    seconds = time.monotonic() - begin
    saved = list(Path(tempfile.gettempdir()).glob("course_lib-output-*"))
    explained = (
        len(text) < 200_000
        and text.startswith("first line")
        and text.rstrip().endswith("last line")
        and len(saved) == 1
        and str(saved[0]) in text
    )
    for path in saved:
        path.unlink()
    return explained, seconds


def prints_too_much() -> tuple[bool, float]:
    """Output without end, here above 20 MB: the job is stopped, and the output is not kept."""
    with mock.patch.object(output, "MOST_BYTES", 20_000_000):
        return job(faults.prints_for_ever, "has printed more than 20 MB")()


def refused(*calls: tuple[str, Callable]) -> Trial:
    """Calls that must be refused before any process starts, each in one sentence with its words."""

    def trial() -> tuple[bool, float]:
        begin, right = time.monotonic(), 0
        for words, call in calls:
            try:
                call()
            except (ValueError, TypeError) as error:
                right += words in str(error) and "\n" not in str(error)
        return right == len(calls), time.monotonic() - begin

    return trial


def on_a_small_machine() -> None:
    with mock.patch.object(
        budget.Machine, "here", lambda: budget.Machine(cores=2, free_bytes=300 * 2**20, shm_free_bytes=2**30)
    ):
        run(faults.addresses, ranks=8)


def over_an_open_file() -> None:
    with open(os.devnull, "w") as file:
        run(lambda: file.write("x"))


def nobody_can_connect() -> tuple[bool, float]:
    """Ranks listen on the loopback interface only, and their directory is private."""
    begin, folder = time.monotonic(), Path(tempfile.gettempdir())
    told = run(
        lambda: (*faults.addresses(), [path.stat().st_mode & 0o777 for path in folder.glob("course_lib-*")])
    ).results
    return (
        all(
            {*listening, *peers} <= {"127.0.0.1"} and set(modes) == {0o700}
            for listening, peers, modes in told
        ),
        time.monotonic() - begin,
    )


FAULTS: list[tuple[str, Trial]] = [  # row of the table of faults
    ("1 a rank raises", job(faults.raises, "raised IndexError")),
    ("2 a rank is killed", job(faults.is_killed, "was killed (SIGKILL")),
    ("3 a rank leaves early", job(faults.leaves_early, "has finished without calling all_reduce")),
    (
        "4 a rank never arrives",
        job(faults.never_arrives, "waits in all_reduce; rank 1 is not there", TIMEOUT_S),
    ),
    (
        "4 all wait for each other",
        job(faults.everyone_sends_first, "Each rank waits for another: rank 0 in send to rank 1"),
    ),
    ("5 different collectives", job(faults.different_collectives, "rank 0 called broadcast")),
    ("6 shapes differ", job(faults.other_shape, "rank 1 called all_reduce of float32[7]")),
    ("6 dtypes differ", job(faults.other_dtype, "rank 1 called all_reduce of float64[700]")),
    ("6 dtypes differ, silently", job(faults.silent_dtype, "No library noticed")),
    ("7 swapped tensors", job(faults.swapped, "from different lines")),
    ("8 a rank is stopped", job(faults.is_stopped, "its process was stopped (SIGSTOP)", TIMEOUT_S)),
    ("8 a rank holds the lock", job(faults.holds_the_lock, "waits in all_reduce", TIMEOUT_S)),
    ("9 interrupt", interrupted),
    ("10 the kernel is killed", kernel_ends("killed")),
    ("10 hard restart", kernel_ends("hard restart")),
    ("10 nbval gives up", kernel_ends("nbval")),
    ("12 10 MB printed", prints_much),
    ("12 printed without end", prints_too_much),
    *(
        [
            (
                "12 temporary folder full",
                nowhere_to_write(faults.addresses, "cannot be written to the folder for temporary files"),
            ),
            ("12 a rank fills it", nowhere_to_write(faults.fills_the_folder, "No space left on device")),
        ]
        if os.getuid() == 0
        else []
    ),
    ("13 a machine too small", refused(("more than this machine can hold", on_a_small_machine))),
    (
        "14 bad arguments",
        refused(
            ("ranks=0", lambda: run(faults.addresses, ranks=0)),
            ("cannot be sent to the ranks", over_an_open_file),
            ("backend='mpi'", lambda: run(faults.addresses, backend="mpi")),
            (
                "needs one GPU per rank",
                lambda: run(faults.addresses, ranks=torch.cuda.device_count() + 1, backend="nccl"),
            ),
            ("ranks=100000", lambda: run(faults.addresses, ranks=100_000)),
        ),
    ),
    ("16 nobody can connect", nobody_can_connect),
    (
        "20 a role fails",
        job([partial(faults.serves, "raises"), partial(faults.works, "raises")], "rank 0, serves: raised"),
    ),
    ("21 every attempt fails", job(faults.everyone_raises, "All 3 attempts failed.", restarts=2)),
    ("22 the second one succeeds", starts_again),
    *(
        []
        if TWO_HOSTS.missing()
        else [
            ("23 a link goes down", job(faults.loses_its_link, "The link of host 1 (rank 1)", on=TWO_HOSTS)),
            ("24 a host disappears", job(faults.loses_a_host, "Host 1 is gone", on=TWO_HOSTS)),
        ]
    ),
]


def spin() -> None:
    while True:
        pass


def leftovers() -> int:
    """Ranks and supervisors still there two seconds later (one supervisor waits for the next job)."""
    end = time.monotonic() + 2
    while True:
        servers = [
            p for p in psutil.Process().children() if "course_lib.ranks.server" in " ".join(p.cmdline())
        ]
        count = sum(len(server.children(recursive=True)) for server in servers) - 1
        if count == 0 or time.monotonic() > end:
            return count
        time.sleep(0.02)


def main() -> None:
    times = next((int(a) for a in sys.argv[1:] if a.isdigit()), 20)
    # a shell starts its background jobs without one
    signal.signal(signal.SIGINT, signal.default_int_handler)
    busy = (
        [
            multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
            for _ in range(psutil.cpu_count())
        ]
        if "--busy" in sys.argv
        else []
    )
    for process in busy:
        process.start()
    words = [word for word in sys.argv[1:] if not word.isdigit() and word != "--busy"] or [""]
    tempfile.tempdir = tempfile.mkdtemp()
    run(faults.addresses, ranks=2)
    print(
        f"{times} times each, {'every core busy' if busy else 'machine otherwise as it is'}; seconds: from"
        " the launch; in rows 9 and 10 from the signal; where a rank never arrives and in row 8 past the"
        f" timeout of {TIMEOUT_S} s"
    )
    print(
        f"{'fault':28} {'injected':>8} {'explained':>9} {'median s':>9} {'max s':>6} {'left over':>9} "
        f" {'next run, max s':>15}"
    )
    for name, trial in [(name, trial) for name, trial in FAULTS if any(word in name for word in words)]:
        rows, next_s = [], []
        for _ in range(times):
            explained, seconds, *left = trial()
            rows.append(
                (
                    explained,
                    seconds,
                    sum(left) + leftovers() + len(list(Path(tempfile.gettempdir()).glob("course_lib-*"))),
                )
            )
            begin = time.monotonic()
            run(faults.addresses, ranks=2)
            next_s.append(time.monotonic() - begin)
        seconds = [s for _, s, _ in rows]
        print(
            f"{name:28} {times:8} {sum(ok for ok, _, _ in rows):9} {statistics.median(seconds):9.2f}"
            f" {max(seconds):6.2f} {sum(left for _, _, left in rows):9}  {max(next_s):15.2f}",
            flush=True,
        )
    for process in busy:
        process.kill()


if __name__ == "__main__":
    main()
