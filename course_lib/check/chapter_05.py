"""Checks of chapter 05, "Overlap and speed-up".

What a rank runs stands inside each check: it travels by value, so that a rank never imports this package (and pandas with it).
"""
import math
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from course_lib import measure, theory
from course_lib.check.judge import Judge, exercise
from course_lib.job import Job
from course_lib.models import MLP
from course_lib.overlap import overlap
from course_lib.sleeping import SleepingNet

__all__ = ["bucketed_overlap", "finish_time", "half_precision_hook", "quoted_rates"]

RELATIVE_ERROR = 1e-5               # float32 gradients, added up in another order, differ by about 1e-7
LAYERS, LAYER_BYTES = 8, 2**19
LAYER_S = 0.02                      # the backward of one layer sleeps so long
HIDDEN_LEAST = 0.2                  # of what could be hidden; a good answer hides 0.7 and more, also on a busy machine
HALF_ERROR = 1e-3                   # float16 has 11 bits: 2^-11 at most for one number, less for the whole; bfloat16 has 8
TIMEOUT_S = 30.0


@exercise
def bucketed_overlap(judge: Judge, bucketed: Callable) -> None:
    """`bucketed(model, bucket_bytes)` registers hooks and returns `finish`: averages in few calls, hidden behind backward."""
    def uneven(bucketed):
        """Three steps of an MLP with a frozen parameter. Returns the worst relative error of each step, and by what factor it is off."""
        torch.manual_seed(0)
        rank, world_size = dist.get_rank(), dist.get_world_size()
        model, twin = MLP((16, 96, 32, 10)), MLP((16, 96, 32, 10))
        twin.load_state_dict(model.state_dict())
        for net in (model, twin):
            net.layers[2].bias.requires_grad_(False)
        learning = [p for p in twin.parameters() if p.requires_grad]
        finish, steps = bucketed(model, 8 * 1024), []
        if not callable(finish):
            return f"it returned {finish!r:.60}"
        for step in range(3):
            model.zero_grad()
            inputs = torch.randn(4, 16, generator=torch.Generator("cpu").manual_seed(10 * step + rank), device="cpu").to(torch.get_default_device())
            wanted = torch.autograd.grad(twin(inputs).square().mean(), learning)
            model(inputs).square().mean().backward()
            finish()
            wanted = torch.cat([gradient.flatten() for gradient in wanted])
            own = wanted.clone()
            dist.all_reduce(wanted)
            wanted /= world_size
            grads = [p.grad for p in model.parameters() if p.requires_grad]
            if any(grad is None for grad in grads):
                return "a parameter has lost its gradient"
            if model.layers[2].bias.grad is not None:
                return "the frozen parameter has got a gradient"
            found = torch.cat([grad.flatten() for grad in grads])
            factor, of_own = times(found, wanted), times(found, own)
            looks = "" if factor is None else f" It is {factor:.3g} times the average: by what do you divide, and how often?"
            if of_own:
                looks = (f" It is this rank's own gradient times {of_own:.3g}: `finish` must wait for each all_reduce, divide, "
                         "and write the result to `p.grad`.")
            steps.append((((found - wanted).norm() / wanted.norm()).item(), looks))
        return steps

    def times(found, wanted):
        """The factor by which `found` is `wanted`, or None."""
        factor = ((found @ wanted) / (wanted @ wanted)).item()
        return factor if (found - factor * wanted).norm() < 1e-3 * wanted.norm() else None

    def asleep(bucketed, layers_per_bucket, layer_s):
        """Six steps of a net that sleeps. Returns the worst error of its gradients, which are known: all are the mean of the ranks' x, summed."""
        torch.manual_seed(0)
        net = SleepingNet(LAYERS, LAYER_BYTES, backward_s=layer_s)
        finish = bucketed(net, layers_per_bucket * LAYER_BYTES)
        x = torch.full((4,), dist.get_rank() + 1.0)
        wanted = 4 * (dist.get_world_size() + 1) / 2 / (LAYER_BYTES // 4)
        worst = 0.0
        for _ in range(3):
            net.zero_grad()
            with measure.step():
                (net(x) * x).sum().backward()
                finish()
            worst = max([worst, *(abs(weight.grad / wanted - 1).max().item() for weight in net.weights)])
        return worst

    uneven.__name__ = asleep.__name__ = "training with your buckets"
    job = judge.run(uneven, bucketed, ranks=3, timeout=TIMEOUT_S)
    problem = _gradient_problem(job)
    if not judge.demand(not problem, "3 ranks, uneven layers, one frozen: every gradient is the average, in each of 3 steps", f"3 ranks, uneven layers: {problem}"):
        return
    for layers_per_bucket, layer_s in ((2, LAYER_S), (3, LAYER_S / 10)):
        job = judge.run(asleep, bucketed, layers_per_bucket, layer_s, ranks=4, timeout=TIMEOUT_S)
        name = f"8 equal layers, buckets of {layers_per_bucket}"
        judge.demand(max(job.results) < RELATIVE_ERROR, f"{name}: every gradient is the average",
                     f"{name}: a gradient is not the average over the ranks (relative error {max(job.results):.2g})")
        _judge_calls(judge, name, job, math.ceil(LAYERS / layers_per_bucket))
        if layer_s == LAYER_S:
            _judge_overlap(judge, name, job)


def _gradient_problem(job: Job) -> str:
    for rank, steps in enumerate(job.results):
        if isinstance(steps, str):
            return f"on rank {rank}, {steps}" if not steps.startswith("it returned") else f"return the function `finish`; {steps}"
        for step, (error, looks) in enumerate(steps):
            if not error < RELATIVE_ERROR:
                when = " The steps before it were right: what is left over from them?" if step else ""
                return f"in step {step}, the gradients on rank {rank} are not the average over the ranks (relative error {error:.2g}).{looks}{when}"
    return ""


def _judge_calls(judge: Judge, name: str, job: Job, wanted: int) -> None:
    mine = job.comm[job.comm["rank"] == 0]
    others = sorted(set(mine["op"]) - {"all_reduce"})
    P = LAYERS * LAYER_BYTES
    count = len(mine)
    hint = ""
    if not others:
        hint = {0: "", 1: ": everything in one, at the end?", LAYERS: ": one for each parameter?"}.get(
            count, ": a bucket is full as soon as it holds `bucket_bytes` bytes or more" if count < wanted else "")
    judge.demand(count == wanted and not others, f"{name}: {wanted} all_reduce calls",
                 f"{name}: one step takes {wanted} all_reduce calls, and you made {count} call{'s' * (count != 1)} ({', '.join(sorted(set(mine['op']))) or 'none'}){hint}")
    sent, least = mine["algorithm_bytes"].sum(), theory.collective_bytes("all_reduce", P, job.ranks)
    judge.demand(sent <= 1.02 * least, f"{name}: each gradient is sent once",
                 f"{name}: each rank sends {sent:,.0f} bytes, {sent / least:.2f} times what an all_reduce of all gradients sends ({least:,.0f})")


def _judge_overlap(judge: Judge, name: str, job: Job) -> None:
    """Intervals of the traced step where there are any (gloo); elsewhere the moment of the first call, before the last layer's backward."""
    spans = job.timeline[job.timeline["kind"] == "span"]
    last_layer_s = spans[spans["name"] == "B0"].groupby("rank")["start_s"].min()
    first_call_s = job.comm.groupby("rank")["start_s"].min()
    early = bool(len(first_call_s)) and bool((first_call_s < last_layer_s).all())
    if "collective times" in job.absent:
        judge.demand(early, f"{name}: the first bucket leaves before backward has ended", f"{name}: no bucket leaves before backward has ended")
        return
    times = overlap(job, kinds=("span",))             # what sleeps; copies of gradients after backward hide nothing
    could = times[["compute_s", "communication_s"]].min(axis=1)
    hidden = (times["both_s"] / could).mean() if (could > 0).all() else 0.0
    why = ("each all_reduce is over before the next layer computes, so something waits for it inside the hook" if early
           else "no bucket leaves before the last layer's backward, so there is nothing left to hide behind")
    judge.demand(hidden >= HIDDEN_LEAST, f"{name}: communication hides behind backward (compute sleeps)",
                 f"{name}: only {hidden:.0%} of what could be hidden behind backward is hidden, and {HIDDEN_LEAST:.0%} is asked (compute sleeps): {why}")


@exercise
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
    for name, (ready_s, send_s) in cases.items():
        wanted = _finish(ready_s, send_s)
        said = answer(list(ready_s), list(send_s))
        found = _number(said)
        near = {"backward and then all communication, without overlap": ready_s[-1] + sum(send_s), "computing alone": ready_s[-1],
                "communication alone": sum(send_s), "backward plus the last bucket": ready_s[-1] + send_s[-1],
                "the first bucket's computing plus all communication": ready_s[0] + sum(send_s),
                "max(B, C), without a tail": max(ready_s[-1], sum(send_s)),
                "each bucket as if the network were free when it is ready": max(r + s for r, s in zip(ready_s, send_s)),
                "milliseconds, and not seconds": 1e3 * wanted}
        looks = next((f" That is {text}." for text, value in near.items() if abs(found - value) < 1e-9), "")
        if not judge.demand(abs(found - wanted) < 1e-9, name, f"{name}: ready at {ready_s}, sending takes {send_s}: "
                            f"the last one arrives at {wanted:.3f} s, and you say {said!r:.40}.{looks}"):
            return

    layers = [8, 1, 1, 4, 2]                          # MiB; the backward of each sleeps 20 ms

    def step():
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
                time.sleep(LAYER_S)
                works.append(dist.all_reduce(piece, async_op=True))
            while works:
                works.pop().wait()
            measured.append(time.perf_counter() - begin)
        return alone, min(measured)

    job = judge.run(step, ranks=2, timeout=TIMEOUT_S)
    alone, measured = job.results[0]
    predicted = _number(answer([LAYER_S * (k + 1) for k in range(len(layers))], alone))
    judge.demand(predicted / 4 < measured < 4 * predicted, "a real step with uneven buckets agrees (compute sleeps)",
                 f"a real step with uneven buckets took {measured * 1e3:.0f} ms, and your function says {predicted * 1e3:.0f} ms")


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


@exercise
def half_precision_hook(judge: Judge, hook: Callable) -> None:
    """`hook(state, bucket)` averages a bucket through float16: half the bytes, one call, no overflow."""
    widths = (64, 512, 10)
    numel = 64 * 512 + 512 + 512 * 10 + 10

    def train(hook, scale):
        def checked(state, bucket):               # DDP is strict about names of arguments, and some answers would crash it
            future = hook(state, bucket)
            if not hasattr(future, "then"):
                raise TypeError(f"the hook must return a Future (as `work.get_future()` gives one), and returned a {type(future).__name__}")
            value = future.wait()
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"the value of the hook's Future must be the flat tensor, and is a {type(value).__name__}")
            return future

        torch.manual_seed(0)
        model, twin = MLP(widths), MLP(widths)
        twin.load_state_dict(model.state_dict())
        parallel = DistributedDataParallel(model)
        parallel.register_comm_hook(None, checked)
        inputs = torch.randn(8, 64, generator=torch.Generator("cpu").manual_seed(dist.get_rank() % 2), device="cpu").to(torch.get_default_device())

        def loss(net, factor):
            return net(inputs).square().mean() * factor

        wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss(twin, 1.0), list(twin.parameters()))])
        shared = torch.tensor([scale / wanted.abs().max().item() if scale else 1.0])
        dist.all_reduce(shared, op=dist.ReduceOp.MIN)
        wanted = wanted * shared
        dist.all_reduce(wanted)
        wanted /= dist.get_world_size()
        for _ in range(3):
            parallel.zero_grad()
            with measure.step(parallel):
                loss(parallel, shared.item()).backward()
        found = torch.cat([p.grad.flatten() for p in model.parameters()])
        factor = ((found @ wanted) / (wanted @ wanted)).item()
        if not (found - factor * wanted).norm() < 1e-2 * wanted.norm():
            factor = None                         # another direction, and not only another length
        return ((found - wanted).norm() / wanted.norm()).item(), factor, bool(torch.isfinite(found).all())

    train.__name__ = "training with your hook"
    for name, scale in (("gradients of usual size", None), ("gradients up to 40,000", 40_000.0)):
        job = judge.run(train, hook, scale, ranks=4, timeout=TIMEOUT_S)
        error, factor, finite = max(job.results, key=lambda result: result[0] if result[2] else math.inf)
        if not finite:
            judge.demand(False, "", f"{name}: the result has inf or nan. The sum over 4 ranks is above 65,504, the largest fp16 number: divide before you send")
        else:
            looks = f" It is {factor:.3g} times the average: by what do you divide?" if factor is not None and abs(factor - 1) > 0.01 else ""
            judge.demand(error < HALF_ERROR, f"{name}: the average, with the precision of fp16",
                         f"{name}: the relative error is {error:.2g}, and {HALF_ERROR} is asked.{looks}")
    mine = job.comm[(job.comm["rank"] == 0) & (job.comm["op"] != "broadcast")]        # in its second step DDP tells all ranks its order of buckets
    sent = int(mine["payload_bytes"].sum())
    judge.demand(sent == 2 * numel, f"the payload is half of P: {2 * numel:,} bytes",
                 f"the payload of a step is {sent:,} bytes ({', '.join(sorted(set(mine['dtype']))) or 'nothing was sent'}), and half of P is {2 * numel:,}")
    judge.demand(list(mine["op"]) == ["all_reduce"], "one all_reduce per bucket", f"one all_reduce per bucket is enough, and you call {', '.join(mine['op']) or 'none'}")


@exercise
def quoted_rates(judge: Judge, rates: Callable) -> None:
    """`rates(job)` returns samples_per_s, collectives_per_s and sent_per_s of a job whose ranks are not alike."""
    def uneven():
        rank = dist.get_rank()
        for step in range(6):
            with measure.step(samples=6 - 2 * rank):
                time.sleep((0.02 if rank == 2 else 0.002) + (0.03 if step == 4 else 0.0))
                for _ in range(3):
                    dist.all_reduce(torch.zeros(30_000))

    job = judge.run(uneven, ranks=3, timeout=TIMEOUT_S)
    timed = job.steps[job.steps["phase"] == "timed"]
    slowest = timed.groupby("step")["seconds"].max()
    step_s = float(slowest.median())
    sent = 3 * theory.collective_bytes("all_reduce", 4 * 30_000, 3)
    wanted = {"samples_per_s": 12 / step_s, "collectives_per_s": 3 / step_s, "sent_per_s": sent / step_s}
    other_steps = {"the shortest step, and not the median": float(slowest.min()),
                   "the median of the slowest rank: the slowest may be another one in each step": float(timed.groupby("rank")["seconds"].median().max()),
                   "the mean over the timed steps, where one slow step counts too much": float(slowest.mean()),
                   "the median over all ranks and steps, and not of the slowest rank": float(timed["seconds"].median()),
                   "the mean over all ranks and steps": float(timed["seconds"].mean()),
                   "the time of rank 0 alone": float(timed.loc[timed["rank"] == 0, "seconds"].median()),
                   "the time of the whole job, its start included": job.seconds}
    found = rates(job)
    if not isinstance(found, dict) or set(found) != set(wanted):
        judge.demand(False, "", f"return a dict with the keys {', '.join(wanted)}, not {' '.join(repr(found).split())[:80]}")
        return
    for name, value in wanted.items():
        got = _number(found[name])
        if math.isnan(got):
            judge.demand(False, "", f"{name} must be a number, and is {' '.join(repr(found[name]).split())[:60]}")
            continue
        guesses = {text: value * step_s / seconds for text, seconds in other_steps.items()}
        if name == "samples_per_s":
            guesses |= {"what rank 0 alone does; the rate counts the samples of all ranks": 6 / step_s,
                        "the samples of all timed steps over the time of one": timed["samples"].sum() / step_s}
        else:
            guesses["the sum over all ranks"] = 3 * value
        if name == "sent_per_s":
            guesses["the payload, and not what the algorithm sends for it"] = 3 * 4 * 30_000 / step_s
            guesses["the bytes on the wire; the exercise asks for the algorithm bytes"] = float(timed.loc[timed["rank"] == 0, "wire_bytes"].median()) / step_s
        looks = next((f": it looks like {text}" for text, guess in guesses.items() if abs(got - guess) <= 1e-6 * guess), "")
        judge.demand(abs(got - value) <= 1e-6 * value, name, f"{name} is {got / value:.4g} times what it should be{looks}")
