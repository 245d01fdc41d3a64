"""All plans for so many ranks, the best first, each with its reason. No torch here."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from course_lib.arguments import instance, listed, whole
from course_lib.plan.costs import Cost, cost
from course_lib.plan.facts import Machine, Model, Plan
from course_lib.plan.ways import WAYS

__all__ = ["Ranked", "ranked", "here", "layouts", "table"]

PARTS = {
    "bubble": "its pipeline has a bubble",
    "tp": "activations travel in every layer",
    "pp": "it waits for messages between stages",
    "dp": "parameters or gradients travel, and nothing hides it",
    "update": "every rank updates all parameters",
    "software": "its own calls take so long",
}


@dataclass(frozen=True)
class Ranked:
    """A plan in its place.

    Attributes:
        times: the time of its step, over that of the best.
        reason: in a few words.
    """

    cost: Cost
    times: float
    reason: str

    @property
    def plan(self) -> Plan:
        return self.cost.plan


def ranked(model: Model, machine: Machine, plans: Iterable[Plan] | None = None) -> list[Ranked]:
    """Plans by the time of their step, those that do not fit last, each with its reason.

    Args:
        plans: None for all that course_lib.demo trains on 1, 2 and 4 ranks; of a machine whose software was
            measured, in the ways for which it was. Plans that cannot deal out the batch, the layers or their
            heads are left out.
    """
    instance("model", model, Model)
    instance("machine", machine, Machine)
    if plans is None:
        plans = [its for its in here() if not machine.software_s or its.way in machine.software_s]
    instance("plans", plans, Iterable, "of plans")
    costs = []
    for plan in plans:
        try:
            costs.append(cost(plan, model, machine))
        except ValueError as error:
            if not isinstance(plan, Plan) or not any(
                word in str(error) for word in ("batch", "layers", "heads")
            ):
                raise
    costs.sort(key=lambda its: (not its.fits, its.step_s if its.fits else its.peak_bytes))
    if not costs:
        return []
    best = costs[0]
    return [Ranked(its, its.step_s / best.step_s, _reason(its, best, machine)) for its in costs]


def _reason(its: Cost, best: Cost, machine: Machine) -> str:
    """Why it is not the best: the part of its time that is longer by most; of the best, what it takes."""
    if not its.fits:
        return f"does not fit: {its.peak_bytes / 1e9:.3g} GB in the {its.worst}"
    part = max(its.seconds, key=lambda name: its.seconds[name] - best.seconds[name])
    known = not machine.software_s or its.plan.way in machine.software_s
    unknown = "" if known else "; its software was not measured"
    if its is best:
        part = max(its.seconds, key=its.seconds.__getitem__)
        return f"{part} is {its.seconds[part] / its.step_s:.0%} of its step{unknown}"
    if its.step_s < 1.005 * best.step_s:
        return f"as fast as the best{unknown}"
    longer = its.seconds[part] - best.seconds[part]
    why = PARTS[part] if part in PARTS else _computes_longer(its.plan, best.plan, machine)
    return f"{why}: {part} +{_unit(longer, 's')}{unknown}"


def _computes_longer(plan: Plan, best: Plan, machine: Machine) -> str:
    if plan.recompute and not best.recompute:
        return "each forward is computed again"
    if plan.ranks > machine.cores:
        return f"its ranks share {machine.cores} cores"
    return "fewer ranks compute" if plan.ranks < best.ranks else "its slowest rank has more to compute"


def here(ranks: Sequence[int] = (1, 2, 4)) -> list[Plan]:
    """The plans that course_lib.demo trains on so many ranks."""
    listed("ranks", ranks, "numbers of ranks, up to 64", lambda n: type(n) is int and 0 < n <= 64)
    ways = [way for way in WAYS if way not in ("ZeRO-1", "ZeRO-3")]
    meshes = [(way, WAYS[way].mesh(n)) for n in ranks for way in ways if n > 1 or way == "one process"]
    return [Plan(way, **mesh) for way, mesh in meshes if mesh]


def layouts(ranks: int, model: Model, server: int = 8) -> list[Plan]:
    """Plans for a cluster: ZeRO stages 1 and 3 alone, and stage 1 with every tp up to a server's size that
    divides the heads, every pp that deals out the layers, micro-batches of 1, 2, 4 and 8 samples, with and
    without recomputing.
    """
    whole("ranks", ranks, most=2**20)
    instance("model", model, Model)
    whole("server", server)
    found = []
    heads = math.gcd(*(layer.heads for layer in model.layers))  # 0 if there are none
    for tp in (size for size in (1, 2, 4, 8) if size <= server and ranks % size == heads % size == 0):
        for pp in range(1, min(len(model.layers), ranks // tp) + 1):
            if ranks % (tp * pp) or len(model.layers) % pp:
                continue
            dp = ranks // (tp * pp)
            for each in (1, 2, 4, 8):  # samples of a micro-batch
                if model.batch % (dp * each):
                    continue
                sizes = {"dp": dp, "tp": tp, "pp": pp, "microbatches": model.batch // (dp * each)}
                ways = ("ZeRO-1", "ZeRO-3") if tp * pp == 1 else ("ZeRO-1",)
                found += [Plan(way, recompute=again, **sizes) for way in ways for again in (False, True)]
    return found


def table(found: list[Ranked]) -> str:
    """One line for each plan: its mesh, seconds of a step, the most memory, bytes sent, the reason."""
    found = listed("found", found, "what ranked returns", lambda its: isinstance(its, Ranked))
    lines = [f"{'plan':28} {'dp':>4} {'tp':>3} {'pp':>3} {'m':>4} {'step':>9} {'memory':>9} {'sent':>9}"]
    for its in found:
        plan, cost = its.plan, its.cost
        sizes = f"{plan.dp:4} {plan.tp:3} {plan.pp:3} {plan.microbatches:4}"
        numbers = _unit(cost.step_s, "s"), _unit(cost.peak_bytes, "B"), _unit(sum(cost.sent.values()), "B")
        name = plan.way + ", recompute" * plan.recompute
        lines.append(f"{name:28} {sizes} {' '.join(f'{one:>9}' for one in numbers)}  {its.reason}")
    return "\n".join(lines)


def _unit(value: float, unit: str) -> str:
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.2g} {unit}"
