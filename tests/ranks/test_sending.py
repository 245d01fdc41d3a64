"""What travels to the ranks and back: names, classes, modules, cached functions, dtypes; and what is said of
that which cannot.
"""

import functools
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import course_lib
from course_lib import RankError, RankWarning, run, sweep

# Names that torch has, too
classes, config, ops = ("plane", "car"), {"lr": 0.1}, {"add": 3}
aten = torch.ops.aten


@pytest.mark.parametrize(
    "fn, expected",
    [
        (lambda: classes[torch.tensor(1).item()], "car"),
        (lambda: config["lr"] * dist.get_world_size(), 0.1),
        (lambda: ops["add"] * torch.ones(1).item(), 3),
        (lambda: torch.backends.mps.is_available(), False),
        (lambda: torch.backends.cudnn.deterministic, False),
        (lambda: aten.add(torch.ones(1), 1).item(), 2),
        (lambda: course_lib.measure.__name__, "course_lib.measure"),
    ],
)
def test_modules_of_a_class_of_their_own(fn, expected):
    """torch.classes, torch.ops, torch.backends, torch.distributed.config, and course_lib itself: cloudpickle
    knows only plain modules.
    """
    assert run(fn, ranks=1).results == [expected]


class Negated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return -x

    @staticmethod
    # a wrapper of torch's, which uses torch._C._functions: nobody can import that
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return -grad


def slope() -> float:
    x = torch.ones(1, requires_grad=True)
    Negated.apply(x).backward()
    return x.grad.item()


def test_a_decorator_of_torch_brings_modules_that_cannot_be_imported():
    assert run(slope, ranks=1).results == [-1.0]


def test_random_numbers_differ_between_ranks_and_jobs_and_a_seed_holds():
    def numbers(seed=None):
        import random
        import uuid

        import numpy

        if seed is not None:
            torch.manual_seed(seed)
        # a loader's own seed comes from torch's
        order = [int(i) for i in torch.utils.data.RandomSampler(range(1000))][:5]
        return (
            torch.rand(1).item(),
            torch.nn.Linear(1, 1).weight.item(),
            str(order),
            random.random(),
            numpy.random.rand(),
            uuid.uuid1().int,
        )

    drawn = run(numbers, ranks=2).results + run(numbers, ranks=2).results
    assert all(len(set(column)) == 4 for column in zip(*drawn))
    one, two = run(numbers, 5, ranks=2).results
    assert one[:3] == two[:3]


# In the names of pytest's modules classes are importable; as a learner's are in `__main__`, they are in this
# program.
MAIN = """
import dataclasses, enum, functools, io, multiprocessing, pickle, sys, typing, torch, torch.distributed as dist
from course_lib import run
@dataclasses.dataclass
class Metrics:
    loss: float
class Net(torch.nn.Linear):
    pass
class Kind(enum.Enum):
    A = 1
class Scaler:
    def times(self): return FACTOR
class Given:
    @functools.cached_property
    def width(self): return FACTOR
FACTOR = 2
count = 0
UserId = typing.NewType("UserId", int)
@functools.cache
def table(n): return torch.arange(n)
@functools.lru_cache(maxsize=9)
def fib(n: UserId): return n if n < 2 else fib(n - 1) + fib(n - 2)
@functools.singledispatch
def size(x): return 1
@size.register
def of_list(x: list): return sum(map(size, x))
def double(x): return 2 * x
def gather():
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (Metrics(dist.get_rank()), Kind.A))
    return everyone
def broadcast():
    box = [Metrics(3.0) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box)
    return box[0]
def save():
    stream = io.BytesIO()
    torch.save(Net(2, 2), stream)
    return stream.getvalue()
def pool(way):
    with multiprocessing.get_context(way).Pool(1) as workers:
        return workers.map(double, [1, 2])
def given(kind): return type(pickle.loads(pickle.dumps(kind()))).__name__
def counts():
    global count
    count += 1
    return count, sys.modules["__main__"].count, __file__ == sys.modules["__main__"].__file__
def works(n): return (Scaler(), Kind.A)
if __name__ == "__main__":
    assert run(gather).results == [[(Metrics(0), Kind.A), (Metrics(1), Kind.A)]] * 2
    assert run(broadcast).results == [Metrics(3.0)] * 2
    assert isinstance(torch.load(io.BytesIO(run(save).results[0]), weights_only=False), Net)
    assert run(pool, "fork").results == run(pool, "spawn").results == [[2, 4]] * 2
    assert run(given, Given).results == ["Given"] * 2
    assert run(lambda: size([1, [2, 3]])).results == [3] * 2
    assert run(lambda: Given().width).results == [2] * 2
    assert run(counts).results == [(1, 1, True)] * 2
    assert run(lambda: (table(3).sum().item(), fib(30))).results == [(3, 832040)] * 2
    assert run(fib, 20).results == [6765] * 2
    scaler, kind = run(works, 1).results[0]
    FACTOR = 5
    assert type(scaler) is Scaler and kind is Kind.A and scaler.times() == Scaler().times() == 5         # the notebook's class is not replaced by the rank's
    print("all well")
"""  # noqa: E501


def test_what_a_cell_defines_can_be_pickled_by_name_in_a_rank(tmp_path):
    (tmp_path / "learner.py").write_text(MAIN)
    root = str(Path(course_lib.__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "learner.py")],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert done.stdout.strip().endswith("all well"), done.stdout + done.stderr


def test_a_local_class_of_a_result_is_not_replaced():
    factor = 2

    class Local:
        def times(self):
            return factor

    before = Local.times
    result = run(Local, ranks=1).results[0]
    assert type(result) is Local and Local.times is before


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64", "complex32"]
)
def test_dtypes_travel_both_ways(dtype):
    dtype = getattr(torch, dtype)
    for sent in (
        torch.ones(2, 3).t().to(dtype),
        torch.tensor(1).to(dtype),
        torch.nn.Parameter(torch.ones(2).to(dtype), requires_grad=False),
    ):
        back = run(lambda tensor: {"inside": [tensor]}, sent, ranks=1).results[0]["inside"][0]
        assert (
            back.dtype is dtype
            and type(back) is type(sent)
            and torch.equal(back.to(torch.complex64), sent.to(torch.complex64))
        )


class Trainer:
    def __init__(self):
        self.width, self.guard = 3, threading.Lock()

    def fit(self):
        return self.width


trainer, bad = Trainer(), {"model": [1, threading.Lock()]}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(1, 1)
        self.fc.rows = (n for n in range(3))


@functools.cache
def helper():
    return trainer


net = Net()


def uses_bad(x=1):
    return bad


@pytest.mark.parametrize(
    "fn, args, kwargs, name, kind",
    [
        (lambda: trainer.width, (), {}, "trainer.guard", "lock"),
        (lambda: bad, (), {}, "bad['model'][1]", "lock"),
        (lambda: net, (), {}, "net.fc.rows", "generator"),
        (trainer.fit, (), {}, "self.guard", "lock"),
        (len, (bad,), {}, "argument 1['model'][1]", "lock"),
        (lambda *, cfg: 0, (), {"cfg": bad}, "cfg['model'][1]", "lock"),
        (lambda: {trainer}, (), {}, "trainer.guard", "lock"),
        (len, ({threading.Lock()},), {}, "a member of argument 1", "lock"),
        (functools.partial(len, bad), (), {"label": "size"}, "an argument of size['model'][1]", "lock"),
    ],
)
def test_the_variable_that_cannot_be_sent_is_named(fn, args, kwargs, name, kind):
    with pytest.raises(TypeError) as caught:
        run(fn, *args, ranks=1, **kwargs)
    assert (
        f" cannot be sent to the ranks: {name} is a {kind}, which cannot be copied to another process ("
        in str(caught.value)
    )
    assert "\n" not in str(caught.value)


class Shy:
    def __reduce__(self):
        return _opens_at_home, (os.getpid(),)


def _opens_at_home(pid):
    if os.getpid() != pid:
        raise ValueError("not at home")


class Odd(list):
    """A learner's class that cannot even be looked at."""

    def __iter__(self):
        raise RuntimeError("don't look")

    def __reduce__(self):
        raise RuntimeError("don't copy")


def test_what_cannot_be_opened_in_a_rank_or_looked_at_is_told():
    with pytest.raises(
        RankError,
        match=(
            r"raised TypeError: The function, its arguments, .* cannot be opened in a rank \(ValueError: not"
            r" at home\)"
        ),
    ):
        run(len, Shy(), ranks=1)
    with pytest.raises(
        TypeError,
        match=r"argument 1\['odd'\] is a Odd, which cannot be copied to another process \(don't copy\)",
    ):
        run(len, {"odd": Odd()}, ranks=1)


def test_the_part_of_a_result_that_cannot_be_sent_is_named():
    with pytest.raises(
        RankError,
        match=(
            r"returned a dict that cannot be sent back to the notebook \(result\['rows'\]\[0\]: cannot pickle"
            r" 'generator'"
        ),
    ):
        run(lambda: {"rows": [(n for n in "x")]}, ranks=1)


def test_torchs_settings_stay_in_the_notebook_and_that_is_said():
    def sets_it():
        torch.set_default_dtype(torch.float64)

    torch.set_default_dtype(torch.float64)
    try:
        with pytest.warns(
            RankWarning,
            match=(
                r"torch.set_default_dtype\(torch.float64\) was called in the notebook, and did not reach the"
                r" ranks: .* torch.float32"
            ),
        ):
            assert run(lambda: torch.get_default_dtype(), ranks=1).results == [torch.float32]
        with pytest.warns(RankWarning, match="set_default_dtype"):
            sweep(len, "x", ranks=(1,), repeats=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(sets_it, ranks=1)
    finally:
        torch.set_default_dtype(torch.float32)
