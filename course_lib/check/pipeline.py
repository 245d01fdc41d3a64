"""Checks of the chapter "Pipeline": the schedules GPipe and 1F1B, a worker that executes them, layers dealt
out evenly to stages.
"""

import itertools
import random
import time
from collections.abc import Callable, Sequence

import pandas as pd
import torch
import torch.distributed as dist
from torch import nn

from course_lib import measure, theory
from course_lib.check import on_rank
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import Demand, fact
from course_lib.collectives import of_kind
from course_lib.mini import pipeline as mini
from course_lib.record import Job, bubble, calls, sent

__all__ = ["schedule_gpipe", "schedule_1f1b", "pipeline_worker", "balanced_stages"]

SIZES = ((4, 8), (4, 2), (3, 3), (2, 5), (1, 3))  # stages, micro-batches; the first is run for real
FORWARD_S = 0.006  # a stage's forward sleeps so long, its backward twice
STAGE = ("F", "B")  # spans in which a stage of `_trial` sleeps
DRAWN_MODELS, DRAWN_SIZES = 400, 12
RELATIVE_ERROR = 1e-9  # of gradients in float64; a right answer is at 1e-15
HOLD_S = 12.0  # so long a rank stands still, unless the others do before what they can do without it

GRADIENTS = fact(
    "the gradients of one process over the whole batch",
    "gradient",
    "on rank {rank}, the gradient is wrong: {wrong}",
)
BUSY = (
    "no rank waits where it could work, and so the bubble is (p-1)/(m+p-1), and not (p-1)/p (compute sleeps)"
)


def _of_a_schedule(in_flight: str) -> dict[str, Demand | str]:
    return {
        "complete": "every forward and backward once, and nobody waits for ever",
        "gradients": GRADIENTS,
        "busy": BUSY,
        "in_flight": f"{in_flight} micro-batches in flight",
        "paper": f"on paper, for any size: as short as can be, and {in_flight} micro-batches in flight",
    }


@exercise(**_of_a_schedule("m"))
def schedule_gpipe(judge: Judge, answer: Callable) -> None:
    """`answer(num_stages, num_microbatches)` returns GPipe's list of instructions for each rank."""
    _judge_schedule(judge, answer, "gpipe")


@exercise(**_of_a_schedule("min(p - stage, m)"))
def schedule_1f1b(judge: Judge, answer: Callable) -> None:
    """`answer(num_stages, num_microbatches)` returns the list of instructions of 1F1B for each rank."""
    _judge_schedule(judge, answer, "1f1b")


def _wrong_messages(job: Job) -> str:
    if others := sorted(set(job.comm["op"]) - of_kind("send", "receive")):
        return (
            f"you call {', '.join(others)}. Only neighbours have anything to say to each other: use isend and"
            " recv"
        )
    payload, counts = sent(job, layer="payload", ops=["send"]), calls(job).reindex(columns=["send"]).fillna(0)
    told = ""
    for rank, found in enumerate(job.results):
        count = ((rank > 0) + (rank < job.ranks - 1)) * found["micro_batches"]
        want = count * found["activation_bytes"]
        if want and payload[rank] != want:
            told += (
                f"rank {rank} sends {payload[rank] / want:.2f} times the bytes of one tensor per cut,"
                " direction and micro-batch. "
            )
        elif want and counts.loc[rank, "send"] != count:
            told += (
                f"rank {rank} sends {counts.loc[rank, 'send']:.0f} messages, and {count} are enough: one"
                " tensor, as it is, per cut, direction and micro-batch. "
            )
    return told


def _wrong_order(job: Job) -> str:
    """Which micro-batch ran where; a stage knows it by its values."""
    for rank, found in enumerate(job.results):
        for ran, asked in zip(found["ran"], found["asked"]):
            if ran != asked:
                what = "something that is no micro-batch" if "?" in ran else ran
                return (
                    f"rank {rank} runs {what} where its list says {asked}. Each instruction names its"
                    " micro-batch: take that one's tensors"
                )
    return ""


def _kept(job: Job) -> str:
    # one more, until a variable gets its next value
    allowed = [_peak(_kinds(found["asked"])) + 1 for found in job.results]
    kept = [
        (held - most, rank, what, held)
        for rank, (most, found) in enumerate(zip(allowed, job.results))
        for what, held in (("outputs", found["graphs"]), ("inputs", found["inputs"]))
    ]
    more, rank, what, held = max(kept, key=lambda one: one[0])
    if more <= 0:
        return ""
    return (
        f"rank {rank} keeps the {what} of {held} micro-batches at once, and at most {allowed[rank]} are"
        " needed. After the backward of a micro-batch nobody needs its tensors: take them out of your list"
        " or dict (`pop`)"
    )


@exercise(
    gradients=GRADIENTS,
    messages=Demand("one tensor per cut, direction and micro-batch, and no byte more", _wrong_messages),
    busy=BUSY,
    in_flight="as many micro-batches in flight as the list says",
    order=Demand("in the order of the list", _wrong_order),
    let_go=Demand("what a backward has used is let go", _kept),
)
def pipeline_worker(judge: Judge, answer: Callable) -> None:
    """`answer(instructions, stage, inputs, targets, loss_fn, like)` executes one rank's list, with sends and
    receives, and nothing else.
    """

    def execute(instructions, stage, inputs, targets, loss_fn):
        answer(instructions, stage, inputs, targets, loss_fn, torch.zeros_like(inputs[0]))

    draw = random.Random(judge.seed)
    for stages, micro_batches, schedule in ((4, 8, "1f1b"), (3, 4, "gpipe")):
        judge.case = f"{stages} ranks, {micro_batches} micro-batches, {schedule}"
        lists = mini.one_f_one_b(stages, micro_batches)
        if schedule == "gpipe":
            judge.case += " in another order"
            lists = [_shuffled(range(micro_batches), draw)] * stages
        job = _trial(judge, execute, lists, micro_batches)
        if not judge.look(job, "gradients"):
            return
        together = _looks_busy(job, micro_batches) or _works_ahead(judge, execute, lists, micro_batches)
        judge.look(job, "messages")
        judge.demand("busy", "" if together else _waits(job, micro_batches))
        _judge_in_flight(judge, job, schedule, micro_batches)
        judge.look(job, "order", "let_go")
        if not judge.met:  # the other sizes would say it again
            return


def _shuffled(numbers: Sequence[int], draw: random.Random) -> list[mini.Instruction]:
    """GPipe for one rank, in an order that is not that of the numbers, neither forward nor backward."""
    orders = [order for order in itertools.permutations(numbers) if order != tuple(sorted(order))]
    forwards, backwards = draw.sample(orders, 2)
    return [mini.forward(k) for k in forwards] + [mini.backward(k) for k in backwards]


@exercise(
    named="the slowest stage is as fast as can be: of equal layers, a heavy one, growing ones",
    drawn=f"{DRAWN_MODELS} models that were drawn: the slowest stage is as fast as can be, in each",
)
def balanced_stages(judge: Judge, answer: Callable) -> None:
    """`answer(costs, num_stages)` returns how many layers each stage gets, such that the slowest stage is as
    fast as can be.
    """
    named = {
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
    draw = random.Random(judge.seed)
    # quarters: sums of them are exact
    drawn = [
        (
            [draw.choice((1, 4)) * draw.randint(1, 16) / 4 for _ in range(draw.randint(3, 9))],
            draw.randint(2, 4),
        )
        for _ in range(DRAWN_MODELS)
    ]
    drawn = [(costs, min(num_stages, len(costs))) for costs, num_stages in drawn]
    for (name, case), sizes in zip(named.items(), judge.call(answer, list(named.values()))):
        problem = _sizes_problem(sizes, *case)
        judge.demand(
            "named",
            problem and f"{name}, {case[0]} on {case[1]}: {sizes!r:.60} {problem}",
            f"{name}: the slowest stage takes {_least_slowest(*case):g}",
        )
    if not judge.met:
        return
    worse = [
        (case, sizes, problem)
        for case, sizes in zip(drawn, judge.call(answer, drawn))
        if (problem := _sizes_problem(sizes, *case))
    ]
    (costs, num_stages), sizes, problem = min(worse, key=lambda one: len(one[0][0]), default=((0, 0), 0, 0))
    why = (
        f"{len(worse)} of {len(drawn)} models that were drawn could be faster; the shortest is {costs} on"
        f" {num_stages}: {sizes!r:.60} {problem}"
    )
    judge.demand("drawn", why if worse else "")


def _judge_schedule(judge: Judge, answer: Callable, schedule: str) -> None:
    def listed(stages, micro_batches):
        """The answer's lists as lists, whatever holds them."""
        lists = on_rank.plain(answer(stages, micro_batches))
        try:
            return [on_rank.plain(one if isinstance(one, (str, dict)) else list(one)) for one in lists]
        except TypeError:
            return lists

    schedules = {}
    for (stages, micro_batches), lists in zip(SIZES, judge.call(listed, SIZES)):
        judge.case = _size_in_words(stages, micro_batches)
        if not judge.demand("complete", _list_problem(lists, stages, micro_batches)):
            return
        schedules[stages, micro_batches] = lists

    (stages, micro_batches), lists = next(iter(schedules.items()))

    def execute(instructions, stage, inputs, targets, loss_fn):
        worker = mini.Pipeline(stage, lists, loss_fn)
        worker.step(torch.cat(inputs), torch.cat(targets))

    judge.case = f"{stages} ranks, {micro_batches} micro-batches"
    job = _trial(judge, execute, lists, micro_batches)
    judge.look(job, "gradients")
    together = _looks_busy(job, micro_batches) or not _paper_problem(lists, schedule, stages, micro_batches)
    judge.demand("busy", "" if together else _waits(job, micro_batches))
    _judge_in_flight(judge, job, schedule, micro_batches)
    for (stages, micro_batches), lists in schedules.items():
        problem = _paper_problem(lists, schedule, stages, micro_batches)
        judge.case = _size_in_words(stages, micro_batches) + (", on paper" if not problem else "")
        peaks = on_rank.listed(_peaks(schedule, stages, micro_batches))
        judge.demand("paper", problem, f"as short as can be, and {peaks} micro-batches in flight")
    if not judge.met:
        return
    draw = random.Random(judge.seed)
    drawn = [(draw.randint(1, 7), draw.randint(1, 12)) for _ in range(DRAWN_SIZES)]
    for (stages, micro_batches), lists in zip(drawn, judge.call(listed, drawn)):
        judge.case = _size_in_words(stages, micro_batches)
        if problem := _list_problem(lists, stages, micro_batches) or _paper_problem(
            lists, schedule, stages, micro_batches
        ):
            judge.demand("paper", problem)
            return
    judge.case = f"{len(drawn)} sizes that were drawn, on paper"
    judge.demand("paper", "", "the same")


def _size_in_words(stages: int, micro_batches: int) -> str:
    return (
        f"{stages} stage{'' if stages == 1 else 's'}, {micro_batches}"
        f" micro-batch{'' if micro_batches == 1 else 'es'}"
    )


def _list_problem(lists, stages: int, micro_batches: int) -> str:
    """Why the lists cannot be run; "" if they can."""
    if problem := _form_problem(lists, stages):
        return problem
    try:
        mini.validate(lists, stages, micro_batches)
    except ValueError as error:
        return str(error)
    return ""


def _paper_problem(
    lists: Sequence[Sequence[mini.Instruction]], schedule: str, stages: int, micro_batches: int
) -> str:
    """What valid lists cost too much of, time or room, if nothing but their order counts; "" if nothing."""
    slots, least = _slots(lists), 3 * (micro_batches + stages - 1)
    if slots > least:
        return (
            f"on paper, with backwards twice as long as forwards, the step takes {slots} times a forward, and"
            f" 3 (m + p - 1) = {least} is possible"
        )
    peaks = [_peak(_kinds(map(repr, instructions))) for instructions in lists]
    wanted = _peaks(schedule, stages, micro_batches)
    if peaks != wanted:
        held, right = on_rank.listed(peaks), on_rank.listed(wanted)
        return f"the ranks hold {held} micro-batches at most, and {right} is right"
    return ""


def _form_problem(lists, stages: int) -> str:
    if (
        not isinstance(lists, (list, tuple))
        or len(lists) != stages
        or not all(isinstance(one, (list, tuple)) for one in lists)
    ):
        return f"return a list with one list for each of the {stages} ranks; you returned {lists!r:.60}"
    strange = [one for instructions in lists for one in instructions if not isinstance(one, mini.Instruction)]
    if strange:
        return (
            f"a list must hold instructions, made with forward(k) and backward(k), and not {strange[0]!r:.40}"
        )
    return ""


def _works_ahead(
    judge: Judge, execute: Callable, lists: Sequence[Sequence[mini.Instruction]], micro_batches: int
) -> bool:
    """Whether all other ranks do what they can do without it while one rank stands still in the middle of an
    instruction, on each rank in turn.

    No clock plays a part in this, and so no busy machine.
    """
    holds = [(rank, (3 * len(one)) // 8) for rank, one in enumerate(lists)]
    reach = [[len(done) for done in _done(lists, without=hold)] for hold in holds]
    job = _trial(judge, execute, lists, micro_batches, list(zip(holds, reach)))
    return not any(found["waits"] for found in job.results)


def _trial(
    judge: Judge,
    execute: Callable,
    lists: Sequence[Sequence[mini.Instruction]],
    micro_batches: int,
    holds: Sequence = (),
) -> Job:
    """Two steps. Each rank returns what is wrong with its gradient ("" if nothing), of how many micro-batches
    it held the graphs and the inputs at most, the bytes of one activation, and what its list asked for and
    what it ran, in order: F0, B0.

    With `holds`, one step for each ((rank, position in its list), (how far each rank gets in its list without
    that)): the rank stands still there until all others have come so far. Then the ranks return who has not.
    """
    seed = judge.seed

    def trial():
        import gc

        on_rank.use_cpu()
        torch.manual_seed(seed)
        rank, size = dist.get_rank(), dist.get_world_size()
        graphs, messages = [0, 0], [0, 0]  # how many are alive now, and at most
        order, hold = [], None  # what this rank has run; what holds it up
        store = on_rank.store()

        class Token:  # lives as long as what it is tied to
            def __init__(self, live):
                self.live = live
                live[0] += 1
                if live[0] > live[1] and live[1]:
                    # what a circle of references keeps alive is not held
                    gc.collect()
                live[1] = max(live)

            def __del__(self):
                self.live[0] -= 1

        def works(kind, k, seconds):
            if hold and hold[0] == (rank, len(order)):
                others = [f"{hold}/{other}" for other in range(size) if other != rank]
                hold.append(on_rank.wait_until(lambda: store.check(others), HOLD_S))
            elif not holds:
                with measure.span(kind):
                    time.sleep(seconds)
            order.append(f"{kind}{k}")
            tell()

        def tell():
            if hold and len(order) >= hold[1][rank]:
                store.set(f"{hold[:2]}/{rank}", "")

        class Sleep(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, asleep, k):
                ctx.asleep, ctx.k, ctx.token = asleep, k, Token(graphs) if asleep else None
                if asleep:
                    works("F", k, FORWARD_S)
                return x.clone()

            @staticmethod
            def backward(ctx, grad):
                if ctx.asleep:
                    works("B", ctx.k, 2 * FORWARD_S)
                return grad, None, None

        class Stage(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear, self.asleep = nn.Linear(6, 6, dtype=torch.float64), False

            def forward(self, x):
                if self.asleep and rank:  # on rank 0, x is a part of the batch
                    x.untyped_storage().token = Token(messages)  # whatever tensor keeps it
                k = 0
                if self.asleep:
                    same = [one.shape == x.shape and torch.allclose(one, x) for one in expected]
                    k = same.index(True) if any(same) else "?"
                return Sleep.apply(self.linear(x).tanh(), self.asleep, k)

        stages = [Stage() for _ in range(size)]
        inputs, targets = torch.randn(2, 2 * micro_batches, 6, dtype=torch.float64)

        def loss_fn(output, target):
            return (output - target).square().mean()

        loss_fn(nn.Sequential(*stages)(inputs), targets).backward()
        with torch.no_grad():
            # what this stage gets, by which it knows a micro-batch
            expected = nn.Sequential(*stages[:rank])(inputs).chunk(micro_batches)
        wanted = torch.cat([p.grad.flatten() for p in stages[rank].parameters()])
        mine, problem, left_alone = stages[rank], "", True

        def step():
            """One step of the answer; are inputs and targets what they were?"""
            mine.zero_grad()
            graphs[:] = messages[:] = 0, 0
            order.clear()
            pieces = [[piece.clone() for piece in whole.chunk(micro_batches)] for whole in (inputs, targets)]
            given = [torch.cat(whole) for whole in pieces], [list(whole) for whole in pieces]
            dist.barrier()
            with measure.step(mine):
                execute(lists[rank], mine, *pieces, loss_fn)
            return all(torch.equal(whole, torch.cat(parts).detach()) for whole, parts in zip(*given))

        if holds:
            mine.asleep = True
            for one in holds:
                hold = list(one)
                tell()
                step()
                waits = rank == hold[0][0] and hold[2:] != [True]
                problem = on_rank.first_problem("the others wait where they could work" if waits else "")
                if problem:
                    break
            return {"waits": problem}
        for number in range(2):
            mine.asleep = number == 1  # the first step warms up
            left_alone &= step()
            if any(p.grad is None for p in mine.parameters()):
                problem = problem or "a parameter has no gradient"
                continue
            have = on_rank.flat(p.grad for p in mine.parameters())
            if (error := on_rank.apart(have, wanted)) > RELATIVE_ERROR:
                factor = on_rank.times(have, wanted, RELATIVE_ERROR)
                looks = (
                    f". It is {factor:.3g} times too large: a loss must be the mean over the whole batch"
                    if factor
                    else ""
                )
                problem = problem or f"it differs by {error:.2g}{looks or '.' + on_rank.rounding(error)}"
        changed = "" if left_alone else "the inputs or targets have changed; leave them alone"
        if changed := on_rank.first_problem(changed):
            return {"problem": changed}
        return {
            "gradient": problem.removesuffix("."),
            "graphs": graphs[1],
            "inputs": messages[1],
            "activation_bytes": inputs.chunk(micro_batches)[0].nbytes,
            "micro_batches": micro_batches,
            "asked": list(map(repr, lists[rank])),
            "ran": order,
        }

    return judge.run(trial, ranks=len(lists), label="your pipeline")


def _waits(job: Job, micro_batches: int) -> str:
    """Of ranks that do not work at the same time. A busy machine adds idle time; so it is not the clock alone
    that says whether they do.
    """
    least, idle = theory.bubble_fraction(job.ranks, micro_batches), _idle(job)
    why = (
        "So only one rank works at a time: does each micro-batch wait until the one before is back?"
        if idle > theory.bubble_fraction(job.ranks, 1) - 0.05
        else (
            "A rank waits where it could work: look at the order of its list, and at what each receive"
            " waits for"
        )
    )
    return (
        f"the ranks are idle for {idle:.0%} of the step, and (p-1)/(m+p-1) is {least:.0%} (compute sleeps)."
        f" {why}"
    )


def _judge_in_flight(judge: Judge, job: Job, schedule: str, micro_batches: int) -> None:
    kinds = [_kinds(_asleep(job, rank)["name"]) for rank in range(job.ranks)]
    found, wanted = list(map(_peak, kinds)), _peaks(schedule, job.ranks, micro_batches)
    formula = "m" if schedule == "gpipe" else "min(p - stage, m)"
    rank = next((rank for rank in range(job.ranks) if found[rank] != wanted[rank]), 0)
    wrong = ""
    if found != wanted:
        wrong = (
            f"rank {rank} has {found[rank]} micro-batches in flight (measured), and {formula} is"
            f" {wanted[rank]}: it runs {'more' if found[rank] > wanted[rank] else 'fewer'} forwards before"
            " its first backwards than it should"
        )
    for rank, one in enumerate(kinds):
        if not one.count("F") == one.count("B") == micro_batches:
            wrong = (
                f"rank {rank} runs {one.count('F')} forwards and {one.count('B')} backwards of its stage"
                f" (measured), and {micro_batches} micro-batches need one of each: call `stage` once for each"
                ' "forward" of the list'
            )
    said = f"{on_rank.listed(wanted)} micro-batches in flight, which is {formula} (measured)"
    judge.demand("in_flight", wrong, said)


def _asleep(job: Job, rank: int) -> pd.DataFrame:
    """A rank's spans of `STAGE`, in order. (mini's worker makes spans of its own around them.)"""
    spans = job.timeline[job.timeline["name"].isin(STAGE) & (job.timeline["rank"] == rank)]
    return spans.sort_values("start_s")


def _idle(job: Job) -> float:
    """The measured bubble; all, where no stage slept (who calls its layers one by one runs no stage)."""
    return bubble(job, STAGE) if job.timeline["name"].isin(STAGE).any() else 1.0


def _looks_busy(job: Job, micro_batches: int) -> bool:
    """Whether the measured bubble is nearer to that of a pipeline than to that of micro-batches one after the
    other.
    """
    one_after_the_other = theory.bubble_fraction(job.ranks, 1)
    return _idle(job) <= (theory.bubble_fraction(job.ranks, micro_batches) + one_after_the_other) / 2


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
    return max(end for ends in _done(lists) for end in ends)


def _done(
    lists: Sequence[Sequence[mini.Instruction]], without: tuple[int, int] | None = None
) -> list[list[int]]:
    """When each rank's instructions end, if a forward takes 1, a backward 2 and a message nothing. Where one
    is left out (`without` a rank's position), the rank stands still there, and only what needs neither that
    nor what comes after it is done.
    """
    ends, done = {}, [[] for _ in lists]
    went_on = True
    while went_on:
        went_on = False
        for rank, instructions in enumerate(lists):
            while len(done[rank]) < len(instructions) and (rank, len(done[rank])) != without:
                op, k = instructions[len(done[rank])].op, instructions[len(done[rank])].microbatch
                needed = rank - 1 if op == "forward" else rank + 1
                if 0 <= needed < len(lists) and (op, k, needed) not in ends:
                    break
                begin = max(done[rank][-1] if done[rank] else 0, ends.get((op, k, needed), 0))
                ends[op, k, rank] = begin + (1 if op == "forward" else 2)
                done[rank].append(ends[op, k, rank])
                went_on = True
    return done


def _sizes_problem(sizes, costs: Sequence[float], num_stages: int) -> str:
    """What is wrong with the layers dealt out; "" if the slowest stage is as fast as it can be."""
    sizes = on_rank.plain(sizes)
    sizes = [on_rank.whole(size) for size in sizes] if isinstance(sizes, list) else [None]
    if None in sizes:
        return "is not a list of whole numbers"
    if len(sizes) != num_stages:
        return f"has {len(sizes)} numbers, and there are {num_stages} stages"
    if min(sizes) < 1:
        return "leaves a stage without a layer"
    if sum(sizes) != len(costs):
        return f"deals out {sum(sizes)} layers, and there are {len(costs)}"
    sums = [sum(costs[sum(sizes[:s]) : sum(sizes[: s + 1])]) for s in range(num_stages)]
    least = _least_slowest(costs, num_stages)
    if max(sums) > least + 1e-9:
        return (
            f"gives stages of {', '.join(f'{total:g}' for total in sums)}: the slowest takes {max(sums):g},"
            f" and {least:g} is possible"
        )
    return ""


def _least_slowest(costs: Sequence[float], num_stages: int) -> float:
    """The least possible time of the slowest stage: all cuts are tried."""
    ends = [(0, *cuts, len(costs)) for cuts in itertools.combinations(range(1, len(costs)), num_stages - 1)]
    return min(max(sum(costs[begin:end]) for begin, end in zip(cuts, cuts[1:])) for cuts in ends)
