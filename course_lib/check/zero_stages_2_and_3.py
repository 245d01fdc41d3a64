"""Checks of the chapter "ZeRO stages 2 and 3": gradients that are sharded at once, layers that are gathered
and freed, and units for a budget of memory.
"""

from collections.abc import Callable, Iterable
from numbers import Real

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from course_lib import measure, theory
from course_lib.check import on_rank
from course_lib.check.counted import sent_bytes
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import ERROR_LIMIT, Demand, fact, holds, it_is, largest, sends, values
from course_lib.datasets import digits
from course_lib.models import MLP, TinyGPT
from course_lib.record import Job

__all__ = ["sharded_gradients", "sharded_layers", "sharded_units"]

# so many layers, that one more or less is clearly not all of them; no number of ranks divides the parameters
# of each
DEPTH, WIDTH = 12, 96
FEW_LAYERS = 3.5  # gradients of a layer: as autograd makes them, joined, padded, and half a layer of buffers
# beside the `room` layers that may be whole: in forward the buffers of a gather, in backward gradients, too
FORWARD_LAYERS, BACKWARD_LAYERS = 2.5, 4.0
NEAR = 0.1  # of a predicted peak, relative: a chunk that is forgotten is more than that
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


def _as_a_ring(
    formula: str, limit: Callable[[Job], float], right: Callable[[Job], bool], often: str
) -> Demand:
    """`often`: what is asked where nothing else strikes the eye."""
    return sends(
        formula,
        limit,
        f"rank {{rank}} sends {{times:.2f}} times {formula}.",
        lambda job: _too_much(job) or often,
        right,
    )


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
    return ""


@exercise(
    gradients=Demand("the gradients of one process, after one and after two micro-batches", _added_up),
    freed=Demand(f"beside the shards, backward holds at most {FEW_LAYERS} times the largest layer", _freed),
    hidden=_nothing_hidden("freed"),
    bytes=_as_a_ring(
        "(n-1)/n P",
        lambda job: theory.collective_bytes("reduce_scatter", job.results[0]["P"], job.ranks),
        lambda job: max(map(max, (found["errors"] for found in job.results))) < ERROR_LIMIT,
        " Does something travel more often than it must?",
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


def _in_the_room(job: Job) -> str:
    (count, moment), room = largest(job, "alive"), job.results[0]["room"]
    if count <= room:
        return ""
    direction = "forward" if moment.startswith("F") else "backward"
    return (
        f"{count} of {DEPTH} layers have their full parameters at once (at {moment}: {direction} of layer"
        f" {moment[1:]}), and there is room for {room}. Gather a layer right before it works, and free it"
        " right after, unless it is one of those that backward needs first."
    )


def _in_forward(job: Job) -> str:
    most, room = largest(job, "in forward"), job.results[0]["room"]
    if most <= room + FORWARD_LAYERS:
        return ""
    return (
        f"the layers look free, but during forward the allocator has given out the memory of {most:.0f}"
        " layers: somebody still holds it. An empty tensor in `p.data` does not free what autograd has saved;"
        " empty the storage itself."
    )


def _in_backward(job: Job) -> str:
    most, room = largest(job, "in backward"), job.results[0]["room"]
    if most <= room + BACKWARD_LAYERS:
        return ""
    return (
        f"during backward the allocator has given out the memory of {most:.0f} layers beyond the shards"
        f" ({DEPTH} layers in all, room for {room}). Reduce the gradients of each layer, and free them, as"
        " soon as they are complete."
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
    room=Demand("at most `room` layers have their full parameters", _in_the_room),
    in_forward=Demand("and the allocator agrees, in forward", _in_forward, after=("at_rest", "room")),
    in_backward=Demand("and in backward, gradients included", _in_backward, after=("at_rest", "room")),
    hidden=_nothing_hidden("in_forward", "in_backward"),
    bytes=_as_a_ring(
        "(n-1)/n (3 P - Q)",
        lambda job: (
            theory.collective_bytes("all_gather", 3 * job.results[0]["P"], job.ranks)
            - theory.collective_bytes("all_gather", job.results[0]["Q"], job.ranks)
        ),
        lambda job: largest(job, "error") < ERROR_LIMIT,
        " Is a layer gathered twice that could have stayed from its forward to its backward?",
    ),
)
def sharded_layers(judge: Judge, answer: Callable) -> None:
    """`answer(layers, room)` returns one shard per layer; from then on each layer is gathered, used and
    freed, in forward and again in backward, but for those that stay in between, since there is room.
    """

    def train(answer, room, seed):
        from course_lib.measure import alive, storages

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
            returned = answer(layers, room)
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
                lost = any(shard.nbytes > 0 == storages.storage_bytes([shard]) for shard in shards)
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
            "Q": 8 * n * sum(-(-size // n) for size in sizes[-room:]),
            "room": room,
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

    for ranks, room in ((3, 3), (4, 4)):
        case = f"{ranks} ranks, room for {room}"
        if not judge.tried(case, train, answer, room, judge.seed, ranks=ranks):
            return


@exercise(
    chosen=fact("the largest units that fit into the budget", "chosen"),
    fits=fact("with them no rank holds more than the budget", "fits", after=("chosen",)),
    predicted=fact(f"the predicted peak is within {NEAR:.0%} of what the ranks held", "predicted"),
)
def sharded_units(judge: Judge, answer: Callable) -> None:
    """`answer(model, ranks, budget)` returns the units with which a TinyGPT trains in stage 3 within a budget
    of bytes, and the peak that it predicts.
    """

    def train(answer, level, seed):
        from course_lib.measure import alive
        from course_lib.mini import zero

        on_rank.use_cpu()
        n = dist.get_world_size()
        with alive.Allocations() as held:
            torch.manual_seed(seed)
            model = TinyGPT(dim=96 - 16 * (seed % 3), layers=3 + seed % 2, context=8, tied=False)
            own = max(sum(p.numel() for p in part.parameters(recurse=False)) for part in model.modules())
            block, numel = (sum(p.numel() for p in part.parameters()) for part in (model.blocks[0], model))
            choices = {  # the modules, and the elements of the largest unit
                "[model]": ([model], numel),
                "list(model.blocks)": (list(model.blocks), max(block, own)),
                "[]": ([], own),
            }
            # a unit's parameters, its gradients, and the two chunks in which the ring's sums travel
            peaks = [16 * numel / n + 4 * (2 + 2 / n) * of_unit for _, of_unit in choices.values()]
            budget = int((peaks[level] * (peaks[level - 1] if level else 1.5 * peaks[0])) ** 0.5)
            returned = answer(model, n, budget)
            units, predicted = (
                returned if isinstance(returned, (tuple, list)) and len(returned) == 2 else (None, None)
            )
            units = list(units) if isinstance(units, Iterable) else None
            name = next((name for name, (its, _) in choices.items() if its == units), "")
            problem = ""
            if units is None or not isinstance(predicted, Real):
                problem = (
                    "`choose_units` must return two things, a list of modules and a number of bytes, and"
                    f" returned {on_rank.short(repr(returned))}"
                )
            elif not name:
                problem = (
                    f"`choose_units` returned units that are none of {', '.join(choices)}:"
                    f" {', '.join(type(unit).__name__ for unit in units)}"
                )
            if problem := on_rank.first_problem(problem):
                return {"problem": problem}
            model, optimizer = zero.shard(model, 3, torch.optim.Adam, units=units)
            for step in range(2):  # the first makes Adam's states
                held.mark(f"begin {step}")
                tokens = torch.randint(256, (1, 3))
                model(tokens).backward()
                optimizer.step()
                optimizer.zero_grad()
                held.mark(f"end {step}")
        wanted, peak = list(choices)[level], held.peak_bytes("begin 1", "end 1")
        mb = f"the budget is {budget / 1e6:.2f} MB, and with units={name} the ranks held {peak / 1e6:.2f} MB"
        chosen = fits = near = ""
        if name != wanted:
            chosen = (
                f"{mb}: that is too much. Smaller units would fit."
                if peak > budget
                else f"{mb}: larger units would fit, too, and travel in fewer messages."
            )
        elif peak > budget:
            fits = f"{mb}."
        if not abs(float(predicted) - peak) <= NEAR * peak:
            near = (
                f"with units={name} the ranks held {peak / 1e6:.2f} MB at the worst moment, and you predicted"
                f" {float(predicted) / 1e6:.2f}. Model states alone: {16 * numel / n / 1e6:.2f} MB. Of which"
                " unit, and how often, is memory needed beside them?"
            )
        return {"chosen": chosen, "fits": fits, "predicted": near, "peak": peak, "by formula": peaks[level]}

    for level, ranks in enumerate((4, 3, 2)):
        if not judge.tried(
            f"budget {level + 1}, {ranks} ranks", train, answer, level, judge.seed, ranks=ranks
        ):
            return
