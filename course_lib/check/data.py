"""Checks of the chapter "Data": files that ranks and workers read together, an update from what is uneven, an
order without a list.
"""

import random
from collections import Counter
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from course_lib import measure
from course_lib.check import on_rank
from course_lib.check.counted import ring_bytes
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import Demand, at_most, sends, values
from course_lib.models import MLP
from course_lib.record import Job

__all__ = ["stream_once", "weighted_update", "order_without_a_list"]


def _readings(job: Job) -> list[list[list[dict]]]:
    """By data set and rank, what each worker says."""
    return [list(one) for one in zip(*(found["readings"] for found in job.results), strict=True)]


def _once(job: Job) -> str:
    for sizes, ranks in zip(job.results[0]["sizes"], _readings(job)):
        count = Counter(number for its in ranks for one in its for number in one["samples"])
        said = f"shards of {on_rank.listed(sizes)} samples, {len(ranks[0])} readers on each rank: "
        if strange := [number for number in count if number not in range(sum(sizes))]:
            return f"{said}{on_rank.short(strange[0])} is yielded, and `read` has not returned it."
        if missing := sum(sizes) - len(count):
            return f"{said}{missing} of {sum(sizes)} samples are read by nobody."
        if len(count) and max(count.values()) > 1:
            twice = sum(number > 1 for number in count.values())
            return (
                f"{said}{twice} samples come more than once, one of them {max(count.values())} times. A"
                " worker is a process with its own copy of the data set: which part is its own?"
            )
    return ""


def _evenly(job: Job) -> str:
    for sizes, ranks in zip(job.results[0]["sizes"], _readings(job)):
        by_rank = [sum(len(one["samples"]) for one in its) for its in ranks]
        by_worker = [[len(one["samples"]) for one in its] for its in ranks]
        if max(by_rank) - min(by_rank) > 1:
            return (
                f"shards of {on_rank.listed(sizes)} samples: the ranks get {on_rank.listed(by_rank)}. Deal"
                " out samples, not shards."
            )
        for rank, its in enumerate(by_worker):
            if max(its) - min(its) > 1:
                return f"the workers of rank {rank} get {on_rank.listed(its)} samples, and not even shares."
    return ""


def _pieces(job: Job) -> str:
    for sizes, ranks in zip(job.results[0]["sizes"], _readings(job)):
        reads = [piece for its in ranks for one in its for piece in one["reads"]]
        readers = sum(map(len, ranks))
        rows, most = sum(stop - start for _, start, stop in reads), len(sizes) + readers - 1
        if rows > sum(sizes):
            return (
                f"all together read {rows} samples from their shards, and there are {sum(sizes)}: `read` the"
                " part that is needed, from start to stop."
            )
        if len(reads) > most:
            return (
                f"{readers} readers of {len(sizes)} shards call `read` {len(reads)} times, and"
                f" {most} are enough where each takes samples that lie one after the other."
            )
    return ""


def _begins(job: Job) -> str:
    first = max((one["first"] for its in _readings(job) for rank in its for one in rank), default=0)
    return (
        ""
        if first <= 1
        else (
            f"a reader calls `read` {first} times before it yields its first sample. Yield the samples of a"
            " piece before the next one is read: a stream does not hold what it will need later."
        )
    )


@exercise(
    once=Demand("each sample comes once, over all ranks and workers", _once),
    evenly=Demand("no rank has more than one sample more than another, nor has a worker of a rank", _evenly),
    pieces=Demand("`read` is called at most shards + readers - 1 times, and for nothing twice", _pieces),
    begins=Demand("a piece is read when its turn comes", _begins),
)
def stream_once(judge: Judge, answer: Callable) -> None:
    """`answer(sizes, read, rank, ranks)` yields the samples of this reader: of one worker of this rank."""
    draw = random.Random(judge.seed)

    def stream(answer, cases):
        from torch.utils.data import DataLoader, IterableDataset, get_worker_info

        torch.set_default_device(None)
        rank, n = dist.get_rank(), dist.get_world_size()

        class Stream(IterableDataset):
            def __init__(self, sizes):
                self.sizes = sizes

            def __iter__(self):
                reads, samples, first = [], [], 0

                def read(shard, start, stop):
                    numbers = [on_rank.whole(one) for one in (shard, start, stop)]
                    fits = None not in numbers and 0 <= numbers[0] < len(self.sizes)
                    if not fits or not 0 <= numbers[1] <= numbers[2] <= self.sizes[numbers[0]]:
                        asked = f"read({on_rank.short(shard)}, {on_rank.short(start)}, {on_rank.short(stop)})"
                        raise ValueError(f"{asked} of shards with {on_rank.listed(self.sizes)} samples")
                    shard, start, stop = numbers
                    reads.append((shard, start, stop))
                    before = sum(self.sizes[:shard])
                    return list(range(before + start, before + stop))

                def all_of_it():
                    nonlocal first
                    for sample in answer(list(self.sizes), read, rank, n):
                        first = first or len(reads)
                        samples.append(sample)
                        if len(samples) > 2 * sum(self.sizes) * n:
                            raise ValueError("it yields more and more samples, and does not end")

                if get_worker_info() is None:
                    all_of_it()
                else:
                    try:
                        all_of_it()
                    except Exception as error:
                        yield {"problem": f"in a worker it raised {type(error).__name__}: {error}"}
                        return
                reads, samples = on_rank.plain(reads), on_rank.plain(samples)
                if strange := [one for one in samples if not isinstance(one, int)]:
                    shown = on_rank.short(strange[0])
                    yield {"problem": f"it yields {shown}: yield what `read` returns one by one"}
                    return
                yield {"samples": samples, "reads": reads, "first": first}

        readings = []
        for sizes, workers in cases:
            loader = DataLoader(Stream(sizes), batch_size=None, num_workers=workers)
            readings.append(list(loader))
        problems = [one["problem"] for its in readings for one in its if "problem" in one]
        if problem := on_rank.first_problem(problems[0] if problems else ""):
            return {"problem": problem}
        return {"readings": readings, "sizes": [sizes for sizes, _ in cases]}

    def shards(count, most):
        return [draw.randrange(1, most) for _ in range(count)]

    alone = [([*shards(3, 30), 0, *shards(2, 30)], 0), ([2, 1], 0)]
    if judge.tried("3 ranks, no workers", stream, answer, alone, ranks=3):
        several = [(shards(draw.choice([5, 6]), 40), 2), (shards(2, 3), 3)]
        judge.tried("2 ranks with workers", stream, answer, several, ranks=2)


@exercise(
    weights=values(
        "the weights are those of one process that has all images",
        "the weights are not those of one process (relative error of an update {error:.2g}).",
        within=1e-5,  # clip_grad_norm_ adds 1e-6 to the norm; an answer by hand need not
    ),
    forwards=at_most(
        "each rank's images go through the model once, also where there are none",
        "wrong_forwards",
        0,
        "a rank has not sent its images through the model once.",
    ),
    bytes=sends(
        "2(n-1)/n P",
        ring_bytes,
        "a rank sent {times:.2f} times the 2(n-1)/n P = {limit:,.0f} bytes of one all_reduce of the"
        " gradients. Beside them, one number is needed from each rank.",
    ),
)
def weighted_update(judge: Judge, update: Callable) -> None:
    """`update(ddp, optimizer, images, labels, class_weights, max_norm)`: one update from the weighted mean
    over the images of all ranks, of which some may have none, its gradient clipped.
    """
    RATE, UPDATES = 0.5, 4
    WIDTHS = (64, 96, 10)
    seed = judge.seed

    def train(update):
        from torch.nn.parallel import DistributedDataParallel

        flat, apart = on_rank.flat, on_rank.apart
        on_rank.use_cpu()
        rank, n = dist.get_rank(), dist.get_world_size()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        one, module = MLP(WIDTHS).double(), MLP(WIDTHS).double()
        module.load_state_dict(one.state_dict())
        rows = []
        module.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
        ddp = DistributedDataParallel(module)
        optimizers = [torch.optim.SGD(model.parameters(), RATE) for model in (module, one)]
        found = {"P": flat(one.parameters()).nbytes, "wrong_forwards": 0, "looks": "", "error": 0.0}

        def gradient(pairs, weights, divisor):
            if not pairs:
                return torch.zeros(1)
            loss = sum(F.cross_entropy(one(x), y, weights, reduction="sum") for x, y in pairs)
            return flat(torch.autograd.grad(loss / divisor, list(one.parameters())))

        def clipped(grad, max_norm):
            return grad * min(1.0, max_norm / grad.norm().item())

        for number in range(UPDATES):
            sizes = [draw.randint(4, 24) for _ in range(n)]
            sizes[draw.randrange(n)] = 0 if number % 2 else 1
            weights = torch.tensor([draw.uniform(0.2, 1.0) for _ in range(10)]).double()
            weights[draw.randrange(10)] = 20.0
            generator = torch.Generator().manual_seed(seed + number)
            pairs = [
                (
                    torch.rand(size, 1, 8, 8, generator=generator).double(),
                    torch.randint(10, (size,), generator=generator),
                )
                for size in sizes
            ]
            total = sum(weights[y].sum() for _, y in pairs)
            right = gradient(pairs, weights, total)
            max_norm = right.norm().item() * (2.0, 0.4, 0.7, 3.0)[number]
            start = flat(one.parameters())
            if number == 2 and rank == seed % n:
                on_rank.come_late("update")
            rows.clear()
            with measure.step():
                x, y = pairs[rank]
                update(ddp, optimizers[0], x.clone(), y.clone(), weights.clone(), max_norm)
            if number == 2:
                on_rank.is_back("update")
            found["wrong_forwards"] += rows != [sizes[rank]]
            moved, wanted = (start - flat(module.parameters())) / RATE, clipped(right, max_norm)
            error = apart(moved, wanted)
            if not found["looks"] and not error < 1e-5:
                some = [(x, y) for x, y in pairs if len(y)]
                means = sum(gradient([pair], weights, weights[pair[1]].sum()) for pair in some) / n
                each = [gradient([pair], weights, total / n) for pair in some]
                by_number = gradient(pairs, weights, sum(sizes))
                found["looks"] = on_rank.looks(
                    moved,
                    {
                        "not clipped": right,
                        "the mean of the ranks' own means: each has divided by the weights of its own"
                        " images": clipped(means, max_norm),
                        "divided by the number of images: a weighted mean is divided by the sum of the"
                        " weights": clipped(by_number, max_norm),
                        "divided by the number of ranks once too often: DDP does that, too": clipped(
                            right / n, max_norm
                        ),
                        "clipped on each rank and then averaged: it is the average that has a norm": sum(
                            clipped(its, max_norm) for its in each
                        )
                        / n,
                    },
                    within=1e-5,
                )
            found["error"] = max(found["error"], error)
            with torch.no_grad():
                optimizers[1].zero_grad()
                nn.utils.vector_to_parameters(start - RATE * wanted, one.parameters())
                module.load_state_dict(one.state_dict())
        return found

    for ranks in (2, 3):
        if not judge.tried(f"{ranks} ranks", train, update, ranks=ranks):
            return


MANY, MOST_BYTES = 200_000, 500_000


@exercise(
    once="in every epoch each sample comes once, wherever steps begin and end",
    ranks="what all ranks read together in a step does not depend on how many they are, and shares are even",
    anew="each epoch and each seed has an order of its own, and none is regular",
    memory=f"it takes at most {MOST_BYTES:,} bytes, for {MANY:,} samples as for a thousand",
    agree="every process finds the same",
)
def order_without_a_list(judge: Judge, answer: Callable) -> None:
    """`answer(samples, seed, trained, batch_size, rank, ranks)`: which samples this rank takes next."""

    def tries(answer, seed):
        on_rank.use_cpu()
        draw = random.Random(seed)

        def numbers(samples, its_seed, trained, batch_size, rank=0, ranks=1):
            told = answer(samples, its_seed, trained, batch_size, rank, ranks)
            found = on_rank.plain(list(told) if not isinstance(told, torch.Tensor) else told)
            found = [on_rank.whole(one) for one in found] if isinstance(found, list) else [None]
            if not all(one is not None and 0 <= one < samples for one in found):
                raise ValueError(
                    f"it returned {on_rank.short(told)}, and should return a list of whole numbers from 0 to"
                    f" {samples - 1:,}"
                )
            return found

        found = {"steps": [], "orders": {}, "far": [], "wrong": ""}
        samples, its_seed = draw.randint(300, 400), draw.randrange(10**6)
        both = [numbers(samples, its_seed, t, 1) for t in range(2 * samples)]
        if any(len(one) != 1 for one in both):
            return {"problem": "for one sample on one rank it should return a list of one number"}
        one_by_one = [number for (number,) in both]
        other = [numbers(samples, its_seed + 1, t, 1)[0] for t in range(samples)]
        trained = 0
        while trained < 2 * samples - 40:
            batch_size, ranks = draw.randint(1, 40), draw.choice([2, 3, 5])
            shares = [numbers(samples, its_seed, trained, batch_size, r, ranks) for r in range(ranks)]
            found["steps"].append((trained, batch_size, shares))
            trained += batch_size
        with on_rank.NewTensors() as new, on_rank.Unseen() as unseen:
            far = numbers(MANY, its_seed, MANY - 10, 20, 1, 2)
            peak = max(new.peak_bytes, unseen.peak())
        if peak <= MOST_BYTES:
            far += numbers(10**9, its_seed, 10**9 + 123_456, 64, 1, 2)
        found |= {"samples": samples, "order": one_by_one, "other": other, "peak": peak, "far": far}
        return found

    results = judge.run(tries, answer, judge.seed, ranks=2).results
    found = results[0]
    samples, order, other = (found[name] for name in ("samples", "order", "other"))
    epochs = order[:samples], order[samples:]
    missed = dict.fromkeys(judge.demands, "")
    for epoch, its in enumerate(epochs):
        if len(set(its)) < samples:
            missed["once"] = (
                f"of {samples} samples, {samples - len(set(its))} never come in epoch {epoch}, one by one,"
                " and others twice"
            )
            break
    for trained, batch_size, shares in found["steps"]:
        here = f"after {trained} of {samples} samples, a batch of {batch_size} on {len(shares)} ranks"
        read = sorted(number for share in shares for number in share)
        sizes = [len(share) for share in shares]
        if len(read) != batch_size:
            missed["ranks"] = (
                f"{here}: they take {len(read)} samples together. Where an epoch ends, a step goes on with"
                " the next one; nothing is padded or left out."
            )
        elif max(sizes) - min(sizes) > 1:
            missed["ranks"] = f"{here}: they take {on_rank.listed(sizes)}, and not even shares"
        elif read != sorted(order[trained : trained + batch_size]):
            missed["ranks"] = f"{here}: they take other samples than one rank does, one by one"
        if missed["ranks"]:
            break
    for name, first, second in (
        ("two epochs have", *epochs),
        ("two seeds have", epochs[0], other),
    ):
        if sum(a == b for a, b in zip(first, second)) > samples / 5:
            missed["anew"] = missed["anew"] or f"{name} the same order, or nearly"
        elif len({(a - b) % samples for a, b in zip(first, second)}) < samples / 4:
            missed["anew"] = missed["anew"] or f"{name} orders of which one is the other, moved on"
    if len({(b - a) % samples for a, b in zip(epochs[0], epochs[0][1:])}) < samples / 4:
        missed["anew"] = "the order is regular: from one sample to the next it takes the same few steps"
    if found["peak"] > MOST_BYTES:
        missed["memory"] = (
            f"for 20 of {MANY:,} samples it takes {found['peak']:,} bytes: it makes a list of all. A number"
            " can be found from its position alone."
        )
    if results[1] != results[0] | {"peak": results[1]["peak"]}:
        missed["agree"] = "two processes find other samples: an order may depend on the arguments alone"
    for key, why in missed.items():
        judge.demand(key, why)
