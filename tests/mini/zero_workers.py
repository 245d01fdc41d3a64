"""Functions that the tests of mini.zero run on ranks."""

import contextlib

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from mini_workers import difference, global_batches, loss_of, make
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from course_lib import measure
from course_lib.mini import zero
from course_lib.models import MLP, TinyGPT


def whole(model: nn.Module, optimizer: zero.ZeroOptimizer, names: list[str]) -> list[Tensor]:
    with optimizer.gathered():
        return [model.get_parameter(name).detach().clone() for name in names]


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def two_groups(model: nn.Module) -> list[dict]:
    """Biases and norms learn faster than matrices, and without decay."""
    learning = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in learning if p.ndim < 2], "lr": 0.02, "weight_decay": 0.0},
    ]


# Values


def parity(cases: list[tuple]) -> list[dict]:
    """For each case (model, stage, dtype, batch size, options): relative difference to one process over ten
    steps.

    Every rank starts from another seed and sees other data. Uneven slices are weighted by their size, as one
    process would.
    """
    return [_parity(*case) for case in cases]


def _parity(name: str, stage: int, dtype: torch.dtype, batch_size: int, options: dict) -> dict:
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    alone = make(name).to(dtype)  # rank 0's seed
    start = [p.detach().clone() for p in alone.parameters()]
    torch.manual_seed(rank)
    net = make(name).to(dtype)
    names = names_of(net)
    optimizer_class = torch.optim.AdamW if options.get("adam") else torch.optim.SGD
    defaults = {"lr": 0.01} if options.get("adam") else {"lr": 0.05, "momentum": 0.9}
    groups = (
        two_groups
        if options.get("groups")
        else lambda model: [p for p in model.parameters() if p.requires_grad]
    )
    units = (
        {"blocks": lambda: net.blocks, "whole": lambda: [net]}[options["units"]]()
        if "units" in options
        else None
    )
    alone_optimizer = optimizer_class(groups(alone), **defaults)
    model, optimizer = zero.shard(net, stage, optimizer_class, params=groups(net), units=units, **defaults)
    told = {"weights": 0.0, "norms": 0.0}
    batches = zip(
        global_batches(name, 10, batch_size, dtype, rank, size), global_batches(name, 10, batch_size, dtype)
    )
    for step, (slice_, batch) in enumerate(batches):
        loss_of(alone, batch).backward()
        loss_of(model, slice_, len(slice_[0]) * size / batch_size).backward()
        if "clip" in options:
            norm = nn.utils.clip_grad_norm_(alone.parameters(), options["clip"])
            assert norm > options["clip"], "it is really clipped"
            told["norms"] = max(
                told["norms"], abs(optimizer.clip_grad_norm_(options["clip"]) / norm - 1).item()
            )
        for one in (alone_optimizer, optimizer):
            one.step()
            one.zero_grad()
        if step in (0, 9):
            told["weights"] = max(
                told["weights"], difference(whole(model, optimizer, names), alone.parameters())
            )
    with optimizer.gathered():
        make(name).load_state_dict(model.state_dict())  # as before: no shards in it
    told["moved"] = difference(alone.parameters(), start)
    told["frozen"] = sum(p.grad is not None for p in model.parameters())
    return told


def special(stage: int) -> dict:
    """Backwards that are not one per step, layers that are called twice, or not at all, or again in backward:
    differences to one process.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    data = [
        torch.randn(6, 4, generator=torch.Generator().manual_seed(r), dtype=torch.float64)
        for r in range(size)
    ]
    x, told = data[rank], {}

    def differ(
        forward,
        backwards: int = 1,
        make=lambda: MLP((4, 5, 4)),
        units=lambda model: None,
        fail: bool = False,
        again: bool = False,
        gathers: int | None = None,
    ) -> float:
        torch.manual_seed(0)
        alone, net = make().double(), None
        torch.manual_seed(0)
        net = make().double()
        names = names_of(net)
        ones = torch.optim.SGD(alone.parameters(), 0.1)
        model, optimizer = zero.shard(net, stage, torch.optim.SGD, units=units(net), lr=0.1)
        gathered, evaluated = {}, 0.0
        for unit in optimizer.units:

            def gather(unit=unit, own_gather=unit.gather):
                gathered[unit] = gathered.get(unit, 0) + 1
                own_gather()

            unit.gather = gather
        for step in range(2):
            if fail and step == 1:
                with contextlib.suppress(ZeroDivisionError):
                    out = forward(model, x)
                    out.register_hook(lambda grad: 1 / 0)
                    out.square().mean().backward()
                with contextlib.suppress(ZeroDivisionError):
                    hook = net.layers[0].register_forward_hook(lambda *args: 1 / 0)
                    forward(model, x)
                hook.remove()
                optimizer.zero_grad()
            gathered.clear()
            for k in range(backwards):
                for values in data:
                    ((k + 1) / size * forward(alone, values).square().mean()).backward()
                loss = (k + 1) * forward(model, x).square().mean() / (1 + again)
                loss.backward(retain_graph=again)
                if again:
                    loss.backward()
            assert stage < 3 or gathers is None or set(gathered.values()) == {gathers}, gathered
            assert stage < 3 or not any(unit.full_bytes for unit in optimizer.units)
            with torch.inference_mode():
                forward(model, x)  # an evaluation in between
            if fail:
                # when that layer is whole
                failing = net.layers[2].register_forward_pre_hook(lambda *args: 1 / 0)
                with contextlib.suppress(ZeroDivisionError), torch.no_grad():
                    forward(model, x)
                failing.remove()
                assert stage < 3 or not any(unit.full_bytes for unit in optimizer.units), (
                    "an evaluation that fails leaves nothing behind"
                )
            ones.step()
            optimizer.step()
            with torch.no_grad():  # and one after the step
                evaluated = max(evaluated, difference([forward(model, x)], [forward(alone, x)]))
            ones.zero_grad()
            optimizer.zero_grad()
        return max(evaluated, difference(whole(model, optimizer, names), alone.parameters()))

    told["two backwards"] = differ(lambda model, x: model(x), backwards=2)
    told["two backwards of one forward"] = differ(lambda model, x: model(x), again=True)
    told["a layer called twice"] = differ(lambda model, x: model(model(x)))
    told["two branches"] = differ(lambda model, x: model(x) * model(2 * x))
    told["outputs in tuples and dicts"] = differ(
        lambda model, x: model(x), make=Nested, units=lambda model: [model.inner], gathers=2
    )
    told["inputs that are handed on"] = differ(
        lambda model, x: model(x), make=HandsOn, units=lambda model: list(model.blocks), gathers=2
    )
    told["parameters of another module"] = differ(
        lambda model, x: model(x[:, None], x[:, None], x[:, None])[0],
        make=lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        units=lambda model: [model],
        gathers=2,
    )
    told["a layer left out"] = differ(lambda model, x: model.layers[0](x))
    told["one unit"] = differ(lambda model, x: model(x), units=lambda model: [model])
    told["a unit in a unit"] = differ(lambda model, x: model(x), units=lambda model: [model, model.layers[0]])
    told["after failures"] = differ(lambda model, x: model(x), fail=True)
    told["a list of parameters"] = differ(lambda model, x: model(x), make=Listed)
    for reentrant in (False, True):
        told[f"checkpoint around units, {reentrant}"] = differ(
            lambda model, x: checkpoint(model, _learns(x), use_reentrant=reentrant)
        )
        told[f"checkpoint around a unit, {reentrant}"] = differ(
            lambda model, x: model.layers[2](
                checkpoint(model.layers[0], _learns(x), use_reentrant=reentrant)
            ),
            units=lambda model: [model.layers[0]],
            gathers=None if reentrant else 2,  # the second is for the second forward and for backward
        )
        told[f"checkpoint in a unit, {reentrant}"] = differ(
            lambda model, x: model(x), make=lambda: Checkpointed(reentrant), units=lambda model: [model.inner]
        )
    return told


def _learns(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


class Listed(nn.Module):
    """Parameters in lists, which have no forward of their own."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(4) for _ in range(3))
        self.named = nn.ParameterDict({"bias": torch.randn(4)})

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = x * weight
        return x + self.named["bias"]


class Nested(nn.Module):
    """A unit whose outputs are a tuple of a tensor and a dict, and which takes its input by keyword."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = _Pair(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, more = self.inner(x=x)
        return self.outer(first * more["second"][0])


class _Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
        return self.first(x), {"second": [self.second(x)]}


class HandsOn(nn.Module):
    """Blocks that return their input, too, as it is. Its gradient is there only when their own backward is
    over.
    """

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(_HandsOn() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = sum(block(x))
        return x


class _HandsOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.linear(x)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool):
        super().__init__()
        self.inner, self.outer = _Inner(reentrant), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(_learns(x)))


class _Inner(nn.Module):
    """One unit, of which only the middle is computed again in backward."""

    def __init__(self, reentrant: bool):
        super().__init__()
        self.before, self.net, self.after, self.reentrant = (
            nn.Linear(4, 4),
            MLP((4, 6, 4)),
            nn.Linear(4, 4),
            reentrant,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.after(checkpoint(self.net, self.before(x).relu(), use_reentrant=self.reentrant))


def refusals() -> dict[str, str]:
    """What is refused, with the words."""
    told = {}

    def note(what, call):
        try:
            call()
        except (ValueError, RuntimeError) as error:
            told[what] = str(error)

    note("stage", lambda: zero.shard(MLP((4, 3)), 4, torch.optim.SGD, lr=1.0))
    note("units", lambda: zero.shard(MLP((4, 3)), 3, torch.optim.SGD, units=[nn.Linear(2, 2)], lr=1.0))
    note(
        "params",
        lambda: zero.shard(net := MLP((4, 3)), 3, torch.optim.SGD, params=[net.layers[0].weight], lr=1.0),
    )
    model, optimizer = zero.shard(MLP((4, 3)), 1, torch.optim.SGD, lr=1.0)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    note("zero_grad", lambda: model(torch.ones(2, 4)).sum().backward())
    return told


def in_pairs(stage: int) -> tuple[Tensor, Tensor]:
    """A model in each of two groups: ranks 1 and 3, and ranks 2 and 0. The weights before and after a step of
    1 against the gradient.
    """
    rank = dist.get_rank()
    odd, even = dist.new_group([1, 3]), dist.new_group([2, 0])
    torch.manual_seed(rank)
    model, optimizer = zero.shard(
        nn.Linear(3, 1, bias=False), stage, torch.optim.SGD, process_group=odd if rank % 2 else even, lr=1.0
    )
    before = whole(model, optimizer, ["weight"])[0]
    model(torch.full((1, 3), float(rank))).sum().backward()
    optimizer.step()
    return before, whole(model, optimizer, ["weight"])[0]


def scheduled(stage: int) -> list[float]:
    """A learning rate scheduler takes the optimizer as one of torch's."""
    model, optimizer = zero.shard(MLP((4, 3)), stage, torch.optim.SGD, lr=1.0)
    scheduler, rates = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), []
    for _ in range(3):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return rates


def looked_at_before_the_first_step(stage: int) -> float:
    """`state_dict()` before the first step, and what it changes in training. (NAdam has a state that does not
    begin at zero.)
    """
    weights = []
    for look in (False, True):
        torch.manual_seed(0)
        net = MLP((4, 5, 4)).double()
        names = names_of(net)
        model, optimizer = zero.shard(net, stage, torch.optim.NAdam, lr=0.01)
        if look:
            optimizer.state_dict()
        for _ in range(2):
            model(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(whole(model, optimizer, names))
    return difference(*weights)


def saved(stage: int, path: str, steps: slice, load: bool = False, save: bool = False) -> list[Tensor]:
    """Train a TinyGPT with AdamW on the same global batches, from a checkpoint or to one; returns the
    weights.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(load)  # what is loaded must not be there already
    net = make("TinyGPT").double()
    names = names_of(net)
    model, optimizer = zero.shard(
        net, stage, torch.optim.AdamW, units=net.blocks, params=two_groups(net), lr=0.01 + load
    )
    if load:
        dcp.load(state := optimizer.state_dict(), checkpoint_id=path)
        optimizer.load_state_dict(state)
    for slice_ in global_batches("TinyGPT", 6, 12, torch.float64, rank, size)[steps]:
        loss_of(model, slice_).backward()
        optimizer.step()
        optimizer.zero_grad()
    if save:
        dcp.save(optimizer.state_dict(), checkpoint_id=path)
    return whole(model, optimizer, names)


# Bytes


def trained(stage: int, name: str = "MLP", steps: int = 3) -> dict:
    """A few measured steps of Adam in float32; returns how many elements each unit has, and what was
    alive.
    """
    torch.manual_seed(0)
    if name in ("MLP", "frozen"):
        net, x, units = MLP((64, *[517] * 5, 10)), torch.randn(4, 64), None
        net.layers[2:-1].requires_grad_(name != "frozen")  # all but the first and the last
    else:
        net, x = TinyGPT(dim=48, context=32, tied=name == "tied"), torch.ones(2, 33, dtype=torch.int64)
        units = net.blocks
    model, optimizer = zero.shard(net, stage, torch.optim.Adam, units=units, lr=1e-3)
    live = Live(optimizer.units)
    for step in range(steps):
        with measure.step(model, optimizer):
            with live if step == 1 else contextlib.nullcontext():
                model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return {
        "units": {unit.name: unit.numel for unit in optimizer.units},
        "most": live.most,
        "gathered": live.gathered,
        "after": sum(unit.full.untyped_storage().nbytes() for unit in optimizer.units),
    }


class Live(torch.utils._python_dispatch.TorchDispatchMode):
    """Whenever an operation runs, in forward or backward: look up which units' full parameters have
    memory.
    """

    def __init__(self, units: list[zero.Unit]):
        super().__init__()
        self.units, self.most, self.gathered, self._before = units, 0, {unit.name: 0 for unit in units}, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        alive = {unit.name for unit in self.units if unit.full.untyped_storage().nbytes()}
        for name in alive - self._before:
            self.gathered[name] += 1
        self.most, self._before = max(self.most, len(alive)), alive
        return result


def most_on_the_heap(stage: int) -> dict:
    """The most that forward and backward of a second step have allocated at once, by the account of the
    allocator itself.
    """
    net = MLP([600] * 9)
    params = sum(p.nbytes for p in net.parameters())
    model, optimizer = zero.shard(net, stage, torch.optim.SGD, lr=0.1)
    x = torch.randn(2, 600)
    for _ in range(2):
        with torch.profiler.profile(profile_memory=True) as profile:
            model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return {"params": params, "most": most}
