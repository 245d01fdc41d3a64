"""Functions that the tests of course_lib.mini.tensor_parallel run on ranks."""

import copy
import math
from collections import OrderedDict

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib import measure
from course_lib.mini import ddp, hybrid, ring
from course_lib.mini import tensor_parallel as tp
from course_lib.mini.tensor_parallel.pieces import multiply_while_gathering, multiply_while_scattering
from course_lib.models import MLP, Attention, Block, TinyGPT

DIM, HEADS, BATCH, TIME, VOCAB = 24, 12, 2, 12, 48  # 2, 3 and 4 ranks divide them


def pair(dim: int = DIM, bias: bool = True, hidden: int | None = None) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, hidden or 4 * dim, bias), nn.GELU(), nn.Linear(hidden or 4 * dim, dim, bias)
    )


def gpt(tied: bool = True) -> TinyGPT:
    return TinyGPT(vocab_size=VOCAB, context=TIME, dim=DIM, heads=HEADS, tied=tied)


class Own(nn.Module):
    """A model that the library does not know, and that says how it is cut: attention, then a gated MLP."""

    tensor_parallel_plan = {
        "norm": "whole",
        "attention": "parts",
        "gated.gate": "column",
        "gated.up": "column",
        "gated.down": "row",
    }

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(DIM), OwnHeads()
        self.gated = nn.ModuleDict(
            {
                "gate": nn.Linear(DIM, 2 * DIM),
                "up": nn.Linear(DIM, 2 * DIM, bias=False),
                "down": nn.Linear(2 * DIM, DIM),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.gated["down"](F.silu(self.gated["gate"](x)) * self.gated["up"](x))


class OwnHeads(nn.Module):
    """Attention with names of its own, and one Linear for keys and values at once."""

    tensor_parallel_plan = {"queries": "heads", "both": "heads", "back": "row"}
    head_dim = DIM // HEADS

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.both, self.back = (nn.Linear(DIM, DIM) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, kv = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)
            for layer in (self.queries, self.both)
        )
        return self.back(F.scaled_dot_product_attention(q, kv, kv).transpose(-3, -2).flatten(-2))


def make(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model with random weights everywhere: also in biases and norms, which would start at 0 and 1."""
    torch.manual_seed(seed)
    model = {
        "pair": pair,
        "pair without biases": lambda: pair(bias=False),
        "MLP": lambda: MLP((24, 36, 12, 60, 24)),
        "frozen": pair,
        "attention": lambda: Attention(DIM, HEADS),
        "block": lambda: Block(DIM, HEADS),
        "GPT": gpt,
        "GPT, untied": lambda: gpt(tied=False),
        "own": Own,
    }[name]().to(dtype)
    for parameter in model.parameters():
        parameter.detach().normal_(std=0.3)
    if name == "frozen":
        model[0].weight.requires_grad_(False)
    return model


def data(name: str, seed: int = 1, batch: int = BATCH, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if "GPT" in name:
        return torch.randint(VOCAB, (batch, TIME + 1), generator=generator)
    return torch.randn(*((TIME,) if name == "MLP" else (batch, TIME)), DIM, generator=generator, dtype=dtype)


def difference(own: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest norm of a difference over the tensor's norm. (What is zero but for rounding, as the bias of
    keys, is held against all tensors.)
    """
    total = float(sum(tensor.norm() ** 2 for tensor in other.values()) ** 0.5)
    return max(
        float((own[name] - tensor).norm()) / max(float(tensor.norm()), 1e-6 * total)
        for name, tensor in other.items()
    )


def grads(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def mine(x: Tensor, cut: bool) -> Tensor:
    """This rank's tokens under sequence parallelism."""
    return x.chunk(dist.get_world_size(), -2)[dist.get_rank()] if cut else x


# Values


MODELS = ("pair", "pair without biases", "frozen", "MLP", "attention", "block", "GPT", "GPT, untied", "own")


def against_one_process() -> dict:
    """How far everything is from one process: by part of the module and case, numbers that must be tiny; and
    what is wrong with layers, in words.
    """
    told = {
        f"{name}, sequence_parallel={cut}": _values(name, cut, None)
        for name in MODELS
        for cut in (False, True)
    }
    told["block, from the ring"] = _values("block", True, ring.reduce_scatter)
    told["trained"] = {f"sequence_parallel={cut}": trained(cut) for cut in (False, True)}
    return told | {"losses": _losses(), "layers": _layers()}


def _values(name: str, sequence_parallel: bool, reduce_scatter) -> dict[str, float]:
    # ranks start from the first one's weights
    alone, x, given = make(name), data(name), make(name, seed=dist.get_rank())
    model = tp.parallelize(given, sequence_parallel=sequence_parallel, reduce_scatter=reduce_scatter)
    told = {
        "weights": difference(tp.gather_full(model), weights(alone)),
        "given model": (
            difference(weights(given), weights(make(name, seed=dist.get_rank())))
            + (repr(given) != repr(alone))
        ),
    }
    if "GPT" in name:
        loss, expected = model(x), alone(x)
        told["output"] = difference({"": loss.detach()}, {"": expected.detach()})
    else:
        inputs = mine(x, sequence_parallel).clone().requires_grad_()
        x.requires_grad_()
        output, whole = model(inputs), alone(x)
        cotangent = torch.randn(whole.shape, generator=torch.Generator().manual_seed(2), dtype=whole.dtype)
        loss, expected = (output * mine(cotangent, sequence_parallel)).sum(), (whole * cotangent).sum()
        told["output"] = difference({"": output.detach()}, {"": mine(whole.detach(), sequence_parallel)})
    loss.backward()
    expected.backward()
    if "GPT" not in name:
        told["input gradient"] = difference({"": inputs.grad}, {"": mine(x.grad, sequence_parallel)})
    told["gradients"] = difference(tp.gather_full(model, grads=True), grads(alone))
    told["frozen"] = float(
        sum(p.grad is not None for p in model.parameters())
        != sum(p.grad is not None for p in alone.parameters())
    )
    return told


def trained(
    sequence_parallel: bool, mesh: dict[str, dist.ProcessGroup] | None = None, steps: int = 3
) -> float:
    """How far weights are from one process's after steps of SGD with momentum: cut over all ranks, or on a
    mesh of data x tensor.
    """
    alone, model = make("GPT"), make("GPT", seed=dist.get_rank())
    tensor, replicas = (mesh["tp"], mesh["dp"]) if mesh else (None, None)
    model = cut = tp.parallelize(model, tensor, sequence_parallel)
    if mesh:
        model = ddp.DistributedDataParallel(cut, bucket_cap_mb=0.01, process_group=replicas)
    size, rank = (dist.get_world_size(replicas), dist.get_rank(replicas)) if mesh else (1, 0)
    optimizers = [torch.optim.SGD(m.parameters(), 0.02, momentum=0.9) for m in (model, alone)]
    for step in range(steps):
        x = data("GPT", seed=step, batch=4)
        with measure.step(model, optimizers[0]):
            model(x.chunk(size)[rank]).backward()
            optimizers[0].step()
            optimizers[0].zero_grad()
        alone(x).backward()
        optimizers[1].step()
        optimizers[1].zero_grad()
    full = tp.gather_full(cut, tensor)
    gpt().double().load_state_dict(full)  # all of TinyGPT's names, and no others
    return difference(full, weights(alone))


def on_a_mesh() -> list[float]:
    """Training on 2 x 2; then tensor parallelism in groups in another order, ranks 1 and 3 and ranks 2 and 0;
    then in groups of one rank.
    """
    mesh = hybrid.make_groups({"dp": 2, "tp": 2})
    told = [trained(cut, mesh) for cut in (False, True)]
    odd, even, ones = dist.new_group([1, 3]), dist.new_group([2, 0]), [dist.new_group([r]) for r in range(4)]
    rank = dist.get_rank()
    for group in (odd if rank % 2 else even, ones[rank]):
        for cut in (False, True):
            alone, x = make("GPT"), data("GPT", seed=rank % 2)  # each group has data of its own
            model = tp.parallelize(alone, group, cut)
            model(x).backward()
            alone(x).backward()
            told.append(difference(tp.gather_full(model, group, grads=True), grads(alone)))
    return told


def _losses() -> dict[str, float]:
    """The vocabulary-parallel loss and its gradient against F.cross_entropy: usual logits and huge ones, each
    token once, targets that do not count.
    """
    rank, size, told = dist.get_rank(), dist.get_world_size(), {}
    for scale in (1.0, 1e4):
        generator = torch.Generator().manual_seed(0)
        logits = (
            scale * torch.randn(5, VOCAB // 4, VOCAB, generator=generator, dtype=torch.float64)
        ).requires_grad_()
        # the last row is ignored
        targets = torch.cat([torch.arange(VOCAB), torch.full((VOCAB // 4,), -100)]).view(5, -1)
        own = logits.detach().chunk(size, -1)[rank].clone().requires_grad_()
        loss, expected = (
            tp.vocab_parallel_cross_entropy(own, targets),
            F.cross_entropy(logits.flatten(0, 1), targets.flatten()),
        )
        (3 * loss).backward()
        (3 * expected).backward()
        told[f"loss {scale}"] = difference({"": loss.detach()}, {"": expected.detach()})
        told[f"gradient {scale}"] = difference({"": own.grad}, {"": logits.grad.chunk(size, -1)[rank]})
    # their sum of exponentials is more than float16 can hold
    equal = torch.zeros(1, 120_000 // size, dtype=torch.float16)
    told["float16"] = abs(
        tp.vocab_parallel_cross_entropy(equal, torch.zeros(1).long()).item() / math.log(120_000) - 1
    )
    return told


def _layers() -> list[str]:
    """What is wrong with layers made by hand, in words: [] if nothing."""
    rank, size, wrong = dist.get_rank(), dist.get_world_size(), []
    first, _, second = make("pair")
    column, row = tp.ColumnParallelLinear(first), tp.RowParallelLinear(second)
    slices = {
        "column weight": (column.weight, first.weight.chunk(size, 0)[rank]),
        "column bias": (column.bias, first.bias.chunk(size)[rank]),
        "row weight": (row.weight, second.weight.chunk(size, 1)[rank]),
        "row bias": (row.bias, second.bias),
    }
    for name, (own, expected) in slices.items():
        if not torch.equal(own, expected):
            wrong.append(name)
        if own.untyped_storage().nbytes() != expected.numel() * expected.element_size():
            wrong.append(f"{name} keeps more memory than its own")
    x, full = data("pair"), torch.nn.Parameter(torch.ones(3))
    kept = x.clone().requires_grad_()
    y = kept.exp()  # saves its result, which must not be overwritten by the sum
    tp.reduce_from_group(y).sum().backward()
    if not torch.allclose(kept.grad, x.exp()):
        wrong.append("g changed what autograd had saved")
    (tp.copy_to_group(full) * rank).sum().backward()
    if full.grad.tolist() != [sum(range(size))] * 3:
        wrong.append("f does not sum gradients")
    if not torch.equal(tp.gather_from_group(mine(x, True)), x):
        wrong.append("gather_from_group")
    if not torch.allclose(tp.reduce_scatter_to_group(x), size * mine(x, True)):
        wrong.append("reduce_scatter_to_group")
    return wrong


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class OwnAttention(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def other_starts() -> dict:
    """A model of which each rank has other weights, whose layers have names, and whose weights lie transposed
    in memory.
    """
    rank, told = dist.get_rank(), {}
    torch.manual_seed(rank)
    named = nn.Sequential(OrderedDict(up=nn.Linear(8, 12), act=nn.ReLU(), down=nn.Linear(12, 8))).double()
    named.up.weight = nn.Parameter(torch.randn(12, 16, dtype=torch.float64)[:, ::2])
    full = tp.gather_full(tp.parallelize(named))
    torch.manual_seed(0)
    first_ranks = nn.Sequential(
        OrderedDict(up=nn.Linear(8, 12), act=nn.ReLU(), down=nn.Linear(12, 8))
    ).double()
    first_ranks.up.weight = nn.Parameter(torch.randn(12, 16, dtype=torch.float64)[:, ::2])
    told["names"] = list(full) == list(first_ranks.state_dict())
    told["weights"] = difference(full, weights(first_ranks))
    return told


def refusals() -> list[str]:
    """What is said of models that cannot be cut, on 4 ranks."""
    told, one = [], nn.Linear(8, 8)
    tied_norms = Block(8, 4)
    tied_norms.mlp_norm = tied_norms.attention_norm
    tied_linears = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    tied_linears[2].weight = tied_linears[0].weight
    padded = gpt()
    padded.embedding.padding_idx = 0
    for call in (
        lambda: tp.parallelize(Attention(24, 6)),
        lambda: tp.parallelize(pair(hidden=90)),
        lambda: tp.parallelize(MLP((8, 8, 8, 8))),
        lambda: tp.parallelize(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))),
        lambda: tp.parallelize(nn.Conv2d(1, 1, 1)),
        lambda: tp.parallelize(TinyGPT(vocab_size=50, dim=8)),
        lambda: tp.parallelize(gpt(), sequence_parallel=True)(torch.zeros(1, 10).long()),
        lambda: tp.parallelize(nn.Sequential(one, nn.ReLU(), one)),
        lambda: tp.parallelize(tied_linears),
        lambda: tp.parallelize(tied_norms),
        lambda: tp.parallelize(nn.Sequential(Scaled(8, 8), nn.ReLU(), nn.Linear(8, 8))),
        lambda: tp.parallelize(OwnAttention(8, 4)),
        lambda: tp.parallelize(Residual(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))),
        lambda: tp.parallelize(padded),
        lambda: tp.parallelize(
            nn.Sequential(
                nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 8)
            )
        ),
        lambda: tp.VocabParallelEmbedding(nn.Embedding(8, 2, max_norm=1.0)),
        lambda: tp.parallelize(tp.parallelize(Attention(8, 4))),
        *(
            lambda token=token: tp.VocabParallelEmbedding(nn.Embedding(8, 2))(torch.tensor([[token]]))
            for token in (8, -1)
        ),
        *(
            lambda token=token: tp.vocab_parallel_cross_entropy(torch.zeros(1, 2), torch.tensor([token]))
            for token in (8, -1)
        ),
    ):
        try:
            call()
            told.append("nothing")
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            told.append(f"{type(error).__name__}: {error}")
    return told


def other_plans() -> list[str]:
    """What is said of models whose plans cannot be followed, on 2 ranks."""

    class Unnamed(nn.Module):
        tensor_parallel_plan = {"up": "column", "down": "row"}

        def __init__(self) -> None:
            super().__init__()
            self.up, self.act, self.down, self.norm = (
                nn.Linear(8, 8),
                nn.GELU(),
                nn.Linear(8, 8),
                nn.LayerNorm(8),
            )

    class Misspelt(Unnamed):
        tensor_parallel_plan = {"up": "columns", "down": "row", "norm": "whole"}

    class Inherited(TinyGPT):
        def logits(self, tokens: Tensor) -> Tensor:
            return 2 * super().logits(tokens)

    smooth, tied_alike = gpt(), nn.Sequential(*pair(8), nn.GELU(), *pair(8))
    smooth.loss.label_smoothing = 0.1
    told = []
    for model in (Unnamed(), Misspelt(), Inherited(), smooth):
        try:
            tp.parallelize(model)
            told.append("nothing")
        except (ValueError, TypeError) as error:
            told.append(f"{type(error).__name__}: {error}")
    tied_alike[4].weight = tied_alike[0].weight  # both are cut by columns: one slice
    cut = tp.parallelize(tied_alike)
    return told + [f"one slice: {cut[4].weight is cut[0].weight}"]


# Dropout


def dropout() -> dict:
    """Dropout on hidden features that are cut, and on an output that is whole, from one seed and from
    different ones.
    """
    told, size = {}, dist.get_world_size()

    def all_ranks(x: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(x) for _ in range(size)]
        dist.all_gather(parts, x.contiguous())
        return parts

    ones = torch.ones(2000)
    torch.manual_seed(0)
    masks = all_ranks(F.dropout(ones, 0.5))
    told["nn.Dropout, one seed: the same masks"] = all(torch.equal(mask, masks[0]) for mask in masks)
    sharded = tp.ShardedDropout(0.5)
    masks = all_ranks(sharded(ones))
    told["kept"] = [float((mask > 0).float().mean()) for mask in masks]
    told["kept together"] = float(((masks[0] > 0) & (masks[1] > 0)).float().mean())
    told["mean"] = float(torch.stack(masks).mean())
    told["twice"] = not torch.equal(sharded(ones), masks[dist.get_rank()])
    told["common generator in step"] = len({float(x) for x in all_ranks(torch.rand(()))}) == 1
    told["evaluation"] = torch.equal(sharded.eval()(ones), ones)

    # A pair with dropout inside and behind, against one process that is given the ranks' masks.
    alone = nn.Sequential(*make("pair"), nn.Dropout(0.3))
    alone.insert(2, nn.Dropout(0.3))
    for seeds in ("one seed", "other seeds"):
        torch.manual_seed(0 if seeds == "one seed" else dist.get_rank())
        model, seen = tp.parallelize(alone), {}
        for number in (2, 4):
            model[number].register_forward_hook(
                lambda _, inputs, output, number=number: seen.update({number: (output / inputs[0]).detach()})
            )
        x = data("pair")
        y = model(x)
        outputs = all_ranks(y.detach())
        told[f"outputs equal, {seeds}"] = all(torch.equal(output, outputs[0]) for output in outputs)
        hidden = alone[1](alone[0](x)) * torch.cat(all_ranks(seen[2]), -1)
        told[f"one process, {seeds}"] = difference(
            {"": y.detach()}, {"": (alone[3](hidden) * seen[4]).detach()}
        )
    return told


# Bytes and memory


def step_of(
    kind: str, name: str, dim: int = 48, heads: int = 12, batch: int = 8, time: int = 192, steps: int = 3
) -> dict:
    """Steps of one model; `kind`: "tp", "sp" or "sp, ring" for mini's, "DTensor" or "DTensor, sp" for
    torch's. Returns bytes and values.
    """
    torch.manual_seed(0)
    alone = {
        "pair": lambda: pair(dim),
        "block": lambda: Block(dim, heads),
        "GPT": lambda: TinyGPT(vocab_size=VOCAB, context=time, dim=dim, heads=heads),
    }[name]()
    sequence_parallel = "sp" in kind
    if kind.startswith("DTensor"):
        model = _parallelize_module(copy.deepcopy(alone), name, sequence_parallel)
    else:
        model = tp.parallelize(
            alone,
            sequence_parallel=sequence_parallel,
            reduce_scatter=ring.reduce_scatter if "ring" in kind else None,
        )
    optimizer = torch.optim.Adam(model.parameters())
    whole = torch.randn(batch, time, dim, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(VOCAB, (batch, time + 1), generator=torch.Generator().manual_seed(1))
    local = [(p.to_local() if hasattr(p, "to_local") else p) for p in model.parameters()]
    outside = ("norm.weight", "norm.bias", "out.bias", "mlp.2.bias", "position.weight") + (
        ("2.bias",) if name == "pair" else ()
    )
    told = {
        "params": sum(p.nbytes for p in alone.parameters()),
        "shapes": [tuple(p.shape) for p in local],
        "whole on every rank": sum(p.nbytes for key, p in alone.named_parameters() if key.endswith(outside)),
    }
    for _ in range(steps):
        x = tokens if name == "GPT" else mine(whole, sequence_parallel).clone().requires_grad_()
        with measure.step(model, optimizer):
            y = model(x)
            (y if name == "GPT" else y.square().mean()).backward()
            if "output" not in told:
                told |= {"output": y.detach(), "input gradient": x.grad}
            optimizer.step()
            optimizer.zero_grad()
    return told


def _parallelize_module(model: nn.Module, name: str, sequence_parallel: bool) -> nn.Module:
    """Cut a pair or a block as torch does it."""
    from torch.distributed.device_mesh import init_device_mesh  # slow to import, and only needed here
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    leave = RowwiseParallel(output_layouts=Shard(1)) if sequence_parallel else RowwiseParallel()
    plan = {f"attention.{part}": ColwiseParallel() for part in "qkv"} | {
        "attention.out": leave,
        "mlp.0": ColwiseParallel(),
        "mlp.2": leave,
    }
    enter = PrepareModuleInput(
        input_layouts=(Shard(1) if sequence_parallel else Replicate(),), desired_input_layouts=(Replicate(),)
    )
    # without it, q, k and v would each all_reduce their input's gradient
    plan |= {"attention": enter, "mlp": enter}
    if sequence_parallel:
        plan |= {"attention_norm": SequenceParallel(), "mlp_norm": SequenceParallel()}
    return parallelize_module(
        model,
        init_device_mesh("cpu", (dist.get_world_size(),)),
        {"0": ColwiseParallel(), "2": leave} if name == "pair" else plan,
    )


# Products in pieces


def products_in_pieces() -> dict[str, float]:
    """A pair by its pieces against one process; and in a group of other ranks than all."""
    size, told = dist.get_world_size(), {}
    first, _, second = pair(bias=False).double()
    for parameter in (first.weight, second.weight):
        dist.broadcast(parameter.detach(), src=0)
    reversed_ranks = dist.new_group(list(range(size))[::-1])
    for name, group in (("all ranks", None), ("a group", reversed_ranks)):
        own = dist.get_rank(group)
        A, B = first.weight.chunk(size, 0)[own], second.weight.chunk(size, 1)[own]
        x = data("pair")
        with torch.no_grad(), measure.step():  # the second is traced
            hidden = multiply_while_gathering(x.chunk(size, -2)[own], lambda piece: piece @ A.T, group)
            sums = multiply_while_scattering(F.gelu(hidden), lambda piece: piece @ B.T, group)
            whole = first(x)
            told[f"gathered, {name}"] = difference({"": hidden}, {"": whole.chunk(size, -1)[own]})
            told[f"scattered, {name}"] = difference(
                {"": sums}, {"": second(F.gelu(whole)).chunk(size, -2)[own]}
            )
    return told
