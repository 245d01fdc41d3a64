"""What one plan costs: bytes, memory and seconds of a step. Arithmetic on data; no torch here."""

import math
from dataclasses import dataclass

from course_lib import theory
from course_lib.arguments import instance
from course_lib.collectives import COLLECTIVES
from course_lib.plan.facts import BYTES, Machine, Model, Plan, alike, counted
from course_lib.plan.moments import stages, states_of, worst_moment
from course_lib.plan.ways import WAYS

__all__ = ["Cost", "cost"]


@dataclass(frozen=True)
class Cost:
    """What a step of a plan costs. Bytes and seconds are modelled.

    Attributes:
        memory: bytes by category, of the rank that holds most at its worst moment, then.
        worst: that moment.
        sent: bytes by axis, of one rank, the mean over all.
        seconds: of the step, part by part: "compute", "bubble", messages of "tp", "pp" and "dp" that nothing
            hides, "update", "software".
        fits: whether memory is enough.
    """

    plan: Plan
    memory: dict[str, float]
    worst: str
    sent: dict[str, float]
    seconds: dict[str, float]
    fits: bool

    @property
    def peak_bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def step_s(self) -> float:
        return sum(self.seconds.values())


def cost(plan: Plan, model: Model, machine: Machine) -> Cost:
    """What a step of a plan costs: memory, bytes, seconds.

    Errors: ValueError where the batch, the layers or their heads cannot be dealt out so.
    """
    instance("plan", plan, Plan)
    instance("model", model, Model)
    instance("machine", machine, Machine)
    if model.batch % (plan.dp * plan.microbatches):
        raise ValueError(
            f"{plan}: a batch of {model.batch} is no whole number of samples for each of dp={plan.dp} and"
            f" {plan.microbatches} micro-batches."
        )
    if plan.tp > 1 and not any(layer.cut for layer in model.layers):
        raise ValueError(f"{plan}: tensor parallelism cuts none of the layers of {model.name}.")
    if whole := next((layer for layer in model.layers if layer.heads % plan.tp), None):
        raise ValueError(
            f"{plan}: the {whole.heads} heads of {whole.name} cannot be dealt out to tp={plan.tp}."
        )
    worst = [
        worst_moment(plan, model, stage * plan.tp)
        for stage in (range(plan.pp) if plan.pp <= 4 else (0, plan.pp - 1))  # most are in flight on the first
    ]
    moment, memory = max(worst, key=lambda moment: sum(moment[1].values()))
    fits = sum(memory.values()) <= machine.memory_bytes
    return Cost(plan, memory, moment, _sent(plan, model, machine), _seconds(plan, model, machine), fits)


def _of_dp(plan: Plan, model: Model, layers) -> list[tuple[str, float, int, int]]:
    """The collectives along dp of a rank with these layers: (op, bytes in all, ranks of a group, calls)."""
    way, of_param, of_grad = WAYS[plan.way], *BYTES[model.precision][:2]
    kinds = alike(layers)
    numel = sum(times * its.cut_numel(plan.tp) for its, times in kinds)
    shards = (plan.shards or plan.dp) if way.stage else plan.dp
    units, tensors = len(layers) if way.per_layer else 1, sum(n * len(its.shapes) for its, n in kinds)
    its = []
    for op, times in way.calls:
        if way.stage == 3 or way.stage == 2 and op == "reduce_scatter":  # for each micro-batch anew
            times *= plan.microbatches
        size = of_grad if COLLECTIVES[op].kind == "sum" else of_param
        calls = tensors if op == "broadcast" else round(times * units)
        if op == "all_reduce" and way.buckets:
            calls = _buckets(layers, of_grad, way.buckets)
        its.append((op, times * numel * size, shards, calls))
    if shards < plan.dp:
        its.append(("all_reduce", of_grad * numel / shards, plan.dp // shards, units))
    return [one for one in its if one[2] > 1]


def _buckets(layers, of_grad: float, caps_mib: tuple[float, float]) -> int:
    """How many buckets gradients fill, from the last layer to the first."""
    closed, held = 0, 0.0
    for layer in reversed(layers):
        for shape in reversed(layer.shapes):
            held += of_grad * math.prod(shape)
            if held >= caps_mib[closed > 0] * 2**20:
                closed, held = closed + 1, 0.0
    return closed + (held > 0)


def _sent(plan: Plan, model: Model, machine: Machine) -> dict[str, float]:
    """By axis, the mean over the ranks."""
    way, parts = WAYS[plan.way], stages(model, plan.pp)
    formula = theory.gloo_bytes if machine.gloo and not way.ring else theory.collective_bytes
    of_dp = sum(
        count * formula(op, size, n)
        for its, count in _alike_stages(parts)
        for op, size, n, _ in _of_dp(plan, model, its)
    )
    samples = model.batch / plan.dp
    of_tp = samples * sum(times * _tp_bytes(plan, its) for its, times in alike(model.layers))
    between = sum(its[-1].out_bytes for its in parts[:-1])
    return {
        "dp": of_dp / plan.pp,
        "tp": theory.collective_bytes("all_reduce", of_tp, plan.tp) / plan.pp,
        "pp": 2 * samples * between * plan.chunks / plan.pp,
    }


def _alike_stages(parts: list) -> list[tuple[tuple, int]]:
    return [(parts[at], times) for at, times in counted(tuple(tuple(map(id, its)) for its in parts))]


def _tp_bytes(plan: Plan, layer) -> float:
    return layer.tp_bytes * (1.5 if plan.recompute else 1)


def _seconds(plan: Plan, model: Model, machine: Machine) -> dict[str, float]:
    way, parts, n = WAYS[plan.way], stages(model, plan.pp), plan.ranks
    m, samples = plan.microbatches, model.batch / plan.dp / plan.microbatches
    passes = 4 if plan.recompute else 3  # forward once or twice, backward twice as long

    def stage_s(layers, busy: int) -> float:
        """One micro-batch, forward and backward."""
        its_kinds = alike(layers)
        each = sum(n * its.products / (plan.tp if its.cut else 1) for its, n in its_kinds)
        products = passes * samples * each
        numel = sum(n * its.cut_numel(plan.tp) for its, n in its_kinds)
        seconds = products / machine.at("products_per_s", busy) + numel * machine.at("numel_s", busy)
        if machine.touched_bytes_per_s:  # what is kept is written once and read once, in each pass
            kept = sum(n * (its.kept_bytes + its.kept_cut_bytes / plan.tp) for its, n in its_kinds)
            seconds += 2 * passes * samples * kept / machine.touched_bytes_per_s
        return seconds

    def messages_s(op: str, size: float, group: int, span: int, calls: float = 1, own: str = "") -> float:
        """Several alike, `size` bytes together; `own`: whose function, where the course's is used here."""
        if group == 1 or not calls:
            return 0.0
        link = machine.link(f"{own} {op}" if own and machine.gloo else op, span, group, n)
        if COLLECTIVES[op].ring_steps is None:
            return calls * link.alpha_s + size * link.beta_s
        return theory.ring_seconds(op, size, group, link.alpha_s, link.beta_s, calls=calls)

    def tp_s(layers) -> float:
        its_kinds = alike(layers)
        calls = sum(n * its.tp_calls for its, n in its_kinds)
        size = sum(n * _tp_bytes(plan, its) for its, n in its_kinds)
        calls *= 1.5 if plan.recompute else 1
        return messages_s("all_reduce", samples * size, plan.tp, plan.tp, calls, "tp") if calls else 0.0

    kinds = [(layers, count, stage_s(layers, n), tp_s(layers)) for layers, count in _alike_stages(parts)]
    slowest, _, its_stage_s, its_tp_s = max(kinds, key=lambda kind: kind[2] + kind[3])
    busy = min(n, machine.cores)  # no more compute at once; while one waits, another has its core
    compute_s = m * sum(each_s * count for _, count, each_s, _ in kinds) / plan.pp
    if n <= machine.cores:
        compute_s = m * its_stage_s
    through_s = (m + (plan.pp - 1) / plan.chunks) * (stage_s(slowest, busy) + its_tp_s) - m * its_tp_s
    pp_s = 0.0
    if plan.pp > 1:
        waited = theory.messages_waited_for("1f1b", plan.pp, m)
        largest = samples * max(layers[-1].out_bytes for layers in parts[:-1])
        pp_s = messages_s("send", waited * largest, 2, plan.tp * plan.pp, waited)
    dp_s, own = 0.0, "ring" * way.ring
    for op, size, group, calls in _of_dp(plan, model, slowest):
        span = plan.pp * plan.tp * (plan.dp if plan.shards != group else group)
        dp_s += messages_s(op, size, group, span, calls, own)
    dp_s = max(0.0, dp_s - way.hides * machine.overlap * (compute_s if plan.pp == 1 else compute_s / m))
    states = states_of(plan, model)
    numel = states["optimizer_states"] / BYTES[model.precision][2]
    return {
        "compute": compute_s,
        "bubble": max(0.0, through_s - compute_s),
        "tp": m * its_tp_s,
        "pp": pp_s,
        "dp": dp_s,
        "update": numel * machine.at("update_s", n),
        "software": _of_software(plan, machine),
    }


def _of_software(plan: Plan, machine: Machine) -> float:
    """Measured for this way with so many ranks; the nearest number of them, if not with these."""
    known = machine.software_s.get(plan.way, {})
    return known[min(known, key=lambda ranks: abs(ranks - plan.ranks))] if known else 0.0
