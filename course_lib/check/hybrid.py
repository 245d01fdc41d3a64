"""Checks of the chapter "Hybrid parallelism": a pipeline that is data parallel, a norm over a mesh, the
layout that takes the least time.
"""

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from course_lib import measure, theory
from course_lib.check import on_rank
from course_lib.check.counted import header_bytes, sent_bytes
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import ERROR_LIMIT, Demand, largest, sends, values
from course_lib.mini import hybrid, tensor_parallel
from course_lib.mini.ddp import DistributedDataParallel
from course_lib.mini.hybrid.refusals import mesh_in_words
from course_lib.models import TinyGPT
from course_lib.record import Job, sent

__all__ = ["data_pipeline", "gradient_norm", "fastest_layout"]

STEPS, WIDTH, SAMPLES = 3, 48, 3  # of a data parallel pipeline; samples in a micro-batch


def _wanted_bytes(job: Job) -> float:
    """What the rank that sends most must send: its gradients once along dp, and a tensor per micro-batch."""
    found = job.results[0]
    return theory.collective_bytes("all_reduce", found["held"], found["sizes"]["dp"]) + found["messages"]


@exercise(
    gradient=values(
        f"the gradients of one process over the whole batch, in each of {STEPS} steps",
        "the gradients are not those of one process over the whole batch (relative error {error:.2g}).",
    ),
    bytes=sends(
        "2(n-1)/n of its gradients, and one tensor per micro-batch",
        _wanted_bytes,
        "rank {rank} sends {times:.2f} times what one average of its gradients and its micro-batches need.",
        lambda job: _too_often(job),
        right=lambda job: largest(job, "error") < ERROR_LIMIT,
    ),
)
def data_pipeline(judge: Judge, answer: Callable) -> None:
    """`answer(ddp, groups, inputs, targets, loss_fn, num_microbatches)` is one step of a pipeline of two
    stages, of which there are several, with a part of the batch each.

    In the last step one rank comes late.
    """

    def trial(answer, sizes, count, seed):
        on_rank.use_cpu()
        place, groups = hybrid.coordinates(dist.get_rank(), sizes), hybrid.make_groups(sizes)
        draw = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        stages = [
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)).double()
            for _ in range(sizes["pp"])
        ]
        one = copy.deepcopy(stages)
        mine = list(one[place["pp"]].parameters())
        ddp = DistributedDataParallel(stages[place["pp"]], process_group=groups["dp"])
        found = {"error": 0.0, "looks": ""}

        def gradient(inputs, targets):
            loss = F.mse_loss(one[1](one[0](inputs)), targets)
            return on_rank.flat(torch.autograd.grad(loss, mine))

        def last_alone(inputs, targets):
            rows = zip(inputs.chunk(sizes["dp"]), targets.chunk(sizes["dp"]))
            last = [gradient(x.chunk(count)[-1], y.chunk(count)[-1]) for x, y in rows]
            return sum(last) / sizes["dp"] / count

        for step in range(STEPS):
            inputs, targets = torch.randn(
                2, sizes["dp"] * count * SAMPLES, WIDTH, generator=draw, dtype=torch.float64
            )
            x, y = (part.chunk(sizes["dp"])[place["dp"]] for part in (inputs, targets))
            ddp.zero_grad()
            dist.barrier()
            with measure.step(ddp):
                if step == STEPS - 1 and dist.get_rank() == seed % dist.get_world_size():
                    on_rank.come_late("step")
                answer(ddp, dict(groups), x.clone(), y.clone(), F.mse_loss, count)
                # before what comes late can still come
                grads = [None if p.grad is None else p.grad.detach().clone() for p in ddp.parameters()]
            if step == STEPS - 1:
                on_rank.is_back("step")
            strange = any(grad is None for grad in grads)
            if problem := on_rank.first_problem(
                "a parameter has no gradient after the step" if strange else ""
            ):
                return {"problem": problem}
            now, wanted, own = on_rank.flat(grads), gradient(inputs, targets), gradient(x, y)
            if on_rank.apart(now, wanted) > ERROR_LIMIT and not found["looks"]:
                guesses = {
                    "the sum over the micro-batches: the loss of each counts for 1/m": wanted * count,
                    "this pipeline's own: the others have had other samples, and nothing was averaged": own,
                    "this pipeline's own, and the sum over its micro-batches": own * count,
                    "the sum over dp, and not the average": wanted * sizes["dp"],
                    "that of the last micro-batch alone": last_alone(inputs, targets),
                }
                late = on_rank.NOT_WAITED if step == STEPS - 1 and found["error"] < ERROR_LIMIT else ""
                found["looks"] = on_rank.looks(now, guesses) or late
            found["error"] = max(found["error"], on_rank.apart(now, wanted))
        held = sum(p.nbytes for p in ddp.parameters())
        return found | {"held": held, "messages": count * SAMPLES * WIDTH * 8, "sizes": sizes}

    for sizes, count in (({"dp": 2, "pp": 2}, 4), ({"dp": 3, "pp": 2}, 3)):
        case = f"{mesh_in_words(sizes)}, {count} micro-batches"
        if not judge.tried(case, trial, answer, sizes, count, judge.seed, ranks=math.prod(sizes.values())):
            return  # the other mesh would say it again


def _too_often(job: Job) -> str:
    """Why a step took more bytes than it must."""
    travelled = sent(job, layer="payload", ops=["all_reduce"])[0] / job.results[0]["held"]
    if travelled > 1.5:
        return (
            f" Its gradients travel along dp {travelled:.0f} times: DDP averages after each backward. Let"
            " them add up on each rank first (`no_sync`), and travel with the last one."
        )
    return " What must travel is one sum of the gradients, and each micro-batch's tensor to the neighbour."


def _gpt() -> Callable[[], TinyGPT]:
    """Makes the model of the trials, as a function that travels by value. Its matrices are so large that the
    headers of messages are small beside them.
    """

    def make() -> TinyGPT:
        torch.manual_seed(0)
        return TinyGPT(vocab_size=48, context=16, dim=48, heads=6, layers=1, tied=False)

    return make


LIMIT_BYTES = 100  # that a norm may cost


def _norm(job: Job) -> str:
    # One number, rounded to float32, may be right to nine digits by chance; not to twelve.
    wrong = [rank for rank, found in enumerate(job.results) if not found["error"] < ERROR_LIMIT / 1000]
    if not wrong:
        return ""
    found = job.results[wrong[0]]
    looks = f" It is {found['looks']}." if found["looks"] else on_rank.rounding(found["error"])
    return f"on rank {wrong[0]} it is not the norm that one process has.{looks}"


def _few_bytes(job: Job) -> str:
    most = max(sent(job, layer="algorithm").max(), (sent_bytes(job) - header_bytes(job)).max())
    if most <= LIMIT_BYTES:
        return ""
    return (
        f"a rank sends {most:,.0f} bytes. Gradients need not travel: add up their squares on each rank, and"
        " send the sum, a number."
    )


@exercise(
    norm=Demand("every rank has the norm of one process", _norm),
    bytes=Demand(f"no rank sends more than {LIMIT_BYTES} bytes", _few_bytes),
)
def gradient_norm(judge: Judge, norm: Callable) -> None:
    """`norm(model, groups)` returns the norm of the whole gradient of a model that is cut over groups["tp"],
    on every rank; only numbers travel.

    After the traced step one rank comes late with its first messages.
    """
    make = _gpt()

    def trial(norm, sizes, seed):
        torch.set_default_dtype(torch.float64)
        on_rank.use_cpu()
        groups = hybrid.make_groups(sizes)
        one, found, rights = make(), [], []
        cut = tensor_parallel.parallelize(make(), groups["tp"])
        batches = torch.randint(48, (3, 4, 17), generator=torch.Generator().manual_seed(seed))
        for number, tokens in enumerate(batches):
            one.zero_grad()
            one(tokens).backward()
            cut.zero_grad()
            cut(tokens).backward()  # all rows have the same tokens: as after an average over dp
            before = on_rank.flat(p.grad for p in cut.parameters())
            is_late = number == 2 and dist.get_rank() == seed % dist.get_world_size()
            late = on_rank.late("norm", [on_rank.LATE_S] * 4) if is_late else None
            with measure.step() if number < 2 else on_rank.Calls(late):
                # at once: who has not waited for it does not have it
                answer = on_rank.plain(norm(cut, dict(groups)))
            if number == 2:
                on_rank.is_back("norm")
            while isinstance(answer, list) and len(answer) == 1:
                answer = answer[0]  # one number in a tensor or an array
            same = all(p.grad is not None for p in cut.parameters()) and torch.equal(
                before, on_rank.flat(p.grad for p in cut.parameters())
            )
            problem = ""
            if not same:
                problem = "your function changes the gradients; it must only look at them"
            elif not isinstance(answer, (int, float)):
                problem = f"your function must return the norm, a number, and it returned {answer!r:.60}"
            if problem := on_rank.first_problem(problem):
                return {"problem": problem}
            found.append(float(answer))
            rights.append(on_rank.flat(p.grad for p in one.parameters()).norm().item())
        parts, whole = 0.0, 0.0
        for module in cut.modules():
            for name, p in module.named_parameters(recurse=False):
                square = p.grad.square().sum()
                if name in getattr(module, "cut_dims", {}):
                    parts = parts + square
                else:
                    whole = whole + square
        squares = torch.stack([parts, parts + whole])
        local = squares.clone()
        dist.all_reduce(squares, group=groups["tp"])
        dp, tp, right = sizes["dp"], sizes["tp"], rights[-1]
        along_dp = "the rows have the same gradients, so nothing is added up over dp"
        guesses = {
            "of this rank's gradients alone: nothing was added up": local[1],
            "of the cut parameters alone: the whole ones are missing": squares[0],
            "with the whole parameters counted once per rank of the row: they are the same on all of them": (
                squares[1]
            ),
            f"too large by the root of the size of dp: {along_dp}": dp * right**2,
            f"added up over all ranks: {along_dp}": dp * squares[0] + whole,
            f"added up over all ranks, with the whole parameters of each: {along_dp}": dp * squares[1],
            f"added up over dp: {along_dp}, and what must be added are the parts along tp": (
                dp * local[0] + whole
            ),
            f"added up over dp, all of it: {along_dp}, and what must be added are the parts along tp": (
                dp * local[1]
            ),
            "added up over tp, and averaged over tp: squares of parts are summed": squares[0] / tp + whole,
            "the square of the norm: take the root": right**4,
        }
        looks = next(
            (text for text, guess in guesses.items() if abs(found[-1] - guess**0.5) < 1e-7 * abs(found[-1])),
            "",
        )
        *in_step, late = (abs(its - wanted) / wanted for its, wanted in zip(found, rights))
        if max(in_step) < ERROR_LIMIT < late:
            looks = on_rank.NOT_WAITED
        return {"error": max(*in_step, late), "looks": looks}

    first, second = {"dp": 3, "tp": 2}, {"dp": 2, "tp": 3}
    if judge.tried("", trial, norm, first, judge.seed, ranks=6):
        judge.case = mesh_in_words(second)
        job = judge.run(trial, norm, second, judge.seed, ranks=6)
        if why := _norm(job):  # nothing is said of it where it is right
            if not any(found["looks"] for found in job.results):
                why += f" On {mesh_in_words(first)} it is."
                why += " `dist.get_world_size(group)` tells the size of an axis."
            judge.demand("norm", why)


# -- the layout

SERVER, MEMORY_BYTES = 8, 80e9
FLOPS_PER_S, INSIDE_BYTES_PER_S, BETWEEN_BYTES_PER_S = 400e12, 450e9, 50e9
START_S = 0.5e-3  # of a layer's work on a micro-batch, whatever its size
DRAWN_LAYOUTS = 30
AS_GOOD = 1.001  # times the least time

Model = Mapping[str, int]


@dataclass(frozen=True)
class _Layout:
    """One way to use the GPUs, and what it costs by the chapter's formulas."""

    model: Model
    dp: int
    pp: int
    tp: int
    micro_batch: int

    @property
    def num_microbatches(self) -> int:
        return self.model["batch"] // (self.dp * self.micro_batch)

    @property
    def numel(self) -> float:
        """Parameters on one GPU."""
        return 12 * self.model["layers"] * self.model["hidden"] ** 2 / (self.tp * self.pp)

    @property
    def activations(self) -> float:
        """Numbers of one micro-batch between two layers: s b h."""
        return self.model["sequence"] * self.micro_batch * self.model["hidden"]

    @property
    def memory_bytes(self) -> float:
        layers = self.model["layers"] / self.pp
        kept = min(self.pp, self.num_microbatches) * layers * 34 * self.activations / self.tp
        return 16 * self.numel + kept

    def seconds(self) -> dict[str, float]:
        """Of a step, by what they go to."""
        layers, m = self.model["layers"] / self.pp, self.num_microbatches
        tokens = self.model["sequence"] * self.micro_batch
        each = {
            "computing": 6 * self.numel * tokens / FLOPS_PER_S,
            "the start of each layer's work": layers * START_S,
            "messages of tp": layers * 16 * self.activations * (self.tp - 1) / self.tp / INSIDE_BYTES_PER_S,
            "messages of pp": 4 * self.activations / BETWEEN_BYTES_PER_S if self.pp > 1 else 0.0,
        }
        parts = {name: m * seconds for name, seconds in each.items()}
        parts["the bubble"] = (self.pp - 1) * sum(each.values())
        parts["messages of dp"] = 8 * self.numel * (self.dp - 1) / self.dp / BETWEEN_BYTES_PER_S
        return parts

    def __str__(self) -> str:
        sizes = {"dp": self.dp, "pp": self.pp, "tp": self.tp}
        return f"{mesh_in_words(sizes)} with micro-batches of {self.micro_batch}"


def _layouts(model: Model, gpus: int) -> Iterator[_Layout]:
    """Every layout that has room."""
    for tp in (1, 2, 4, 8):
        for pp in range(1, model["layers"] + 1):
            if model["layers"] % pp or gpus % (tp * pp) or model["batch"] % (gpus // (tp * pp)):
                continue
            each = model["batch"] // (gpus // (tp * pp))
            for micro_batch in (b for b in range(1, each + 1) if each % b == 0):
                layout = _Layout(model, gpus // (tp * pp), pp, tp, micro_batch)
                if layout.memory_bytes <= MEMORY_BYTES:
                    yield layout


def _drawn_layout(draw: random.Random) -> tuple[dict[str, int], int]:
    model = {
        "layers": draw.choice([16, 24, 32, 48, 64, 96]),
        "hidden": draw.choice([2048, 4096, 6144, 8192, 12288]),
        "sequence": draw.choice([2048, 4096, 8192]),
        "batch": draw.choice([64, 96, 256, 512, 1536]),
    }
    return model, draw.choice([8, 16, 32, 64, 96, 128, 256, 512])


@exercise(
    allowed="sizes that the GPUs, the server, the layers and the batch allow",
    fits=f"what a GPU holds fits into {MEMORY_BYTES / 1e9:.0f} GB, activations included; None where nothing"
    " does",
    fastest="no layout that fits takes less time",
)
def fastest_layout(judge: Judge, answer: Callable) -> None:
    """`answer(model, gpus)` returns the sizes of dp, pp and tp and the micro-batch of the layout that fits
    and takes the least time; None if none fits.
    """
    draw = random.Random(judge.seed)
    cases = [
        ({"layers": 36, "hidden": 4096, "sequence": 2048, "batch": 512}, 128),
        ({"layers": 80, "hidden": 12288, "sequence": 2048, "batch": 2304}, 1536),
        ({"layers": 128, "hidden": 16384, "sequence": 8192, "batch": 2048}, 8192),
        ({"layers": 24, "hidden": 2048, "sequence": 2048, "batch": 64}, 8),
        ({"layers": 96, "hidden": 12288, "sequence": 2048, "batch": 64}, 8),  # nothing fits
        *(_drawn_layout(draw) for _ in range(DRAWN_LAYOUTS)),
    ]
    for (model, gpus), found in zip(
        cases, judge.call(answer, [(dict(model), gpus) for model, gpus in cases])
    ):
        told = ", ".join(f"{name} {count}" for name, count in model.items())
        judge.case = f"{told}, on {gpus} GPUs"
        wrong = _wrong_layout(on_rank.plain(found), model, gpus)
        if wrong:
            for key, missed in wrong.items():
                judge.demand(key, missed)
            return
    judge.case = ""
    for key in ("allowed", "fits", "fastest"):
        judge.demand(key, "")


def _wrong_layout(found, model: Model, gpus: int) -> dict[str, str]:
    """What is missed, by demand, with the demands before it that are met; nothing if all are."""
    best = min(_layouts(model, gpus), key=lambda layout: sum(layout.seconds().values()), default=None)
    if found is None:
        return {"fits": f"you found none, and {best} has room."} if best else {}
    names = ("dp", "pp", "tp", "micro_batch")
    sizes = {name: on_rank.whole(size) for name, size in found.items()} if isinstance(found, dict) else {}
    if set(sizes) != set(names) or not all(size and size > 0 for size in sizes.values()):
        shown = on_rank.short(found)
        return {"allowed": f"return a dict of {', '.join(names)}, whole numbers above 0, not {shown}."}
    mine = _Layout(model, **{name: sizes[name] for name in names})
    if problem := _not_allowed(mine, gpus):
        return {"allowed": problem}
    if mine.memory_bytes > MEMORY_BYTES:
        states, all_gb = 16 * mine.numel / 1e9, mine.memory_bytes / 1e9
        what = f"{states:.1f} GB of model states and {all_gb - states:.1f} GB of activations on a GPU"
        instead = "" if best else " Nothing fits here: return None."
        return {"allowed": "", "fits": f"{mine} leaves {what}.{instead}"}
    assert best  # this one fits, at least
    seconds, least = mine.seconds(), best.seconds()
    times = sum(seconds.values()) / sum(least.values())
    if times <= AS_GOOD:
        return {}
    worst = max(seconds, key=lambda name: seconds[name] - least[name])
    share, there = seconds[worst] / sum(seconds.values()), least[worst] / sum(least.values())
    why = f"{worst}: {share:.0%} of your step, and {there:.0%} of that one"
    return {
        "allowed": "",
        "fits": "",
        "fastest": f"{mine} takes {times:.3f} times as long as the fastest layout. What it loses most by is"
        f" {why}.",
    }


def _not_allowed(layout: _Layout, gpus: int) -> str:
    dp, pp, tp, b = layout.dp, layout.pp, layout.tp, layout.micro_batch
    model = layout.model
    if dp * pp * tp != gpus:
        return f"{layout} is {dp * pp * tp} GPUs."
    if SERVER % tp:
        return f"{layout}: tp {tp} does not stay inside a server of {SERVER}."
    if model["layers"] % pp:
        return f"{layout}: {model['layers']} layers cannot be dealt out evenly to {pp} stages."
    if model["batch"] % (dp * b):
        return f"{layout}: a batch of {model['batch']} is no whole number of micro-batches on each of {dp}."
    return ""
