"""What everybody's training does around a model and its optimizer, on the ranks of mini.zero: each equal to
one process, or refused in words.
"""

import copy
import dataclasses
import functools
import io
import pickle
import warnings
import weakref

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from mini_workers import difference
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from zero_workers import names_of, whole

from course_lib.mini import hybrid, tensor_parallel, zero
from course_lib.models import MLP, TinyGPT


def mlp() -> nn.Module:
    return MLP((4, 5, 3))


def alike(
    make, train, stage: int, optimizer_class=torch.optim.SGD, lr: float = 0.1, data=None, **options
) -> tuple[float, object, object]:
    """Largest relative difference of the weights after `train(model, optimizer, batches)`, here and in one
    process that has the data of all ranks.

    `train` gets a list of batches for each step. One process gets the slices of all ranks, and each of its
    losses counts 1/n.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    data = data or [
        torch.randn(2, 4, generator=torch.Generator().manual_seed(r), dtype=torch.float64)
        for r in range(size)
    ]
    defaults = options.pop("defaults", {})
    torch.manual_seed(0)
    alone = make().double()
    torch.manual_seed(rank)  # rank 0's weights are everybody's
    net = make().double()
    names = names_of(net)
    told_alone = train(
        alone, optimizer_class([p for p in alone.parameters() if p.requires_grad], lr=lr, **defaults), data
    )
    if callable(options.get("units")):
        options["units"] = options["units"](net)
    model, optimizer = zero.shard(net, stage, optimizer_class, lr=lr, **defaults, **options)
    told = train(model, optimizer, [data[rank]])
    return difference(whole(model, optimizer, names), alone.parameters()), told, told_alone


def backward(
    model: nn.Module,
    batches: list[Tensor],
    loss=lambda out: out.square().mean(),
    call=lambda model, x: model(x),
) -> None:
    for x in batches:
        (loss(call(model, x)) / len(batches)).backward()


def steps(count: int = 2, between=lambda model, optimizer: None, **options):
    def train(model, optimizer, batches):
        told = []
        for _ in range(count):
            backward(model, batches, **options)
            told.append(between(model, optimizer))
            optimizer.step()
            optimizer.zero_grad()
        return told

    return train


# torch's own tools for gradients


def scaled(stage: int, clip: bool) -> tuple:
    """GradScaler. In step 1 the last rank's loss overflows: all ranks skip this step."""

    def train(model, optimizer, batches):
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
        for step in range(4):
            for number, x in enumerate(batches):
                last = (
                    number == dist.get_world_size() - 1
                    if len(batches) > 1
                    else dist.get_rank() == dist.get_world_size() - 1
                )
                loss = model(x).square().mean() / len(batches) * (float("inf") if step == 1 and last else 1.0)
                scaler.scale(loss).backward()
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return scaler.get_scale()

    return alike(mlp, train, stage, torch.optim.Adam)


def clipped(stage: int) -> dict:
    """Torch's own clipping, of the gradients that the model or the optimizer shows; difference of the
    weights, and of what is returned.
    """
    clip = nn.utils.clip_grad_norm_

    def by_hand(model, optimizer):
        norm = sum(p.grad.data.norm(2) ** 2 for p in model.parameters() if p.grad is not None) ** 0.5
        for p in model.parameters():
            if p.grad is not None:
                p.grad.data.mul_(0.01 / norm)
        return norm

    def halve(model, optimizer):
        for p in model.parameters():
            if p.grad is not None:
                p.grad /= 2

    ways = {
        "norm 2": lambda model, optimizer: clip(model.parameters(), 0.01),
        "norm inf": lambda model, optimizer: clip(model.parameters(), 0.01, norm_type=float("inf")),
        "norm 3": lambda model, optimizer: clip(model.parameters(), 0.01, norm_type=3.0),
        "foreach": lambda model, optimizer: clip(model.parameters(), 0.01, foreach=True),
        "the optimizer's": lambda model, optimizer: clip(
            [p for group in optimizer.param_groups for p in group["params"]], 0.01
        ),
        "value": lambda model, optimizer: nn.utils.clip_grad_value_(model.parameters(), 0.01),
        "value, foreach": lambda model, optimizer: nn.utils.clip_grad_value_(
            model.parameters(), 0.01, foreach=True
        ),
        "total norm": lambda model, optimizer: nn.utils.get_total_norm(
            [p.grad for p in model.parameters() if p.grad is not None]
        ),
        "by hand": by_hand,
        "halved": halve,
    }
    told = {}
    for name, way in ways.items():
        apart, norms, alone_norms = alike(mlp, steps(between=way), stage)
        if norms[0] is not None:
            apart = max(apart, *(abs(one / other - 1).item() for one, other in zip(norms, alone_norms)))
        told[name] = apart
    return told


def zeroed(stage: int) -> dict:
    """Gradients that the model lets go of, and not the optimizer."""

    def train(set_to_none, before=False):
        def train(model, optimizer, batches):
            for step in range(3):
                if before:
                    model.zero_grad(set_to_none)
                backward(model, batches)
                if step == 1:  # and once without a step
                    model.zero_grad(set_to_none)
                    backward(model, batches)
                optimizer.step()
                if not before:
                    model.zero_grad(set_to_none)

        return train

    told = {
        f"{set_to_none}, {before}": alike(mlp, train(set_to_none, before), stage, torch.optim.Adam)[0]
        for set_to_none in ((True, False) if stage > 1 else (True,))
        for before in (False, True)
    }

    def step_after_zero(model, optimizer, batches):
        backward(model, batches)
        model.zero_grad()
        optimizer.step()

    told["a step without gradients"] = alike(mlp, step_after_zero, stage)[0]

    def look_in_between(model, optimizer, batches):
        """Gradients of something else, between backward and step, by torch.autograd.grad."""
        for _ in range(2):
            backward(model, batches)
            if stage < 3:
                torch.autograd.grad(model(batches[0]).sum(), list(model.parameters()))
            backward(model, batches)
            optimizer.step()
            optimizer.zero_grad()

    told["autograd.grad in between"] = alike(mlp, look_in_between, stage)[0]
    return told


# What a module may return, keep and contain


@dataclasses.dataclass
class Out:
    y: Tensor


class Returns(nn.Module):
    """A layer whose output is in an object of its own."""

    def __init__(self, layer, wrap=Out):
        super().__init__()
        self.first, self.layer, self.wrap = nn.Linear(4, 4), layer, wrap
        own_forward = layer.forward

        def forward(x):
            y = own_forward(x)
            return wrap(y[0] if isinstance(y, tuple) else y)

        layer.forward = forward

    def forward(self, x):
        out = self.layer(self.first(x))
        return out.y if isinstance(out, Out) else next(iter(out))


class ViewInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.b = _View(), nn.Linear(6, 1)

    def forward(self, x):
        y = self.inner(x)
        y += 1
        return self.b(y)


class _View(nn.Module):
    def __init__(self):
        super().__init__()
        self.l, self.w = nn.Linear(4, 6), nn.Parameter(torch.ones(6))

    def forward(self, x):
        return (self.l(x).tanh() * self.w).unsqueeze(0).squeeze(0)


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = _Keeps(), nn.Linear(4, 1)

    def forward(self, x):
        self.inner(x)
        return self.head(self.inner.kept)


class _Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.w = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        self.kept = self.one(x).tanh() * self.w
        return self.two(self.kept)


class Transformer(nn.Module):
    """Torch's, whose layers compute with their parts' parameters; more so in eval, by one call for all."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.layer(x[None])


class Watched(nn.Module):
    """Remembers, weakly, what it has computed on the way."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.one(x)
        self.on_the_way = weakref.ref(y)
        return self.two(y.tanh())


def hidden(stage: int) -> dict:
    """Outputs that a hook does not find; and hooks that compute with parameters."""
    warnings.simplefilter("ignore")
    told = {}
    layers = {
        "LSTM": lambda: nn.LSTM(4, 4),
        "GRU": lambda: nn.GRU(4, 4),
        "PReLU": nn.PReLU,
        "Linear": lambda: nn.Linear(4, 4),
        "LayerNorm": lambda: nn.LayerNorm(4),
        "weight_norm": lambda: nn.utils.weight_norm(nn.Linear(4, 4)),
    }
    for name, layer in layers.items():
        for wrap in (Out, lambda y: {y}):
            told[f"{name} in {wrap.__name__}"] = alike(
                lambda: Returns(layer(), wrap), steps(), stage, units=[]
            )[0]
    told["a view that is written to"] = alike(ViewInside, steps(), stage)[0]
    told["kept"] = alike(Keeps, steps(), stage, units=[])[0]
    told["kept, checkpoint"] = alike(
        Keeps, steps(call=lambda model, x: model.head(kept_of(model, x))), stage, units=[]
    )[0]

    def evaluates(model, optimizer, batches):
        steps()(model, optimizer, batches)
        with torch.no_grad():
            told["evaluated", len(batches)] = model.eval()(torch.ones(2, 4, dtype=torch.float64))

    told["Transformer"] = alike(Transformer, evaluates, stage, units=lambda model: [model.layer])[0]
    told["Transformer, evaluated"] = difference(
        [told.pop(("evaluated", 1))], [told.pop(("evaluated", dist.get_world_size()))]
    )

    def forgets(model, optimizer, batches):
        for x in batches:
            (checkpoint(model, x, use_reentrant=False).square().mean() / len(batches)).backward()
            out = checkpoint(model, x, use_reentrant=False)
            assert model.on_the_way() is None, "a checkpoint keeps nothing of what it can compute again"
            del out
        optimizer.step()
        optimizer.zero_grad()

    def penalty(model, optimizer, batches):
        """Of the gradient by the input, as WGAN-GP has it: a second backward, but through no parameter's
        gradient.
        """
        for x in batches:
            x = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
            (slope.square().mean() / len(batches)).backward()
        optimizer.step()

    if stage < 3:
        told["penalty"] = alike(
            lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False)), penalty, stage
        )[0]
    told["checkpoint"] = alike(Watched, forgets, stage)[0]
    return told


def kept_of(model: Keeps, x: Tensor) -> Tensor:
    checkpoint(model.inner, x, use_reentrant=False)
    return model.inner.kept


def sparse(stage: int) -> float:
    """Embeddings whose gradients are sparse, as they are given to a dense optimizer: two backwards, tied or
    not.
    """

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(10, 3, sparse=True), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.embedding(x))

    def train(model, optimizer, batches):
        for _ in range(2):
            backward(model, batches)
            backward(model, batches)
            optimizer.step()
            optimizer.zero_grad()

    return alike(
        Net, train, stage, data=[torch.tensor([rank, 2, 5]) for rank in range(dist.get_world_size())]
    )[0]


# Optimizers


class Scaled(torch.optim.SGD):
    """A subclass that looks at the norm of a whole parameter."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= group["lr"] * p.grad / p.grad.norm()


def optimizers(stage: int) -> dict:
    """Each that is let in without a word: three steps, the last of them from a checkpoint, against one
    process.
    """
    from course_lib.mini.zero import given

    told = {}
    for kind in sorted(given.ELEMENTWISE, key=lambda kind: kind.__name__):

        def train(model, optimizer, batches):
            state = optimizer.state_dict()
            for step in range(4):
                backward(model, batches)
                optimizer.step()
                optimizer.zero_grad()
                if step == 1:
                    state = copy.deepcopy(optimizer.state_dict())
                    kept = (
                        [p.detach().clone() for p in model.parameters()]
                        if not isinstance(optimizer, zero.ZeroOptimizer)
                        else None
                    )
            if kept is not None:
                with torch.no_grad():
                    for p, value in zip(model.parameters(), kept):
                        p.copy_(value)
            optimizer.load_state_dict(state)
            backward(model, batches)
            optimizer.step()

        told[kind.__name__] = alike(mlp, train, stage, kind, lr=0.01)[0]
    for name, kind, options in (
        ("fused", torch.optim.Adam, {"fused": True}),
        ("foreach", torch.optim.SGD, {"foreach": True, "momentum": 0.9, "nesterov": True}),
        ("amsgrad", torch.optim.AdamW, {"amsgrad": True, "maximize": True}),
    ):
        told[name] = alike(mlp, steps(3), stage, kind, defaults=options)[0]
    told["partial"] = alike(mlp, steps(), stage, functools.partial(torch.optim.Adam, betas=(0.5, 0.9)))[0]
    told["a function"] = alike(mlp, steps(), stage, lambda params, lr: torch.optim.AdamW(params, lr=lr))[0]
    return told


class Own(torch.optim.Optimizer):
    """None of torch's: steps that saturate, with a state of its own, each element for itself."""

    def __init__(self, params, lr: float):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    mean.lerp_(p.grad, 0.3)
                    p -= group["lr"] * mean / (0.01 + mean.abs())


def own_optimizer(stage: int) -> float:
    """An optimizer of one's own that says that it is element-wise."""
    return alike(mlp, steps(4), stage, Own, elementwise=True)[0]


def from_the_start(stage: int, path: str) -> float:
    """A checkpoint that is saved before the first step begins as a new optimizer does."""

    def train(model, optimizer, batches):
        if isinstance(optimizer, zero.ZeroOptimizer):
            dcp.save(optimizer.state_dict(), checkpoint_id=path)
            dcp.load(state := optimizer.state_dict(), checkpoint_id=path)
            optimizer.load_state_dict(state)
        steps(3)(model, optimizer, batches)

    return alike(mlp, train, stage, torch.optim.NAdam)[0]


def saved_by_torch(stage: int) -> float:
    """torch.save, deepcopy and pickle of the optimizer's state_dict; the first is loaded by a new model."""
    model, optimizer = zero.shard(mlp().double(), stage, torch.optim.Adam, lr=0.1)
    x = torch.ones(2, 4, dtype=torch.float64)
    steps()(model, optimizer, [x])
    torch.save(optimizer.state_dict(), file := io.BytesIO())
    copies = [copy.deepcopy(optimizer.state_dict()), pickle.loads(pickle.dumps(optimizer.state_dict()))]
    file.seek(0)
    other, its_optimizer = zero.shard(mlp().double(), stage, torch.optim.Adam, lr=0.7)
    its_optimizer.load_state_dict(torch.load(file, weights_only=False))
    for one in copies:
        assert one.keys() == optimizer.state_dict().keys()
    for pair in ((model, optimizer), (other, its_optimizer)):
        steps()(*pair, [x])
    with optimizer.gathered(), its_optimizer.gathered():
        return difference(other.parameters(), model.parameters())


def is_an_optimizer(stage: int) -> dict:
    """Step hooks, schedulers, keyword arguments: what Optimizer.__init__ makes possible."""
    model, optimizer = zero.shard(mlp(), stage, torch.optim.SGD, lr=1.0)
    called = []
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: called.append("before"))
    optimizer.register_step_post_hook(lambda optimizer, args, kwargs: called.append("after"))
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure=closure)
    scheduler.step(1.0)
    scheduler.step(2.0)
    return {
        "called": called,
        "loss": isinstance(loss, Tensor),
        "lr": optimizer.param_groups[0]["lr"],
        "inner": optimizer.optim.param_groups[0]["lr"],
        "repr": repr(optimizer).startswith("ZeroOptimizer"),
    }


# Models that change


def written(stage: int) -> float:
    """What is loaded within gathered() is what is trained on."""

    def train(model, optimizer, batches):
        torch.manual_seed(5)
        other = mlp().double().state_dict()
        if isinstance(optimizer, zero.ZeroOptimizer):
            with optimizer.gathered():
                model.load_state_dict(other)
                copied = copy.deepcopy(model)
            assert difference(copied.parameters(), mlp_of(5).parameters()) == 0
            copied(batches[0]).sum().backward()  # a copy is a model like any other
            assert all(type(p.grad) is Tensor for p in copied.parameters())
        else:
            model.load_state_dict(other)
        steps()(model, optimizer, batches)

    return alike(mlp, train, stage)[0]


def mlp_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return mlp().double()


def rests(stage: int) -> float:
    """A unit that is frozen for a while, as a whole, as the discriminator of a GAN is."""

    def train(model, optimizer, batches):
        for learns in (True, False, True):
            model.layers[0].requires_grad_(learns)
            backward(model, batches)
            optimizer.step()
            optimizer.zero_grad()

    return alike(mlp, train, stage, torch.optim.Adam, units=[])[0]


def mixed(stage: int, reentrant: bool) -> float:
    """Frozen and trained parameters in one module, with checkpoints."""

    def make():
        net = MLP((4, 4, 4, 3))
        for layer in (net.layers[0], net.layers[2]):
            layer.weight.requires_grad_(False)
        return net

    def call(model, x):
        return model.layers[4](
            checkpoint(model.layers[:4], x.clone().requires_grad_(), use_reentrant=reentrant)
        )

    return max(
        alike(make, steps(3, call=call), stage, torch.optim.Adam, units=units)[0] for units in (None, [])
    )


def in_hybrid(stage: int) -> float:
    """Two groups of two hold the same shards, and train one model."""
    groups = hybrid.make_groups({"replicas": 2, "shards": 2})
    return alike(
        mlp,
        steps(3, between=lambda model, optimizer: nn.utils.clip_grad_norm_(model.parameters(), 0.05)),
        stage,
        torch.optim.Adam,
        process_group=groups["shards"],
        replicas=groups["replicas"],
    )[0]


def refused(stage: int) -> dict[str, str]:
    """What is refused, with the words."""
    told, x = {}, torch.ones(2, 4)

    def note(what, act, make=mlp, optimizer_class=torch.optim.SGD, **options):
        net = make()
        options = {key: [net] if value == "the model" else value for key, value in options.items()}
        model, optimizer = zero.shard(net, stage, optimizer_class, lr=0.1, **options)
        try:
            told[what] = f"accepted: {act(model, optimizer)}"
        except (ValueError, RuntimeError, TypeError) as error:
            told[what] = str(error)

    def frozen(model, optimizer):
        model.layers[0].weight.requires_grad_(False)
        model(x)

    def unfrozen(model, optimizer):
        model.requires_grad_(True)
        model(x)

    def make_frozen():
        net = mlp()
        net.layers[0].requires_grad_(False)
        return net

    def converted(model, optimizer):
        model.double()
        model(x.double())

    def grown(model, optimizer):
        model.layers.append(nn.Linear(3, 3))
        model(x)

    def assigned(model, optimizer):
        for p in optimizer.units[0].views:
            p.grad = torch.ones_like(p)
        optimizer.step()

    def part_of_it(model, optimizer):
        F.linear(x, model.layers[0].weight).sum().backward()
        optimizer.step()

    def half_zeroed(model, optimizer):
        model(x).sum().backward()
        next(iter(optimizer.units[0].views)).grad = None
        optimizer.step()

    def failed(model, optimizer):
        hidden = model.layers[0](x)
        hidden.register_hook(lambda grad: 1 / 0)
        try:
            model.layers[2](hidden).sum().backward()
        except ZeroDivisionError:
            model.zero_grad()
        model(x).sum().backward()
        optimizer.step()

    def loss_of_a_gradient(model, optimizer):
        model(x).sum().backward()
        shown = [
            p.grad for p in (*model.parameters(), *optimizer.param_groups[0]["params"]) if p.grad is not None
        ]
        assert "Spread" in repr(shown[0])
        return [grad.square().sum() for grad in shown]

    def masked(model, optimizer):
        model(x).sum().backward()
        for p in (*model.parameters(), *optimizer.param_groups[0]["params"]):
            if p.grad is not None:
                p.grad.mul_(torch.ones(p.shape))

    def multiplies(model, optimizer):
        model(x).sum().backward()
        torch.ones(1).mul_(optimizer.param_groups[0]["params"][0].grad)

    def changed_in_place(model, optimizer):
        y = model.layers[0](x).tanh()
        y2 = model.layers[2](y)
        y += 1
        y2.sum().backward()

    note("frozen", frozen)
    note("unfrozen", unfrozen, make=make_frozen)
    note("converted", converted)
    note("grown", grown)
    note("square", loss_of_a_gradient)
    note("masked", masked)
    note("multiplies", multiplies)
    note("changed in place", changed_in_place, units=[])
    note(
        "add_param_group",
        lambda model, optimizer: optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
    )
    note("deepcopy", lambda model, optimizer: copy.deepcopy(optimizer))
    note("pickle", lambda model, optimizer: pickle.dumps(optimizer))
    note("twice", lambda model, optimizer: zero.shard(model, stage, torch.optim.SGD, lr=0.1))
    note("failed", failed)
    note("create_graph", lambda model, optimizer: model(x).sum().backward(create_graph=True))
    note(
        "unused",
        lambda model, optimizer: (model.layers[0](x).sum().backward(), optimizer.step()),
        optimizer_class=torch.optim.AdamW,
    )
    if stage < 3:
        note("assigned", assigned)
        note("half unused", part_of_it, optimizer_class=torch.optim.Adam)
        note("half zeroed", half_zeroed)
    else:

        def in_gathered(model, optimizer):
            with optimizer.gathered():
                model(x).sum().backward()

        def converted_in_gathered(model, optimizer):
            with optimizer.gathered():
                model.double()

        note("backward in gathered", in_gathered)
        note("converted in gathered", converted_in_gathered)
        note("state_dict", lambda model, optimizer: model.state_dict())
        note("state_dict of a part", lambda model, optimizer: model.layers[0].state_dict())
        note("load_state_dict", lambda model, optimizer: model.load_state_dict(mlp().state_dict()))
        note("copied", lambda model, optimizer: copy.deepcopy(model))
        note("used elsewhere", lambda model, optimizer: F.linear(x, model.layers[0].weight))
        note(
            "used by its parent",
            lambda model, optimizer: model(x[None], x[None], x[None]),
            make=lambda: nn.MultiheadAttention(4, 2),
        )
        note("a part of its unit", lambda model, optimizer: model.layers[0](x), units="the model")
    for what, params in (
        ("no optimizer's", lambda own: own + [nn.Parameter(torch.ones(1))]),
        ("there twice", lambda own: own * 2),
    ):
        net = mlp()
        try:
            zero.shard(net, stage, torch.optim.SGD, lr=0.1, params=params(list(net.parameters())))
        except ValueError as error:
            told[what] = str(error)
    for kind in (
        torch.optim.Adafactor,
        torch.optim.Muon,
        torch.optim.LBFGS,
        torch.optim.SparseAdam,
        Scaled,
        functools.partial(Scaled, lr=0.1),
        lambda params, lr: Scaled(params, lr=lr),
    ):
        name = getattr(kind, "__name__", type(kind).__name__)
        net = mlp()
        before = [p.data_ptr() for p in net.parameters()]
        try:
            zero.shard(net, stage, kind, lr=0.1)
            told[name] = "accepted"
        except ValueError as error:
            told[name] = str(error)
        assert before == [p.data_ptr() for p in net.parameters()], "refused before anything is changed"
    zero.shard(mlp(), stage, Scaled, lr=0.1, elementwise=True)
    try:
        zero.shard(mlp(), stage, torch.optim.Adam, differentiable=True)
    except ValueError as error:
        told["differentiable"] = str(error)
    return told


def tensor_parallel_inside(default_units: bool) -> str | float:
    """A TinyGPT cut by tensor parallelism, sharded by stage 3 over the other axis."""
    groups = hybrid.make_groups({"dp": 2, "tp": 2})

    def make():
        return tensor_parallel.parallelize(TinyGPT(dim=16, heads=2, layers=1, context=8), groups["tp"])

    return _stage_3_from_1(make, torch.arange(18).view(2, 9), groups["dp"], default_units)


def used_elsewhere(default_units: bool) -> str | float:
    """A model whose forward uses the weight of one of its modules, and does not call that module."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions, self.out = nn.Embedding(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.out(x + self.positions.weight).square().mean()

    return _stage_3_from_1(Net, torch.ones(3, 4, 6), None, default_units)


def _stage_3_from_1(make, batch, group, default_units: bool) -> str | float:
    """How far the loss of stage 3 is from that of stage 1, after a step; or why it is refused."""
    losses = []
    for stage in (1, 3):
        torch.manual_seed(0)
        net = make()
        try:
            model, optimizer = zero.shard(
                net,
                stage,
                torch.optim.SGD,
                lr=0.1,
                process_group=group,
                units=None if default_units else [net],
            )
            for _ in range(2):
                loss = model(batch)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        except RuntimeError as error:
            return str(error)
        losses.append(loss.item())
    return abs(losses[1] - losses[0])
