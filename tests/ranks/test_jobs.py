"""run and sweep: what comes back, what is refused, and in which words."""

import dataclasses
import functools
import inspect
import io
import math
import sys
import threading
import warnings

import psutil
import pytest
import torch
import workers

import course_lib
from course_lib import Job, RankError, run, sweep
from course_lib.jobs import run_quietly
from course_lib.ranks import devices, one_job, progress, threads
from course_lib.ranks.options import Options

FACTOR = 7


class Scaler:
    """A class of this module, as a learner's class of another cell."""

    def __call__(self, x):
        return FACTOR * x


def test_results_and_output_in_rank_order():
    def speak(word, times=1):
        import torch.distributed as dist

        print(word * times, dist.get_rank())
        return dist.get_rank() ** 2, dist.get_world_size()

    job = run(speak, "ab", ranks=3, times=2, label="speaking")
    assert job.results == [(0, 3), (1, 3), (4, 3)]
    assert job.output == ["abab 0\n", "abab 1\n", "abab 2\n"]
    assert (job.label, job.ranks, job.backend, job.device) == (
        "speaking",
        3,
        "gloo",
        "cpu",
    ) or torch.cuda.is_available()
    assert (
        "speaking" in repr(job) and "3 ranks, gloo on CPU" in job._repr_html_() or torch.cuda.is_available()
    )


def test_functions_without_a_file_and_what_they_use():
    scaler = Scaler()
    assert run(lambda x: scaler(x), 3, ranks=2).results == [21, 21]


def test_tensors_and_own_classes_come_back():
    class Point:
        def __init__(self, x):
            self.x = x

    job = run(lambda: (torch.arange(3), Point(5)), ranks=2)
    assert (
        torch.equal(job.results[1][0], torch.arange(3))
        and isinstance(job.results[1][1], Point)
        and job.results[1][1].x == 5
    )


def test_large_results_come_back():
    assert run(lambda: torch.ones(5_000_000), ranks=2).results[1].sum() == 5_000_000


def test_a_rank_sees_the_notebooks_environment(monkeypatch, tmp_path):
    import os

    monkeypatch.setenv("COLOUR", "blue")
    monkeypatch.chdir(tmp_path)
    look = lambda: (
        os.environ["COLOUR"],
        os.environ["RANK"],
        os.environ["WORLD_SIZE"],
        os.getcwd(),
    )  # noqa: E731
    assert run(look, ranks=2).results == [("blue", str(rank), "2", str(tmp_path)) for rank in range(2)]


def test_a_list_has_a_function_for_each_rank_and_all_get_the_same_arguments(tmp_path):
    def serve(x, times=1):
        print("served", x)
        return "server", x * times

    def work(x, times=1):
        import torch.distributed as dist

        return "worker", x + dist.get_rank() * times

    job = run([serve, work, work], 5, times=10)
    assert job.results == [("server", 50), ("worker", 15), ("worker", 25)]
    assert (job.label, job.ranks, job.roles) == ("serve and work", 3, ["serve", "work", "work"])
    lines = repr(job).splitlines()
    assert "  rank 0, serve: ('server', 50)" in lines and "  rank 2, work: ('worker', 25)" in lines
    assert lines[-1] == "  rank 0 (serve) printed 1 line (job.output[0]): served 5"
    assert "rank 0 (serve) printed 1 line</summary>" in job._repr_html_()
    job.save(tmp_path / "job.json")
    assert Job.load(tmp_path / "job.json").roles == job.roles
    one = run((work,), 5, label="mine")
    assert (one.label, one.roles, one.ranks) == ("mine", ["work"], 1)


@pytest.mark.parametrize(
    "functions, options, words",
    [
        ([len, len], dict(ranks=3), "ranks=3: the list has 2 functions, one for each rank. Leave ranks out."),
        ([], {}, "run got an empty list: it needs a function for each rank"),
        (
            [len, 3],
            {},
            "run needs a function for each rank, and got int for rank 1: run([serve, work, work])",
        ),
        ([len] * 1_000, {}, "ranks=1000: this library starts at most"),
        ([len, lambda: 1], {}, "<lambda> cannot be called with these arguments: too many positional"),
        ([len, workers.sleeper], dict(ranks=2.0), "ranks=2.0"),
    ],
)
def test_row_14_bad_lists_of_functions(functions, options, words):
    with pytest.raises((TypeError, ValueError)) as caught:
        run(functions, "x", **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_row_14_a_role_that_cannot_be_sent_is_named():
    lock = threading.Lock()

    def holds():
        return lock

    with pytest.raises(TypeError, match="holds and nothing cannot be sent to the ranks: lock is a lock"):
        run([holds, workers.nothing])


def test_threads_and_random_numbers():
    def look():
        import random

        return torch.get_num_threads(), random.random()

    one, two = run(look, ranks=2).results
    assert one[0] == two[0] == 1 and one[1] != two[1]
    assert run(look, ranks=1, threads=2).results[0][0] == 2


def test_random_numbers_of_a_gpu_differ_too():
    """Each rank's seed waits until the rank opens CUDA, and opens nothing itself."""

    def look():
        # what a rank with a GPU does, and what opening the GPU would do
        if not torch.cuda.is_available():
            from course_lib.ranks import worker

            worker._seed("cuda:0")
            assert not torch.cuda.is_initialized()
            torch.cuda.random.device_count, torch.cuda.default_generators = lambda: 1, [torch.Generator()]
            for call, _ in filter(None, torch.cuda._lazy_seed_tracker.get_calls()):
                call()
        else:
            torch.cuda.init()
        return torch.cuda.default_generators[0].initial_seed()

    one, two = run(look, ranks=2).results
    assert one != two


def test_sweep_interleaves_and_keeps_everything():
    result = sweep(workers.ddp, ranks=(1, 2), repeats=2, steps=4, label="mine")
    assert [job.ranks for job in result.jobs] == [1, 2, 1, 2] and all(
        job.label == "mine" for job in result.jobs
    )
    table = result.table
    assert list(table["repeat"]) == [0, 0, 1, 1]
    assert (table.loc[table["ranks"] == 1, "speedup"] == 1).all()
    second = table[(table["ranks"] == 2) & (table["repeat"] == 1)].iloc[0]
    first = table[(table["ranks"] == 1) & (table["repeat"] == 1)].iloc[0]
    assert math.isclose(second["speedup"], second["samples_per_s"] / first["samples_per_s"])
    assert math.isclose(second["efficiency"], second["speedup"] / 2)
    assert "medians" in repr(result)


def test_jobs_from_several_threads():
    results, threads = {}, []
    for number in range(4):
        threads.append(
            threading.Thread(target=lambda n=number: results.update({n: run(lambda: n, ranks=2).results}))
        )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [n, n] for n in range(4)}


def test_nothing_heavy_is_imported_by_a_rank():
    loaded = run(
        lambda: __import__("sys").modules.keys() & {"pandas", "matplotlib", "IPython"}, ranks=1
    ).results[0]
    assert not loaded


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (dict(ranks=0), ValueError, "ranks=0: it must be a whole number of at least 1."),
        (dict(ranks=-1), ValueError, "ranks=-1"),
        (dict(ranks=2.0), ValueError, "ranks=2.0"),
        (dict(ranks=True), ValueError, "ranks=True"),
        (dict(ranks="2"), ValueError, "ranks='2'"),
        (dict(ranks=100_000), ValueError, "ranks=100000"),
        (dict(ranks=(1, 2)), ValueError, "use sweep"),
        (dict(backend="mpi"), ValueError, "backend='mpi': it must be one of 'auto', 'gloo', 'nccl'."),
        (dict(backend=None), ValueError, "backend=None"),
        (dict(timeout=0), ValueError, "timeout=0"),
        (dict(timeout=float("nan")), ValueError, "timeout=nan"),
        (dict(timeout="5"), ValueError, "timeout='5'"),
        (dict(timeout=float("inf")), ValueError, "timeout=inf"),
        (dict(threads=0), ValueError, "threads=0"),
        (dict(label=3), TypeError, "label=3"),
    ],
)
def test_row_14_bad_arguments_of_run(arguments, error, words):
    with pytest.raises(error, match=words.replace("(", r"\(")) as caught:
        run(workers.nothing, **arguments)
    assert "\n" not in str(caught.value)


def test_the_options_of_run_are_those_that_are_checked():
    parameters = inspect.signature(run).parameters
    own = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    checked = inspect.signature(Options.checked).parameters
    assert own == {name: p.default for name, p in checked.items() if name != "fn"}
    assert list(own) == [field.name for field in dataclasses.fields(Options)]
    assert Options.checked(workers.nothing).ranks == 2 and Options.checked([len] * 3).ranks == 3
    assert Options.checked(workers.nothing, ranks=3) == Options(3, "auto", None, 1, "nothing")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_row_14_nccl_without_gpus():
    with pytest.raises(
        ValueError, match="backend='nccl' needs one GPU per rank, and there are no GPUs for 2 ranks"
    ):
        run(workers.nothing, backend="nccl")


def test_row_14_things_that_cannot_be_sent(tmp_path):
    with pytest.raises(TypeError, match="run needs a function.*got NoneType"):
        run(None)
    with open(tmp_path / "file", "w") as file, pytest.raises(TypeError, match="cannot be sent to the ranks"):
        run(lambda: file.write("x"))
    with pytest.raises(course_lib.RankError, match="returned a generator that cannot be sent back"):
        run(lambda: (n for n in range(3)))
    with pytest.raises(TypeError, match="cannot be sent to the ranks"):
        run(workers.sleeper, threading.Lock())
    with pytest.raises(
        TypeError, match="What rank 0 returned cannot be opened in the notebook .*Return numbers, text"
    ):
        run(lambda: torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2)))


def test_row_14_arguments_that_the_function_does_not_take():
    def mine(ranks, x=1):
        return ranks + x

    with pytest.raises(
        TypeError,
        match=(
            r"mine cannot be called with these arguments: missing a required argument: 'ranks'.*run takes"
            r" ranks for itself"
        ),
    ) as caught:
        run(mine, ranks=2)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        TypeError, match="mine cannot be called with these arguments: too many positional arguments"
    ):
        sweep(mine, 1, 2, 3)

    @functools.wraps(mine)
    def half():  # says that it is `mine`, and takes no argument
        return mine(1)

    assert (
        run(half, ranks=1).results == [2]
        and run(functools.partial(mine, 5), ranks=1).results == [6]
        and run(print, 3, ranks=1).output == ["3\n"]
    )


def test_a_rank_cannot_start_ranks():
    with pytest.raises(course_lib.RankError, match="ranks cannot start ranks"):
        run(lambda: __import__("course_lib").run(print))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(ranks=()), "at least one number"),
        (dict(ranks=(1, 0)), "ranks=0"),
        (dict(ranks=(1, None)), "ranks=None"),
        (dict(ranks=3), "ranks=3"),
        (dict(repeats=0), "repeats=0"),
        (dict(repeats=1.5), "repeats=1.5"),
        (dict(ranks="12"), "ranks='12'"),
        (dict(backend="x"), "backend='x'"),
    ],
)
def test_row_14_bad_arguments_of_sweep(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words.replace("(", r"\(")):
        sweep(workers.nothing, **arguments)


def test_row_14_sweep_takes_no_list_of_functions():
    with pytest.raises(
        TypeError, match="sweep compares numbers of ranks, and a list of functions, one for each"
    ):
        sweep([workers.nothing, workers.nothing])


def test_placement_of_ranks(monkeypatch):
    """auto: one GPU per rank over NCCL; fewer GPUs are shared over gloo; none means the CPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "gpu_name", lambda visible: "Some GPU")
    for gpus, ranks, backend, expected in [
        (0, 2, "auto", ("gloo", ("cpu", "cpu"))),
        (2, 2, "auto", ("nccl", ("cuda:0", "cuda:1"))),
        (1, 3, "auto", ("gloo", ("cuda:0",) * 3)),
        (2, 3, "gloo", ("gloo", ("cuda:0", "cuda:1", "cuda:0"))),
    ]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        placement = devices.place(ranks, backend)
        assert (placement.backend, placement.devices) == expected
    assert placement.hardware == "2 Some GPU, shared by 3 ranks"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.place(2, "auto").devices == ("cpu", "cpu")


class _Driver:
    """Stands in for NVIDIA's library: two GPUs, by number or by name."""

    def __init__(self):
        import ctypes

        self.nvmlInit_v2 = self.nvmlShutdown = lambda: 0

        def find(what, handle):
            handle._obj.value = {0: 1, 1: 2, b"GPU-7": 2}.get(what, 0)
            return 0 if handle._obj.value else 6

        def tell(handle, buffer, size):
            ctypes.memmove(buffer, [b"", b"First GPU\0", b"Other GPU\0"][handle.value], 10)
            return 0

        self.nvmlDeviceGetHandleByIndex_v2, self.nvmlDeviceGetHandleByUUID, self.nvmlDeviceGetName = (
            find,
            find,
            tell,
        )


def test_the_notebook_does_not_open_cuda(monkeypatch):
    """Neither to place ranks nor for its first cell: a GPU is named by the driver, or not at all."""

    def opened(*args):
        raise AssertionError("CUDA was initialised in the notebook's process")

    for name in ("_lazy_init", "init", "get_device_name", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, opened)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: _Driver())
    for visible, named in (
        (None, "2 First GPU"),
        ("1,0", "2 Other GPU"),
        ("GPU-7,GPU-9", "2 Other GPU"),
        ("GPU-5", "2 GPU"),
    ):
        devices.gpu_name.cache_clear()
        (
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
            if visible
            else monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        )
        assert devices.place(2, "auto").hardware == named
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: object())  # a driver of another kind
    devices.gpu_name.cache_clear()
    assert devices.place(4, "auto").hardware == "2 GPU, shared by 4 ranks"
    devices.gpu_name.cache_clear()


ELSEWHERE = """
import importlib.util, os, shutil, sys
beside, away = sys.argv[1], sys.argv[2]
sys.path.append(""); os.chdir(beside)      # IPython, too, puts it after the standard library
import helper
from course_lib import run
os.chdir(away)
sys.path.insert(0, os.path.join(beside, "inner")); import inner_helper, package_of_mine.part; sys.path.pop(0)
spec = importlib.util.spec_from_file_location("loaded", os.path.join(beside, "lo.py")); loaded = importlib.util.module_from_spec(spec)
sys.modules["loaded"] = loaded; spec.loader.exec_module(loaded)
def answers():
    import colorsys
    return helper.answer(), inner_helper.answer(), package_of_mine.part.answer(), loaded.answer(), hasattr(colorsys, "answer")
print(*run(answers, ranks=1).results)
shutil.rmtree(away)
try: run(len, "x")
except FileNotFoundError as error: print(error)
"""  # noqa: E501


def test_a_rank_imports_what_the_notebook_has_imported(tmp_path):
    """From the same file: after %cd, from a folder that is not on the path any more, loaded by hand. And a
    file beside the notebook hides nothing of Python's.
    """
    import subprocess
    import sys

    away = tmp_path / "away"
    for number, name in enumerate(
        (
            "helper.py",
            "inner/inner_helper.py",
            "inner/package_of_mine/__init__.py",
            "inner/package_of_mine/part.py",
            "lo.py",
            "random.py",
            "colorsys.py",
            "away/helper.py",
        )
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"def answer(): return {number}\n")
    done = subprocess.run(
        [sys.executable, "-P", "-c", ELSEWHERE, str(tmp_path), str(away)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "(0, 1, 3, 4, False)" in done.stdout, done.stdout + done.stderr
    assert (
        "len cannot start, because the notebook's working directory has been deleted. Change to one that"
        " exists (%cd)." in done.stdout
    )


def test_the_fork_server_starts_beside_files_with_names_of_pythons(tmp_path):
    """Started where the notebook is: a random.py there is not the random that torch imports."""
    import subprocess
    import sys

    for name in ("random.py", "queue.py", "token.py"):
        (tmp_path / name).write_text("raise ImportError('a file of the learner')\n")
    code = "from course_lib import run\nprint(run(len, 'four', ranks=1).results)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.stdout == "[4]\n", done.stdout + done.stderr


def test_a_soak_leaves_nothing_behind():
    """Jobs that succeed and fail in turn: the memory, descriptors and processes of kernel and server do not
    grow (tests/bench runs 300).
    """
    import faults

    def once(number):
        fn = (workers.nothing, faults.raises, faults.is_killed, workers.nothing)[number % 4]
        try:
            run(fn, ranks=2)
        except course_lib.RankError:
            pass

    for number in range(8):
        once(number)
    process = psutil.Process()
    before = process.num_fds(), process.num_threads()
    for number in range(16):
        once(number)
    assert (process.num_fds(), process.num_threads()) == before


def test_saved_and_loaded(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        job = run(workers.ddp, ranks=2)
    job.save(tmp_path / "job.json")
    again = Job.load(tmp_path / "job.json")
    assert again.where == job.where and again.comm.equals(job.comm) and again.memory.equals(job.memory)


@pytest.mark.parametrize("stays, last", [(True, "\rwork on 2 ranks\x1b[K\n"), (False, "\r\x1b[K")])
def test_in_a_terminal_a_line_rewrites_itself_and_stays_or_goes(monkeypatch, stays, last):
    written = io.StringIO()
    written.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    monkeypatch.setattr(progress, "QUIET_OF_A_CHECK_S", 0.0)
    with progress.Progress("work on 2 ranks", stays) as shown:
        shown.update("starting")
    assert shown.drawn and written.getvalue() == "\rwork on 2 ranks: starting\x1b[K" + last


@pytest.mark.parametrize(
    ("computed", "waited", "late"),
    [(0.1, 3.0, False), (0.1, 0.1, True), (2.0, 3.0, True), (0.1, 1e6, True)],
    ids=["waits for cores", "sleeps", "computes", "longer than patience"],
)
def test_on_a_busy_machine_the_time_that_ranks_wait_for_a_core_does_not_count(
    computed, waited, late, monkeypatch
):
    """In a check, and where a learner has said no timeout."""
    monkeypatch.setattr(threads, "computed_and_waited", lambda pid: (computed, waited))
    monkeypatch.setattr(one_job, "TIMEOUT_S", 0.5)
    naps = functools.partial(workers.sleeper, 100.0 if waited == 1e6 else 2.0)
    if not late:
        run_quietly(naps, ranks=1, timeout=0.5)
        run(naps, ranks=1)
    else:
        told = "had not finished after timeout=0.5 s" if waited < 1e6 else "machine is too busy for it"
        with pytest.raises(RuntimeError, match=told) as raised:
            run_quietly(naps, ranks=1, timeout=0.5)
        assert isinstance(raised.value, RankError) == (waited < 1e6)  # else it says nothing of the function
        with pytest.raises(RankError, match="had not finished after timeout=0.5 s"):
            run(naps, ranks=1)
    with pytest.raises(RankError, match="had not finished after timeout=0.5 s"):
        run(naps, ranks=1, timeout=0.5)  # a learner's own timeout is what it says
