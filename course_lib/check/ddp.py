"""Checks of the chapter "Distributed data parallel"."""

import random
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from course_lib import measure
from course_lib.check import on_rank
from course_lib.check.counted import header_bytes, ring_bytes, sent_bytes
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import (
    BYTES_LIMIT,
    ERROR_LIMIT,
    Demand,
    at_most,
    fact,
    it_is,
    largest,
    sends,
    used,
    values,
)
from course_lib.datasets import digits
from course_lib.models import MLP, TinyGPT
from course_lib.record import Job, calls, sent

__all__ = ["own_ddp", "one_synchronisation", "ranks_agree"]

UPDATES = 4  # with the own DDP
MESSAGE_BYTES = 1_000  # of the test that asks whether ranks agree, whatever the size of the model


def _start(job: Job) -> str:
    apart = [rank for rank, found in enumerate(job.results) if found["start"] > 0]
    if not apart:
        return ""
    return (
        f"rank {max(apart)} does not start with the weights of rank 0. Broadcast them from rank 0 when the"
        " wrapper is made: ranks that start apart stay apart, however well their gradients are averaged."
    )


def _buffers(job: Job) -> str:
    if all(found["buffers"] for found in job.results):
        return ""
    return "the parameters start equal, but a buffer does not. `module.buffers()` must be broadcast too."


def _gathers(job: Job) -> bool:
    return "all_gather" in set(job.comm["op"]) and "reduce_scatter" not in set(job.comm["op"])


def _once(job: Job) -> str | None:
    """In the traced step. Whoever gathers all gradients is told of the bytes alone."""
    if _gathers(job):
        return None
    called = calls(job).drop(columns="broadcast", errors="ignore")  # of buffers, beside the gradients
    ops = list(called)
    times = sent(job, layer="algorithm", ops=ops).max() / ring_bytes(job) if ops else 0.0
    if 0.98 <= times <= BYTES_LIMIT:
        return ""
    if times == 0:
        why = "nothing was summed: the gradients of the other ranks cannot have come into yours"
    else:
        why = f"the gradients travelled {times:.2f} times ({used(called.loc[0])})"
        if 0.95 < times / job.results[0]["micro_batches"] < 1.05:
            why += (
                ": once in every micro-batch. Under `no_sync` nothing may be sent: gradients add up in"
                " `.grad`, and the last backward sends the sum"
            )
        elif BYTES_LIMIT < times < 1.4:
            why += (
                ". Does more travel than the gradients of what learns, such as zeros for frozen parameters?"
            )
            return f"exactly one synchronisation per update, but {why}"
    return f"exactly one synchronisation per update, but {why}."


def _wasteful(job: Job) -> str:
    if _gathers(job):
        return (
            " An all_gather brings the gradient of every rank to every rank, to be added up there; an"
            " all_reduce sends sums."
        )
    if {"reduce", "broadcast"} <= set(job.comm["op"]):
        return (
            " The rank to which all reduce, and which sends the sums to all, has more to send than the"
            " others: an all_reduce shares that out."
        )
    return ""


ONE_SYNCHRONISATION = {
    "once": Demand("exactly one synchronisation per update", _once),
    "bytes": sends(
        "2(n-1)/n P",
        ring_bytes,
        "a rank sent {times:.2f} times the 2(n-1)/n P = {limit:,.0f} bytes of one all_reduce.",
        _wasteful,
    ),
}


@exercise(
    start=Demand("all ranks start with the weights of rank 0", _start),
    buffers=Demand("and with its buffers", _buffers, after=("start",)),
    left_alone=at_most(
        "forward and backward leave the weights alone",
        "moved",
        ERROR_LIMIT,
        "your wrapper changes the weights during forward or backward. It averages weights, and it should"
        " average gradients: the hook gets the parameter, and the gradient is its `.grad`. (Averaged weights"
        " equal averaged gradients for plain SGD only, and this is Adam.)",
    ),
    gradient=values(
        "every gradient is that of the whole batch",
        "the gradient is not that of the whole batch (relative error {error:.2g}).",
        "gradient",
    ),
    weights=values(
        f"after {UPDATES} updates with Adam, the weights are those of one process",
        f"after {UPDATES} updates the weights are not those of one process (relative error {{error:.2g}}).",
        "weights",
        advice=lambda job, error: it_is(job),
        after=("gradient",),
    ),
    **ONE_SYNCHRONISATION,
)
def own_ddp(judge: Judge, make_ddp: Callable) -> None:
    """`make_ddp(module)` starts all ranks from rank 0's weights, and averages the gradients once per update,
    in the last micro-batch's backward.
    """

    class Scaled(MLP):
        """An MLP with a buffer that matters: one factor per pixel."""

        def __init__(self):
            super().__init__((64, 256, 256, 10))
            self.register_buffer("scale", 0.5 + torch.rand(64))

        def forward(self, images):
            return super().forward(images.flatten(1) * self.scale)

    def gpt():
        model = TinyGPT(dim=128, layers=1)
        model.position.requires_grad_(False)
        return model

    def data(model, samples, update):
        """Inputs and targets of one update, the same on every rank."""
        generator = torch.Generator().manual_seed(seed + update)
        if isinstance(model, Scaled):
            images, labels = digits()
            chosen = torch.randperm(len(images), generator=generator)[:samples]
            return images[chosen].double(), labels[chosen]
        return (torch.randint(251, (samples, 9), generator=generator),)

    def loss_of(model, batch):
        return model(batch[0]) if len(batch) == 1 else F.cross_entropy(model(batch[0]), batch[1])

    def learning(model):
        return [p for p in model.parameters() if p.requires_grad]

    def train(make_model, make_ddp, num_micro_batches):
        import contextlib

        flat, apart = on_rank.flat, on_rank.apart

        def gradient(batch):
            return flat(torch.autograd.grad(loss_of(one, batch), learning(one)))

        torch.set_default_dtype(torch.float64)
        rank, n, k = dist.get_rank(), dist.get_world_size(), num_micro_batches
        late = seed % n
        torch.manual_seed(seed + rank)
        module = make_model()
        torch.manual_seed(seed)
        one = make_model()  # what one process has, which trains on the whole batch
        ddp = make_ddp(module)
        found = {
            "start": apart(flat(module.parameters()), flat(one.parameters())),
            "gradient": 0.0,
            "moved": 0.0,
            "looks": "",
            "buffers": all(map(torch.equal, module.buffers(), one.buffers())),
            "P": flat(learning(one)).nbytes,
            "micro_batches": k,
            "stopped": "",
        }
        module.load_state_dict(one.state_dict())  # so that each step of the exercise is judged by itself
        optimizer, optimizer_of_one = (torch.optim.Adam(learning(model), 0.003) for model in (module, one))
        batches = [data(one, 4 * n * k, update) for update in range(UPDATES)]
        for update, whole in enumerate(batches):
            # micro-batch by micro-batch, and in each rank by rank
            pieces = list(zip(*(tensor.split(4) for tensor in whole)))
            optimizer.zero_grad()
            before = flat(module.parameters())
            with measure.step(module, optimizer):
                for number in range(k):
                    with ddp.no_sync() if number < k - 1 else contextlib.nullcontext():
                        loss = loss_of(ddp, pieces[number * n + rank]) / k
                        if (update, number, rank) == (2, k - 1, late):
                            on_rank.come_late("backward")  # who does not wait for it has wrong numbers
                        loss.backward()
                # before what comes late can still come
                now = [None if p.grad is None else p.grad.detach().clone() for p in learning(module)]
            if update == 2:
                on_rank.is_back("backward")
            found["moved"] = max(found["moved"], apart(flat(module.parameters()), before))
            strange = any(g is None or g.shape != p.shape for g, p in zip(now, learning(module)))
            problem = ""
            if strange:
                problem = "a parameter has no gradient after backward, or one of another shape"
            elif any(p.grad is not None for p in module.parameters() if not p.requires_grad):
                problem = "a frozen parameter has got a gradient"
            if problem := on_rank.first_problem(problem):
                return found | {"stopped": problem}
            for p, g in zip(learning(module), now):
                p.grad = g
            grad, full = flat(now), gradient(whole)
            if update == 2 and found["gradient"] < ERROR_LIMIT < apart(grad, full):
                found["looks"] = (
                    "right while all ranks are in step, and wrong when one comes late: backward must not"
                    " return before the sums have arrived"
                )
            if update == 0 and apart(grad, full) > ERROR_LIMIT:
                by_micro_batch = [
                    [gradient(piece) / k for piece in pieces[i * n : (i + 1) * n]] for i in range(k)
                ]
                own = [by_rank[rank] for by_rank in by_micro_batch]
                guesses = {
                    "the sum over the ranks, not their average: divide by the world size": full * n,
                    "divided by the world size twice": full / n,
                    "this rank's own gradient: nothing was averaged": sum(own),
                    "averaged in the last micro-batch alone: a hook of `register_hook` sees the gradient of"
                    " one backward, and one of `register_post_accumulate_grad_hook` finds the whole in"
                    " `p.grad`": (sum(own[:-1]) + sum(by_micro_batch[-1]) / n),
                    "the sum of sums: `p.grad` was summed over the ranks again in every micro-batch": sum(
                        n ** (k - i) * sum(by_rank) / n for i, by_rank in enumerate(by_micro_batch)
                    ),
                }
                found["looks"] = on_rank.looks(grad, guesses)
            found["gradient"] = max(found["gradient"], apart(grad, full))
            optimizer.step()
            for p, part in zip(learning(one), full.split([p.numel() for p in learning(one)])):
                p.grad = part.view_as(p)
            optimizer_of_one.step()
        return found | {"weights": apart(flat(module.parameters()), flat(one.parameters()))}

    seed = judge.seed
    for what, make_model, ranks, k in (
        ("an MLP with a buffer", Scaled, 2, 3),
        ("a TinyGPT with tied and frozen weights", gpt, 3, 2),
    ):
        judge.case = f"{what}, {ranks} ranks"
        job = judge.run(train, make_model, make_ddp, k, ranks=ranks, label="your DDP")
        judge.look(job, "start", "buffers")
        if stopped := job.results[0]["stopped"]:
            judge.demand("gradient", f"{stopped}.")
            continue
        judge.look(job, "left_alone", "gradient", "weights")
        judge.case += f", {k} micro-batches"
        judge.look(job, *ONE_SYNCHRONISATION)


def _updated(job: Job) -> str:
    first = job.results[0]
    if largest(job, "error") < ERROR_LIMIT:
        return ""
    if len({found["sum"] for found in job.results}) > 1:
        return "the ranks have different weights: " + (
            "DDP decides in a forward what the next backward will do, so call each backward right after its"
            " forward."
            if largest(job, "most_waiting") > 1
            else "their last backward must not be under `no_sync`, or nobody averages."
        )
    if first["first"] < ERROR_LIMIT:
        return (
            "the first update is right, and a later one is not: does anything of the update before still"
            " count, or the number of micro-batches?"
        )
    if first["left"]:
        return (
            "the gradients of the update before are still there when the first backward adds to them: zero"
            " them before the first backward, and not only at the end."
        )
    if hint := on_rank.rounding(first["first"]):
        return f"the first update misses that of one process by {first['first']:.2g} of its length.{hint}"
    if first["factor"] is None:
        return (
            f"the first update misses that of one process by {first['first']:.0%} of its length. A"
            " micro-batch counts by its samples: divide the sum of all losses by the number of this rank's"
            " samples. And zero the gradients once, before the first backward."
        )
    if abs(first["factor"]) < 1e-6:
        return "the first update leaves the weights as they were."
    return (
        f"the first update is {first['factor']:.3g} times that of one process: by what do you divide the"
        " losses? (DDP itself divides by the number of ranks)."
    )


def _forwards(job: Job) -> str:
    return next((f"the model ran {found['forwards']}." for found in job.results if found["forwards"]), "")


@exercise(
    weights=Demand("the weights are those of one process", _updated),
    forwards=Demand("one forward per micro-batch", _forwards),
    backwards=at_most(
        "each backward follows its forward",
        "most_waiting",
        1,
        "{most} forwards wait for one backward, and the activations of all their micro-batches are in memory"
        " at once. Call backward after each forward: gradients add up in `.grad`.",
    ),
    **ONE_SYNCHRONISATION,
)
def one_synchronisation(judge: Judge, update: Callable) -> None:
    """`update(ddp, optimizer, micro_batches)`: one update with torch's DDP from micro-batches of different
    sizes, one at a time, and one synchronisation.
    """
    WIDTHS, RATE = (64, 512, 256, 10), 0.5
    seed, draw = judge.seed, random.Random(judge.seed)
    # sizes of the micro-batches; the second update is traced
    updates = [draw.sample(range(1, 10), k) for k in (3, 3, draw.choice([2, 4]), 1)]

    def train(update):
        from torch.nn.parallel import DistributedDataParallel

        flat, apart = on_rank.flat, on_rank.apart
        torch.set_default_dtype(torch.float64)
        rank, n = dist.get_rank(), dist.get_world_size()
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        one, module = MLP(WIDTHS), MLP(WIDTHS)
        module.load_state_dict(one.state_dict())
        ddp = DistributedDataParallel(module)
        optimizer, optimizer_of_one = (
            torch.optim.SGD(model.parameters(), RATE, momentum=0.9) for model in (module, one)
        )
        # of one update: forwards that have run, that wait for their backward, and at most
        forwards, waiting, most_waiting, left_alone = 0, 0, 0, True
        found = {"P": flat(one.parameters()).nbytes, "micro_batches": len(updates[1])}
        found |= {"forwards": "", "most_waiting": 0}

        def after_forward(module, inputs, output):
            nonlocal forwards, waiting, most_waiting
            forwards += 1
            if output.requires_grad:
                waiting += 1
                most_waiting = max(most_waiting, waiting)
                output.register_hook(before_backward)

        def before_backward(grad):
            nonlocal waiting
            waiting -= 1

        module.register_forward_hook(after_forward)
        images, labels = digits()
        order = torch.randperm(len(images), generator=generator)
        for number, sizes in enumerate(updates):
            total = sum(sizes)
            chosen, order = order[: n * total], order[n * total :]
            mine = chosen[rank * total : (rank + 1) * total]
            micro_batches = list(zip(images[mine].double().split(sizes), labels[mine].split(sizes)))
            # "the gradients of the update before may still be there": here they are
            for p in module.parameters():
                p.grad = torch.randn(p.shape, generator=generator).mul_(0.01)
            left = flat(p.grad for p in module.parameters())
            forwards = waiting = most_waiting = 0
            before = flat(one.parameters())
            with measure.step(module, optimizer):
                update(ddp, optimizer, list(micro_batches))
            for one_of, given in zip(zip(*micro_batches), (images[mine].double(), labels[mine])):
                left_alone &= torch.equal(torch.cat(one_of).detach(), given)
            optimizer_of_one.zero_grad()
            F.cross_entropy(one(images[chosen].double()), labels[chosen]).backward()
            optimizer_of_one.step()
            if forwards != len(sizes):
                found["forwards"] = (
                    found["forwards"]
                    or f"{forwards} times for {len(sizes)} micro-batch{'es' * (len(sizes) > 1)}"
                )
            found["most_waiting"] = max(found["most_waiting"], most_waiting)
            if number == 0:
                moved, wanted = (flat(model.parameters()) - before for model in (module, one))
                found |= {
                    "first": apart(moved, wanted),
                    "factor": on_rank.times(moved, wanted, 1e-6),
                    "left": apart(moved, wanted - RATE * left) < 1e-6,
                }
        changed = "the images or labels of a micro-batch have changed; leave them alone"
        if problem := on_rank.first_problem("" if left_alone else changed):
            return {"problem": problem}
        weights = flat(module.parameters())
        return found | {"error": apart(weights, flat(one.parameters())), "sum": weights.sum().item()}

    for ranks in (2, 3):
        judge.tried(f"{ranks} ranks, micro-batches of different sizes", train, update, ranks=ranks)


def _together(job: Job) -> str:
    """All ranks say the same in every case, and say True or False."""
    for case in zip(*(found["said"] for found in job.results)):
        for rank, (_, _, said) in enumerate(case):
            if not isinstance(said, bool):
                return f"rank {rank} returned {said!r:.60}, and every rank must return True or False."
        if len({said for _, _, said in case}) > 1:
            return (
                f"in one case the ranks returned {on_rank.listed(said for _, _, said in case)}. A rank that"
                " has found a difference must tell all others, and no two differences may cancel each other."
            )
    return ""


def _agreed(words: str, key: str, missed: str) -> Demand:
    """All cases with this key are judged right."""

    def wrong(job: Job) -> str:
        cases = job.results[0]["said"]
        return missed if any(what == key and said != equal for what, equal, said in cases) else ""

    return Demand(words, wrong, after=("together",))


def _short(job: Job) -> str:
    without_headers = sent_bytes(job) - header_bytes(job)
    if without_headers.max() <= MESSAGE_BYTES:
        return ""
    return (
        f"rank {without_headers.idxmax()} sent {without_headers.max():,.0f} bytes. Make something short of"
        f" the {job.results[0]['bytes']:,} bytes of parameters and buffers, and send that."
    )


@exercise(
    together=Demand("all ranks return the same, True or False", _together),
    same=_agreed(
        "True where all ranks have the same model",
        "same",
        "all ranks have the same model, and your function returns False. What you compare must depend on the"
        " numbers alone, and on nothing that is another one in each process: its rank, an address.",
    ),
    last_bit=_agreed(
        "it finds one number that differs in its last bit",
        "last_bit",
        "one weight of one rank differs in its last bit, and your function returns True. A sum, a norm or a"
        " printed number rounds such a difference away.",
    ),
    places=_agreed(
        "it finds two numbers that have changed places",
        "places",
        "two weights of one rank have changed places, and your function returns True. A sum or a norm does"
        " not tell where a number stands.",
    ),
    buffers=_agreed(
        "it finds a buffer that differs",
        "buffers",
        "a buffer of one rank differs, and your function returns True. Look at `model.buffers()` too, each in"
        " its own dtype.",
    ),
    left_alone=fact(
        "the model stays as it is",
        "left_alone",
        "on rank {rank} a parameter or a buffer is another one than before. Your function only looks.",
    ),
    bytes=Demand(f"no rank sends more than {MESSAGE_BYTES:,} bytes, headers apart", _short),
)
def ranks_agree(judge: Judge, ranks_agree: Callable) -> None:
    """`ranks_agree(model)`: whether all ranks have the same parameters and buffers, bit for bit, in a short
    message.
    """
    seed, draw = judge.seed, random.Random(judge.seed)
    a, b, c = draw.sample(range(3), 3)  # ranks
    late, place = draw.randrange(3), draw.randrange(1_000)
    # of each case the key of its demand, and what is changed on some ranks; the second one is traced
    cases = [
        ("same", {}),
        ("last_bit", {a: "bit"}),
        ("places", {b: "places"}),
        ("buffers", {c: "mean"}),
        ("buffers", {a: "count"}),
        ("together", {b: "more", c: "less"}),
        ("same", {}),
        ("last_bit", {(late + 1) % 3: "bit"}),  # and one rank comes late
    ]

    def change(model, how):
        weight, norm = model[1].weight.detach().view(-1), model[2]
        large = (weight.abs() > 0.05).nonzero().flatten()
        one = large[place].item()
        other = large[(weight[large] != weight[one]).nonzero()[place % 50, 0]].item()
        if how == "bit":
            weight[one] = torch.nextafter(weight[one], 2 * weight[one])
        elif how == "places":
            weight[[one, other]] = weight[[other, one]]
        elif how in ("more", "less"):
            weight[one] += 2**-10 * (1 if how == "more" else -1)
        elif how == "mean":
            norm.running_mean[place % 128] += 0.125
        elif how == "count":
            norm.num_batches_tracked += 1

    def trial(ranks_agree):
        rank = dist.get_rank()
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10)
        )
        with torch.no_grad():
            for p in model.parameters():
                p.copy_((p * 4096).round() / 4096)  # sums of such numbers are exact, in any order
        whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        found = {"said": [], "left_alone": True, "bytes": sum(one.nbytes for one in whole.values())}
        for number, (key, changes) in enumerate(cases):
            model.load_state_dict(whole)
            if key == "buffers":
                model[2].num_batches_tracked.fill_(2**24)  # one more, and a float32 does not tell
            change(model, changes.get(rank))
            given = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            last = number == len(cases) - 1
            if last and rank == late:
                on_rank.come_late("agree")
            with measure.step():
                said = on_rank.plain(ranks_agree(model))
            if last:
                on_rank.is_back("agree")
            found["said"].append((key, not changes, bool(said) if said in (0, 1) else said))
            now = model.state_dict()
            found["left_alone"] &= all(torch.equal(now[name], given[name]) for name in given)
        return found

    judge.tried("", trial, ranks_agree, ranks=3)
