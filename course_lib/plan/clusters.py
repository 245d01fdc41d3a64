"""Published models and machines as data, and what their papers measured beside what `cost` says. No torch."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from course_lib import theory
from course_lib.arguments import instance, whole
from course_lib.plan.costs import cost
from course_lib.plan.facts import Layer, Link, Machine, Model, Plan
from course_lib.plan.moments import states_of

__all__ = ["transformer", "A100", "H100", "Row", "published_rows"]

MANY = 2**20  # ranks that any cluster may have
# Of one GPU: peak products/s and memory; GB/s each way by NVLink inside a server, and by InfiniBand between
# servers (200 and 400 Gbit/s); GB/s of its memory
_CLUSTERS = {"A100": (312e12 / 2, 300e9, 25e9, 2.0e12), "H100": (989e12 / 2, 450e9, 50e9, 3.35e12)}
A100, H100 = (
    Machine(
        *(f"{gpu} cluster", MANY, {0: products}, 80e9),
        links=(Link(8, 5e-6, 1 / inside), Link(MANY, 1e-5, 1 / between)),
        touched_bytes_per_s=touched,
        overlap=0.7,  # chosen by eye for one row: ZeRO-3 on 384 GPUs
    )
    for gpu, (products, inside, between, touched) in _CLUSTERS.items()
)


def transformer(
    layers: int,
    hidden: int,
    sequence: int,
    batch: int,
    vocab: int = 51200,
    heads: int = 0,
    block_numel: int = 0,
    flash: bool = False,
    name: str = "transformer",
) -> Model:
    """A GPT in mixed precision. A sample is a sequence, a layer a block, with its part of the embedding and
    of the head: they are dealt out evenly.

    Args:
        batch: sequences of a step.
        heads: hidden / 128 unless given; tp must divide them.
        block_numel: parameters of a block; 12 h^2 + 13 h unless given.
        flash: attention keeps and touches no scores.
    """
    h, s = whole("hidden", hidden), whole("sequence", sequence)
    whole("layers", layers, most=4096)
    whole("vocab", vocab, least=0)
    whole("heads", heads, least=0)
    whole("block_numel", block_numel, least=0)
    numel = block_numel or 12 * h**2 + 13 * h
    part = (vocab + s) * h // layers
    a = heads or max(1, h // 128)
    instance("flash", flash, bool)
    scores = "selective" if flash else "none"  # of the activations that are kept
    at_1, at_2 = (theory.activation_bytes(1, s, h, a, tp, recompute=scores) for tp in (1, 2))
    cut = 2 * (at_1 - at_2)  # what tensor parallelism divides
    block = Layer(
        "block",
        ((numel,), (part,)) if part else ((numel,),),
        products=s * (numel + 2 * s * h) + s * vocab * h / layers,
        kept_bytes=at_1 - cut,
        out_bytes=2 * s * h,
        cut="column",
        kept_cut_bytes=cut,
        tp_bytes=4 * 2 * s * h,
        tp_calls=4,
        heads=a,
    )
    return Model(name, (block,) * layers, batch, input_bytes=8 * s, label_bytes=8 * s, precision="mixed")


@dataclass(frozen=True)
class Row:
    """A published number beside the modelled one.

    Attributes:
        given: it is the number from which the machine's was taken, and so agrees.
    """

    table: str
    what: str
    published: float
    modelled: float
    given: bool = False

    @property
    def error(self) -> float:
        return self.modelled / self.published - 1


def published_rows() -> Iterator[Row]:
    """Every row of four published tables, modelled.

    Peak rates are not reached. Which part of them is, is taken from one published row each (products of A100
    and of H100, and the link between servers), and so is `overlap`. These rows are marked as given.
    """
    a100, h100 = _calibrated()
    for i, (what, rate, plan, model, flop) in enumerate(_megatron()):
        yield Row("Megatron, table 1", what, rate, _tflops(plan, model, a100, flop), i == 0)
    for i, (what, rate, plan, model, flop) in enumerate(_zero_3()):
        yield Row("Megatron, table 2", what, rate, _tflops(plan, model, a100, flop), i in (0, 2))
    for i, (what, rate, plan, model, flop) in enumerate(_llama()):
        yield Row("Llama 3, table 4", what, rate, _tflops(plan, model, h100, flop), i == 0)
    for row in theory.published("zero_table_1")["rows"]:
        model = Model("", (Layer("all", ((round(row["model"] * 1e9),),), 0, 0, 0),), 1024, precision="mixed")
        for stage in (1, 3):
            plan = Plan(f"ZeRO-{stage}", dp=row["devices"])
            gb = sum(states_of(plan, model).values()) / 1e9
            what = f"{row['model']:g} billion, stage {stage}, {row['devices']} ranks, GB"
            yield Row("ZeRO, table 1", what, row[f"stage_{stage}"], gb)


@functools.cache
def _calibrated() -> tuple[Machine, Machine]:
    """A100 and H100 with what they reach of their peaks, from one published row for each number."""
    products = _fitted(next(_megatron()), "products")
    between = _fitted([*_zero_3()][2], "between", products)
    return _derated(A100, products, between), _derated(H100, _fitted(next(_llama()), "products"), 1)


def _tflops(plan: Plan, model: Model, machine: Machine, flop: float) -> float:
    return flop / cost(plan, model, machine).step_s / plan.ranks / 1e12


def _derated(machine: Machine, products: float, between: float) -> Machine:
    inside, outside = machine.links
    links = inside, replace(outside, beta_s=outside.beta_s / between)
    return replace(machine, products_per_s={0: machine.products_per_s[0] * products}, links=links)


def _fitted(case: tuple, what: str, products: float = 1.0) -> float:
    """The part of the peak with which a row comes out as published, by halving."""
    _, rate, plan, model, flop = case
    machine = H100 if "405" in model.name else A100
    low, high = 0.01, 1.5
    for _ in range(40):
        part = (low + high) / 2
        derated = _derated(machine, part, 1) if what == "products" else _derated(machine, products, part)
        low, high = (part, high) if _tflops(plan, model, derated, flop) < rate else (low, part)
    return part


def _megatron_flop(layers: int, h: int, batch: int, s: int = 2048, vocab: int = 51200) -> float:
    """Narayanan et al. 2021, section 5.1: with a forward that is computed again."""
    return 96 * batch * s * layers * h**2 * (1 + s / (6 * h) + vocab / (16 * layers * h))


def _megatron() -> Iterator[tuple]:
    rates = {row["model"]: row["tflops_per_gpu"] for row in theory.published("megatron_table_1")["rows"]}
    stages = {row["model"]: row for row in theory.published("megatron_stages")["rows"]}
    for row in theory.published("megatron_configurations")["rows"]:
        heads, chunks = stages[row["model"]]["heads"], stages[row["model"]]["chunks"]
        name, gpus, layers, h, tp, pp, each, batch = row.values()
        dp = gpus // (tp * pp)
        plan = Plan("DDP", dp, tp, pp, 0, batch // (dp * each), chunks, recompute=True)
        model = transformer(layers, h, 2048, batch, heads=heads, name=f"{name:g} billion")
        yield f"{name:g} billion on {gpus}", rates[name], plan, model, _megatron_flop(layers, h, batch)


def _zero_3() -> Iterator[tuple]:
    """Table 2; the sizes of its models and batches: section 5.2. Tensor and pipeline: tp 8, pp 12 and 35."""
    for row in theory.published("megatron_table_2")["rows"]:
        big = row["model"] > 500
        layers, h, pp = (105, 20480, 35) if big else (96, 12288, 12)
        zero = row["scheme"] == "ZeRO-3"
        batch = (2240 if row["gpus"] != 640 else 2560) if big else 1536
        gpus = row["gpus"]
        if zero:
            each = max(1, batch // gpus)
            plan = Plan("ZeRO-3", gpus, microbatches=batch // (gpus * each), recompute=True)
        else:
            plan = Plan("DDP", gpus // (8 * pp), 8, pp, microbatches=batch * 8 * pp // gpus, recompute=True)
        heads = 128 if big else 96
        model = transformer(layers, h, 2048, batch, heads=heads, name=f"{row['model']} billion")
        what = f"{row['scheme']}, {row['model']} billion on {gpus}"
        yield what, row["tflops_per_gpu"], plan, model, _megatron_flop(layers, h, batch)


def _llama() -> Iterator[tuple]:
    """405 billion parameters, 2^24 tokens; stages in 4 chunks are our assumption, the paper gives none."""
    for row in theory.published("llama3_table_4")["rows"]:
        dp = row["dp_size"]
        plan = Plan("ZeRO-1", dp, row["tp_size"], row["pp_size"], microbatches=2048 // dp, chunks=4)
        block = round(405e9 / 126)
        its = {"vocab": 0, "block_numel": block, "flash": True, "name": "405 billion"}
        model = transformer(126, 16384, 8192, 2048, **its)
        what = f"405 billion on {row['gpus']}"
        yield what, row["tflops_per_gpu"], plan, model, 6 * 405e9 * 2**24
