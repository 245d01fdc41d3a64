"""Checks of the chapter "fully_shard in practice": units for a budget, values that are made in shards,
micro-batches that do not communicate.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn

from course_lib import measure
from course_lib.check import on_rank
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import at_most, collectives, fact, values
from course_lib.datasets import text_batches
from course_lib.models import MLP, TinyGPT

__all__ = ["units_for_budget", "init_on_meta", "quiet_accumulation"]

DRAWN_MODELS = 40
DEPTH, WIDTH = 12, 64  # of the model that is made in shards
FEW_LAYERS = 3.5  # beside the shards: one that is made, its copy as a shard, and what travels
BLOCKS, MICRO_BATCHES = 3, 3


def _plans(number: int) -> Iterator[list[list[int]]]:
    """All ways to cut layers in a row into units, those with the fewest units first."""
    for cuts in range(number):
        for places in itertools.combinations(range(1, number), cuts):
            edges = [0, *places, number]
            yield [list(range(*edge)) for edge in itertools.pairwise(edges)]


def _most_at_once(units: Sequence[Sequence[int]], sizes: Sequence[int]) -> int:
    """Bytes of the two largest neighbours: one works in backward, the one before it is gathered."""
    unit_bytes = [sum(sizes[layer] for layer in unit) for unit in units]
    return max(map(sum, itertools.pairwise([0, *unit_bytes])))


def _fewest(sizes: Sequence[int], budget: int) -> int:
    return next(len(units) for units in _plans(len(sizes)) if _most_at_once(units, sizes) <= budget)


def _as_units(found) -> list[list[int]] | None:
    """What was returned, as lists of whole numbers; None if it is something else."""
    found = on_rank.plain(found)
    if not isinstance(found, list) or not all(isinstance(unit, (list, range)) for unit in found):
        return None
    units = [[on_rank.whole(layer) for layer in unit] for unit in found]
    return None if any(layer is None for unit in units for layer in unit) else units


def _drawn(draw: random.Random) -> tuple[list[int], int]:
    """Sizes of layers in KiB, and a budget that the finest plan keeps, but not by much."""
    sizes = [draw.choice((1, 1, 4)) * draw.randint(1, 9) * 1024 for _ in range(draw.randint(3, 8))]
    least = _most_at_once([[layer] for layer in range(len(sizes))], sizes)
    return sizes, round(least * draw.choice((1, 1.2, 1.5, 2.2)))


@exercise(
    cut="every layer is in one unit, and a unit has neighbours, in order",
    fits="in backward two units fit into the budget: the one that works, and the one that is gathered",
    fewest="no plan that fits has fewer units",
    held=fact(
        "fully_shard holds no more than that, in a real step",
        "held",
        "with the units of your plan, rank {rank} holds {wrong}.",
    ),
)
def units_for_budget(judge: Judge, answer: Callable) -> None:
    """`answer(layer_bytes, budget_bytes)` returns the fewest units, of which each two neighbours fit."""
    draw = random.Random(judge.seed)
    cases = [
        ([8, 8, 8, 8, 8, 8], 32),
        ([6, 1, 1, 1, 1, 6], 8),
        ([1, 2, 3, 4, 5, 6], 12),
        ([5], 5),
        *(_drawn(draw) for _ in range(DRAWN_MODELS)),
    ]
    for (sizes, budget), found in zip(cases, judge.call(answer, cases)):
        judge.case = ""
        units = _as_units(found)
        shown = f"for layers of {sizes} bytes and a budget of {budget}, {on_rank.short(found, 90)}"
        if units is None or sorted(itertools.chain(*units)) != list(range(len(sizes))):
            judge.refuse(f"{shown} is no list of lists in which each number of a layer stands once")
        in_order = list(itertools.chain(*units)) == list(range(len(sizes))) and all(units)
        most, fewest = _most_at_once(units, sizes), _fewest(sizes, budget)
        met = (
            ("cut", "" if in_order else f"{shown} has units out of order, or an empty one"),
            ("fits", "" if most <= budget else f"{shown} holds {most} bytes at once"),
            (
                "fewest",
                f"{shown} has {len(units)} units, and {fewest} can do"
                if most <= budget and len(units) > fewest
                else "",
            ),
        )
        if any(missed for _, missed in met):
            for key, missed in met:
                judge.demand(key, missed)
            return
    for key in ("cut", "fits", "fewest"):
        judge.demand(key, "")

    def one_step(answer, seed):
        from torch.distributed.fsdp import fully_shard

        from course_lib.measure import alive

        on_rank.use_cpu()
        widths = [64, *(32 * random.Random(seed).randint(1, 4) for _ in range(6)), 10]
        torch.manual_seed(seed)
        model = MLP(widths)
        layers = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
        sizes = [sum(p.nbytes for p in layer.parameters()) for layer in layers]
        budget = max(map(sum, itertools.pairwise(sizes))) * 3 // 2
        for unit in answer(sizes, budget):
            fully_shard([layers[number] for number in unit])
        fully_shard(model)
        model(torch.ones(2, 64)).sum().backward()
        moments = alive.watch(layers, waiting=True)
        model(torch.ones(2, 64)).sum().backward()
        most = max(sum(full) + sum(waiting) for _, full, waiting in moments)
        return {"held": f"{most} bytes of parameters at once, of a budget of {budget}" * (most > budget)}

    judge.tried("2 ranks", one_step, answer, judge.seed, ranks=2)


@exercise(
    sharded=fact("every parameter is sharded, and has memory", "sharded"),
    values=values(
        "the values of one process, to the last digit",
        "the values are not those that `make_model()` gives in one process (relative error {error:.2g}).",
        within=1e-12,
    ),
    peak=at_most(
        f"a rank never holds more than its shards and {FEW_LAYERS} layers",
        "beyond",
        FEW_LAYERS,
        "at its worst moment a rank holds its shards and the memory of {most:.1f} layers more"
        f" ({DEPTH} in all). Make one module at a time, and keep its rows.",
    ),
)
def init_on_meta(judge: Judge, answer: Callable) -> None:
    """`answer(make_model, shard)` returns a sharded model with the values of `make_model()`, and never has
    the whole.
    """

    def make(answer, seed):
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        from course_lib.measure import alive

        on_rank.use_cpu()
        rank, n = dist.get_rank(), dist.get_world_size()
        kinds = (nn.Linear, nn.LayerNorm)
        on_meta = []

        def make_model():
            layers = [(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU()) for _ in range(DEPTH)]
            return nn.Sequential(*(module for layer in layers for module in layer))

        def shard(model):
            on_meta.append(all(p.is_meta for p in model.parameters()))
            for module in model:
                if isinstance(module, kinds):
                    fully_shard(module)
            return fully_shard(model)

        torch.manual_seed(seed)
        wanted = [p.detach().clone() for p in make_model().parameters()]
        torch.manual_seed(seed)
        dist.barrier()
        with alive.Allocations() as held:
            model = answer(make_model, shard)
            held.mark("done")
        params = list(model.parameters()) if isinstance(model, nn.Module) else []
        problem = ""
        if [tuple(p.shape) for p in params] != [tuple(p.shape) for p in wanted]:
            problem = "`init_on_meta` must return the model, as `make_model` makes it"
        elif not on_meta:
            problem = "`shard` was never called"
        if problem := on_rank.first_problem(problem):
            return {"problem": problem}
        sharded = ""
        if not all(isinstance(p, DTensor) for p in params):
            sharded = "a parameter is no DTensor: give the model to `shard`, and keep its parameters."
        elif any(p.is_meta for p in params):
            sharded = "a parameter is still on the meta device: `to_empty` gives it memory."
        layer_bytes = sum(p.nbytes for p in wanted) / DEPTH
        shards = [p.to_local() if isinstance(p, DTensor) else p for p in params]
        found = {
            "sharded": sharded,
            "beyond": held.peak_bytes() / layer_bytes - DEPTH / n,
            "error": 0.0,
            "looks": "",
        }
        if sharded:
            return found
        mine = [(whole.chunk(n) + (whole[:0],) * n)[rank] for whole in wanted]
        found["error"] = on_rank.apart(on_rank.flat(shards), on_rank.flat(mine))
        first = on_rank.everyone(shards[0].detach())
        if found["error"] and all(map(torch.equal, first, [first[0]] * n)):
            found["looks"] = "the same rows on every rank: on a CPU each rank draws for its own shard"
        return found

    for ranks in (2, 4):
        if not judge.tried(f"{ranks} ranks", make, answer, judge.seed, ranks=ranks):
            return


def _gathers_once(ops: Counter) -> bool:
    return ops["all_gather"] <= BLOCKS + 1


def _reduces_once(ops: Counter) -> bool:
    return ops["reduce_scatter"] == BLOCKS + 1 and not set(ops) - {"all_gather", "reduce_scatter", "barrier"}


@exercise(
    gradients=values(
        "the gradients of one process over all micro-batches, in both steps",
        "the gradients are not those of one process over all micro-batches (relative error {error:.2g}).",
    ),
    reduces=collectives(
        "each unit's gradients travel once in a step",
        _reduces_once,
        f"in a step of {MICRO_BATCHES} micro-batches and {BLOCKS + 1} units you used {{used}}: only the last"
        " backward needs to reduce. See `set_requires_gradient_sync`.",
    ),
    gathers=collectives(
        "each unit is gathered once in a step",
        _gathers_once,
        f"in a step of {MICRO_BATCHES} micro-batches and {BLOCKS + 1} units you used {{used}}: who has"
        " gathered a unit in the first forward can keep it until the last backward.",
    ),
    sharded=fact(
        "after the last backward a rank has shards alone",
        "sharded",
        "after `accumulate`, rank {rank} still has full parameters: the last backward must reshard.",
    ),
)
def quiet_accumulation(judge: Judge, answer: Callable) -> None:
    """`answer(model, micro_batches)` leaves the gradient of the mean loss in a fully_shard model, and gathers
    and reduces once.
    """

    def two_steps(answer, seed):
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        on_rank.use_cpu()
        rank, n = dist.get_rank(), dist.get_world_size()

        def make_model():
            torch.manual_seed(seed)
            return TinyGPT(dim=16, heads=2, context=16, vocab_size=256, layers=BLOCKS).double()

        one, model = make_model(), make_model()
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        batches = list(text_batches(2 * n, 16, 2 * MICRO_BATCHES, seed=seed))
        errors, looks, sharded = [], "", []
        for step in range(2):
            whole = batches[step * MICRO_BATCHES : (step + 1) * MICRO_BATCHES]
            model.zero_grad()
            one.zero_grad()
            one(torch.cat(whole)).backward()
            dist.barrier()
            with measure.step():
                answer(model, [batch[2 * rank : 2 * rank + 2] for batch in whole])
            sharded.append(all(isinstance(p, DTensor) for p in model.parameters()))
            for unit in (model, *model.blocks):
                unit.reshard()  # so that the gradients of shards can be looked at
            shards = [p.grad for p in model.parameters()]
            given = all(isinstance(grad, DTensor) for grad in shards)
            if problem := on_rank.first_problem(
                ""
                if given
                else "after `accumulate` a parameter has no sharded `.grad`: the last backward must reduce"
            ):
                return {"problem": problem}
            found = on_rank.flat([grad.full_tensor() for grad in shards])
            wanted = on_rank.flat([p.grad for p in one.parameters()])
            errors.append(on_rank.apart(found, wanted))
            guesses = {"the sum over the micro-batches, not their mean": wanted * MICRO_BATCHES}
            looks = looks or on_rank.looks(found, guesses)
        return {"error": max(errors), "looks": looks, "sharded": all(sharded)}

    for ranks in (2, 3):
        if not judge.tried(f"{ranks} ranks", two_steps, answer, judge.seed, ranks=ranks):
            return
