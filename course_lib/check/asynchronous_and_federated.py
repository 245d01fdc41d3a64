"""Checks of the chapter "Asynchronous and federated": a server that trusts late gradients less, averages that
travel in fragments, clients that count by their samples and may be absent.
"""

import random
from collections.abc import Callable

import torch
import torch.distributed as dist

from course_lib import measure, theory
from course_lib.check import on_rank
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import at_most, fact, sends, values

__all__ = ["late_gradients", "average_in_fragments", "federated_average"]

HELD = 4.5  # times the weights: a message that comes, one that goes, and what is added up


@exercise(
    weights=values(
        "the last weights are right",
        "the last weights are not right (relative error {error:.2g}).",
        "error",
    ),
    thrown=fact("it says how many gradients it threw away", "count"),
    newest=fact(
        "each worker gets the newest weights and their version, at once",
        "newest",
    ),
    home=fact("at the end each worker is sent home, with the last weights", "home", after=("newest",)),
    memory=at_most(
        f"the server makes no more than {HELD} times the bytes of the weights at once",
        "held",
        HELD,
        "the server holds {most:.1f} times the bytes of the weights in new tensors. Old weights are not"
        " needed: a version is a number.",
    ),
)
def late_gradients(judge: Judge, answer: Callable) -> None:
    """`answer(params, updates, lr, most)` serves: a gradient weighs 1 / (1 + staleness), and nothing beyond
    `most`.
    """
    NUMEL, UPDATES, MOST, RATE = 5_000, 24, 3, 0.1

    def played(answer, seed):
        on_rank.use_cpu()
        torch.set_default_dtype(torch.float64)
        rank, n, draw = dist.get_rank(), dist.get_world_size(), random.Random(seed)
        workers = range(1, n)
        torch.manual_seed(seed)
        start, noise = torch.randn(NUMEL), torch.randn(UPDATES, NUMEL)

        def gradient(at, turn):
            return 0.3 * at + noise[turn]

        def simulated(weigh, counts_thrown=False):
            """What each turn's worker has then, weights and their version; how late each gradient came; how
            many were thrown away.
            """
            now, version, thrown, told, lateness = start.clone(), 0, 0, [], []
            has = dict.fromkeys(workers, (start, 0))
            for turn, worker in enumerate(comes):
                at, pulled = has[worker]
                lateness.append(version - pulled)
                if weight := weigh(version - pulled):
                    now = now - RATE * weight * gradient(at, turn)
                version += bool(weight) or counts_thrown
                thrown += not weight
                has[worker] = now, version
                told.append(has[worker])
            return told, lateness, thrown

        def weigh(late):
            return 1 / (1 + late) if late <= MOST else 0

        lateness = []
        while not {0, 1, MOST, MOST + 2} <= set(lateness) or lateness[-1] > MOST:
            # worker 3 comes seldom; at the end, when no more weights are given, each comes once, and the last
            # gradient counts: who was sent home before it has other weights
            comes = draw.choices(workers, [6, 5, 1], k=UPDATES - len(workers))
            comes += draw.sample(workers, len(workers))
            told, lateness, thrown = simulated(weigh)
        last, found = (
            told[-1][0],
            {"error": 0.0, "looks": "", "count": "", "newest": "", "home": "", "held": 0},
        )
        if rank == 0:
            params = start.clone()
            with on_rank.NewTensors() as new:
                count = answer(params, UPDATES, RATE, MOST)
            found["held"] = new.peak_bytes / start.nbytes
            if on_rank.whole(count) != thrown:
                found["count"] = (
                    f"{thrown} gradients had to be thrown away, and the server returned"
                    f" {on_rank.short(count)}."
                )
            found["error"] = on_rank.apart(params, last)
            others = {
                "if late gradients count like all others": simulated(lambda late: late <= MOST),
                "if no gradient is thrown away": simulated(lambda late: 1 / (1 + late)),
                "if a gradient weighs 1 / staleness": simulated(
                    lambda late: 1 / max(1, late) if late <= MOST else 0
                ),
                "if one that is thrown away counts as an update": simulated(weigh, counts_thrown=True),
                "if one that is as late as `most` is thrown away": simulated(
                    lambda late: 1 / (1 + late) if late < MOST else 0
                ),
            }
            guesses = {f"what comes out {words}": its[0][-1][0] for words, its in others.items()}
            guesses["the weights of the beginning: update `params` in place"] = start
            found["looks"] = on_rank.looks(params, guesses)
            return found
        turns, message, right = on_rank.store(), torch.empty(NUMEL + 1), (start, 0)
        dist.recv(message, src=0)
        for turn, worker in enumerate(comes):
            if worker != rank:
                continue
            if turn:
                turns.wait([f"turn {turn - 1}"])
            found["newest"] = found["newest"] or differs(message, *right)
            message[:-1] = gradient(message[:-1], turn)
            dist.send(message, dst=0)
            if turn < UPDATES - len(workers):
                dist.recv(message, src=0)  # at once: the others come after that
            turns.set(f"turn {turn}", "")
            right = told[turn]
        dist.recv(message, src=0)
        if message[-1] != -1:
            found["home"] = "the version -1 sends a worker home, and one got another number at the end."
        elif on_rank.apart(message[:-1], last) > 1e-9 and not found["newest"]:
            found["home"] = "with the version -1 come the last weights, and a worker got others."
        return found

    def differs(message, weights, version):
        if message[-1] != version:
            return (
                f"a worker that should have got version {version} got {message[-1].item():g}. The version"
                " counts the gradients that were applied, and goes with the weights."
            )
        if on_rank.apart(message[:-1], weights) > 1e-9:
            return "a worker got other weights than those right after its own gradient."
        return ""

    judge.tried("3 workers", played, answer, judge.seed, ranks=4)


@exercise(
    error=values(
        "each fragment is averaged when it is due, and at no other time",
        "after some step the weights are not right (relative error {error:.2g}).",
        "error",
    ),
    parameters=fact(
        "the parameters stay the same tensors",
        "same",
        "on rank {rank} a parameter is another tensor than before: an optimizer would not know it. Write into"
        " it (`p.copy_`, `p /= n`, under torch.no_grad()).",
    ),
    bytes=sends(
        "2(n-1)/n times the largest fragment in any step",
        lambda job: theory.collective_bytes("all_reduce", job.results[0]["largest"], job.ranks),
        "in one step rank {rank} sends {sent:,.0f} bytes, {times:.2f} times an all_reduce of the largest"
        " fragment ({limit:,.0f}). Only what is due travels.",
    ),
)
def average_in_fragments(judge: Judge, answer: Callable) -> None:
    """`answer(fragments, step, every)` averages the fragment that is due after a step, if one is."""

    def drifts(answer, count, every, seed):
        on_rank.use_cpu()
        torch.set_default_dtype(torch.float64)
        rank, n, steps = dist.get_rank(), dist.get_world_size(), 2 * every + 3
        sizes = [(90, 100), (30,), (70, 120), (110, 70), (50,)]
        torch.manual_seed(seed)
        # all ranks' weights: a rank knows what the others have, and sends its own all the same
        everyone = [[torch.randn(size) for size in sizes] for _ in range(n)]
        params = [torch.nn.Parameter(p.clone()) for p in everyone[rank]]
        cuts = [[0, 1], [2], [3, 4]] if count == 3 else [[0, 1, 2], [3, 4]]
        fragments, before = [[params[i] for i in cut] for cut in cuts], list(map(id, params))
        found = {"error": 0.0, "looks": "", "same": True}
        found["largest"] = max(sum(params[i].nbytes for i in cut) for cut in cuts)

        def apart(others):
            return on_rank.apart(on_rank.flat(params), on_rank.flat(others))

        for step in range(steps):
            for r, its in enumerate(everyone):
                generator = torch.Generator().manual_seed(seed + step * n + r)
                for i, p in enumerate(its):
                    drift = torch.randn(p.shape, generator=generator)
                    its[i] = p + drift
                    if r == rank:
                        with torch.no_grad():
                            params[i] += drift
            if step == every and rank == seed % n:
                on_rank.come_late("average")
            with measure.step():
                answer([list(fragment) for fragment in fragments], step, every)
            if step == every:
                on_rank.is_back("average")
            found["same"] &= list(map(id, params)) == before
            undone = [p.clone() for p in everyone[rank]]
            due = [cut for j, cut in enumerate(cuts) if step % every == j * every // count]
            for i in (i for cut in due for i in cut):
                mean = sum(its[i] for its in everyone) / n
                for its in everyone:
                    its[i] = mean.clone()
            if (error := apart(everyone[rank])) > 1e-9 and not found["looks"]:
                summed = list(everyone[rank])
                for i in (i for cut in due for i in cut):
                    summed[i] = n * summed[i]
                if due and apart(undone) < 1e-9:
                    found["looks"] = f"after step {step} a fragment was due, and nothing was averaged"
                elif due and apart(summed) < 1e-9:
                    found["looks"] = "a sum, not an average: divide by the number of ranks"
                elif not due:
                    found["looks"] = f"after step {step} no fragment was due, and something was averaged"
                else:
                    found["looks"] = f"after step {step} other parameters were averaged than those due"
            found["error"] = max(found["error"], error)
        return found

    for ranks, count, every in ((3, 3, 5), (2, 2, 4)):
        if not judge.tried(
            f"{ranks} ranks, {count} fragments", drifts, answer, count, every, judge.seed, ranks=ranks
        ):
            return


@exercise(
    average=values(
        "all ranks get the average of those that took part, each counted by its samples",
        "the weights are not the average of those that took part (relative error {error:.2g}).",
        "error",
    ),
    nobody=fact(
        "where nobody took part, all keep what they have",
        "kept",
        "on rank {rank} the weights are others after a round in which nobody took part.",
    ),
    bytes=sends(
        "2(n-1)/n S",
        lambda job: theory.collective_bytes("all_reduce", job.results[0]["S"], job.ranks),
        "rank {rank} sends {sent:,.0f} bytes, {times:.2f} times those of one all_reduce of the weights. The"
        " server of federated averaging needs a sum, and so do you: of weights that are scaled before they"
        " leave.",
    ),
)
def federated_average(judge: Judge, answer: Callable) -> None:
    """`answer(params, num_samples)` averages in place over the ranks that took part."""

    def rounds(answer, seed):
        on_rank.use_cpu()
        torch.set_default_dtype(torch.float64)
        rank, n, draw = dist.get_rank(), dist.get_world_size(), random.Random(seed)
        found = {"error": 0.0, "looks": "", "kept": True}
        absent = draw.randrange(n)
        for number in range(4):
            samples = [draw.randint(1, 400) for _ in range(n)]
            if number == 3:
                samples = [0] * n
            elif number:
                samples[(absent + number) % n] = 0
            generator = torch.Generator().manual_seed(seed + number)
            everyone = [
                [torch.randn(size, generator=generator) for size in ((120, 150), (30,), (90, 100))]
                for _ in range(n)
            ]
            params = [torch.nn.Parameter(p.clone()) for p in everyone[rank]]
            found["S"] = sum(p.nbytes for p in params)
            if not samples[rank] and number == 2:  # it has crashed, and holds nonsense
                for p in params:
                    p.data.fill_(float("nan"))
            if number == 2 and rank == seed % n:
                on_rank.come_late("average")
            with measure.step():
                answer(params, samples[rank])
            if number == 2:
                on_rank.is_back("average")
            own, now = on_rank.flat(everyone[rank]), on_rank.flat(params)
            if not sum(samples):
                found["kept"] = on_rank.apart(now, own) < 1e-12
                continue
            flats = [on_rank.flat(its) for its in everyone]
            wanted = sum(count * its for count, its in zip(samples, flats)) / sum(samples)
            present = [its for count, its in zip(samples, flats) if count]
            error = on_rank.apart(now, wanted)
            if error > 1e-9 and not found["looks"]:
                found["looks"] = on_rank.looks(
                    now,
                    {
                        "what this rank had before": own,
                        "the plain mean of all ranks: count each by its samples": sum(flats) / n,
                        "the plain mean of those present: count each by its samples": sum(present)
                        / len(present),
                        "the sum, not divided by all samples": wanted * sum(samples),
                        "divided by the number of ranks once too often": wanted / n,
                    },
                )
                if not found["looks"] and now.isnan().any():
                    found["looks"] = "not a number: 0 times nan is nan, so a rank that is absent sends zeros"
            found["error"] = max(found["error"], error)
        return found

    for ranks in (4, 2):
        if not judge.tried(f"{ranks} ranks", rounds, answer, judge.seed, ranks=ranks):
            return
