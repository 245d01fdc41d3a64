"""Things that go wrong on ranks, each injected for real. Rank functions only: no pytest here."""

import ctypes
import os
import re
import signal
import sys
import time

import torch
import torch.distributed as dist

from course_lib import measure


def raises(rank: int = 1):
    dist.all_reduce(torch.ones(1))
    if dist.get_rank() == rank:
        values = [1, 2, 3]
        values[7] = 0
    dist.all_reduce(torch.ones(2, 3))


def everyone_raises():
    raise KeyError("all alike")


def exits(code: int = 3):
    if dist.get_rank() == 1:
        sys.exit(code)
    dist.barrier()


def vanishes(code: int = 0):
    if dist.get_rank() == 1:
        os._exit(code)
    dist.barrier()


def is_killed(number: int = signal.SIGKILL):
    dist.all_reduce(torch.ones(1))
    if dist.get_rank() == 1:
        os.kill(os.getpid(), number)
    dist.all_reduce(torch.ones(5))


def is_killed_while_large():
    if dist.get_rank() == 1:
        _ = torch.ones(100_000_000)
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def crashes():
    if dist.get_rank() == 1:
        ctypes.string_at(0)  # a real segmentation fault
    dist.barrier()


def leaves_early():
    dist.all_reduce(torch.ones(1))
    if dist.get_rank() == 1:
        return "done"
    dist.all_reduce(torch.ones(4))


def never_arrives():
    if dist.get_rank() == 1:
        time.sleep(100)
    dist.all_reduce(torch.ones(4))


def loses_its_link():
    """The cable of host 1 is pulled while 20 MB pass through it."""
    import threading

    from course_lib import hosts

    if dist.get_rank() == dist.get_world_size() - 1:
        threading.Timer(0.3, hosts.cut_link).start()
    dist.all_reduce(torch.ones(5_000_000))


def loses_a_host():
    """All ranks of host 1 are killed at once."""
    pids: list = [None] * dist.get_world_size()
    dist.all_gather_object(pids, os.getpid())
    if dist.get_rank() == len(pids) - 1:
        for pid in pids[len(pids) // 2 :]:
            os.kill(pid, signal.SIGKILL)
    dist.all_reduce(torch.ones(4))


def loses_a_host_once():
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        loses_a_host()
    dist.barrier()


def waits_for_a_message():
    x = torch.ones(3)
    dist.recv(x, (dist.get_rank() + 1) % dist.get_world_size())


def everyone_sends_first(numel: int = 1_000_000):
    x, rank, size = torch.ones(numel), dist.get_rank(), dist.get_world_size()
    dist.send(x, (rank + 1) % size)
    dist.recv(x, (rank - 1) % size)


def groups_in_another_order():
    """Each pair of three ranks is a group; each rank begins with another of its two."""
    rank, x = dist.get_rank(), torch.ones(5)
    pairs = [dist.new_group([0, 1]), dist.new_group([1, 2]), dist.new_group([2, 0])]
    for number in (rank, (rank - 1) % 3):
        dist.all_reduce(x, group=pairs[number])


def waits_for_one_that_left():
    if dist.get_rank() == 0:
        dist.irecv(torch.ones(3), 1).wait()


def slow_but_well(seconds: float):
    """No fault: all ranks wait for one that works in a thread, or in native code, and that comes in the
    end.
    """
    import threading

    x, rank = torch.ones(3), dist.get_rank()
    if rank == 0:
        later = threading.Timer(seconds, dist.send, (x, 1))
        later.start()
        dist.recv(torch.ones(3), 1)
    else:
        dist.recv(x, 0)
        dist.send(x, 0)


def naps_with_a_collective_under_way():
    if dist.get_rank() == 0:
        work = dist.all_reduce(torch.ones(4), async_op=True)
        time.sleep(100)
        work.wait()
    time.sleep(100)


def forgets_to_wait():
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(4), async_op=True)


def answers_late():
    """Each rank is asked where it is while rank 1 has not called all_reduce, and answers when all is over."""
    import threading

    from course_lib.ranks import where

    asked, look = threading.Event(), where.whereabouts

    def slowly():
        told = look()
        asked.set()
        time.sleep(1)
        return told

    where.whereabouts = slowly
    if dist.get_rank() == 1:
        asked.wait()
    dist.all_reduce(torch.ones(4))
    asked.wait()


def thread_raises():
    import threading

    if dist.get_rank() == 1:
        thread = threading.Thread(target=raise_boom)
        thread.start()
        thread.join()


def works_on(folder: str):
    """What a Python process still does after its last line: threads, executors, processes, exit handlers,
    temporary folders, files that are still open; some of it prints.
    """
    import atexit
    import multiprocessing
    import tempfile
    import threading
    from concurrent.futures import ThreadPoolExecutor

    global kept, log
    kept, log = tempfile.TemporaryDirectory(dir=folder), open(f"{folder}/log", "w")
    log.write("done")
    threading.Thread(target=writes_late, args=(f"{folder}/thread",)).start()
    ThreadPoolExecutor(1).submit(writes_late, f"{folder}/executor")
    multiprocessing.get_context("fork").Process(target=writes_late, args=(f"{folder}/process",)).start()
    atexit.register(writes_late, f"{folder}/atexit")
    return kept.name


def writes_late(path: str):
    time.sleep(0.3)
    with open(path, "w") as file:
        file.write("done")
    # one piece: what others print at the same time cannot come between
    print(f"done {os.path.basename(path)}\n", end="")


def never_ends():
    import threading

    threading.Thread(target=lambda: [time.sleep(0.1) for _ in range(10_000)]).start()
    return "returned"


def fails_at_the_end(how: str):
    import atexit
    import threading

    if dist.get_rank() == 1:
        {
            "thread": lambda: threading.Timer(0.2, raise_boom).start(),
            "abort": lambda: atexit.register(os.abort),
        }[how]()
    return "returned"


def groups_of_members_only():
    rank = dist.get_rank()
    group = dist.new_group([0, 1] if rank < 2 else [2, 3])
    dist.all_reduce(torch.ones(3), group=group)


def groups_with_other_lists():
    group = dist.new_group([0, 1, 2] if dist.get_rank() else [0, 1])
    dist.barrier(group=group)


def groups_of_each_ones_own():
    from torch.distributed.device_mesh import DeviceMesh

    rank = dist.get_rank()
    mesh = DeviceMesh("cpu", [rank // 2 * 2, rank // 2 * 2 + 1])  # a mesh needs all ranks, too
    dist.all_reduce(torch.ones(3), group=mesh.get_group())


def groups_as_they_should_be(told: str):
    """No fault. The ranks stay until there is a file `told`: until they were asked what they do."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh, x = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp")), torch.ones(1)
    pair = dist.get_rank() // 2 * 2
    groups = [
        mesh["dp"].get_group(),
        mesh["tp"].get_group(),
        dist.new_subgroups(2)[0],
        dist.new_group([pair, pair + 1], use_local_synchronization=True),
    ]
    for group in groups:
        dist.all_reduce(x, group=group)
    while not os.path.exists(told):
        time.sleep(0.05)
    return x.item()


def raise_boom():
    raise ValueError("boom")


def forks():
    """A copy of rank 1 goes on with the rank's code; it must not speak for the rank."""
    x = torch.ones(1)
    if dist.get_rank() == 1:
        child = os.fork()
        if child == 0:
            return "the copy"
        os.waitpid(child, 0)
    dist.all_reduce(x)
    return x.item()


def says_much(kind: str):
    if dist.get_rank() == 1:
        raise {
            "long": ValueError("x" * 2_000_000),
            "lines": ValueError("one\n\ntwo"),
            "mute": Mute(),
            "lock": Unsendable(),
        }[kind]
    dist.barrier()


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Unsendable(Exception):
    def __init__(self):
        import threading

        self.lock = threading.Lock()
        super().__init__("with a lock")


def asks(how: str):
    return input("name? ") if how == "input" else breakpoint()


def different_collectives():
    x = torch.ones(4)
    if dist.get_rank() == 0:
        dist.broadcast(x, 1)
        dist.broadcast(x, 0)
    else:
        dist.all_gather([torch.ones(4), torch.ones(4)], x)


def other_shape():
    dist.all_reduce(torch.ones(9 if dist.get_rank() == 0 else 7))


def other_dtype():
    dist.all_reduce(torch.ones(700, dtype=torch.float32 if dist.get_rank() == 0 else torch.float64))


def silent_dtype():
    """gloo takes a shorter message for a broadcast without a word."""
    dist.broadcast(torch.ones(700, dtype=torch.float32 if dist.get_rank() == 0 else torch.float64), 0)


def swapped():
    a, b = torch.zeros(4), torch.ones(4)
    if dist.get_rank() == 0:
        dist.all_reduce(a)
        dist.all_reduce(b)
    else:
        dist.all_reduce(b)
        dist.all_reduce(a)
    return a.sum().item()


def is_stopped():
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(4))


def holds_the_lock(told: str = ""):
    """Stuck in native code without letting other Python threads run; once there is a file `told`, if it is
    named.
    """
    if dist.get_rank() == 1:
        while told and not os.path.exists(told):
            time.sleep(0.05)
        re.match(r"(a+)+$", "a" * 60 + "b")  # years of backtracking
    dist.all_reduce(torch.ones(4))


def prints(megabytes: float):
    if dist.get_rank() == 0:
        print("first line")
        for number in range(int(megabytes * 1e6) // 100):
            print(f"{number:099d}")
        print("last line")


def hangs_and_tells(path: str):
    """Write this rank's process id, then wait for ever in a collective (rank 0: in a sleep)."""
    with open(os.path.join(path, f"pid{dist.get_rank()}"), "w") as file:
        file.write(str(os.getpid()))
    if dist.get_rank() == 0:
        time.sleep(1000)
    dist.all_reduce(torch.ones(1))


def starts_a_child(path: str):
    """A rank that has started a process of its own, and then fails."""
    import subprocess

    if dist.get_rank() == 0:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        with open(os.path.join(path, "child"), "w") as file:
            file.write(str(child.pid))
        raise ValueError("with a child")
    dist.barrier()


def addresses():
    """Addresses on which this rank listens, and its umask-free view of the private directory's mode."""
    import psutil

    dist.all_reduce(torch.ones(1))
    return sorted(
        {c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN}
    ), sorted({c.raddr.ip for c in psutil.Process().net_connections("inet") if c.raddr})


def uneven_with_join():
    """No fault: rank 1 has fewer inputs, and `join` answers for it."""
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
    with model.join():
        for _ in range(4 - 2 * dist.get_rank()):
            model(torch.ones(2, 3)).sum().backward()


def modes(folder: str) -> tuple[set, set, int]:
    """The modes of all jobs' directories, of the files in them, and the rank's own umask."""
    dist.barrier()
    from pathlib import Path

    directories, files = (
        {path.stat().st_mode & 0o777 for path in Path(folder).glob(which)}
        for which in ("course_lib-*", "course_lib-*/*")
    )
    dist.barrier()
    os.umask(umask := os.umask(0))
    return directories, files, umask


def hangs_with_everything(path: str):
    """Hang as `hangs_and_tells`, with a child in a session of its own and a block of named shared memory."""
    leaves_a_session(path)
    keeps_shared_memory()
    hangs_and_tells(path)


def leaves_a_session(path: str):
    """Start a process in a session of its own (setsid), whose parent ends at once, and tell its id."""
    import subprocess

    code = (
        "import os, sys, time\nif os.fork(): os._exit(0)\nos.setsid()\nopen(sys.argv[1],"
        " 'w').write(str(os.getpid()))\ntime.sleep(1000)"
    )
    told = os.path.join(path, f"session{dist.get_rank()}")
    subprocess.run([sys.executable, "-c", code, told], check=True)
    while not (os.path.exists(told) and os.path.getsize(told)):
        time.sleep(0.01)


def keeps_shared_memory() -> str:
    """Make a named block of shared memory, and leave it to Python's resource tracker to remove it."""
    from multiprocessing import shared_memory

    return shared_memory.SharedMemory(f"course_lib_{os.getpid()}", create=True, size=1000).name


def keeps_shared_tensors() -> str:
    """The same by torch's sharing strategy "file_system", whose manager is a process of its own."""
    import torch.multiprocessing

    torch.multiprocessing.set_sharing_strategy("file_system")
    global kept
    kept = torch.ones(1000).share_memory_()
    (name,) = (name for name in os.listdir("/dev/shm") if name.startswith(f"torch_{os.getpid()}_"))
    return name


def prints_for_ever():
    if dist.get_rank() == 1:
        while True:
            print("x" * 1000)
    dist.barrier()


def prints_after_return(how: str):
    """Rank 1 returns, and a thread of it, or what it has registered to run at exit, prints for ever."""
    import atexit
    import threading

    if dist.get_rank() == 1:

        def print_on():
            while True:
                print("x" * 1000)

        threading.Thread(target=print_on).start() if how == "thread" else atexit.register(print_on)
    return "returned"


def starts_a_session_and_fails(path: str):
    if dist.get_rank() == 0:
        leaves_a_session(path)
        raise ValueError("with a child in a session of its own")
    dist.barrier()


def kills_its_supervisor():
    if dist.get_rank() == 1:
        os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(1000)


def starts_threads():
    import threading

    for _ in range(60):
        threading.Thread(target=time.sleep, args=(2,)).start()


def reads_its_directory(folder: str) -> dict:
    """Whether the environment came, and whether it stands in any file of the job's directory."""
    from pathlib import Path

    (directory,) = Path(folder).glob("course_lib-job-*")
    contents = {path.name: path.read_bytes() for path in directory.iterdir()}
    return {
        "secret": os.environ["NEW_SECRET"],
        "old": os.environ.get("OLD_NAME"),
        "files": sorted(contents),
        "told": b"not for others" in b"".join(contents.values()),
    }


def fills_the_folder():
    """Print until there is no room for it."""
    line = "x" * 100_000
    while True:
        print(line)


def saves(root, step, killed=False):
    """Save a checkpoint as "ZeRO stage 1" is solved; rank 1 may be killed before its file is there."""
    from answers_zero_stage_1 import save

    if killed and dist.get_rank() == 1:
        torch.save = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
    save(root, step, {"params": torch.full((2,), float(step))}, 4)


def loads(root):
    from answers_zero_stage_1 import load

    step, shard = load(root, 4)
    return step, shard["params"].tolist()


def serves(fails: str):
    """Rank 0 of a job with roles: it sums up what the others send, and then raises, or waits for more."""
    x = torch.ones(3)
    for peer in range(1, dist.get_world_size()):
        dist.recv(x, peer)
    if fails == "raises":
        raise ValueError("no more")
    dist.recv(x, 1)


def works(fails: str):
    """The other ranks: they send, and then wait for an answer, or are done."""
    dist.send(torch.ones(3), 0)
    if fails == "raises":
        dist.recv(torch.ones(3), 0)


def trains(folder: str, failures: int = 0, how: str = "raises"):
    """Six steps that add up ones, saved after each second one. In its sixth step rank 1 fails, in as many
    attempts as there are `failures`, so that four steps are saved then, and five done.
    """
    attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), dist.get_rank()
    saved = os.path.join(folder, "saved.pt")
    begin, total = torch.load(saved) if os.path.exists(saved) else (0, 0.0)
    print(f"attempt {attempt} from step {begin} on {dist.get_world_size()}")
    for number in range(begin, 6):
        with measure.step(number=number):
            dist.barrier()  # whoever comes here has told of the step before
            if number == 5 and attempt < failures and rank == 1:
                if how == "leaves":
                    return None
                fails_by(how)
            x = torch.ones(1)
            dist.all_reduce(x)
            total += x.item()
        if number % 2 and rank == 0:
            torch.save((number + 1, total), saved + ".new")
            os.replace(saved + ".new", saved)
    return total, attempt, int(os.environ["TORCHELASTIC_MAX_RESTARTS"])


def fails_by(how: str):
    if how == "raises":
        raise ValueError("boom")
    if how == "exits":
        os._exit(3)
    if how == "sleeps":
        time.sleep(100)
    os.kill(
        os.getpid(), {"killed": signal.SIGKILL, "terminated": signal.SIGTERM, "crashes": signal.SIGSEGV}[how]
    )
    time.sleep(100)


def leaves_a_session_and_looks(path: str) -> bool:
    """The first attempt leaves a process in a session of its own, and fails; the second tells whether it is
    still there, and what stands in the job's directory.
    """
    import psutil

    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        leaves_a_session(path)
        print("before")
        dist.barrier()  # who fails first ends the others
        raise ValueError("with a child in a session of its own")
    with open(os.path.join(path, f"session{dist.get_rank()}")) as file:
        return psutil.pid_exists(int(file.read()))


def hangs_in_the_second_attempt(path: str):
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        raise ValueError("boom")
    hangs_and_tells(path)


def kills_its_supervisor_once():
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        kills_its_supervisor()


def variables_of_torchrun() -> list[str]:
    return [os.environ[f"TORCHELASTIC_{name}"] for name in ("RESTART_COUNT", "MAX_RESTARTS")]


def fails_once():
    if dist.get_rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        fails_by("raises")
    dist.barrier()


def leads(fault: str, **options):
    """The first role of two, in which any fault of this file may happen."""
    return globals()[fault](**options)


def follows(fault: str, **options):
    """The second one."""
    return globals()[fault](**options)


def again(fault: str, **options):
    """The first attempt fails; in the second one a fault of this file happens."""
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        raise ValueError("boom")
    return globals()[fault](**options)
