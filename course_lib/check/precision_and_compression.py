"""Checks of the chapter "Precision and compression": a step that all ranks skip together, a mean that travels
as bytes, and places that all ranks know.
"""

import random
from collections.abc import Callable

import torch
import torch.distributed as dist

from course_lib import measure
from course_lib.check import on_rank
from course_lib.check.counted import header_bytes, sent_bytes
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import LEAST, Demand, fact, sends, values
from course_lib.record import Job, sent

__all__ = ["skipped_together", "mean_of_bytes", "places_that_all_know"]

MOST_BYTES = 32  # that say whether a gradient is finite; a number and a rank or two
FP8_ERROR = 0.05  # rounded twice, about 2.7% each time
BYTES_SPARE = 1.05  # times a byte for each number, twice: scales go with them
LITTLE = 1e-5  # relative, in float32


@exercise(
    skips=fact(
        "where one rank holds a number that is not finite, no rank steps, and nothing changes", "skips"
    ),
    steps=fact("else every rank steps once, with gradients that are divided by `scale`", "steps"),
    scale=fact("all ranks return the same scale, half as large after a step that was skipped", "scale"),
    bytes=fact(
        f"a rank calls one collective, in which it sends {MOST_BYTES} bytes at most",
        "told",
        "rank {rank} {wrong}: it need only tell the others whether its own numbers are finite.",
    ),
)
def skipped_together(judge: Judge, answer: Callable) -> None:
    """`answer(shards, optimizer, scale)` steps on all ranks or on none, and returns the next scale."""

    def steps(answer, seed):
        on_rank.use_cpu()
        rank, n, draw = dist.get_rank(), dist.get_world_size(), random.Random(seed)
        stepped = []

        class Noted(torch.optim.SGD):
            def step(self, closure=None):
                stepped.append([p.grad.clone() for g in self.param_groups for p in g["params"]])
                return super().step(closure)

        torch.manual_seed(on_rank.private_seed())
        shards = [torch.nn.Parameter(torch.randn(draw.randint(20, 40))) for _ in range(3)]
        optimizer = Noted(shards, lr=0.1)
        inf, nan = float("inf"), float("nan")
        bad = [(), (draw.randrange(n), inf), (), (0, -inf), (n - 1, nan), (n - 1, inf), ()]
        draw.shuffle(bad)
        found = {"skips": "", "steps": "", "scale": "", "told": ""}
        for number, case in enumerate(bad):
            large = number == bad.index(())  # the first of those without: finite, and their squares are not
            scale = 2.0 ** draw.randint(4, 16)
            wanted = [torch.randn_like(p).clamp(-2, 2) * (2.0**108 if large else 1.0) for p in shards]
            for p, grad in zip(shards, wanted):
                p.grad = grad * scale
            if case and case[0] == rank:
                shards[draw.randrange(3)].grad[draw.randrange(3)] = case[1]
            else:
                draw.randrange(3), draw.randrange(3)
            before = [p.detach().clone() for p in shards]
            stepped.clear()
            with on_rank.Calls() as calls:
                returned = answer(shards, optimizer, scale)
            same = all(map(torch.equal, before, shards))
            if case:
                held = f"rank {case[0]} held {case[1]}, and"
                if stepped:
                    found["skips"] = f"{held} rank {rank} called optimizer.step()."
                elif not same:
                    found["skips"] = f"{held} the parameters of rank {rank} have changed."
            elif len(stepped) != 1:
                times = "did not step" if not stepped else f"stepped {len(stepped)} times"
                found["steps"] = f"all numbers were finite, and rank {rank} {times}."
                if large:
                    found["steps"] += " They were large: a sum of such numbers, or a norm, may be infinite."
            elif on_rank.apart(on_rank.flat(stepped[0]).double(), on_rank.flat(wanted).double()) > LITTLE:
                found["steps"] = f"rank {rank} stepped with gradients that were not those divided by `scale`."
            right = scale / 2 if case else scale
            every = [on_rank.plain(one) for one in on_rank.everyone(on_rank.plain(returned))]
            if every[rank] != right:
                shown = on_rank.short(every[rank])
                found["scale"] = (
                    f"a step with scale={scale:g} that {'was skipped' if case else 'was made'} returned"
                    f" {shown} on rank {rank}, and {right:g} is next."
                )
            if large:
                for p, old in zip(shards, before):
                    p.data.copy_(old)
            its_bytes = sum(row["algorithm_bytes"] for row in calls.rows)
            if its_bytes > MOST_BYTES or len(calls.rows) > 1:
                found["told"] = f"sends {its_bytes:,.0f} bytes in {len(calls.rows)} collectives in a step"
        return found

    for ranks in (2, 3):
        if not judge.tried(f"{ranks} ranks", steps, answer, judge.seed, ranks=ranks):
            return


def _bytes_twice(job: Job) -> str:
    """A byte for each number, out and back."""
    numel, r = job.results[0]["numel"], (job.ranks - 1) / job.ranks
    least, each = 2 * r * numel, sent_bytes(job)
    together = max(each.sum(), sent(job, layer="algorithm").sum())
    if together < LEAST * job.ranks * least:
        return (
            f"all ranks together send {together:,.0f} bytes, and {job.ranks * least:,.0f} must travel, in"
            " messages of torch.distributed."
        )
    times = ((each - header_bytes(job)) / least).max()
    if times <= BYTES_SPARE:
        return ""
    advice = "a float32 in a message counts four times."
    if each.max() > 1.5 * least:
        advice = "does every rank get the whole vector of every other? It needs its chunk alone."
    return f"a rank sends {times:.2f} times a byte for each number, out and back: {advice}"


@exercise(
    mean=values(
        f"in each chunk the mean has a relative error below {FP8_ERROR:.0%}",
        "in one of the chunks the mean has a relative error of {error:.2g}.",
        within=FP8_ERROR,
        advice=lambda job, error: job.results[0]["looks"],
    ),
    same=fact(
        "all ranks return the same, bit by bit",
        "same",
        "rank {rank} returns other bits than rank 0. What is rounded for the others must be rounded for"
        " oneself as well.",
    ),
    bytes=Demand(
        f"no rank sends more than {BYTES_SPARE} times a byte for each number, out and back", _bytes_twice
    ),
)
def mean_of_bytes(judge: Judge, answer: Callable) -> None:
    """`answer(x)` is the mean over the ranks, where each number travels as a byte, twice."""

    def three(answer, seed):
        import hashlib

        on_rank.use_cpu()
        rank, n, draw = dist.get_rank(), dist.get_world_size(), random.Random(seed)
        numel = n * 1024 * draw.randint(30, 40)
        errors, same, looks = [], True, ""
        for number in range(3):
            torch.manual_seed(on_rank.private_seed())
            small_rank = draw.randrange(n)
            sizes = [10.0 ** draw.randint(-6, 1) for _ in range(n)]
            x = torch.randn(n, numel // n) * torch.tensor(sizes)[:, None]
            if number == 1 and rank == small_rank:
                x *= 1e-6
            x = x.flatten()
            wanted = x.double()
            dist.all_reduce(wanted)
            wanted /= n
            given = x.clone()
            with measure.step():
                found = answer(given)
            right = isinstance(found, torch.Tensor) and found.shape == x.shape
            problem = "" if right else f"your function must return a vector of {numel:,} numbers"
            if problem := on_rank.first_problem(problem):
                return {"problem": problem}
            found = found.detach()
            pairs = zip(found.double().chunk(n), wanted.chunk(n))
            worst = max(on_rank.apart(*pair) for pair in pairs)
            errors.append(worst)
            if worst >= FP8_ERROR and not looks:
                guess = on_rank.times(found.double(), wanted, 0.2)
                looks = (
                    f" It is {guess:.1f} times the mean."
                    if guess and not 0.8 < guess < 1.25
                    else " Sizes differ by rank and by chunk: does each chunk have a scale of its own on each"
                    " rank?"
                )
            digest = hashlib.sha1(found.float().contiguous().numpy().tobytes()).hexdigest()
            same &= digest == on_rank.everyone(digest)[0]
        return {"error": max(errors), "same": same, "looks": looks, "numel": numel}

    for ranks in (2, 4):
        if not judge.tried(f"{ranks} ranks", three, answer, judge.seed, ranks=ranks):
            return


@exercise(
    same=fact(
        "all ranks return the same mean",
        "same",
        "rank {rank} returns another mean than rank 0: do all ranks draw the same places?",
    ),
    few=fact("at most k places of the mean are not zero", "few"),
    kept=values(
        "mean and `unsaid` add up to what the ranks wanted to say",
        "the mean, and the mean over the ranks of `unsaid`, do not add up to what the ranks wanted to say"
        " (relative error {error:.2g}).",
        within=LITTLE,
    ),
    left=fact(
        "its arguments are left as they are", "left", "rank {rank}: your function has changed {wrong}."
    ),
    all=fact("in 4 N / k steps, 9 in 10 places have been said", "all"),
    bytes=sends(
        "k numbers of an all_reduce",
        lambda job: 2 * (job.ranks - 1) / job.ranks * 4 * job.results[0]["k"],
        "rank {rank} sends {sent:,.0f} bytes, {times:.2f} times what k numbers of an all_reduce are"
        " ({limit:,.0f} bytes): neither places nor zeros need to travel.",
    ),
)
def places_that_all_know(judge: Judge, answer: Callable) -> None:
    """`answer(grad, unsaid, k, step)` averages k random places that all ranks know, and returns what is left
    unsaid.
    """

    def all_steps(answer, seed):
        import contextlib
        import hashlib

        on_rank.use_cpu()
        n, draw = dist.get_world_size(), random.Random(seed)
        k = draw.randint(3000, 4000)
        numel, steps = 8 * k + draw.randrange(k), 36
        torch.manual_seed(on_rank.private_seed())
        unsaid, said = torch.zeros(numel), torch.zeros(numel, dtype=torch.bool)
        found = {"same": True, "few": "", "left": "", "error": 0.0, "k": k, "looks": "", "all": ""}
        for step in range(steps):
            grad = torch.randn(numel)
            given = grad.clone(), unsaid.clone()
            with measure.step() if step < 3 else contextlib.nullcontext():
                returned = answer(*given, k, step)
            pair = isinstance(returned, (tuple, list)) and len(returned) == 2
            right = pair and all(isinstance(t, torch.Tensor) and t.shape == grad.shape for t in returned)
            problem = "" if right else f"your function must return two vectors of {numel:,} numbers"
            if step < 3 and (problem := on_rank.first_problem(problem)):
                return {"problem": problem}
            mean, after = (t.detach() for t in returned)
            for name, now, was in zip(("grad", "unsaid"), given, (grad, unsaid)):
                if not torch.equal(now, was):
                    found["left"] = name
            count = int((mean != 0).sum())
            if count > k:
                found["few"] = f"{count:,} places of the mean are not zero, and k is {k:,}."
            said |= mean != 0
            if step < 3:
                digest = hashlib.sha1(mean.contiguous().numpy().tobytes()).hexdigest()
                found["same"] &= digest == on_rank.everyone(digest)[0]
                three = torch.stack([grad.double() + unsaid, after.double(), unsaid.double()])
                dist.all_reduce(three)
                wanted, rest, before = three / n
                found["error"] = max(found["error"], on_rank.apart(mean.double() + rest, wanted))
                if found["error"] > LITTLE and not found["looks"]:
                    found["looks"] = on_rank.looks(
                        mean.double() + rest,
                        {
                            "the gradient without what was unsaid before": wanted - before,
                            "the sum over the ranks, not their mean": wanted + (n - 1) / n * mean.double(),
                        },
                    )
            unsaid = after.clone()
        if (part := said.float().mean().item()) < 0.9:
            found["all"] = f"after {steps} steps only {part:.0%} of the places have been said."
        return found

    for ranks in (2, 4):
        if not judge.tried(f"{ranks} ranks", all_steps, answer, judge.seed, ranks=ranks):
            return
