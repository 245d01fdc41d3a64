"""What the ranks of the instruments' tests run: correct training of every kind, and instruments that break.
It stands apart because a rank that is asked for a function loads the module around it: the tests' own would
bring pandas and pytest into each.
"""

import contextlib
import copy
import functools
import os
import tempfile
from unittest import mock

import torch
import workers
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from course_lib import measure

ROWS, WIDTH = 64, 32


# Correct training, of every kind


def plain(layer, optimizer, x):
    layer(x).square().sum().backward()
    optimizer.step()


def per_sample_gradients(layer, optimizer, x):
    one = grad(lambda params, row: functional_call(layer, params, (row[None],)).square().sum())
    params = dict(layer.named_parameters())
    each = vmap(one, in_dims=(None, 0))({name: p.detach() for name, p in params.items()}, x)
    for name, p in params.items():
        p.grad = each[name].mean(0)
    optimizer.step()


def jacobian(layer, optimizer, x):
    torch.func.jacrev(layer)(x[0])
    torch.autograd.functional.jacobian(layer, x[0], vectorize=True)
    plain(layer, optimizer, x)


def without_hooks(layer, optimizer, x):
    with torch.autograd.graph.disable_saved_tensors_hooks("none are wanted here"):
        plain(layer, optimizer, x)


def csr(layer, optimizer, x):
    (torch.eye(len(x)).to_sparse_csr() @ layer(x)).square().sum().backward()
    optimizer.step()


def csc(layer, optimizer, x):
    (torch.eye(len(x)).to_sparse_csc() @ layer(x)).square().sum().backward()
    optimizer.step()


def mkldnn(layer, optimizer, x):
    torch.relu(layer(x).to_mkldnn()).to_dense().square().sum().backward()
    optimizer.step()


def nested(layer, optimizer, x):
    rows = torch.nested.nested_tensor([x[:3], x[3:]], layout=torch.jagged)
    layer(rows).values().square().sum().backward()
    optimizer.step()


def fake_quantized(layer, optimizer, x):
    torch.fake_quantize_per_tensor_affine(layer(x), 0.1, 0, -128, 127).square().sum().backward()
    optimizer.step()


def gradient_penalty(layer, optimizer, x):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    optimizer.step()


def compiled(layer, optimizer, x):
    torch.compile(layer, backend="aot_eager")(x).square().sum().backward()
    optimizer.step()


def compiled_optimizer(layer, optimizer, x):
    layer(x).square().sum().backward()
    torch.compile(optimizer.step, backend="eager")()


def own_hooks(layer, optimizer, x):
    with saved_tensors_hooks(lambda tensor: tensor.double(), lambda kept: kept.float()):
        plain(layer, optimizer, x)


def hooks_that_hide(layer, optimizer, x):
    with saved_tensors_hooks(lambda tensor: functools.partial(torch.clone, tensor), lambda kept: kept()):
        plain(layer, optimizer, x)


def a_copied_optimizer(layer, optimizer, x):
    layer(x).square().sum().backward()
    before = layer.weight.detach().clone()
    twin = copy.deepcopy(optimizer)
    twin.step()
    assert torch.equal(before, layer.weight), "a copy updates its own parameters"
    optimizer.step()


def own_profiler(layer, optimizer, x):
    with torch.profiler.profile():
        plain(layer, optimizer, x)


def patched_backward(layer, optimizer, x):
    backward = torch.autograd.backward
    with mock.patch("torch.autograd.backward", lambda *args, **kwargs: backward(*args, **kwargs)):
        plain(layer, optimizer, x)


class Slots:
    """An optimizer on which nothing can be put."""

    __slots__ = ("param_groups",)

    def __init__(self, params):
        self.param_groups = [{"params": list(params)}]

    def step(self):
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                if p.grad is not None:  # a copied parameter has none
                    p -= 0.1 * p.grad


class Plain(Slots):
    """One of the learner's own, without torch's class."""


class Sealed(type):
    def __setattr__(cls, name, value):
        raise TypeError("this class is sealed")


class SealedSlots(Slots, metaclass=Sealed):
    __slots__ = ()


class Delegating:
    """An optimizer that has its step from another."""

    def __init__(self, params):
        self.inner = torch.optim.SGD(params, 0.1)

    def __getattr__(self, name):
        return getattr(self.inner, name)


class LBFGS(torch.optim.LBFGS):
    def __init__(self, params):
        super().__init__(params, 0.1, max_iter=3)


def with_closure(layer, optimizer, x):
    def closure():
        optimizer.zero_grad()
        loss = layer(x).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def train(step, make_optimizer, measured: bool, steps: int = 3):
    torch.manual_seed(0)
    layer, x = nn.Linear(WIDTH, WIDTH), torch.randn(ROWS, WIDTH)
    optimizer = make_optimizer(layer.parameters())
    for _ in range(steps):
        with measure.step(layer, optimizer) if measured else contextlib.nullcontext():
            step(layer, optimizer, x)
            layer.zero_grad()
    return torch.cat([p.detach().flatten() for p in layer.parameters()]), workers.attached()


def twice(step, make_optimizer):
    (bare, _), (measured, left) = train(step, make_optimizer, False), train(step, make_optimizer, True)
    return torch.equal(bare, measured), left


def around(what: str):
    """Something of the learner's that is entered before a step and left after it."""

    def measured_inside():
        layer, x = nn.Linear(WIDTH, WIDTH), torch.randn(ROWS, WIDTH)
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        packed = []

        def pack(tensor):
            packed.append(1)
            return tensor

        with {
            "profiler": torch.profiler.profile,
            "hooks": lambda: saved_tensors_hooks(pack, lambda kept: kept),
        }[what]() as outside:
            for _ in range(3):
                with measure.step(layer, optimizer):
                    plain(layer, optimizer, x)
        names = {event.name for event in outside.events()} if what == "profiler" else set()
        return len(packed), "aten::addmm" in names, workers.attached()

    return measured_inside


def entered_inside_left_outside():
    """Hooks entered within the traced step, and left after it."""
    layer, hooks, packed = nn.Linear(WIDTH, WIDTH), [], []
    for step in range(3):
        with measure.step(layer):
            if step == 1:
                hooks.append(
                    saved_tensors_hooks(lambda tensor: packed.append(1) or tensor, lambda kept: kept)
                )
                hooks[0].__enter__()
            layer(torch.ones(2, WIDTH)).sum().backward()
    hooks[0].__exit__()
    return len(packed), workers.attached()


# What is saved for backward: who holds it


def segments(way: str, width: int = 256, rows: int = 512):
    """Four segments of four layers, each a Linear and a Tanh."""
    torch.manual_seed(0)
    net = nn.ModuleList(
        nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(width, width), nn.Tanh())]) for _ in range(4)
    )
    optimizer, x, folder = (
        torch.optim.SGD(net.parameters(), 0.01),
        torch.randn(rows, width, requires_grad=True),
        tempfile.mkdtemp(),
    )

    def to_disk(tensor):
        name = os.path.join(folder, f"{len(os.listdir(folder))}.pt")
        torch.save(tensor.detach(), name)
        return name

    hooks = {
        "save_on_cpu": save_on_cpu,
        "half": lambda: saved_tensors_hooks(lambda t: t.half(), lambda kept: kept.float()),
        "numpy": lambda: saved_tensors_hooks(
            lambda t: {"array": t.detach().numpy().copy()}, lambda kept: torch.from_numpy(kept["array"])
        ),
        "disk": lambda: saved_tensors_hooks(to_disk, torch.load),
    }
    forward = {
        "reentrant": lambda s, y: checkpoint(s, y, use_reentrant=True),
        "not reentrant": lambda s, y: checkpoint(s, y, use_reentrant=False),
        "without early stop": lambda s, y: checkpoint(s, y, use_reentrant=False, early_stop=False),
    }.get(way, lambda s, y: s(y))
    for _ in range(2):
        with measure.step(net, optimizer):
            with hooks.get(way, contextlib.nullcontext)():
                y = x
                for segment in net:
                    y = forward(segment, y)
            y.sum().backward()
            optimizer.step()
            optimizer.zero_grad()


# An instrument that fails while a step begins


def third(function):
    """Raises in its third call."""
    calls = []

    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("broken\nin two lines")
        return function(*args, **kwargs)

    return call


def broken(*args, **kwargs):
    raise RuntimeError("broken\nin two lines")


def with_a_broken_instrument(target: str, replacement):
    layer, x = nn.Linear(WIDTH, WIDTH), torch.ones(ROWS, WIDTH)
    layer = nn.parallel.DistributedDataParallel(layer)
    optimizer, seen = torch.optim.SGD(layer.parameters(), 0.1), []
    patch = mock.patch(target, replacement)
    patch.start()  # for the rest of this rank's life
    for _ in range(3):
        with measure.step(layer, optimizer):
            plain(layer, optimizer, x)
        seen.append(workers.attached(optimizer))
    return seen


def interrupted_at(target: str):
    """An interrupt while the traced step begins; then training goes on."""
    layer, x = nn.Linear(WIDTH, WIDTH), torch.ones(ROWS, WIDTH)
    optimizer, told = torch.optim.SGD(layer.parameters(), 0.1), []
    for step in range(4):
        breaks = mock.patch(target, side_effect=KeyboardInterrupt) if step == 1 else contextlib.nullcontext()
        try:
            with breaks, measure.step(layer, optimizer):
                plain(layer, optimizer, x)
        except KeyboardInterrupt:
            told.append((step, workers.attached(optimizer)))
    return told


# Leaving a step


def left_early(way: str):
    layer, x = nn.Linear(WIDTH, WIDTH), torch.ones(ROWS, WIDTH)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)

    def one_step():
        for _ in range(2):
            with measure.step(layer, optimizer):
                plain(layer, optimizer, x)
                if way == "break":
                    break
                if way == "return":
                    return
                if way == "continue":
                    continue
                if way == "exception":
                    raise KeyError("mine")

    for _ in range(3):
        with contextlib.suppress(KeyError):
            one_step()
    return workers.attached(optimizer)
