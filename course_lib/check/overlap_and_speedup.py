"""Checks of the chapter "Overlap and speed-up"."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from course_lib import measure, theory
from course_lib.check import on_rank
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import BYTES_LIMIT, Demand, fact, largest
from course_lib.collectives import COLLECTIVES
from course_lib.models import MLP
from course_lib.record import Job, calls, samples_per_second, sent, step_seconds
from course_lib.stand_ins.sleeping import SleepingNet

__all__ = ["bucketed_overlap", "finish_time", "half_precision_hook", "quoted_rates"]

RELATIVE_ERROR = 1e-5  # float32 gradients, added up in another order, differ by about 1e-7
LAYERS, LAYER_BYTES = 8, 2**19
PATIENCE_S = 12.0  # so long a rank waits for what a right answer does at once, however busy the machine is
# what a hook may call: in its second step DDP itself tells all ranks its order of buckets, in a broadcast
HOOKS = sorted(COLLECTIVES.keys() - {"broadcast"})
HALF_ERROR = 1e-3  # float16 has 11 bits: 2^-11 at most for one number, less for the whole; bfloat16 has 8


def _sent_once(job: Job) -> str:
    its = sent(job, layer="algorithm")[0]
    least = theory.collective_bytes("all_reduce", LAYERS * LAYER_BYTES, job.ranks)
    if 0.98 * least <= its <= BYTES_LIMIT * least:
        return ""
    return (
        f"each rank sends {its:,.0f} bytes, {its / least:.2f} times what an all_reduce of all gradients sends"
        f" ({least:,.0f})"
    )


@exercise(
    gradient="every gradient is the average, in each step, with a frozen parameter and a late rank",
    calls="one all_reduce per full bucket",
    once=Demand("each gradient is sent once", _sent_once),
    overlap=fact(
        "a full bucket leaves at once, and backward waits for none",
        "in_the_way",
        "communication cannot hide behind backward: {wrong}",
    ),
)
def bucketed_overlap(judge: Judge, bucketed: Callable) -> None:
    """`bucketed(model, bucket_bytes)` registers hooks and returns `finish`: averages in few calls, which
    leave at once, while backward goes on.
    """
    draw = random.Random(judge.seed)
    widths = (16, draw.randint(40, 120), draw.randint(20, 60), 10)
    bucket_bytes = draw.choice([1, 6, 8, 12]) * 1024

    def uneven(bucketed):
        """Three steps of an MLP with a frozen parameter. Returns the worst relative error of each step, and
        by what factor it is off.
        """
        torch.manual_seed(judge_seed)
        rank, world_size = dist.get_rank(), dist.get_world_size()
        model, twin = MLP(widths), MLP(widths)
        twin.load_state_dict(model.state_dict())
        for net in (model, twin):
            net.layers[2].bias.requires_grad_(False)
        learning, cases, steps = [p for p in twin.parameters() if p.requires_grad], [], []
        for step in range(3):
            generator = torch.Generator("cpu").manual_seed(judge_seed + 10 * step + rank)
            inputs = torch.randn(4, 16, generator=generator, device="cpu").to(torch.get_default_device())
            own = on_rank.flat(torch.autograd.grad(twin(inputs).square().mean(), learning))
            wanted = own.clone()
            dist.all_reduce(wanted)
            cases.append((inputs, own, wanted / world_size))
        finish = bucketed(model, bucket_bytes)
        if problem := on_rank.first_problem("" if callable(finish) else f"it returned {finish!r:.60}"):
            return problem
        for inputs, own, wanted in cases:
            model.zero_grad()
            model(inputs).square().mean().backward()
            finish()
            grads = [p.grad for p in model.parameters() if p.requires_grad]
            problem = ""
            if any(grad is None for grad in grads):
                problem = "a parameter has lost its gradient"
            elif on_rank.flat(grads).numel() != wanted.numel():
                problem = "a gradient has another shape than its parameter"
            elif model.layers[2].bias.grad is not None:
                problem = "the frozen parameter has got a gradient"
            if problem := on_rank.first_problem(problem):
                return problem
            found = on_rank.flat(grads)
            factor, of_own = on_rank.times(found, wanted, 1e-3), on_rank.times(found, own, 1e-3)
            error = on_rank.apart(found, wanted)
            looks = (
                ""
                if factor is None or abs(factor - 1) < 1e-3
                else f" It is {factor:.3g} times the average: by what do you divide, and how often?"
            )
            if of_own:
                looks = (
                    f" It is this rank's own gradient times {of_own:.3g}: `finish` must wait for each"
                    " all_reduce, divide, and write the result to `p.grad`."
                )
            steps.append((error, looks or on_rank.rounding(error)))
        return steps

    def equal(bucketed, layers_per_bucket):
        """Five steps of a net of equal layers, whose gradients are known: all are the mean of the ranks' x,
        summed. Returns the worst error, and what stands in the way of overlap: in the fourth step each rank
        looks whether a full bucket has left before the next gradient comes, and in the fifth the last rank
        keeps its first bucket back until backward has ended on all others.
        """
        torch.manual_seed(judge_seed)
        net = SleepingNet(LAYERS, LAYER_BYTES, backward_s=0.001)
        rank, last = dist.get_rank(), dist.get_world_size() - 1
        store, calls, arrived, looking = on_rank.store(), on_rank.Calls(), 0, ""
        late = blocked = ""

        def before_the_hooks(p):
            nonlocal arrived, late, blocked
            full = arrived // layers_per_bucket
            if (
                looking == "at once"
                and not late
                and not on_rank.wait_until(lambda: left() >= full, PATIENCE_S)
            ):
                late = (
                    f"{full} bucket{'s were' if full > 1 else ' was'} full, and {left() or 'none'} had left,"
                    " when the next gradient came"
                )
            if looking == "on" and rank == last and arrived == layers_per_bucket - 1:
                if not on_rank.wait_until(
                    lambda: store.check([f"backward/{other}" for other in range(last)]), PATIENCE_S
                ):
                    blocked = (
                        "backward stands still on the other ranks until this rank's first bucket comes, so"
                        " something waits for it inside the hook"
                    )
                on_rank.come_late("finish")  # who does not wait for it has wrong gradients
            arrived += 1

        def left():
            return sum(row["op"] == "all_reduce" for row in calls.rows)

        for weight in net.weights:
            weight.register_post_accumulate_grad_hook(before_the_hooks)
        finish = bucketed(net, layers_per_bucket * LAYER_BYTES)
        x = torch.full((4,), rank + 1.0)
        wanted = 4 * (last + 2) / 2 / (LAYER_BYTES // 4)
        worst = 0.0

        def backward_and_finish():
            nonlocal worst, late
            (net(x) * x).sum().backward()
            if looking == "at once" and not left():
                late = (
                    "no bucket leaves before the last layer's backward, so there is nothing left to hide"
                    " behind"
                )
            if looking == "on":
                store.set(f"backward/{rank}", "")
            finish()
            worst = max([worst, *(abs(weight.grad / wanted - 1).max().item() for weight in net.weights)])
            if looking == "on":
                on_rank.is_back("finish")

        for _ in range(3):
            net.zero_grad()
            with measure.step():
                backward_and_finish()
        net.zero_grad()
        arrived, looking = 0, "at once"
        with calls:
            backward_and_finish()
        if late := on_rank.first_problem(late):
            return {"error": worst, "in_the_way": late}
        net.zero_grad()
        arrived, looking = 0, "on"
        backward_and_finish()
        return {"error": worst, "in_the_way": on_rank.first_problem(blocked)}

    judge_seed = judge.seed
    label = "training with your buckets"
    judge.case = "3 ranks, uneven layers"
    problem = _gradient_problem(judge.run(uneven, bucketed, ranks=3, label=label))
    judge.case += ", one frozen" if not problem else ""
    if not judge.demand("gradient", problem, "every gradient is the average, in each of 3 steps"):
        return
    for layers_per_bucket in (2, 3):
        judge.case = f"{LAYERS} equal layers, buckets of {layers_per_bucket}"
        job = judge.run(equal, bucketed, layers_per_bucket, ranks=4, label=label)
        error = largest(job, "error")
        why = (
            f"a gradient is not the average over the ranks (relative error {error:.2g}). One rank comes late"
            " on purpose: `finish` must wait for it"
        )
        met = judge.demand(
            "gradient", why if not error < RELATIVE_ERROR else "", "every gradient is the average"
        )
        met &= _judge_calls(judge, job, math.ceil(LAYERS / layers_per_bucket))
        met &= judge.look(job, "once", "overlap")
        if not met:
            return


def _gradient_problem(job: Job) -> str:
    for rank, steps in enumerate(job.results):
        if isinstance(steps, str):
            if "it returned" in steps:
                return f"return the function `finish`; {steps.removeprefix('on rank 0 ')}"
            return steps
        for step, (error, looks) in enumerate(steps):
            if not error < RELATIVE_ERROR:
                when = " The steps before it were right: what is left over from them?" if step else ""
                return (
                    f"in step {step}, the gradients on rank {rank} are not the average over the ranks"
                    f" (relative error {error:.2g}).{looks}{when}"
                )
    return ""


def _judge_calls(judge: Judge, job: Job, wanted: int) -> bool:
    called = calls(job, barriers=True).loc[0]
    ops, count = sorted(called[called > 0].index), int(called.sum())
    hint = ""
    if ops == ["all_reduce"]:
        hint = {1: ": everything in one, at the end?", LAYERS: ": one for each parameter?"}.get(
            count,
            ": a bucket is full as soon as it holds `bucket_bytes` bytes or more" if count < wanted else "",
        )
    why = (
        f"one step takes {wanted} all_reduce calls, and you made {count} call{'s' * (count != 1)}"
        f" ({', '.join(ops) or 'none'}){hint}"
    )
    right = count == wanted and ops == ["all_reduce"]
    return judge.demand("calls", "" if right else why, f"{wanted} all_reduce calls")


@exercise(
    time=(
        "right for buckets of all sizes: equal, one alone, a large one first or last, and many that were"
        " drawn"
    ),
    real="a real step with uneven buckets does not disagree (compute sleeps)",
)
def finish_time(judge: Judge, answer: Callable) -> None:
    """`answer(ready_s, send_s)` returns when the last bucket has arrived."""
    cases = {
        "4 equal buckets, computing slower": ([0.02, 0.04, 0.06, 0.08], [0.01] * 4),
        "4 equal buckets, communication slower": ([0.01, 0.02, 0.03, 0.04], [0.02] * 4),
        "one bucket": ([0.08], [0.03]),
        "a large bucket first": ([0.01, 0.02, 0.03], [0.05, 0.001, 0.001]),
        "a large bucket in the middle": ([0.01, 0.02, 0.03, 0.1], [0.001, 0.05, 0.01, 0.002]),
        "a large bucket last": ([0.01, 0.02, 0.06], [0.001, 0.001, 0.05]),
        "all ready at once": ([0.05, 0.05, 0.05], [0.01, 0.02, 0.03]),
    }
    draw = random.Random(judge.seed)
    drawn = []
    for _ in range(40):
        ready_s = sorted(draw.uniform(0, 0.1) for _ in range(draw.randint(1, 8)))
        drawn.append((ready_s, [draw.choice([0.1, 1, 4]) * draw.uniform(0, 0.02) for _ in ready_s]))
    for (name, case), said in zip(cases.items(), judge.call(answer, list(cases.values()))):
        problem = _time_problem(said, *case)
        if not judge.demand("time", problem and f"{name}: {problem}", name):
            return
    problems = (_time_problem(said, *case) for case, said in zip(drawn, judge.call(answer, drawn)))
    problem = next(filter(None, problems), "")
    said = f"{len(drawn)} lists that were drawn"
    if not judge.demand("time", problem and f"lists that were drawn: {problem}", said):
        return

    layers = [8, 1, 1, 4, 2]  # MiB

    def step(layer_s):
        """What each bucket takes alone, and the shortest of three steps whose layers sleep, with them."""
        pieces, works = [torch.zeros(mib * 2**18) for mib in layers], []
        alone = []
        for piece in pieces:
            dist.barrier()
            begin = time.perf_counter()
            dist.all_reduce(piece)
            alone.append(time.perf_counter() - begin)
        measured = []
        for _ in range(3):
            dist.barrier()
            begin = time.perf_counter()
            for piece in pieces:
                time.sleep(layer_s)
                works.append(dist.all_reduce(piece, async_op=True))
            while works:
                works.pop().wait()
            measured.append(time.perf_counter() - begin)
        return alone, min(measured)

    # what a busy machine adds does not grow with the sleeps
    for layer_s in (0.02, 0.06, 0.2):
        alone, measured = judge.run(step, layer_s, ranks=2).results[0]
        case = [layer_s * (k + 1) for k in range(len(layers))], alone
        (said,) = judge.call(answer, [case])
        if (problem := _time_problem(said, *case)) or 1 / 4 < measured / _finish(*case) < 4:
            # on a machine that is too busy to compare, the answer is right by what each bucket took alone
            break
    judge.demand("real", problem and f"a real step with uneven buckets: {problem}")


def _time_problem(said, ready_s: list[float], send_s: list[float]) -> str:
    """What is wrong with a time; "" if nothing."""
    wanted, found = _finish(ready_s, send_s), _number(said)
    if abs(found - wanted) < 1e-9:
        return ""
    near = {
        "backward and then all communication, without overlap": ready_s[-1] + sum(send_s),
        "computing alone": ready_s[-1],
        "communication alone": sum(send_s),
        "backward plus the last bucket": ready_s[-1] + send_s[-1],
        "the first bucket's computing plus all communication": ready_s[0] + sum(send_s),
        "max(B, C), without a tail": max(ready_s[-1], sum(send_s)),
        "each bucket as if the network were free when it is ready": max(
            r + s for r, s in zip(ready_s, send_s)
        ),
        "milliseconds, and not seconds": 1e3 * wanted,
    }
    digits = next((digits for digits in range(2, 9) if abs(found - round(wanted, digits)) < 1e-12), None)
    if digits:
        looks = f" That is the right time, rounded to {digits} digits: return it as it is."
    elif abs(found - wanted) < 1e-6 * wanted:
        looks = " That is the precision of float32: compute in Python's own numbers, or in float64."
    else:
        looks = next((f" That is {text}." for text, value in near.items() if abs(found - value) < 1e-9), "")
    shown = [[float(f"{value:.4g}") for value in times] for times in (ready_s, send_s)]
    exact = abs(found - wanted) < 1e-3 * wanted  # then only more digits show the difference
    return (
        f"ready at {shown[0]}, sending takes {shown[1]}: the last one arrives at"
        f" {wanted:{'.10f' if exact else '.3f'}} s, and you say"
        f" {f'{found:.10f}' if exact else f'{said!r:.40}'}.{looks}"
    )


def _number(value) -> float:
    """A number of any library as a float; nan for what is no number."""
    try:
        return math.nan if isinstance(value, str) else float(value)
    except Exception:
        return math.nan


def _finish(ready_s: list[float], send_s: list[float]) -> float:
    end = 0.0
    for ready, send in zip(ready_s, send_s):
        end = max(end, ready) + send
    return end


def _halved(job: Job) -> str:
    worst = max(job.results, key=lambda found: found["error"] if found["finite"] else math.inf)
    if not worst["finite"]:
        return (
            f"the result has inf or nan. The sum over {job.ranks} ranks is above 65,504, the largest fp16"
            " number: divide before you send"
        )
    if worst["error"] < HALF_ERROR:
        return ""
    why, factor = f"the relative error is {worst['error']:.2g}, and {HALF_ERROR} is asked.", worst["factor"]
    if factor is not None and abs(factor - 1) > 0.01:
        why += f" It is {factor:.3g} times the average: by what do you divide?"
    return why


def _one_each(job: Job) -> str:
    ops, buckets = list(_of_the_hook(job)["op"]), job.results[0]["buckets"]
    if ops == ["all_reduce"] * buckets:
        return ""
    return (
        f"one all_reduce per bucket is enough, and for {buckets} buckets you call {', '.join(ops) or 'none'}"
    )


def _of_the_hook(job: Job) -> pd.DataFrame:
    """The calls of rank 0."""
    return job.comm[(job.comm["rank"] == 0) & job.comm["op"].isin(HOOKS)]


@exercise(
    average="the average, with the precision of fp16, of small gradients and of very large ones",
    fp32=fact("as a flat fp32 tensor", "fp32"),
    payload="the payload is half of P",
    calls=Demand("one all_reduce per bucket", _one_each),
)
def half_precision_hook(judge: Judge, hook: Callable) -> None:
    """`hook(state, bucket)` averages a bucket through float16: half the bytes, one call, no overflow."""
    widths = (64, 512, 10)
    numel = 64 * 512 + 512 + 512 * 10 + 10

    def train(hook, scale):
        buckets, strange = 0, ""

        # DDP is strict about names of arguments, and some answers would crash it
        def checked(state, bucket):
            nonlocal buckets, strange
            buckets += 1
            future = hook(state, bucket)
            if not hasattr(future, "then"):
                raise TypeError(
                    "the hook must return a Future (as `work.get_future()` gives one), and returned a"
                    f" {type(future).__name__}"
                )
            value = future.wait()
            if not isinstance(value, torch.Tensor):
                raise TypeError(
                    f"the value of the hook's Future must be the flat tensor, and is a {type(value).__name__}"
                )
            if value.dtype != torch.float32 or value.numel() != bucket.buffer().numel():
                strange = (
                    "the value of the hook's Future must be the flat fp32 tensor of"
                    f" {bucket.buffer().numel():,} numbers, and is {str(value.dtype).removeprefix('torch.')}"
                    f" of {value.numel():,}"
                )
            return future

        torch.manual_seed(seed)
        model, twin = MLP(widths), MLP(widths)
        twin.load_state_dict(model.state_dict())
        generator = torch.Generator("cpu").manual_seed(seed + dist.get_rank() % 2)
        inputs = torch.randn(8, 64, generator=generator, device="cpu").to(torch.get_default_device())

        def loss(net, factor):
            return net(inputs).square().mean() * factor

        wanted = on_rank.flat(torch.autograd.grad(loss(twin, 1.0), list(twin.parameters())))
        shared = torch.tensor([scale / wanted.abs().max().item()])
        dist.all_reduce(shared, op=dist.ReduceOp.MIN)
        wanted = wanted * shared
        dist.all_reduce(wanted)
        wanted /= dist.get_world_size()
        parallel = DistributedDataParallel(model, bucket_cap_mb=0.01)  # several buckets
        parallel.register_comm_hook(None, checked)
        for _ in range(3):
            buckets = 0
            parallel.zero_grad()
            with measure.step(parallel):
                loss(parallel, shared.item()).backward()
        found = on_rank.flat(p.grad for p in model.parameters())
        return {
            "error": on_rank.apart(found, wanted),
            "factor": on_rank.times(found, wanted, 1e-2),
            "finite": bool(torch.isfinite(found).all()),
            "fp32": strange,
            "buckets": buckets,
        }

    seed = judge.seed
    for name, scale, ranks in (
        ("gradients of usual size", 1.0, 3),
        ("gradients up to 40,000", 40_000.0, 4),
    ):
        judge.case = name
        job = judge.run(train, hook, scale, ranks=ranks, label="training with your hook")
        judge.demand("average", _halved(job), "the average, with the precision of fp16")
        judge.look(job, "fp32")
        its, half = int(sent(job, layer="payload", ops=HOOKS)[0]), 2 * numel
        dtypes = ", ".join(sorted(set(_of_the_hook(job)["dtype"]))) or "nothing was sent"
        why = f"the payload of a step is {its:,} bytes ({dtypes}), and half of P is {half:,}"
        said = f"the payload is half of P, {half:,} bytes"
        judge.demand("payload", why if its != half else "", said)
        if not judge.look(job, "calls"):
            return


@exercise(
    samples_per_s="samples_per_s, of all ranks, by the median step of the slowest rank",
    collectives_per_s="collectives_per_s, of one rank",
    sent_per_s="sent_per_s, of one rank, by the algorithm",
)
def quoted_rates(judge: Judge, rates: Callable) -> None:
    """`rates(job)`: samples_per_s, collectives_per_s and sent_per_s of a job whose ranks are not alike."""

    def uneven():
        rank = dist.get_rank()
        for step in range(6):
            with measure.step(samples=6 - 2 * rank):
                time.sleep((0.02 if rank == 2 else 0.002) + (0.03 if step == 4 else 0.0))
                for _ in range(3):
                    dist.all_reduce(torch.zeros(30_000))

    job = judge.run(uneven, ranks=3)
    if _judge_rates(judge, job, *judge.call(rates, [(job,)]), "") and judge.met:
        other = _another(job, random.Random(judge.seed))
        _judge_rates(
            judge, other, *judge.call(rates, [(other,)]), "of a job with other numbers, made from that one, "
        )


def _another(job: Job, draw: random.Random) -> Job:
    """The same job, with times, samples and payloads of its own; in each step another rank is the slowest."""
    steps = [
        row
        | {
            # more of all ranks than the first job's
            "samples": draw.randint(5, 9) + row["rank"] if row["step"] < 1 else None,
            "seconds": (
                row["seconds"]
                and draw.uniform(0.01, 0.02) * (2.5 if row["step"] % job.ranks == row["rank"] else 1)
            ),
        }
        for row in job.records["steps"]
    ]
    samples = {row["rank"]: row["samples"] for row in steps if row["step"] == 0}
    times, calls = draw.uniform(2, 3), draw.randint(1, 2)
    comm = [
        row
        | {
            "payload_bytes": int(times * row["payload_bytes"]),
            "algorithm_bytes": times * row["algorithm_bytes"],
        }
        for row in job.records["comm"]
        for _ in range(calls)
    ]
    return replace(
        job,
        records=job.records
        | {
            "steps": [row | {"samples": samples[row["rank"]]} for row in steps],
            "comm": comm,
        },
    )


def _judge_rates(judge: Judge, job: Job, found, which: str) -> bool:
    """Demand the three rates, as the tables of the job give them; `which`: words for a job that is not the
    first one.
    """
    timed, slowest = job.steps[job.steps["phase"] == "timed"], step_seconds(job)
    step_s = float(slowest.median())
    wanted = {
        "samples_per_s": samples_per_second(job),
        "collectives_per_s": calls(job).loc[0].sum() / step_s,
        "sent_per_s": sent(job, layer="algorithm")[0] / step_s,
    }
    other_steps = {
        "the shortest step, and not the median": float(slowest.min()),
        "the median of the slowest rank: the slowest may be another one in each step": float(
            timed.groupby("rank")["seconds"].median().max()
        ),
        "the mean over the timed steps, where one slow step counts too much": float(slowest.mean()),
        "the median over all ranks and steps, and not of the slowest rank": float(timed["seconds"].median()),
        "the mean over all ranks and steps": float(timed["seconds"].mean()),
        "the time of rank 0 alone": float(timed.loc[timed["rank"] == 0, "seconds"].median()),
        "the time of the whole job, its start included": job.seconds,
    }
    if not isinstance(found, dict) or set(found) != set(wanted):
        judge.refuse(
            f"return a dict with the keys {', '.join(wanted)}, not {' '.join(repr(found).split())[:80]}"
        )
    met = True
    for name, value in wanted.items():
        got = _number(found[name])
        if math.isnan(got):
            met = judge.demand(
                name, f"{name} must be a number, and is {' '.join(repr(found[name]).split())[:60]}"
            )
            continue
        guesses = {text: value * step_s / seconds for text, seconds in other_steps.items()}
        if name == "samples_per_s":
            guesses |= {
                "what rank 0 alone does; the rate counts the samples of all ranks": (
                    float(timed.loc[timed["rank"] == 0, "samples"].median()) / step_s
                ),
                "the samples of all timed steps over the time of one": timed["samples"].sum() / step_s,
            }
        else:
            guesses["the sum over all ranks"] = job.ranks * value
        if name == "sent_per_s":
            guesses["the payload, and not what the algorithm sends for it"] = (
                sent(job, layer="payload")[0] / step_s
            )
            guesses["the bytes on the wire; the exercise asks for the algorithm bytes"] = (
                sent(job, list(slowest.index))[0] / step_s
            )
        # two of them may be the same time of the same rank
        like = [text for text, guess in guesses.items() if abs(got - guess) <= 1e-6 * guess]
        looks = f": it looks like {', or '.join(like)}" if like else ""
        right = abs(got - value) <= 1e-6 * value
        # of the other job nothing is said where all is right
        if not which or not right:
            why = f"{which}{name} is {got / value:.4g} times what it should be{looks}"
            met &= judge.demand(name, "" if right else why, name)
    return met
