"""Checks of chapter 07, "ZeRO stages 2 and 3": gradients that are sharded at once, layers that are gathered
and freed, a sharded checkpoint.
"""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from course_lib import measure, theory
from course_lib.check import on_rank
from course_lib.check.counted import header_bytes, sent_bytes
from course_lib.check.judge import Judge, exercise
from course_lib.datasets import digits
from course_lib.models import MLP
from course_lib.record import Job

__all__ = ["sharded_gradients", "sharded_layers", "resharded_checkpoint"]

ERROR_LIMIT = 1e-9  # relative, in float64
BYTES_LIMIT = 1.02  # times what a ring sends
# so many layers, that one more or less is clearly not all of them; no number of ranks divides the parameters
# of each
DEPTH, WIDTH = 12, 96
# gradients of a layer: as autograd makes them, joined, padded, and half a layer of buffers
FEW_LAYERS = 3.5


@exercise
def sharded_gradients(judge: Judge, answer: Callable) -> None:
    """`answer(layers)` returns one shard per layer; each backward adds this rank's chunk of the average
    gradient to it, and frees the rest at once.
    """

    def train(answer, seed):
        from course_lib.measure import alive

        torch.set_default_device("cpu")
        torch.set_default_dtype(torch.float64)
        rank, n = dist.get_rank(), dist.get_world_size()
        images, labels = (all_[seed % 1000 :] for all_ in digits())
        with alive.Allocations() as held:
            torch.manual_seed(seed)
            one, model = (MLP((64, *[WIDTH] * (DEPTH - 1), 10)) for _ in range(2))
            model.load_state_dict(one.state_dict())
            layers = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
            params = [list(layer.parameters()) for layer in layers]
            sizes = [sum(p.numel() for p in of_layer) for of_layer in params]
            chunks = [-(-size // n) for size in sizes]

            def chunks_of(tensor_of):
                """This rank's chunks of what one process has, padded."""
                flats = [
                    torch.cat([tensor_of(p).flatten() for p in layer.parameters()])
                    for layer in one.layers
                    if isinstance(layer, nn.Linear)
                ]
                return [
                    F.pad(flat, (0, n * chunk - len(flat))).chunk(n)[rank].clone()
                    for flat, chunk in zip(flats, chunks)
                ]

            def wanted():
                return torch.cat(chunks_of(lambda p: p.grad))

            def mine():
                return torch.cat([shard.grad.detach() for shard in shards])

            others = on_rank.outside_torch()
            returned = answer(layers)
            shards = list(returned) if isinstance(returned, Iterable) else []
            problem = ""
            if [tuple(getattr(shard, "shape", ())) for shard in shards] != [(chunk,) for chunk in chunks]:
                problem = (
                    f"`shard_gradients` must return one flat shard per layer, of ceil(numel / {n}) elements"
                    " each, on every rank, and returned other shapes"
                )
            elif not all(isinstance(shard, nn.Parameter) and shard.requires_grad for shard in shards):
                problem = (
                    f"a shard must be an `nn.Parameter`, and the first is a {type(shards[0]).__name__}"
                    + (" that needs no gradient" if isinstance(shards[0], nn.Parameter) else "")
                )
            elif not all(map(torch.equal, map(torch.Tensor.detach, shards), chunks_of(torch.Tensor.detach))):
                problem = (
                    "a shard has other values than chunk `rank` of its layer's flat parameters, which an"
                    " optimizer will update"
                )
            if problem := on_rank.first_problem(problem):
                return {"other": problem}

            found = {
                "other": "",
                "errors": [],
                "looks": "",
                "layer_bytes": 8 * max(sizes),
                "P": 8 * n * sum(chunks),
            }
            single = torch.zeros(0)
            for number in range(2):  # two micro-batches: their gradients add up
                batch = slice(number * 2 * n, (number + 1) * 2 * n)
                own = slice(number * 2 * n + 2 * rank, number * 2 * n + 2 * rank + 2)
                F.cross_entropy(one(images[batch].double()), labels[batch]).backward()
                loss = F.cross_entropy(model(images[own].double()), labels[own])
                dist.barrier()
                held.mark(f"begin {number}")
                loss.backward()
                held.mark(f"end {number}")
                problem = (
                    "after backward a shard has no `.grad`"
                    if not all(isinstance(shard.grad, torch.Tensor) for shard in shards)
                    else (
                        "after backward the `.grad` of a shard has another shape than the shard"
                        if any(s.grad.shape != s.shape for s in shards)
                        else ""
                    )
                )
                if problem := on_rank.first_problem(problem):
                    return found | {"other": problem}
                found["errors"].append(on_rank.apart(mine(), wanted()))
                if number == 0:
                    single = wanted()
                    for name, guess in (
                        ("the sum over the ranks, not their average: divide by the world size", single * n),
                        ("divided by the world size twice", single / n),
                    ):
                        if on_rank.apart(mine(), guess) < 1e-6:
                            found["looks"] = name
                elif (mine() - (wanted() - single)).norm() < 1e-6 * single.norm():
                    found["looks"] = (
                        "the gradient of the last micro-batch alone: add to what `shard.grad` holds already"
                    )
            found["unseen"] = on_rank.outside_torch() - others
        found["left"] = any(p.grad is not None for of_layer in params for p in of_layer)
        found["beyond"] = [
            held.peak_bytes(f"begin {number}", f"end {number}") - held.at(f"begin {number}")
            for number in range(2)
        ]
        # the first one makes the shards' gradients
        found["beyond"] = min(found["beyond"][0] - 8 * sum(chunks), found["beyond"][1])
        for _ in range(2):
            loss = F.cross_entropy(model(images[:2].double()), labels[:2])
            dist.barrier()
            with measure.step():
                loss.backward()
        return found

    train.__name__ = "your function"
    for ranks in (3, 4, 2):  # the cheapest with padding first: a wrong answer gets no further
        job, case = judge.run(train, answer, judge.seed, ranks=ranks), f"{ranks} ranks"
        other = next((found["other"] for found in job.results if found["other"]), "")
        if other:
            judge.demand(False, "", f"{case}: {other}.")
            return
        errors = [max(found["errors"][number] for found in job.results) for number in range(2)]
        number, what = (
            (0, "one micro-batch") if errors[0] > ERROR_LIMIT else (1, "two micro-batches, added up")
        )
        looks = next(
            (f" It is {found['looks']}." for found in job.results if found["looks"]),
            on_rank.rounding(errors[number]),
        )
        right = judge.demand(
            max(errors) < ERROR_LIMIT,
            f"{case}: the gradients of one process, after one and after two micro-batches",
            f"{case}: after {what}, a shard's gradient is not that of one process (relative error"
            f" {errors[number]:.2g}).{looks}",
        )
        freed = _judge_freed(judge, case, job) and _judge_unseen(judge, case, job)
        few = _judge_wire(
            judge,
            case,
            job,
            theory.collective_bytes("reduce_scatter", job.results[0]["P"], ranks),
            "(n-1)/n P",
        )
        if not (right and freed and few):
            return


def _judge_freed(judge: Judge, case: str, job: Job) -> bool:
    """Demand that backward has never held more than the shards and a few layers' gradients."""
    layers = max(found["beyond"] for found in job.results) / job.results[0]["layer_bytes"]
    left = any(found["left"] for found in job.results)
    why = (
        "after backward the parameters still have a `.grad`: set it to None as soon as the chunk is in the"
        " shard"
        if left
        else (
            f"in backward a rank held the shards and the gradients of {layers:.0f} layers more ({DEPTH}"
            " layers in all). Were all gradients there in full before the first was freed? Reduce each layer"
            " as soon as its gradients are complete, in a hook"
        )
    )
    return judge.demand(
        layers <= FEW_LAYERS and not left,
        f"{case}: backward holds the gradients of a few layers at most",
        f"{case}: {why}.",
    )


def _judge_unseen(judge: Judge, case: str, job: Job) -> bool:
    """Refuse whoever hides from torch what it should not hold."""
    most, P = max(found["unseen"] for found in job.results), job.results[0]["P"]
    return most <= P / 4 or judge.demand(
        False,
        "",
        f"{case}: a rank holds {most / P:.1f} P outside of torch (numpy arrays, Python's lists), which is"
        " memory all the same.",
    )


@exercise
def sharded_layers(judge: Judge, answer: Callable) -> None:
    """`answer(layers)` returns one shard per layer; from then on each layer is gathered, used and freed, in
    forward and again in backward.
    """
    # three for the memory, of which the first makes Adam's states, and two for the wire
    STEPS = 5

    def train(answer, seed):
        from course_lib.measure import alive

        torch.set_default_device("cpu")
        torch.set_default_dtype(torch.float64)
        rank, n = dist.get_rank(), dist.get_world_size()
        images, labels = (all_[seed % 1000 :] for all_ in digits())
        torch.manual_seed(seed)
        one = MLP((64, *[WIDTH] * (DEPTH - 1), 10))
        with alive.Allocations() as held:
            torch.manual_seed(seed)
            model = MLP((64, *[WIDTH] * (DEPTH - 1), 10))
            layers = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
            params = [p for layer in layers for p in layer.parameters()]
            sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
            # inside of whatever the answer puts around a layer, hooks or another forward
            moments = alive.watch(layers)
            others = on_rank.outside_torch()
            returned = answer(layers)
            shards = list(returned) if isinstance(returned, Iterable) else []
            given = bool(shards) and all(isinstance(shard, torch.Tensor) for shard in shards)
            if problem := on_rank.first_problem(
                "" if given else "`shard_layers` must return the shards, for the optimizer"
            ):
                return {"other": problem}
            optimizer, optimizer_of_one = (
                torch.optim.Adam(shards, 0.002),
                torch.optim.Adam(one.parameters(), 0.002),
            )

            def loss_of(step):
                own = slice(step * 2 * n + 2 * rank, step * 2 * n + 2 * rank + 2)
                return F.cross_entropy(model(images[own].double()), labels[own])

            for step in range(3):
                moments.clear()
                held.mark(f"step {step}")
                loss = loss_of(step)
                held.mark(f"backward {step}")
                loss.backward()
                held.mark(f"update {step}")
                del loss
                lost = any(shard.nbytes > 0 == alive.memory.storage_bytes([shard]) for shard in shards)
                if problem := on_rank.first_problem(
                    "a shard has lost its memory, when its layer was freed: it is a view of the layer's flat"
                    " tensor, and it needs memory of its own"
                    if lost
                    else ""
                ):
                    return {"other": problem}
                optimizer.step()
                optimizer.zero_grad()
                held.mark(f"end {step}")
            noted, hidden = list(moments), on_rank.outside_torch() - others
        left = any(
            p.grad is not None
            for p in [
                *params,
                *(
                    p
                    for layer in layers
                    for p in layer.parameters()
                    if not any(p is shard for shard in shards)
                ),
            ]
        )
        for step in range(3, STEPS):
            dist.barrier()
            with measure.step():
                loss_of(step).backward()
                optimizer.step()
            optimizer.zero_grad()
        for step in range(STEPS):
            batch = slice(step * 2 * n, (step + 1) * 2 * n)
            optimizer_of_one.zero_grad()
            F.cross_entropy(one(images[batch].double()), labels[batch]).backward()
            optimizer_of_one.step()
        # what the weights compute; and a forward has a backward, here too
        scores = model(images[:64].double())
        error = on_rank.apart(scores.detach(), one(images[:64].double()).detach())
        scores.sum().backward()
        layer, P = 8 * max(sizes), 8 * sum(sizes)
        return {
            "other": "",
            "error": error,
            "P": 8 * n * sum(-(-size // n) for size in sizes),
            "unseen": hidden,
            "alive": max(
                ((sum(1 for bytes_ in alive_ if bytes_), name) for name, alive_ in noted), default=(0, "")
            ),
            # the less disturbed one: who looks at a rank's stack holds it
            "left": left,
            "resting": min(held.at(f"end {step}") for step in (1, 2)) / P,
            "in forward": (
                min(
                    held.peak_bytes(f"step {step}", f"backward {step}") - held.at(f"step {step}")
                    for step in (1, 2)
                )
                / layer
            ),
            "in backward": (
                min(
                    held.peak_bytes(f"backward {step}", f"update {step}") - held.at(f"step {step}") - P / n
                    for step in (1, 2)
                )
                / layer
            ),
        }

    train.__name__ = "your function"
    for ranks in (3, 4):
        job, case = judge.run(train, answer, judge.seed, ranks=ranks), f"{ranks} ranks"
        other = next((found["other"] for found in job.results if found["other"]), "")
        if other:
            judge.demand(False, "", f"{case}: {other}.")
            return
        error = max(found["error"] for found in job.results)
        right = judge.demand(
            error < ERROR_LIMIT,
            f"{case}: after {STEPS} steps with Adam, the weights are those of one process",
            f"{case}: after {STEPS} steps the weights are not those of one process (relative error of the"
            f" outputs {error:.2g}). Is the gradient the average over the ranks? Does the optimizer change"
            f" the shard that the next gather sends?{on_rank.rounding(error)}",
        )
        short = _judge_alive(judge, case, job) and _judge_unseen(judge, case, job)
        few = _judge_wire(
            judge, case, job, theory.step_bytes("zero_3", job.results[0]["P"], ranks), "3(n-1)/n P"
        )
        if not (right and short and few):
            return


def _judge_alive(judge: Judge, case: str, job: Job) -> bool:
    """Demand that between steps there are shards alone, that two layers at most are there in full, and that
    gradients go.
    """

    def most(name):
        return max(found[name] for found in job.results)

    resting, allowed = most("resting"), 3 / job.ranks * 1.1 + 0.1  # a shard and two moments
    why = (
        "The parameters of the layers still have a `.grad`: set it to None when the chunk is in the shard."
        if any(found["left"] for found in job.results)
        else "Are full parameters never freed, or does a shard that is a view keep its flat tensor alive?"
    )
    rested = judge.demand(
        resting <= allowed,
        f"{case}: between steps a rank holds shards and nothing else",
        f"{case}: between steps a rank holds {resting:.1f} P, and a shard with its two moments is"
        f" {3 / job.ranks:.2f} P. {why}",
    )
    count, moment = max(found["alive"] for found in job.results)
    direction = "forward" if moment.startswith("F") else "backward"
    few = judge.demand(
        count <= 2,
        f"{case}: at most two layers have their full parameters",
        f"{case}: {count} of {DEPTH} layers have their full parameters at once (at {moment}: {direction} of"
        f" layer {moment[1:]}). Gather a layer right before it works, and free it right after.",
    )
    if not (rested and few):
        return False
    forward, backward = most("in forward"), most("in backward")
    freed = judge.demand(
        forward <= 4.5,
        f"{case}: and the allocator agrees, in forward",
        f"{case}: the layers look free, but during forward the allocator has given out the memory of"
        f" {forward:.0f} layers: somebody still holds it. An empty tensor in `p.data` does not free what"
        " autograd has saved; empty the storage itself.",
    )
    return freed & judge.demand(
        backward <= 6.0,
        f"{case}: and in backward, gradients included",
        f"{case}: during backward the allocator has given out the memory of {backward:.0f} layers beyond the"
        f" shards ({DEPTH} layers in all). Reduce the gradients of each layer, and free them, as soon as they"
        " are complete.",
    )


def _judge_wire(judge: Judge, case: str, job: Job, limit_bytes: float, formula: str) -> bool:
    """Demand that no rank has sent more than 2% above the limit in a step."""
    sent = sent_bytes(job)
    most, beside, ops = sent.max(), (sent - header_bytes(job)).max(), set(job.comm["op"])
    if sent.min() < 0.85 * most:
        why = (
            f" The others send less, and wait for rank {int(sent.idxmax())}: is it a root that sums for all?"
        )
    elif ops & {"reduce", "gather", "scatter"}:
        why = " Is there a root that sums for all? Each rank needs the sum of its own chunk only."
    elif "all_reduce" in ops:
        why = " An all_reduce sends the whole sum to every rank, and a rank needs its chunk only."
    elif "reduce_scatter" in ops:
        why = " gloo's reduce_scatter is an all_reduce (chapter 03): use the ring's."
    else:
        why = " Does something travel more often than it must?"
    return judge.demand(
        beside <= BYTES_LIMIT * limit_bytes,
        f"{case}: no rank sends more than {BYTES_LIMIT} times {formula}",
        f"{case}: rank {int(sent.idxmax())} sends {most / limit_bytes:.2f} times {formula}.{why}",
    )


@exercise
def resharded_checkpoint(judge: Judge, save: Callable, load: Callable) -> None:
    """`save(path, model, optimizer)` and `load(path, model, optimizer)` of a fully_shard model: each rank its
    part, on any number of ranks.
    """

    def make(seed):
        from torch.distributed.fsdp import fully_shard

        torch.manual_seed(seed)
        model = MLP((64, 384, 384, 384, 10))
        for layer in model.layers:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(model)
        return model, torch.optim.Adam(model.parameters(), 0.002)

    def steps(model, optimizer, first, last):
        images, labels = digits()
        share = 12 // dist.get_world_size()
        for step in range(first, last):
            own = slice(12 * step + share * dist.get_rank(), 12 * step + share * (dist.get_rank() + 1))
            optimizer.zero_grad()
            F.cross_entropy(model(images[own].double()), labels[own]).backward()
            optimizer.step()
        return torch.cat([p.detach().full_tensor().flatten() for p in model.parameters()])

    def save_it(save, path):
        from course_lib.measure import alive, wire

        torch.set_default_device("cpu")
        torch.set_default_dtype(torch.float64)
        model, optimizer = make(0)
        steps(model, optimizer, 0, 2)
        optimizer.zero_grad()
        dist.barrier()
        before = wire.written_bytes()
        with alive.Allocations() as held:
            save(path, model, optimizer)
        total = 3 * 8 * sum(p.numel() for p in model.parameters())
        found = {"written": (wire.written_bytes() - before) / total, "most": held.peak_bytes() / total}
        dist.barrier()
        return found | {"straight": steps(model, optimizer, 2, 4)}

    def load_it(load, path, straight):
        from torch.distributed.checkpoint.api import CheckpointException

        torch.set_default_device("cpu")
        torch.set_default_dtype(torch.float64)
        model, optimizer = make(1)
        try:
            load(path, model, optimizer)
        # its words are the stacks of all ranks; the first cause says enough
        except CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            raise cause.with_traceback(error.__traceback__) from None
        weights = steps(model, optimizer, 2, 2)
        resumed = steps(model, optimizer, 2, 4)
        return {
            "resumed": on_rank.apart(resumed, straight),
            "unchanged": torch.equal(weights, steps(*make(1), 2, 2)),
        }

    import os
    import tempfile

    save_it.__name__, load_it.__name__ = "your save", "your load"
    RANKS = 4
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "checkpoint")
        job = judge.run(save_it, save, path, ranks=RANKS)
        written, most = (max(found[name] for found in job.results) for name in ("written", "most"))
        if not judge.demand(os.path.exists(path), "the checkpoint is there", "nothing was written at `path`"):
            return
        judge.demand(
            written <= 1.2 / RANKS,
            "every rank writes at most 1.2 times its share",
            f"a rank writes (to files and to other ranks) {written * RANKS:.1f} times its share of the bytes."
            " Each rank must write its own part: no copy of the whole on one rank, and no whole on each.",
        )
        judge.demand(
            most <= 2 / RANKS,
            "and no rank gathers the whole state",
            f"while it saves, a rank takes new memory of {most:.2f} times the whole state; a share is"
            f" {1 / RANKS:.2f}. In stage 3 nobody has room for the whole: save the DTensors as they are.",
        )
        for ranks in (2, 3):
            loaded = judge.run(load_it, load, path, job.results[0]["straight"], ranks=ranks)
            resumed = max(found["resumed"] for found in loaded.results)
            why = (
                "The model is as it was before: what was loaded never arrived in it"
                if loaded.results[0]["unchanged"]
                else (
                    "The weights came back, so look at the optimizer: its state belongs into the checkpoint,"
                    " and back into the optimizer"
                )
            )
            if not judge.demand(
                resumed < ERROR_LIMIT,
                f"saved on {RANKS} ranks, it goes on on {ranks} as if it had never stopped",
                f"loaded on {ranks} ranks, training does not go on as before (relative error {resumed:.2g}"
                f" after two steps). {why}.",
            ):
                return
