"""Checks of the chapter "ZeRO stages 2 and 3": gradients that are sharded at once, layers that are gathered
and freed, a sharded checkpoint.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from course_lib import measure, theory
from course_lib.check import on_rank
from course_lib.check.counted import sent_bytes
from course_lib.check.folder import trial_folder
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import ERROR_LIMIT, Demand, at_most, holds, it_is, largest, sends, values
from course_lib.datasets import digits
from course_lib.models import MLP
from course_lib.record import Job
from course_lib.torch_internals import tree_leaves

__all__ = ["sharded_gradients", "sharded_layers", "resharded_checkpoint"]

# so many layers, that one more or less is clearly not all of them; no number of ranks divides the parameters
# of each
DEPTH, WIDTH = 12, 96
FEW_LAYERS = 3.5  # gradients of a layer: as autograd makes them, joined, padded, and half a layer of buffers
SAVED_RANKS = 4  # for the checkpoint
STEPS = 5  # of sharded layers: three for the memory, of which the first makes Adam's states, two for the wire


def _added_up(job: Job) -> str:
    errors = [max(found["errors"][number] for found in job.results) for number in range(2)]
    if max(errors) < ERROR_LIMIT:
        return ""
    number, what = (0, "one micro-batch") if errors[0] > ERROR_LIMIT else (1, "two micro-batches, added up")
    return (
        f"after {what}, a shard's gradient is not that of one process (relative error {errors[number]:.2g})."
        f"{it_is(job) or on_rank.rounding(errors[number])}"
    )


def _freed(job: Job) -> str:
    """Backward has never held more than the shards and a few layers' gradients."""
    layers = largest(job, "beyond") / job.results[0]["layer_bytes"]
    if any(found["left"] for found in job.results):
        return (
            "after backward the parameters still have a `.grad`: set it to None as soon as the chunk is in"
            " the shard."
        )
    if layers <= FEW_LAYERS:
        return ""
    return (
        f"in backward a rank held the shards and the gradients of {layers:.0f} layers more ({DEPTH} layers in"
        " all). Were all gradients there in full before the first was freed? Reduce each layer as soon as its"
        " gradients are complete, in a hook."
    )


def _nothing_hidden(*after: str) -> Demand:
    return holds(
        "outside of torch (numpy arrays, Python's lists) it holds no more either",
        "unseen",
        lambda job: job.results[0]["P"],
        "a rank holds {times:.1f} P outside of torch (numpy arrays, Python's lists), which is memory all the"
        " same.",
        times=1 / 4,
        after=after,
        quiet=True,
    )


def _as_a_ring(formula: str, limit: Callable[[Job], float], right: Callable[[Job], bool]) -> Demand:
    return sends(formula, limit, f"rank {{rank}} sends {{times:.2f}} times {formula}.", _too_much, right)


def _too_much(job: Job) -> str:
    sent, ops = sent_bytes(job), set(job.comm["op"])
    if sent.min() < 0.85 * sent.max():
        return (
            f" The others send less, and wait for rank {int(sent.idxmax())}: is it a root that sums for all?"
        )
    if ops & {"reduce", "gather", "scatter"}:
        return " Is there a root that sums for all? Each rank needs the sum of its own chunk only."
    if "all_reduce" in ops:
        return " An all_reduce sends the whole sum to every rank, and a rank needs its chunk only."
    if "reduce_scatter" in ops:
        return " gloo's reduce_scatter is an all_reduce (see 'Collectives and the ring'): use the ring's."
    return " Does something travel more often than it must?"


@exercise(
    gradients=Demand("the gradients of one process, after one and after two micro-batches", _added_up),
    freed=Demand("backward holds the gradients of three layers at most", _freed),
    hidden=_nothing_hidden("freed"),
    bytes=_as_a_ring(
        "(n-1)/n P",
        lambda job: theory.collective_bytes("reduce_scatter", job.results[0]["P"], job.ranks),
        lambda job: max(map(max, (found["errors"] for found in job.results))) < ERROR_LIMIT,
    ),
)
def sharded_gradients(judge: Judge, answer: Callable) -> None:
    """`answer(layers)` returns one shard per layer; each backward adds this rank's chunk of the average
    gradient to it, and frees the rest at once.
    """

    def train(answer, seed):
        from course_lib.measure import alive

        on_rank.use_cpu()
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
                return {"problem": problem}

            found = {
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
                problem = ""
                if not all(isinstance(shard.grad, torch.Tensor) for shard in shards):
                    problem = "after backward a shard has no `.grad`"
                elif any(shard.grad.shape != shard.shape for shard in shards):
                    problem = "after backward the `.grad` of a shard has another shape than the shard"
                if problem := on_rank.first_problem(problem):
                    return {"problem": problem}
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

    for ranks in (3, 4, 2):  # the cheapest with padding first: a wrong answer gets no further
        if not judge.tried(f"{ranks} ranks", train, answer, judge.seed, ranks=ranks):
            return


def _at_rest(job: Job) -> str:
    resting = largest(job, "resting")
    if resting <= 3 / job.ranks * 1.1 + 0.1:  # a shard and two moments
        return ""
    why = (
        "The parameters of the layers still have a `.grad`: set it to None when the chunk is in the shard."
        if any(found["left"] for found in job.results)
        else "Are full parameters never freed, or does a shard that is a view keep its flat tensor alive?"
    )
    return (
        f"between steps a rank holds {resting:.1f} P, and a shard with its two moments is {3 / job.ranks:.2f}"
        f" P. {why}"
    )


def _two_layers(job: Job) -> str:
    count, moment = largest(job, "alive")
    if count <= 2:
        return ""
    direction = "forward" if moment.startswith("F") else "backward"
    return (
        f"{count} of {DEPTH} layers have their full parameters at once (at {moment}: {direction} of layer"
        f" {moment[1:]}). Gather a layer right before it works, and free it right after."
    )


@exercise(
    weights=values(
        f"after {STEPS} steps with Adam, the weights are those of one process",
        f"after {STEPS} steps the weights are not those of one process (relative error of the outputs"
        " {error:.2g}).",
        advice=(
            "Is the gradient the average over the ranks? Does the optimizer change the shard that the next"
            " gather sends?"
        ),
    ),
    at_rest=Demand("between steps a rank holds shards and nothing else", _at_rest),
    two_layers=Demand("at most two layers have their full parameters", _two_layers),
    in_forward=at_most(
        "and the allocator agrees, in forward",
        "in forward",
        4.5,
        "the layers look free, but during forward the allocator has given out the memory of {most:.0f}"
        " layers: somebody still holds it. An empty tensor in `p.data` does not free what autograd has saved;"
        " empty the storage itself.",
        after=("at_rest", "two_layers"),
    ),
    in_backward=at_most(
        "and in backward, gradients included",
        "in backward",
        6.0,
        "during backward the allocator has given out the memory of {most:.0f} layers beyond the shards"
        f" ({DEPTH} layers in all). Reduce the gradients of each layer, and free them, as soon as they are"
        " complete.",
        after=("at_rest", "two_layers"),
    ),
    hidden=_nothing_hidden("in_forward", "in_backward"),
    bytes=_as_a_ring(
        "3(n-1)/n P",
        lambda job: theory.step_bytes("zero_3", job.results[0]["P"], job.ranks),
        lambda job: largest(job, "error") < ERROR_LIMIT,
    ),
)
def sharded_layers(judge: Judge, answer: Callable) -> None:
    """`answer(layers)` returns one shard per layer; from then on each layer is gathered, used and freed, in
    forward and again in backward.
    """

    def train(answer, seed):
        from course_lib.measure import alive

        on_rank.use_cpu()
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
                return {"problem": problem}
            optimizer = torch.optim.Adam(shards, 0.002)
            optimizer_of_one = torch.optim.Adam(one.parameters(), 0.002)

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
                why = (
                    "a shard has lost its memory, when its layer was freed: it is a view of the layer's flat"
                    " tensor, and it needs memory of its own"
                )
                if problem := on_rank.first_problem(why if lost else ""):
                    return {"problem": problem}
                optimizer.step()
                optimizer.zero_grad()
                held.mark(f"end {step}")
            noted, hidden = list(moments), on_rank.outside_torch() - others
        in_layers = [p for layer in layers for p in layer.parameters()]
        no_shards = [p for p in in_layers if not any(p is shard for shard in shards)]
        left = any(p.grad is not None for p in [*params, *no_shards])
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
            "error": error,
            "P": 8 * n * sum(-(-size // n) for size in sizes),
            "unseen": hidden,
            "alive": max(
                ((sum(1 for bytes_ in alive_ if bytes_), name) for name, alive_ in noted), default=(0, "")
            ),
            "left": left,
            # the less disturbed one
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

    for ranks in (3, 4):
        if not judge.tried(f"{ranks} ranks", train, answer, judge.seed, ranks=ranks):
            return


def _gathered(job: Job) -> str:
    """While it saved, or loaded, no rank has held the whole state."""
    seen, unseen, during = (largest(job, name) for name in ("gathered", "unseen", "during"))
    if seen > 2 / SAVED_RANKS:
        return (
            f"while it saves, a rank takes new memory of {seen:.2f} times the whole state; a share is"
            f" {1 / SAVED_RANKS:.2f}. In stage 3 nobody has room for the whole: save the DTensors as they"
            " are."
        )
    # a share as files hold it, and what dcp and its modules need; who reads all files holds all
    if unseen > 1 / job.ranks + 0.5:
        return (
            f"while it {during}, a rank takes new memory of {unseen:.2f} times the whole state outside of"
            " torch (bytes, numpy arrays, Python's lists), which is memory all the same; a share is"
            f" {1 / job.ranks:.2f}."
        )
    return ""


@exercise(
    there="the checkpoint is there",
    written=at_most(
        "every rank writes at most 1.2 times its share",
        "written",
        1.2,
        "a rank writes (to files and to other ranks) {most:.1f} times its share of the bytes. Each rank must"
        " write its own part: no copy of the whole on one rank, and no whole on each.",
    ),
    gathered=Demand("and no rank gathers the whole state", _gathered),
    resumed=f"saved on {SAVED_RANKS} ranks, it goes on on 2 and on 3 as if it had never stopped",
)
def resharded_checkpoint(judge: Judge, save: Callable, load: Callable) -> None:
    """`save(path, model, optimizer)` and `load(path, model, optimizer)` of a fully_shard model: each rank its
    part, on any number of ranks.
    """

    def make(seed):
        from torch.distributed.fsdp import fully_shard

        torch.manual_seed(seed)
        model = MLP((64, 512, 512, 512, 10))
        for layer in model.layers:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(model)
        return model, torch.optim.Adam(model.parameters(), 0.002)

    def steps(model, optimizer, first, last, seed):
        images, labels = (all_[seed % 1000 :] for all_ in digits())
        share = 12 // dist.get_world_size()
        for step in range(first, last):
            own = slice(12 * step + share * dist.get_rank(), 12 * step + share * (dist.get_rank() + 1))
            optimizer.zero_grad()
            F.cross_entropy(model(images[own].double()), labels[own]).backward()
            optimizer.step()
        return torch.cat([p.detach().full_tensor().flatten() for p in model.parameters()])

    def states_of(model, optimizer):
        """This rank's part of all states, as copies."""
        return [
            getattr(leaf, "to_local", lambda leaf=leaf: leaf)().clone()
            if isinstance(leaf, torch.Tensor)
            else leaf
            for leaf in tree_leaves((model.state_dict(), optimizer.state_dict()))
        ]

    def same(a, b):
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b

    def files_in(path):
        """What each file at `path` holds, as a digest, by name."""
        found = {}
        for file in (
            path,
            *(os.path.join(place, name) for place, _, names in os.walk(path) for name in names),
        ):
            with contextlib.suppress(OSError):  # a folder; or a file that has just got another name
                with open(file, "rb") as opened:
                    found[os.path.relpath(file, path)] = hashlib.sha256(opened.read()).hexdigest()
        return found

    def save_it(save, path, seed):
        import builtins
        import io
        import threading

        import torch.distributed.checkpoint.state_dict  # it is no memory of the answer

        from course_lib.measure import alive, wire

        on_rank.use_cpu()
        torch.set_default_dtype(torch.float64)
        rank, n, told = dist.get_rank(), dist.get_world_size(), on_rank.store()
        looked, main, threads = threading.Event(), threading.current_thread(), threading.enumerate()

        def everyone_has(done):
            """Told beside torch.distributed: a save that goes on in the background may use that."""
            told.set(f"{done}/{rank}", "")
            return on_rank.wait_until(lambda: told.check([f"{done}/{one}" for one in range(n)]), 50.0)

        def later(own):
            """In a thread beside, a write waits until all have looked, or wait for it, as they should."""

            def waiting(*args, **kwargs):
                ours = any(
                    os.path.dirname(path) in str(arg) for arg in args if isinstance(arg, (str, os.PathLike))
                )
                if ours and threading.current_thread() is not main:
                    on_rank.wait_until(looked.is_set, on_rank.LATE_S, on_rank.SOON_LOOKS)
                return own(*args, **kwargs)

            return waiting

        model, optimizer = make(seed)
        steps(model, optimizer, 0, 2, seed)
        optimizer.zero_grad()
        states = states_of(model, optimizer)
        homes = ((torch, "save"), (os, "replace"), (os, "rename"), (builtins, "open"), (io, "open"))
        own = [(home, name, getattr(home, name)) for home, name in homes]
        dist.barrier()
        try:
            for home, name, function in own:
                setattr(home, name, later(function))
            before = wire.written_bytes()
            with alive.Allocations() as held, on_rank.Unseen() as unseen:
                save(path, model, optimizer)
                hidden = unseen.peak()
            written = wire.written_bytes() - before
            all_returned = everyone_has("returned")
            then = files_in(path)
            looked.set()
            beside = [thread for thread in threading.enumerate() if thread not in threads]
            on_rank.wait_until(
                lambda: not any(thread.is_alive() for thread in beside), 10.0, on_rank.SOON_LOOKS
            )
        finally:
            for home, name, function in own:
                setattr(home, name, function)
        total = 3 * 8 * sum(p.numel() for p in model.parameters())
        found = {
            "written": written / (total / n),
            "gathered": held.peak_bytes() / total,
            "unseen": hidden / total,
            "during": "saves",
            "files": then,
            "changed": not all(map(same, states, states_of(model, optimizer))),
        }
        if then != files_in(path):
            told.set("written later", "")
        if all_returned and everyone_has("looked") and told.check(["written later"]):
            return found
        dist.barrier()
        return found | {"straight": steps(model, optimizer, 2, 4, seed)}

    def load_it(load, path, straight, seed):
        import torch.distributed.checkpoint.state_dict
        from torch.distributed.checkpoint.api import CheckpointException

        on_rank.use_cpu()
        torch.set_default_dtype(torch.float64)
        model, optimizer = make(seed + 1)
        try:
            with on_rank.Unseen() as unseen:
                load(path, model, optimizer)
                hidden = unseen.peak()
        except CheckpointException as error:
            # its words are the stacks of all ranks; the first cause says enough
            cause = next(iter(error.failures.values()))[0]
            raise cause.with_traceback(error.__traceback__) from None
        total = 3 * 8 * sum(p.numel() for p in model.parameters())
        weights = steps(model, optimizer, 2, 2, seed)
        resumed = steps(model, optimizer, 2, 4, seed)
        return {
            "gathered": 0.0,  # of torch, where it goes into the model
            "unseen": hidden / total,
            "during": "loads",
            "resumed": on_rank.apart(resumed, straight),
            "unchanged": torch.equal(weights, steps(*make(seed + 1), 2, 2, seed)),
        }

    with trial_folder() as folder:
        path = os.path.join(folder, "checkpoint")
        job = judge.run(save_it, save, path, judge.seed, ranks=SAVED_RANKS, label="your save")
        there = files_in(path)
        complete = all(there.items() <= found["files"].items() for found in job.results)
        why = (
            "when `save` had returned on all ranks, the checkpoint was not complete: files were still to be"
            " written, or to get their names. Wait for it in `save` (an `async_save` returns a future, and"
            " its `result()` waits)."
        )
        if not judge.demand(
            "there", "nothing was written at `path`" if not there else "" if complete else why
        ):
            return
        judge.look(job)
        if any(found["changed"] for found in job.results):
            judge.demand(
                "resumed", "after `save`, the model or the optimizer's state is another one than before."
            )
            return
        for ranks in (2, 3):
            loaded = judge.run(
                load_it, load, path, job.results[0]["straight"], judge.seed, ranks=ranks, label="your load"
            )
            if why := _gathered(loaded):
                judge.demand("gathered", why)
            resumed = largest(loaded, "resumed")
            why = (
                "The model is as it was before: what was loaded never arrived in it"
                if loaded.results[0]["unchanged"]
                else (
                    "The weights came back, so look at the optimizer: its state belongs into the checkpoint,"
                    " and back into the optimizer"
                )
            )
            why = (
                f"loaded on {ranks} ranks, training does not go on as before (relative error {resumed:.2g}"
                f" after two steps). {why}."
            )
            if not judge.demand(
                "resumed",
                why if not resumed < ERROR_LIMIT else "",
                f"saved on {SAVED_RANKS} ranks, it goes on on {ranks} as if it had never stopped",
            ):
                return
