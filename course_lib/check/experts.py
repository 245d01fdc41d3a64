"""Checks of the chapter "Experts": tokens that travel once to each rank, choices that find room, a loss that
balances over all ranks, gradients of experts that several ranks hold.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn

from course_lib import measure
from course_lib.check import on_rank
from course_lib.check.counted import header_bytes, sent_bytes
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import ERROR_LIMIT, LEAST, Demand, sends, values
from course_lib.collectives import COLLECTIVES
from course_lib.record import Job, sent

__all__ = ["tokens_once", "room_by_weight", "balance_over_ranks", "expert_gradients"]

DIM, TOP_K = 64, 2
ONCE = 1.1  # times the rows that must travel: numbers of experts, weights and sizes go with them
STEPS = 4  # in the fourth a rank comes late


@contextlib.contextmanager
def _late(call: str, seed: int, messages: Sequence[int]) -> Iterator[None]:
    """A step in which one rank, drawn by the seed, comes late with these of its messages."""
    late = dist.get_rank() == seed % dist.get_world_size()
    at_most_s = [on_rank.LATE_S * (number in messages) for number in range(max(messages) + 1)]
    with on_rank.Calls(on_rank.late(call, at_most_s) if late else None):
        yield
    on_rank.is_back(call)


def _if_late_alone(errors: Sequence[float]) -> str:
    """What numbers look like that were right in all steps but that one; "" if they were not."""
    *in_step, last = errors
    return on_rank.NOT_WAITED if len(errors) == STEPS and max(in_step) < ERROR_LIMIT < last else ""


def _or_not_waited(advice: str) -> Callable[[Job, float], str]:
    """The advice, unless the numbers are right as long as all ranks are in step."""

    def said(job: Job, error: float) -> str:
        if any(found["looks"] == on_rank.NOT_WAITED for found in job.results):
            return f" They are {on_rank.NOT_WAITED}."
        return f" {advice}{on_rank.rounding(error)}"

    return said


def _rows_once(job: Job) -> str:
    """Of the rows that each rank must send, forward and backward, it sends each once."""
    each, spare = sent_bytes(job), header_bytes(job)
    wanted = [8 * DIM * found["rows"] for found in job.results]
    together = max(each.sum(), sent(job, layer="algorithm").sum())
    if together < LEAST * sum(wanted):
        return (
            f"all ranks together send {together:,.0f} bytes, and {sum(wanted):,} must travel. Tokens come in"
            " messages of torch.distributed, in forward and in backward."
        )
    times = [(each[rank] - spare[rank]) / wanted[rank] for rank in range(job.ranks)]
    rank = max(range(job.ranks), key=times.__getitem__)
    if times[rank] <= ONCE:
        return ""
    found = job.results[rank]
    said = f"rank {rank} sends {each[rank]:,.0f} bytes, {times[rank]:.2f} times what must travel."
    if each[rank] > 1.5 * 8 * DIM * found["copies"]:
        return (
            f"{said} That is more than a row for each choice: do all tokens go to all ranks, or are rows"
            " padded to one size?"
        )
    return f"{said} A token both of whose experts are on one rank goes there once, and one row comes back."


@exercise(
    output=values(
        "the outputs are those of one process",
        "the outputs are not those of one process (relative error {error:.2g}).",
        "output",
    ),
    gradients=values(
        "so are the gradients of tokens, weights and experts",
        "a gradient is not that of one process (relative error {error:.2g}).",
        "gradients",
        advice=_or_not_waited(
            "Each message of forward needs its way back in backward, that of the weights, too."
        ),
        after=("output",),
    ),
    bytes=Demand(
        f"no rank sends more than {ONCE} times its rows, each once, forward and backward", _rows_once
    ),
)
def tokens_once(judge: Judge, answer: Callable) -> None:
    """`answer(x, weights, chosen, own)` is a layer of experts to which each token travels once per rank."""

    def steps(answer, seed, count_of_steps):
        on_rank.use_cpu()
        torch.set_default_dtype(torch.float64)
        n, rank = dist.get_world_size(), dist.get_rank()
        own, draw = 2, random.Random(seed)
        count = own * n
        sizes = [draw.randint(60, 100) for _ in range(n)]
        cold = draw.randrange(count)  # an expert that nobody chooses

        def routing(tokens):
            """Pairs of experts, more than half of them on one rank."""
            pairs = []
            while len(pairs) < tokens:
                # the last rank is hot
                home = n - 1 if draw.random() < 0.3 else draw.randrange(n)
                two = [own * home, own * home + 1]
                if draw.random() < 0.4:
                    two[1] = draw.choice([e for e in range(count) if e // own != home])
                draw.shuffle(two)
                if cold not in two:
                    pairs.append(two)
            return torch.tensor(pairs)

        routings = [routing(tokens) for tokens in sizes]

        def case():
            """Other numbers in each step, and the same routing, for other tokens."""
            torch.manual_seed(draw.randrange(2**31))
            experts = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(count))
            xs = [torch.randn(tokens, DIM) for tokens in sizes]
            weights = [torch.rand(tokens, TOP_K) for tokens in sizes]
            return experts, xs, weights, [its[torch.randperm(len(its))] for its in routings]

        def gradient(tensor):
            return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad

        def by_choice(x, weights, chosen, experts):
            """[T, k, dim]: what each choice adds."""
            every = torch.stack([expert(x) for expert in experts], 1)
            return weights[..., None] * every[torch.arange(len(x))[:, None], chosen]

        errors, looks = {"output": [], "gradients": []}, ""
        for step in range(count_of_steps):
            experts, xs, all_weights, all_chosen = case()
            mine = experts[own * rank : own * rank + own]
            given = [t.clone().requires_grad_() for t in (xs[rank], all_weights[rank])]
            chosen = all_chosen[rank]
            with _late("tokens", seed, range(10)) if step == STEPS - 1 else measure.step():
                y = answer(*given, chosen.clone(), list(mine))
                right = isinstance(y, torch.Tensor) and y.shape == xs[rank].shape
                if not right or not y.requires_grad:
                    what = f"{list(y.shape)}" if isinstance(y, torch.Tensor) else on_rank.short(y)
                    problem = f"your function must return a tensor [{sizes[rank]}, {DIM}] that"
                    return {"problem": f"{problem} autograd knows, and it returned {what}"}
                y.square().sum().backward()
                # at once: who has not waited for them does not have them
                found = [gradient(t).clone() for t in (*given, *mine.parameters())]
            experts.zero_grad()
            leaves = [
                [t.clone().requires_grad_() for t in pair] for pair in zip(xs, all_weights, strict=True)
            ]
            ys = [by_choice(*pair, chose, experts) for pair, chose in zip(leaves, all_chosen)]
            sum(one.sum(1).square().sum() for one in ys).backward()
            wanted = [gradient(t) for t in (*leaves[rank], *mine.parameters())]
            target = ys[rank].sum(1).detach()
            errors["output"].append(on_rank.apart(y.detach(), target))
            errors["gradients"].append(max(map(on_rank.apart, found, wanted)))
            looks = looks or _if_late_alone(list(map(max, *errors.values())))
            unweighted = (ys[rank] / leaves[rank][1][..., None]).sum(1).detach()
            its_home = (chosen // own)[..., None]
            looks = looks or on_rank.looks(
                y.detach(),
                {
                    "the sum without the weights": unweighted,
                    "the part of this rank's own experts": (ys[rank] * (its_home == rank)).sum(1).detach(),
                    "that of the first choices alone": ys[rank][:, 0].detach(),
                },
            )
            if not looks and on_rank.apart(y.detach().sum(0), target.sum(0)) < 1e-9 < errors["output"][-1]:
                looks = "the right rows in another order: a row must come back to its own token"
        homes = [chose // own for chose in all_chosen]
        needs = [[int((home == there).any(1).sum()) for there in range(n)] for home in homes]
        choices = [[int((home == there).sum()) for there in range(n)] for home in homes]

        def passes(table):
            """Rows out and rows back, forward and backward."""
            out = sum(table[rank][other] for other in range(n) if other != rank)
            return 2 * (out + sum(table[other][rank] for other in range(n) if other != rank))

        return {
            **{name: max(found) for name, found in errors.items()},
            "looks": looks,
            "rows": passes(needs),
            "copies": passes(choices),
        }

    for ranks, count in ((4, STEPS - 1), (2, STEPS)):
        if not judge.tried(f"{ranks} ranks", steps, answer, judge.seed, count, ranks=ranks):
            return


def _room(weights: list[list[float]], chosen: list[list[int]], capacity: int) -> list[list[bool]]:
    """Which choices find room: in each expert the largest weights, and of equal ones the earlier token."""
    lines: dict[int, list[tuple[float, int, int]]] = {}
    for token, (its_weights, its_chosen) in enumerate(zip(weights, chosen)):
        for choice, (weight, expert) in enumerate(zip(its_weights, its_chosen)):
            lines.setdefault(expert, []).append((-weight, token, choice))
    kept = [[False] * len(one) for one in chosen]
    for line in lines.values():
        for _, token, choice in sorted(line)[:capacity]:
            kept[token][choice] = True
    return kept


@exercise(
    capacity="no expert takes more than `capacity` choices",
    room="no choice is dropped while its expert has room",
    order="in each expert the choices with the largest weights stay, and of equal ones the earlier token's",
    operations="for 1,000 tokens it calls no more operations of torch than for 40, and takes no number out of"
    " its tensors",
)
def room_by_weight(judge: Judge, answer: Callable) -> None:
    """`answer(weights, chosen, num_experts, capacity)` says which choices find room, the best first."""

    def tries(answer, seed):
        from course_lib.torch_internals import TorchDispatchMode

        on_rank.use_cpu()

        class Count(TorchDispatchMode):
            calls = 0

            def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
                self.calls += 1
                return operator(*args, **(kwargs or {}))

        taken_out = []
        names = ("tolist", "item", "numpy", "__iter__")
        real = {name: getattr(torch.Tensor, name) for name in names}

        def noted(name):
            def method(tensor, *args, **kwargs):
                taken_out.append(tensor.numel())
                return real[name](tensor, *args, **kwargs)

            return method

        def one(tokens, k, experts, capacity, equal):
            torch.manual_seed(seed + tokens)
            chosen = (torch.rand(tokens, experts) ** 3).topk(k).indices
            hot = torch.rand(tokens) < 0.4
            chosen[hot, 0] = torch.where((chosen[hot] == 0).any(1), chosen[hot, 0], 0)
            weights = torch.rand(tokens, k, dtype=torch.float64)
            if equal:
                weights = (4 * weights).ceil() / 4
            with Count() as count:
                for name in names:
                    setattr(torch.Tensor, name, noted(name))
                try:
                    found = answer(weights.clone(), chosen.clone(), experts, capacity)
                finally:
                    for name in names:
                        setattr(torch.Tensor, name, real[name])
            is_mask = (
                isinstance(found, torch.Tensor) and found.dtype == torch.bool and found.shape == chosen.shape
            )
            shown = list(found.shape) if isinstance(found, torch.Tensor) else on_rank.short(found)
            out = sum(taken_out)
            taken_out.clear()
            return {
                "weights": weights.tolist(),
                "chosen": chosen.tolist(),
                "capacity": capacity,
                "found": found.tolist() if is_mask else None,
                "shown": shown,
                "calls": count.calls,
                "out": out,
            }

        cases = [(40, 2, 8, 12, False), (40, 2, 8, 5, True), (300, 1, 4, 60, False), (9, 2, 4, 100, False)]
        return {
            "cases": [one(*case) for case in cases],
            "few": one(40, 2, 8, 12, False)["calls"],
            "many": [(found["calls"], found["out"]) for found in [one(1000, 2, 8, 150, False)]][0],
        }

    (result,) = judge.run(tries, answer, judge.seed, ranks=1).results
    for found in result["cases"]:
        judge.case = ""
        if found["found"] is None:
            judge.refuse(
                f"for {len(found['chosen'])} tokens your function must return a bool tensor"
                f" [{len(found['chosen'])}, {len(found['chosen'][0])}], and it returned {found['shown']}"
            )
        wanted = _room(found["weights"], found["chosen"], found["capacity"])
        kept: dict[int, int] = {}
        for row, its in zip(found["found"], found["chosen"]):
            for stays, expert in zip(row, its):
                kept[expert] = kept.get(expert, 0) + stays
        right: dict[int, int] = {}
        for row, its in zip(wanted, found["chosen"]):
            for stays, expert in zip(row, its):
                right[expert] = right.get(expert, 0) + stays
        tokens, room = len(found["chosen"]), found["capacity"]
        over = next((e for e, count in kept.items() if count > room), None)
        lost = next((e for e, count in kept.items() if count < right[e]), None)
        said = f"with {tokens} tokens and a capacity of {room}"
        missed = {
            "capacity": "" if over is None else f"{said}, expert {over} takes {kept[over]} choices",
            "room": ""
            if lost is None
            else f"{said}, expert {lost} takes {kept[lost]} choices, and {right[lost]} would find room",
        }
        if not any(missed.values()):
            missed["order"] = (
                ""
                if found["found"] == wanted
                else f"{said}, other choices stay than those with the largest weights (of equal weights, the"
                " earlier token's)"
            )
        if any(missed.values()):
            for key, why in missed.items():
                judge.demand(key, why)
            return
    for key in ("capacity", "room", "order"):
        judge.demand(key, "")
    calls, out = result["many"]
    grown = ""
    if calls > result["few"]:
        grown = f"it calls {result['few']} operations of torch for 40 tokens, and {calls:,} for 1,000"
    elif out > 100:
        grown = f"for 1,000 tokens it takes {out:,} numbers out of its tensors, to look at them in Python"
    judge.demand("operations", f"{grown}: a GPU would wait for each" if grown else "")


def _small(job: Job) -> str:
    experts = job.results[0]["experts"]
    # what comes in by recv counts, too
    most = int(sent(job, layer="payload", ops=list(COLLECTIVES)).max()) if len(job.comm) else 0
    limit = 8 * job.ranks * experts + 16  # the numbers of tokens may travel, too
    if most <= limit:
        return ""
    return (
        f"the tensors that a rank gives to its collectives have {most:,} bytes: at most a number for each"
        f" expert and rank ({limit:,} bytes) is needed"
    )


@exercise(
    value=values(
        "the mean over the ranks is the loss of one process",
        "the mean over the ranks is not the loss of one process (relative error {error:.2g}).",
        "value",
    ),
    gradient=values(
        "the mean over the ranks of its gradient is that of one process",
        "the gradient, as the mean over the ranks, is not that of one process (relative error {error:.2g}).",
        "gradient",
        advice=_or_not_waited("f has no gradient; P has one, in the probabilities of this rank's tokens."),
        after=("value",),
    ),
    bytes=Demand("no more travels than a number for each expert and rank", _small),
)
def balance_over_ranks(judge: Judge, answer: Callable) -> None:
    """`answer(scores, chosen)` is this rank's part of a loss that balances the tokens of all ranks."""

    def steps(answer, seed):
        on_rank.use_cpu()
        torch.set_default_dtype(torch.float64)
        n, rank = dist.get_world_size(), dist.get_rank()
        tokens, experts, errors, looks = 200, 8, {"value": [], "gradient": []}, ""
        for step in range(STEPS):
            torch.manual_seed(seed + step)
            # each rank's tokens like other experts
            logits = torch.randn(n, tokens, experts) + 2 * torch.randn(n, 1, experts)
            scores = logits.softmax(-1)
            chosen = scores.topk(TOP_K).indices

            def loss_of(probabilities, choices):
                f = choices.flatten().bincount(minlength=experts) / choices.numel()
                return experts * (f * probabilities.flatten(0, -2).mean(0)).sum()

            given = scores[rank].clone().requires_grad_()
            with _late("balance", seed, (0, 1)) if step == STEPS - 1 else measure.step():
                loss = answer(given, chosen[rank].clone())
                fine = isinstance(loss, torch.Tensor) and loss.numel() == 1 and loss.requires_grad
                if not fine:
                    what = on_rank.short(loss)
                    return {"problem": f"your loss must be one number with a gradient, and it is {what}"}
                loss.sum().backward()
            whole = scores.clone().requires_grad_()
            wanted = loss_of(whole, chosen)
            wanted.backward()
            mean = loss.detach().reshape(()).clone()
            dist.all_reduce(mean)
            mean /= n
            found_grad = torch.zeros_like(given) if given.grad is None else given.grad
            errors["value"].append(on_rank.apart(mean, wanted.detach()))
            errors["gradient"].append(on_rank.apart(found_grad / n, whole.grad[rank]))
            looks = looks or _if_late_alone(list(map(max, *errors.values())))
            each = torch.stack([loss_of(scores[r], chosen[r]) for r in range(n)])
            looks = looks or on_rank.looks(
                mean,
                {
                    "the mean of what each rank finds with its own tokens alone: each rank asks for balance"
                    " among its own": each.mean(),
                    "the sum over the ranks: f must sum to 1": wanted.detach() * n,
                    "k times as large: f must sum to 1": wanted.detach() * TOP_K,
                    "without the factor E": wanted.detach() / experts,
                },
            )
        return {**{name: max(found) for name, found in errors.items()}, "looks": looks, "experts": experts}

    for ranks in (3, 2):
        if not judge.tried(f"{ranks} ranks", steps, answer, judge.seed, ranks=ranks):
            return


def _two_sums(job: Job) -> float:
    return max(found["limit"] for found in job.results)


@exercise(
    shared=values(
        "the gradients of what all ranks hold are those of one process",
        "a gradient of what all ranks hold is not that of one process (relative error {error:.2g}).",
        "shared",
        advice=_or_not_waited("Average it over all ranks."),
    ),
    own=values(
        "the gradients of the experts are those of one process",
        "a gradient of an expert is not that of one process (relative error {error:.2g}).",
        "own",
    ),
    bytes=sends(
        "an all_reduce of each over the ranks that need it",
        _two_sums,
        "rank {rank} sends {times:.2f} times the {limit:,.0f} bytes of an all_reduce of the shared gradients"
        " over all ranks, and one of the experts' over those that hold them.",
    ),
)
def expert_gradients(judge: Judge, answer: Callable) -> None:
    """`answer(shared, own, group)` makes the gradients of expert x data parallelism those of one process."""

    def steps(answer, seed, ep_size, count_of_steps):
        from torch.nn.utils import parameters_to_vector

        from course_lib.mini import experts as mini
        from course_lib.mini import hybrid

        on_rank.use_cpu()
        torch.set_default_dtype(torch.float64)
        n, rank = dist.get_world_size(), dist.get_rank()
        mesh = hybrid.make_groups({"dp": n // ep_size, "ep": ep_size})
        count, tokens, width = 2 * ep_size, 24, 48
        errors, looks = {"shared": [], "own": []}, ""
        alone = [dist.new_group([other]) for other in range(n)][rank]

        def make(group, step):
            torch.manual_seed(seed + step)
            first, last = nn.Linear(width, width), nn.Linear(width, 8)
            experts = [nn.Linear(width, width) for _ in range(count)]
            return first, mini.Experts(mini.Router(width, count, 2), experts, group), last

        def backward(model, x):
            first, layer, last = model
            last(layer(first(x))).square().mean().backward()

        def apart(found, wanted):
            if any(p.grad is None or p.grad.shape != p.shape for p in found):
                return 1.0
            return on_rank.apart(*(on_rank.flat([p.grad for p in ps]) for ps in (found, wanted)))

        for step in range(count_of_steps):
            xs = torch.randn(n, tokens, width, generator=torch.Generator().manual_seed(seed + step))
            one, model = make(alone, step), make(mesh["ep"], step)
            backward(one, xs.flatten(0, 1))
            backward(model, xs[rank])
            first, layer, last = model
            shared = [*first.parameters(), *layer.router.parameters(), *last.parameters()]
            own = list(layer.own.parameters())
            before = [p.grad.clone() for p in own]
            with _late("gradients", seed, (0, 5)) if step == STEPS - 1 else measure.step():
                answer(shared, own, mesh["dp"])
                for p in (*shared, *own):  # at once: who has not waited for them does not have them
                    p.grad = None if p.grad is None else p.grad.clone()
            its = dist.get_rank(mesh["ep"]) * len(layer.own)
            wanted_own = list(one[1].own[its : its + len(layer.own)].parameters())
            wanted_shared = [*one[0].parameters(), *one[1].router.parameters(), *one[2].parameters()]
            errors["shared"].append(apart(shared, wanted_shared))
            errors["own"].append(apart(own, wanted_own))
            looks = looks or _if_late_alone(list(map(max, *errors.values())))
            right = on_rank.flat([p.grad for p in wanted_own])
            others = on_rank.flat(before)
            dist.all_reduce(others)
            replicas = dist.get_world_size(mesh["dp"])
            if all(p.grad is not None for p in own):
                looks = looks or on_rank.looks(
                    on_rank.flat([p.grad for p in own]),
                    {
                        "a mixture of different experts: only those ranks may average that hold the same": (
                            others / n
                        ),
                        f"{ep_size} times too large: it is the sum over the tokens of {ep_size} ranks": (
                            ep_size * right
                        ),
                        f"{n} times too large: a sum where a mean is asked for": n * right,
                        "what it was before, not averaged": on_rank.flat(before),
                        "divided by all ranks, and not added up": on_rank.flat(before) / n,
                    },
                )
        both = 2 * (n - 1) / n, 2 * (replicas - 1) / replicas
        numel = [parameters_to_vector(ps).numel() for ps in (shared, own)]
        limit = sum(8 * count * factor for count, factor in zip(numel, both))
        worst = {name: max(found) for name, found in errors.items()}
        return {**worst, "looks": looks, "limit": limit}

    for ranks, ep_size, count in ((4, 2, STEPS), (2, 2, STEPS - 1)):
        case = f"{ranks} ranks, experts over {ep_size} of them"
        if not judge.tried(case, steps, answer, judge.seed, ep_size, count, ranks=ranks):
            return
