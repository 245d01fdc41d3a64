"""Checks of chapter 08, "Pipeline": the schedules GPipe and 1F1B, a worker that executes them, layers dealt out evenly to stages.

What a rank runs stands inside `_trial` and `execute`: it travels by value, so that a rank never imports this package (and pandas with it).
"""
import time
from collections.abc import Callable, Sequence

import pandas as pd
import torch
import torch.distributed as dist
from torch import nn

from course_lib import measure, theory
from course_lib.check.judge import Judge, exercise
from course_lib.job import Job
from course_lib.mini import pipeline as mini

__all__ = ["schedule_gpipe", "schedule_1f1b", "pipeline_worker", "balanced_stages"]

SIZES = ((4, 8), (4, 2), (3, 3), (2, 5), (1, 3))       # stages, micro-batches; the first is run for real
FORWARD_S = (0.004, 0.012, 0.04)    # a stage's forward sleeps so long, its backward twice; longer if the machine is too busy for the first
RELATIVE_ERROR = 1e-6               # of gradients in float64; a right answer is at 1e-15
TIMEOUT_S = 15.0                    # an answer whose ranks wait for each other ends here


@exercise
def schedule_gpipe(judge: Judge, answer: Callable) -> None:
    """`answer(num_stages, num_microbatches)` returns GPipe's list of instructions for each rank."""
    _judge_schedule(judge, answer, "gpipe")


@exercise
def schedule_1f1b(judge: Judge, answer: Callable) -> None:
    """`answer(num_stages, num_microbatches)` returns the list of instructions of 1F1B for each rank."""
    _judge_schedule(judge, answer, "1f1b")


@exercise
def pipeline_worker(judge: Judge, answer: Callable) -> None:
    """`answer(instructions, stage, inputs, targets, loss_fn, like)` executes one rank's list, with sends and receives, and nothing else."""
    def execute(instructions, stage, inputs, targets, loss_fn):
        answer(instructions, stage, inputs, targets, loss_fn, torch.zeros_like(inputs[0]))

    for stages, micro_batches, schedule in ((4, 8, "1f1b"), (3, 4, "gpipe")):
        name = f"{stages} ranks, {micro_batches} micro-batches, {schedule}"
        make = mini.gpipe if schedule == "gpipe" else mini.one_f_one_b
        job = _run_asleep(judge, execute, make(stages, micro_batches), micro_batches)
        if not _judge_gradients(judge, name, job):
            return
        met = [_judge_messages(judge, name, job, micro_batches), _judge_idle(judge, name, job, micro_batches),
               _judge_in_flight(judge, name, job, schedule, micro_batches), _judge_held(judge, name, job, schedule, micro_batches)]
        if not all(met):                                  # the other sizes would say it again
            return


@exercise
def balanced_stages(judge: Judge, answer: Callable) -> None:
    """`answer(costs, num_stages)` returns how many layers each stage gets, such that the slowest stage is as fast as can be."""
    cases = {
        "equal layers": ([1.0] * 8, 4),
        "a heavy last layer": ([1, 1, 1, 1, 1, 1, 1, 4], 4),
        "a heavy first layer": ([5, 1, 1, 1, 1], 3),
        "a heavy layer in the middle": ([1, 1, 1, 6, 1, 1, 1], 3),
        "growing layers": ([1, 2, 3, 4, 5, 6, 7, 8, 9], 3),
        "shrinking layers": ([9, 8, 7, 6, 5, 4, 3, 2, 1], 4),
        "one layer per stage": ([3, 1, 2], 3),
        "one stage": ([3, 1, 2], 1),
        "half and half": ([2, 2, 2, 3, 3], 2),
    }
    for name, (costs, num_stages) in cases.items():
        sizes = answer(list(costs), num_stages)
        least = _least_slowest(costs, num_stages)
        problem = _sizes_problem(sizes, len(costs), num_stages)
        if not problem:
            sums = [sum(costs[sum(sizes[:s]):sum(sizes[:s + 1])]) for s in range(num_stages)]
            if max(sums) > least + 1e-9:
                problem = f"gives stages of {', '.join(f'{total:g}' for total in sums)}: the slowest takes {max(sums):g}, and {least:g} is possible"
        judge.demand(not problem, f"{name}: the slowest stage takes {least:g}", f"{name}, {costs} on {num_stages}: {sizes!r:.60} {problem}")


def _judge_schedule(judge: Judge, answer: Callable, schedule: str) -> None:
    schedules = {}
    for stages, micro_batches in SIZES:
        name, lists = f"{stages} stage{'' if stages == 1 else 's'}, {micro_batches} micro-batches", answer(stages, micro_batches)
        problem = _form_problem(lists, stages)
        if not problem:
            try:
                mini.validate(lists, stages, micro_batches)
            except ValueError as error:
                problem = str(error)
        if not judge.demand(not problem, f"{name}: every forward and backward once, and nobody waits for ever", f"{name}: {problem}"):
            return
        schedules[stages, micro_batches] = lists

    (stages, micro_batches), lists = next(iter(schedules.items()))

    def execute(instructions, stage, inputs, targets, loss_fn):
        worker = mini.Pipeline(stage, lists, loss_fn)
        worker.step(torch.cat(inputs), torch.cat(targets))

    name = f"{stages} ranks, {micro_batches} micro-batches"
    job = _run_asleep(judge, execute, lists, micro_batches)
    _judge_gradients(judge, name, job)
    _judge_idle(judge, name, job, micro_batches)
    _judge_in_flight(judge, name, job, schedule, micro_batches)
    for (stages, micro_batches), lists in schedules.items():
        slots, least, name = _slots(lists), 3 * (micro_batches + stages - 1), f"{stages} stage{'' if stages == 1 else 's'}, {micro_batches} micro-batches"
        peaks, wanted = [_peak(_kinds(map(repr, instructions))) for instructions in lists], _peaks(schedule, stages, micro_batches)
        problem = (f"on paper, with backwards twice as long as forwards, the step takes {slots} times a forward, and 3 (m + p - 1) = {least} is possible"
                   if slots > least else f"the ranks hold {_numbers(peaks)} micro-batches at most, and {_numbers(wanted)} is right" if peaks != wanted else "")
        judge.demand(not problem, f"{name}, on paper: as short as can be, and {_numbers(wanted)} micro-batches in flight", f"{name}: {problem}")


def _form_problem(lists, stages: int) -> str:
    if not isinstance(lists, (list, tuple)) or len(lists) != stages or not all(isinstance(one, (list, tuple)) for one in lists):
        return f"return a list with one list for each of the {stages} ranks; you returned {lists!r:.60}"
    strange = [one for instructions in lists for one in instructions if not isinstance(one, mini.Instruction)]
    return f"a list must hold instructions, made with forward(k) and backward(k), and not {strange[0]!r:.40}" if strange else ""


def _run_asleep(judge: Judge, execute: Callable, lists: Sequence[Sequence[mini.Instruction]], micro_batches: int) -> Job:
    """Run the lists with stages that sleep. Where the order is right and the ranks were idle all the same, again, with longer sleeps:
    what a busy machine adds to a message does not grow with them."""
    shortest = _slots(lists) == 3 * (micro_batches + len(lists) - 1)
    for forward_s in FORWARD_S:
        job = _trial(judge, execute, lists, micro_batches, forward_s)
        in_order = [_kinds(_asleep(job, rank)["name"]) for rank in range(job.ranks)] == [_kinds(map(repr, one)) for one in lists]
        if not (shortest and in_order) or _idle(job) <= _most_idle(job.ranks, micro_batches):
            break
    return job


def _trial(judge: Judge, execute: Callable, lists: Sequence[Sequence[mini.Instruction]], micro_batches: int, forward_s: float) -> Job:
    """Two steps. Each rank returns what is wrong with its gradients ("" if nothing), of how many micro-batches it held the graphs and the inputs at
    most, and the bytes of one activation."""
    def trial():
        torch.set_default_device("cpu")                   # gloo sends from one CPU memory to the other
        torch.manual_seed(0)
        rank, size = dist.get_rank(), dist.get_world_size()
        graphs, messages = [0, 0], [0, 0]                 # how many are alive now, and at most

        class Token:                                      # lives as long as what it is tied to
            def __init__(self, live):
                self.live = live
                live[0] += 1
                live[1] = max(live)

            def __del__(self):
                self.live[0] -= 1

        class Sleep(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, asleep):
                ctx.asleep, ctx.token = asleep, Token(graphs) if asleep else None
                if asleep:
                    with measure.span("F"):
                        time.sleep(forward_s)
                return x.clone()

            @staticmethod
            def backward(ctx, grad):
                if ctx.asleep:
                    with measure.span("B"):
                        time.sleep(2 * forward_s)
                return grad, None

        class Stage(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear, self.asleep = nn.Linear(6, 6, dtype=torch.float64), True

            def forward(self, x):
                if self.asleep and rank:                  # on rank 0, x is a part of the batch
                    x.token = Token(messages)
                return Sleep.apply(self.linear(x).tanh(), self.asleep)

        stages = [Stage() for _ in range(size)]
        inputs, targets = torch.randn(2, 2 * micro_batches, 6, dtype=torch.float64)

        def loss_fn(output, target):
            return (output - target).square().mean()

        for stage in stages:
            stage.asleep = False
        loss_fn(nn.Sequential(*stages)(inputs), targets).backward()
        wanted = [p.grad for p in stages[rank].parameters()]
        mine, problem = stages[rank], ""
        for step in range(2):
            mine.asleep = step == 1                       # the first step warms up
            mine.zero_grad()
            graphs[:] = messages[:] = 0, 0
            dist.barrier()
            with measure.step(mine):
                execute(lists[rank], mine, inputs.chunk(micro_batches), targets.chunk(micro_batches), loss_fn)
            found = [p.grad for p in mine.parameters()]
            if any(grad is None for grad in found):
                problem = problem or "a parameter has no gradient"
                continue
            want, have = (torch.cat([grad.flatten() for grad in grads]) for grads in (wanted, found))
            factor = ((have @ want) / (want @ want)).item()
            if (have - want).norm() > RELATIVE_ERROR * want.norm():
                exact = (have - factor * want).norm() < RELATIVE_ERROR * want.norm()
                looks = f". It is {factor:.3g} times too large: a loss must be the mean over the whole batch" if exact else ""
                problem = problem or f"it differs by {((have - want).norm() / want.norm()).item():.2g}{looks}"
        return problem, graphs[1], messages[1], inputs.chunk(micro_batches)[0].nbytes

    trial.__name__ = "your pipeline"
    return judge.run(trial, ranks=len(lists), timeout=TIMEOUT_S)


def _judge_gradients(judge: Judge, name: str, job: Job) -> bool:
    rank, problem = next(((rank, problem) for rank, (problem, *_) in enumerate(job.results) if problem), (0, ""))
    return judge.demand(not problem, f"{name}: the gradients of one process over the whole batch", f"{name}: on rank {rank}, the gradient is wrong: {problem}")


def _judge_messages(judge: Judge, name: str, job: Job, micro_batches: int) -> bool:
    others = sorted(set(job.comm["op"]) - {"send", "recv"})
    one_bytes = job.results[0][3]
    sent = job.comm[job.comm["op"] == "send"].groupby("rank")["payload_bytes"].sum().reindex(range(job.ranks), fill_value=0)
    wanted = [micro_batches * one_bytes * ((rank > 0) + (rank < job.ranks - 1)) for rank in range(job.ranks)]
    problem = (f"you call {', '.join(others)}. Only neighbours have anything to say to each other: use isend and recv" if others else
               "".join(f"rank {rank} sends {sent[rank] / want:.2f} times the bytes of one tensor per cut, direction and micro-batch. " if want and sent[rank] != want else ""
                       for rank, want in enumerate(wanted)))
    return judge.demand(not problem, f"{name}: one tensor per cut, direction and micro-batch, and no byte more", f"{name}: {problem}")


def _judge_idle(judge: Judge, name: str, job: Job, micro_batches: int) -> bool:
    stages = job.ranks
    least = theory.bubble_fraction(stages, micro_batches)
    idle = _idle(job)
    why = ("So only one rank works at a time: does each micro-batch wait until the one before is back?" if idle > theory.bubble_fraction(stages, 1) - 0.05 else
           "A rank waits where it could work: look at the order of its list, and at what each receive waits for")
    return judge.demand(idle <= _most_idle(stages, micro_batches),
                        f"{name}: the bubble is nearer to (p-1)/(m+p-1) than to (p-1)/p (measured, compute sleeps)",
                        f"{name}: the ranks are idle for {idle:.0%} of the step, and (p-1)/(m+p-1) is {least:.0%} (measured, compute sleeps). {why}")


def _judge_in_flight(judge: Judge, name: str, job: Job, schedule: str, micro_batches: int) -> bool:
    kinds = [_kinds(_asleep(job, rank)["name"]) for rank in range(job.ranks)]
    found, wanted = list(map(_peak, kinds)), _peaks(schedule, job.ranks, micro_batches)
    formula = "m" if schedule == "gpipe" else "min(p - stage, m)"
    rank = next((rank for rank in range(job.ranks) if found[rank] != wanted[rank]), 0)
    wrong = (f"rank {rank} has {found[rank]} micro-batches in flight (measured), and {formula} is {wanted[rank]}: it runs "
             f"{'more' if found[rank] > wanted[rank] else 'fewer'} forwards before its first backwards than it should" if found != wanted else "")
    for rank, one in enumerate(kinds):
        if not one.count("F") == one.count("B") == micro_batches:
            wrong = (f"rank {rank} runs {one.count('F')} forwards and {one.count('B')} backwards of its stage (measured), and {micro_batches} "
                     "micro-batches need one of each: call `stage` once for each \"forward\" of the list")
    return judge.demand(not wrong, f"{name}: {_numbers(wanted)} micro-batches in flight, which is {formula} (measured)", f"{name}: {wrong}")


def _judge_held(judge: Judge, name: str, job: Job, schedule: str, micro_batches: int) -> bool:
    allowed = [peak + 1 for peak in _peaks(schedule, job.ranks, micro_batches)]            # one more, until a variable gets its next value
    found = [(held - most, rank, what, held) for rank, (most, (_, graphs, messages, _)) in enumerate(zip(allowed, job.results))
             for what, held in (("outputs", graphs), ("inputs", messages))]
    more, rank, what, held = max(found, key=lambda one: one[0])
    return judge.demand(more <= 0, f"{name}: what a backward has used is let go",
                        f"{name}: rank {rank} keeps the {what} of {held} micro-batches at once, and at most {allowed[rank]} are needed. After the "
                        "backward of a micro-batch nobody needs its tensors: take them out of your list or dict (`pop`)")


def _asleep(job: Job, rank: int) -> pd.DataFrame:
    """The spans in which a stage of `_trial` sleeps, F or B, in order. (mini's worker makes spans of its own around them.)"""
    spans = job.timeline[job.timeline["name"].isin(["F", "B"]) & (job.timeline["rank"] == rank)]
    return spans.sort_values("start_s")


def _idle(job: Job) -> float:
    """Share of the step in which a rank's stage did not work, as the mean over the ranks."""
    spans = pd.concat([_asleep(job, rank) for rank in range(job.ranks)])
    length_s = (spans["start_s"] + spans["seconds"]).max() - spans["start_s"].min()
    return 1 - float(spans["seconds"].sum()) / job.ranks / length_s if len(spans) else 1.0


def _most_idle(stages: int, micro_batches: int) -> float:
    """Half way from a pipeline to micro-batches one after the other: a busy machine adds some idle time."""
    return (theory.bubble_fraction(stages, micro_batches) + theory.bubble_fraction(stages, 1)) / 2


def _peaks(schedule: str, stages: int, micro_batches: int) -> list[int]:
    return [theory.microbatches_in_flight(schedule, stage, stages, micro_batches) for stage in range(stages)]


def _kinds(names) -> str:
    """F and B, in order, of spans or instructions."""
    return "".join(name[0] for name in names)


def _peak(kinds: str) -> int:
    """Most forwards whose backward is still to come."""
    return max((kinds[:end].count("F") - kinds[:end].count("B") for end in range(len(kinds) + 1)), default=0)


def _slots(lists: Sequence[Sequence[mini.Instruction]]) -> int:
    """Length of the step if a forward takes 1, a backward 2 and a message nothing; the lists are valid."""
    ends, clock, at = {}, [0] * len(lists), [0] * len(lists)
    while any(at[rank] < len(one) for rank, one in enumerate(lists)):
        for rank, instructions in enumerate(lists):
            while at[rank] < len(instructions):
                op, k = instructions[at[rank]].op, instructions[at[rank]].microbatch
                needed = rank - 1 if op == "forward" else rank + 1
                if 0 <= needed < len(lists) and (op, k, needed) not in ends:
                    break
                clock[rank] = max(clock[rank], ends.get((op, k, needed), 0)) + (1 if op == "forward" else 2)
                ends[op, k, rank] = clock[rank]
                at[rank] += 1
    return max(clock)


def _sizes_problem(sizes, layers: int, num_stages: int) -> str:
    if not isinstance(sizes, (list, tuple)) or not all(isinstance(size, int) for size in sizes):
        return "is not a list of whole numbers"
    if len(sizes) != num_stages:
        return f"has {len(sizes)} numbers, and there are {num_stages} stages"
    if min(sizes) < 1:
        return "leaves a stage without a layer"
    return "" if sum(sizes) == layers else f"deals out {sum(sizes)} layers, and there are {layers}"


def _least_slowest(costs: Sequence[float], num_stages: int) -> float:
    """The least possible time of the slowest stage."""
    if num_stages == 1:
        return sum(costs)
    return min(max(_least_slowest(costs[:cut], num_stages - 1), sum(costs[cut:])) for cut in range(num_stages - 1, len(costs)))


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
