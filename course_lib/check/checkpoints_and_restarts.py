"""Checks of the chapter "Checkpoints and restarts": a saver that training does not wait for, how many steps
between two saves, which replica is not like the others.
"""

import math
import random
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from course_lib import measure
from course_lib.check import on_rank
from course_lib.check.counted import header_bytes, sent_bytes
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import Demand, at_most, fact
from course_lib.record import Job

__all__ = ["background_saver", "steps_between_saves", "odd_replicas"]

COPIES = 1.5  # at once, in the size of a state: one, and what is small beside it
HELD_S, PATIENCE_S = 0.5, 8.0  # a write is held so long where one waits for it, and where nobody should
LET_GO_S, TRIES = 1.0, 4  # a write that is over has so long to let go of its copy, so many times
DRAWN_CASES = 60
WITHIN = 1.01  # times the least loss
MOST_BYTES = 1_000


@exercise(
    returns=fact(
        "`save` returns while its write is under way",
        "waited",
        "`save` came back only after its own `write`: training waits for the disk. Let a thread write.",
    ),
    values=fact(
        "`write` gets the step, and the numbers that were there when `save` was called",
        "wrong",
        "{wrong}.",
    ),
    alone=fact(
        "there are never two writes at once",
        "together",
        "a second `write` began while the first was under way: a `save` that comes too early waits for it.",
        after=("returns",),
    ),
    copies=at_most(
        "there are never two copies of a state",
        "copies",
        COPIES,
        "at one moment there are {most:.1f} copies of the state. Wait for the write before, let go of its"
        " copy (or use it again), and only then make the next one.",
        after=("returns",),
    ),
    closed=fact(
        "`close` returns when all is written",
        "open",
        "`close` returned before the last `write` was over.",
        after=("returns",),
    ),
    error=fact(
        "an error of `write` is raised by the next `save` or `close`",
        "silent",
        "`write` raised OSError, and {wrong}.",
    ),
)
def background_saver(judge: Judge, make_saver: Callable) -> None:
    """`make_saver(write)` has `save(step, state)`, which copies and lets a thread write, and `close()`."""

    def trial(make_saver, seed):
        import threading
        import time

        on_rank.use_cpu()
        generator = torch.Generator().manual_seed(seed)
        base = torch.randn(4, 100_000, generator=generator)
        state = {
            "params": base[0].view(100, 1000),
            "moments": base[1],
            "step": torch.tensor(3),
            "view": base[2][::2],
        }
        state_bytes = sum(tensor.nbytes for tensor in state.values())
        steps = (5, 9, 14)
        wanted = {step: {name: tensor.clone() for name, tensor in state.items()} for step in steps}
        for times, step in enumerate(steps):  # as often as training will have changed it by then
            for tensor in wanted[step].values():
                for _ in range(times):
                    tensor.add_(1)
        lock, begun, over, wrong, copies = threading.Lock(), [], [], [], []
        found = {"waited": True, "together": True, "wrong": "", "open": True, "silent": ""}
        may_end = {step: threading.Event() for step in steps}

        def write(step, given):
            with lock:
                begun.append(step)
                if len(begun) - len(over) > 1:
                    found["together"] = False
            may_end.get(step, may_end[5]).wait(PATIENCE_S)
            its = wanted.get(step)
            if its is None:
                wrong.append(f"`write` got step {on_rank.short(step)}, and 5, 9 and 14 were saved")
            elif not isinstance(given, dict) or set(given) != set(its):
                wrong.append("`write` must get a dict with the names of the state")
            else:
                for name, tensor in its.items():
                    if not isinstance(given[name], torch.Tensor) or not torch.equal(given[name], tensor):
                        wrong.append(
                            f"of step {step}, {name!r} has other numbers than at the call of `save`: training"
                            " has changed them since then. `clone()` each tensor, before `save` returns"
                        )
                        break
            with lock:
                over.append(step)

        def end_soon(step, after):
            """Let a write end, a moment after somebody has begun to wait for it, or has not waited.

            That is when copies are counted: one that was written before is gone by then, even where the
            thread that wrote it was slow to let go of it.
            """
            end = time.monotonic() + HELD_S
            while time.monotonic() < end and after not in begun:
                time.sleep(0.005)
            copies.append(new.alive_bytes() / state_bytes)
            may_end[step].set()

        def kept(make_saver, state, state_bytes):
            """How many copies there are while one is made, long after the write before.

            A thread that was slow to let go of its copy gets another try; who keeps it has two each time.
            """
            with on_rank.NewTensors() as new:
                saver = make_saver(lambda step, given: None)
                saver.save(0, state)
                for step in range(1, 1 + TRIES):
                    on_rank.wait_until(lambda: not new.alive_bytes(), LET_GO_S, on_rank.SOON_LOOKS)
                    new.peak_bytes = new.alive_bytes()
                    saver.save(step, state)
                    if new.peak_bytes <= COPIES * state_bytes:
                        break
                saver.close()
            return new.peak_bytes / state_bytes

        def held(step, after):
            threading.Thread(target=end_soon, args=(step, after), daemon=True).start()

        with on_rank.NewTensors() as new:
            saver = make_saver(write)
            for before, step in zip((None, *steps), steps):
                if before:
                    held(before, step)
                saver.save(step, state)
                if step in over:
                    found["waited"] = False
                    for event in may_end.values():
                        event.set()
                base.add_(1)
                state["step"].add_(1)
            held(steps[-1], None)
            saver.close()
            found["open"] = steps[-1] in over
        on_rank.wait_until(lambda: len(over) >= len(steps), PATIENCE_S, on_rank.SOON_LOOKS)
        times = {step: over.count(step) for step in steps}
        if not wrong and set(times.values()) != {1}:
            wrong.append(
                f"steps 5, 9 and 14 were written {on_rank.listed(times.values())} times, and not once"
            )
        found["wrong"] = wrong[0] if wrong else ""
        copies.append(kept(make_saver, state, state_bytes))
        found["copies"] = max(copies, default=0.0)

        def fails(step, given):
            raise OSError("no space left on device")

        def told_by(broken, *calls):
            try:
                for call in calls:
                    call(broken)
                    time.sleep(0.05)
            except OSError:
                return ""
            except Exception as error:
                return f"`save` or `close` raised {type(error).__name__}"
            return "neither the next `save` nor `close` did"

        first, second, close = (
            lambda it: it.save(5, state),
            lambda it: it.save(9, state),
            lambda it: it.close(),
        )
        found["silent"] = told_by(make_saver(fails), first, second, close)
        if not found["silent"] and told_by(make_saver(fails), first, close):
            found["silent"] = "where it was the last one, `close` did not tell"
        if not found["silent"] and told_by(make_saver(fails), first, second):
            found["silent"] = "the next `save` did not tell: training would go on without a checkpoint"
        return found

    judge.look(judge.run(trial, make_saver, judge.seed, ranks=1))


def _lost(steps: int, step_s: float, blocked_s: float, write_s: float, restart_s: float, mtbf_s: float):
    """The part of the time that is lost: in saves, and for each failure what is done again, and a restart."""
    interval_s = steps * step_s
    return blocked_s / interval_s + (interval_s / 2 + write_s + restart_s) / mtbf_s


def _drawn(draw: random.Random) -> tuple[float, ...]:
    step_s, blocked_s = draw.uniform(0.2, 20), draw.uniform(0.3, 30)
    write_s, restart_s = blocked_s * draw.choice((1, 2, 40)) + draw.uniform(0, 5), draw.uniform(10, 900)
    return step_s, blocked_s, write_s, restart_s, 50 * (step_s + blocked_s + write_s + restart_s)


@exercise(
    whole="a whole number of steps, at least 1",
    written="they take at least as long as a write",
    least=f"of all such numbers, it loses at most {WITHIN} times the least",
)
def steps_between_saves(judge: Judge, answer: Callable) -> None:
    """`answer(step_s, blocked_s, write_s, restart_s, mtbf_s)` returns after how many steps to save."""
    draw = random.Random(judge.seed)
    cases = [
        (1.0, 2.0, 2.0, 60.0, 10_000.0),
        (10.0, 0.5, 300.0, 600.0, 60_000.0),  # the write decides
        (60.0, 0.01, 1.0, 5.0, 100_000.0),
        (20.0, 0.3, 0.3, 10.0, 1_750.0),  # 1.6 steps: two are better than one
        (20.0, 0.15, 0.15, 10.0, 1_750.0),  # 1.1 steps: one is
        *(_drawn(draw) for _ in range(DRAWN_CASES)),
    ]
    for case, found in zip(cases, judge.call(answer, cases)):
        judge.case = ""
        step_s, blocked_s, write_s, _, mtbf_s = case
        shown = f"for {tuple(round(number, 2) for number in case)} it returned {on_rank.short(repr(found))}"
        steps, least = on_rank.whole(found), max(1, math.ceil(write_s / step_s * (1 - 1e-9)))
        best = max(least, round(math.sqrt(2 * blocked_s * mtbf_s) / step_s))
        best = min((max(least, best - 1), best, best + 1), key=lambda steps: _lost(steps, *case))
        missed = {"whole": "" if steps is not None and steps >= 1 else shown}
        if not any(missed.values()):
            missed["written"] = (
                ""
                if steps >= least
                else f"{shown}: a write takes {write_s / step_s:.1f} steps, and the next save would begin"
                " before it is over"
            )
        if not any(missed.values()):
            times = _lost(steps, *case) / _lost(best, *case)
            advice = ""
            if steps > 1.2 * best and abs(steps * step_s / math.sqrt(2 * write_s * mtbf_s) - 1) < 0.1:
                advice = ". Training waits for `blocked_s` alone, and not for the write"
            missed["least"] = (
                ""
                if times <= WITHIN
                else f"{shown}, and {best} lose less: it loses {times:.2f} times as much{advice}"
            )
        if any(missed.values()):
            for key, why in missed.items():
                judge.demand(key, why)
            return
    for key in ("whole", "written", "least"):
        judge.demand(key, "")


def _few(job: Job) -> str:
    most = (sent_bytes(job) - header_bytes(job)).max()
    if most <= MOST_BYTES:
        return ""
    return (
        f"a rank sends {most:,.0f} bytes. Nobody needs the weights of the others: send a number that depends"
        " on all of them."
    )


@exercise(
    alike=fact("replicas that are alike are all right", "alike"),
    found=fact("a replica that differs is found, and no other", "missed"),
    everyone=fact(
        "every rank gets the same list", "unequal", "rank {rank} returned another list than rank 0."
    ),
    unchanged=fact("the model stays as it is", "unchanged", "the model is another one after the call."),
    bytes=Demand(f"no rank sends more than {MOST_BYTES:,} bytes", _few),
)
def odd_replicas(judge: Judge, answer: Callable) -> None:
    """`answer(model)` returns the ranks whose replica is not that of the majority."""

    def trial(answer, seed):
        on_rank.use_cpu()
        rank, n, draw = dist.get_rank(), dist.get_world_size(), random.Random(seed)

        class Scale(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(()))  # without dimension
                self.fine = nn.Parameter(torch.randn(33, 7).bfloat16())
                self.register_buffer("mask", torch.rand(50) < 0.5)
                self.register_buffer("lost", torch.full((5,), float("nan")))
                self.register_buffer("zeros", torch.zeros(6))
                self.register_buffer("seen", torch.full((4,), 2**60))  # int64, and more than a float64 tells

        def make():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(64, 130), nn.BatchNorm1d(130), nn.Linear(130, 10), Scale())

        def flip(tensor):
            with torch.no_grad():
                flat = tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16).view(-1)
                flat[draw.randrange(len(flat))] ^= 1

        def swap(tensor):
            with torch.no_grad():
                flat = tensor.view(-1)
                flat[[3, 8]] = flat[[8, 3]].clone()

        def two_flips(tensor):
            """One number up and one down: their sum stays."""
            with torch.no_grad():
                flat = tensor.view(torch.int32).view(-1)
                flat[4] += 1
                flat[9] -= 1

        def swap_parameters(model):
            with torch.no_grad():
                model[1].weight.copy_(model[1].bias + 1)
                model[1].bias.copy_(torch.ones(130))

        two = sorted(draw.sample(range(n), 2)) if n > 4 else [draw.randrange(n)]
        one = [draw.randrange(n)]
        CASES = (
            ("nobody", [], lambda model: None),
            ("the lowest bit of a weight", one, lambda model: flip(model[0].weight)),
            ("the lowest bit of a bfloat16", one, lambda model: flip(model[3].fine)),
            ("two weights that have changed places", one, lambda model: swap(model[0].weight)),
            ("two weights that differ, and their sum does not", one, lambda m: two_flips(m[0].weight)),
            ("a weight and a bias that have changed places", one, swap_parameters),
            ("a number without dimension", one, lambda model: model[3].scale.data.add_(1e-6)),
            ("a buffer of whole numbers", one, lambda model: model[1].num_batches_tracked.add_(1)),
            ("a buffer of large whole numbers", one, lambda model: model[3].seen[1].add_(1)),
            ("a buffer of bools", one, lambda model: model[3].mask[7].logical_not_()),
            ("0.0 and -0.0", one, lambda model: model[3].zeros[2].neg_()),
            (f"{len(two)} replicas at once", two, lambda model: model[0].weight.data.add_(rank + 1)),
        )
        found = {"alike": "", "missed": "", "unequal": True, "unchanged": True}
        answers = []
        for what, odd, spoil in CASES:
            model = make()
            if rank in odd:
                spoil(model)
            before = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
            dist.barrier()
            with measure.step():
                told = answer(model)
            after = [*model.parameters(), *model.buffers()]
            found["unchanged"] &= all(
                old.dtype == new.dtype and torch.equal(_bits(old), _bits(new.detach()))
                for old, new in zip(before, after)
            )
            plain = on_rank.plain(told)
            right = isinstance(plain, list) and [on_rank.whole(entry) for entry in plain] == odd
            answers.append(plain)
            if not right:
                shown = on_rank.short(repr(told))
                key = "missed" if odd else "alike"
                if odd:
                    said = f"with {what} on rank {on_rank.listed(odd)} of {n}, your function returned {shown}"
                else:
                    said = f"all replicas are alike, NaNs too, and your function returned {shown}, and not []"
                found[key] = found[key] or said
        everyone = on_rank.everyone(answers)
        found["unequal"] = everyone[rank] == everyone[0]
        return found

    def _bits(tensor):
        return tensor.contiguous().view(-1).view(torch.uint8)

    for ranks in (3, 5):
        if not judge.tried(f"{ranks} ranks", trial, answer, judge.seed, ranks=ranks):
            return
