"""The memory of one rank: what it holds by category, to the byte, and its moments, of which one is the worst.
No torch here.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from itertools import accumulate

from course_lib import theory
from course_lib.arguments import instance, whole
from course_lib.plan.facts import BYTES, Layer, Model, Plan, alike
from course_lib.plan.ways import WAYS

__all__ = ["stages", "states_of", "moments_of", "worst_moment", "numel_of"]


def stages(model: Model, pp: int) -> list[tuple[Layer, ...]]:
    """The layers of each stage: a layer goes where the middle of its parameters falls, as in the demo."""
    sizes = _dealt(model.numels, pp)
    if not all(sizes):
        raise ValueError(f"pp={pp}: {model.name} has {len(model.layers)} layers, and a stage would get none.")
    ends = [*accumulate(sizes)]
    return [model.layers[end - size : end] for size, end in zip(sizes, ends)]


@functools.lru_cache  # a ranking asks for the same few hundreds of times
def _dealt(numels: tuple[int, ...], pp: int) -> tuple[int, ...]:
    """How many layers each stage gets: they come in order."""
    sizes, before, whole_numel = [0] * pp, 0, max(sum(numels), 1)
    for numel in numels:
        sizes[min(pp - 1, int(pp * (before + numel / 2) / whole_numel))] += 1
        before += numel
    return tuple(sizes)


def states_of(plan: Plan, model: Model, rank: int = 0) -> dict[str, float]:
    """Bytes of params, grads and optimizer_states that one rank holds between backward and the next step."""
    instance("plan", plan, Plan)
    instance("model", model, Model)
    if whole("rank", rank, least=0) >= plan.ranks:
        raise ValueError(f"rank={rank}: with {plan.ranks} ranks it must be less than that.")
    way, n = WAYS[plan.way], plan.shards or plan.dp
    stage = stages(model, plan.pp)[rank // plan.tp % plan.pp]
    place = rank // (plan.pp * plan.tp) % n
    kinds = [(layer.pieces(plan.tp), times) for layer, times in alike(stage)]
    full = sum(times * numel_of(shapes) for shapes, times in kinds)
    padded, own, tensors = full, full, sum(times * len(shapes) for shapes, times in kinds)
    if way.stage and way.dealt == "flat":
        units = [(numel_of(shapes), times) for shapes, times in kinds if shapes]
        if not way.per_layer:
            units = [(full, 1)] if full else []
        padded = own = sum(times * -(-numel // n) for numel, times in units)
        full = n * padded  # parameters and gradients are views of it
        tensors = sum(times for _, times in units)
    elif way.stage and way.dealt == "rows":
        rows = [(shape, times) for shapes, times in kinds for shape in shapes]
        padded, own = (
            sum(times * theory.fully_shard_local_numel(shape, place, n, padded=pad) for shape, times in rows)
            for pad in (True, False)
        )
        tensors = sum(times for shape, times in rows if theory.fully_shard_local_numel(shape, place, n))
    elif way.stage:  # whole tensors: the largest first, each to whom has least
        owners: list[list[int]] = [[] for _ in range(n)]
        every = (numel for shapes, times in kinds for s in shapes for numel in [numel_of([s])] * times)
        for numel in sorted(every, reverse=True):
            min(owners, key=sum).append(numel)
        own, tensors = sum(owners[place]), len(owners[place])
    of_params, of_grads, of_states = BYTES[model.precision]
    return {
        "params": of_params * (padded if way.stage == 3 else full),
        "grads": of_grads * (padded if way.stage >= 2 else full),
        "optimizer_states": of_states * own + 4 * tensors,
    }


def moments_of(plan: Plan, model: Model, rank: int = 0) -> list[tuple[str, dict[str, float]]]:
    """What one rank holds at each moment of a step: a name, and bytes by category. These are those of
    `states_of`, activations (with their gradients), and buffers (what is gathered, sent or copied just then).
    """
    return _moments(plan, model, rank, every_layer=True)


def worst_moment(plan: Plan, model: Model, rank: int = 0) -> tuple[str, dict[str, float]]:
    """That of `moments_of` in which the rank holds most."""
    return max(_moments(plan, model, rank, every_layer=False), key=lambda moment: sum(moment[1].values()))


def _moments(plan: Plan, model: Model, rank: int, every_layer: bool) -> list[tuple[str, dict[str, float]]]:
    states = states_of(plan, model, rank)
    way, stage = WAYS[plan.way], rank // plan.tp % plan.pp
    parts = stages(model, plan.pp)
    layers = parts[stage]
    of_param, of_grad, _ = BYTES[model.precision]
    its_batch = model.batch / plan.dp
    samples, last = its_batch / plan.microbatches, len(layers) - 1
    flight = theory.microbatches_in_flight("1f1b", stage, plan.pp, plan.microbatches) if plan.pp > 1 else 1
    flight = flight + (plan.pp - stage - 1) * (1 - 1 / plan.chunks) if plan.chunks > 1 else flight
    each = {id(its): its for its, _ in alike(layers)}
    largest = max((numel_of([s]) for its in each.values() for s in its.pieces(plan.tp)), default=0)
    sizes = {
        key: (
            its.cut_numel(plan.tp),
            samples * (its.kept_bytes + its.kept_cut_bytes / plan.tp),
            samples * its.out_bytes / (plan.tp if its.cut == "column" else 1),
        )
        for key, its in each.items()
    }
    numel, kept, out = map(list, zip(*(sizes[id(its)] for its in layers)))
    numel_to, full = [*accumulate(numel)], sum(numel)
    at_work = out
    if plan.recompute:  # only inputs are kept; the layer at work keeps all that it would keep else
        kept, at_work = out, [one + its for one, its in zip(out, kept)]
    if stage:  # what the stage before has sent
        kept = [kept[0] + samples * parts[stage - 1][-1].out_bytes, *kept[1:]]
    others = (flight - 1) * sum(kept)
    inputs = its_batch * (model.input_bytes + model.label_bytes)
    inputs -= 0 if plan.pp > 1 else samples * model.input_bytes  # kept; of a pipeline, copies are

    if plan.pp > 1:  # a message that came, and one that leaves
        inputs += 2 * samples * max(its[-1].out_bytes for its in parts[:-1])
    if way.grads_stay and plan.microbatches > 1:  # gradients add up beside the buckets
        inputs += of_grad * full

    def at(name: str, active: float, grads: float, params: float = 0, buffers: float = 0):
        return name, {
            "params": states["params"] + params,
            "grads": grads,
            "optimizer_states": states["optimizer_states"],
            "activations": others + active,
            "buffers": inputs + buffers + way.flat_grads * of_grad * full,
        }

    def params(layer: int) -> float:
        """Beyond the shards: layers that are whole, and the buffer in which one comes."""
        if way.stage < 3:
            return 0
        if not way.layers_whole:
            return of_param * full
        near = sorted(numel[max(0, layer - 1) : layer + 2], reverse=True)[: way.layers_whole]
        return of_param * (sum(near) + (max(near) if way.layers_whole > 1 else 0))

    def grads(layer: int, after: bool) -> tuple[float, float]:
        """In backward: of the layers behind, and what the layer at work takes besides."""
        done, now = full - numel_to[layer], numel[layer] if after else 0
        if way.stage >= 2:
            share = states["grads"] / max(of_grad * full, 1)
            return of_grad * done * share, of_grad * now * (2 if way.dealt == "flat" else 1)
        if way.grads_stay or way.stage == 1 and way.dealt == "flat":
            return of_grad * full, of_grad * now
        if plan.microbatches > 1:
            return of_grad * full, of_grad * now
        return of_grad * (done + now), 0

    found = []
    before = of_grad * full if way.grads_stay else states["grads"] * (plan.microbatches > 1)
    up_to = [*accumulate(kept)]  # what the layers up to each keep
    places: Sequence[int] = range(len(layers))
    if not every_layer:  # among layers that are alike it changes evenly: the worst moment is at their ends
        places = _ends(tuple(map(id, layers)))
    for i in places:
        active = up_to[i] + at_work[i] + (i == last) * out[i]
        found.append(at(f"forward of {layers[i].name}", active, before, params(i)))
    for i in reversed(places):
        its_grads, extra = grads(i, after=False)
        active = up_to[i] + at_work[i] + (1 + (i == last)) * out[i]
        found.append(at(f"backward of {layers[i].name}", active, its_grads, params(i), extra))
        its_grads, extra = grads(i, after=True)
        active = up_to[i] - kept[i] + at_work[i] + (out[i - 1] if i else 0)
        found.append(at(f"gradients of {layers[i].name}", active, its_grads, params(i), extra))
    step = at("the optimizer", -others, states["grads"], 0, 2 * of_grad * min(largest, full))
    return [*found, step]


@functools.lru_cache  # a ranking asks for the same few hundreds of times
def _ends(kinds: tuple[int, ...]) -> tuple[int, ...]:
    """The places of all layers but those that have two alike on each side."""
    places, last = range(len(kinds)), len(kinds) - 2
    return tuple(i for i in places if not 2 <= i < last or len({*kinds[i - 2 : i + 3]}) > 1)


def numel_of(shapes: Iterable[tuple[int, ...]]) -> int:
    """Elements of some tensors."""
    return sum(map(math.prod, shapes))
