"""Checks of chapter 04, "Distributed data parallel".

What a rank runs stands inside each check: it travels by value, so that a rank never imports this package (and pandas with it).
"""
import tempfile
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.nn import functional as F

from course_lib import measure, theory
from course_lib.check.judge import Judge, exercise
from course_lib.datasets import digits
from course_lib.job import Job
from course_lib.models import MLP, TinyGPT

__all__ = ["own_ddp", "one_synchronisation", "checkpoint"]

ERROR_LIMIT = 1e-9                  # relative, in float64: rounding stays a thousand times below it, and no mistake does
BYTES_LIMIT = 1.02                  # times what a ring all_reduce of the gradients sends
TIMEOUT_S = 20.0


@exercise
def own_ddp(judge: Judge, make_ddp: Callable) -> None:
    """`make_ddp(module)` starts all ranks from rank 0's weights, and averages the gradients once per update, in the last micro-batch's backward."""
    UPDATES = 4

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
        if isinstance(model, Scaled):
            images, labels = (all_[update * samples:(update + 1) * samples] for all_ in digits())
            return images.double(), labels
        return (torch.arange(samples * 9).add(update).pow(3).remainder(251).view(samples, 9),)          # tokens without a pattern that matters

    def loss_of(model, batch):
        return model(batch[0]) if len(batch) == 1 else F.cross_entropy(model(batch[0]), batch[1])

    def learning(model):
        return [p for p in model.parameters() if p.requires_grad]

    def flat(tensors):
        return torch.cat([t.detach().flatten() for t in tensors])

    def apart(a, b):
        return ((a - b).norm() / b.norm()).item()

    def train(make_model, make_ddp, num_micro_batches):
        import contextlib

        def gradient(batch):
            return flat(torch.autograd.grad(loss_of(one, batch), learning(one)))

        torch.set_default_dtype(torch.float64)
        rank, n, k = dist.get_rank(), dist.get_world_size(), num_micro_batches
        torch.manual_seed(rank)
        module = make_model()
        torch.manual_seed(0)
        one = make_model()                        # what one process has, which trains on the whole batch
        ddp = make_ddp(module)
        found = {"start": apart(flat(module.parameters()), flat(one.parameters())), "gradient": 0.0, "moved": 0.0, "looks": "",
                 "buffers": all(map(torch.equal, module.buffers(), one.buffers())), "P": flat(learning(one)).nbytes, "other": ""}
        module.load_state_dict(one.state_dict())  # so that each step of the exercise is judged by itself
        optimizer, optimizer_of_one = (torch.optim.Adam(learning(model), 0.003) for model in (module, one))
        for update in range(UPDATES):
            whole = data(one, 4 * n * k, update)
            pieces = list(zip(*(tensor.split(4) for tensor in whole)))        # micro-batch by micro-batch, and in each rank by rank
            optimizer.zero_grad()
            before = flat(module.parameters())
            with measure.step(module, optimizer):
                for number in range(k):
                    with ddp.no_sync() if number < k - 1 else contextlib.nullcontext():
                        (loss_of(ddp, pieces[number * n + rank]) / k).backward()
            found["moved"] = max(found["moved"], apart(flat(module.parameters()), before))
            if any(p.grad is None or p.grad.shape != p.shape for p in learning(module)):
                return found | {"other": "a parameter has no gradient after backward, or one of another shape"}
            if any(p.grad is not None for p in module.parameters() if not p.requires_grad):
                return found | {"other": "a frozen parameter has got a gradient"}
            grad, full = flat(p.grad for p in learning(module)), gradient(whole)
            if update == 0 and apart(grad, full) > ERROR_LIMIT:
                by_micro_batch = [[gradient(piece) / k for piece in pieces[i * n:(i + 1) * n]] for i in range(k)]
                own = [by_rank[rank] for by_rank in by_micro_batch]
                guesses = {
                    "the sum over the ranks, not their average: divide by the world size": full * n,
                    "divided by the world size twice": full / n,
                    "this rank's own gradient: nothing was averaged": sum(own),
                    "averaged in the last micro-batch alone: a hook of `register_hook` sees the gradient of one backward, and one of "
                    "`register_post_accumulate_grad_hook` finds the whole in `p.grad`": sum(own[:-1]) + sum(by_micro_batch[-1]) / n,
                    "the sum of sums: `p.grad` was summed over the ranks again in every micro-batch":
                        sum(n ** (k - i) * sum(by_rank) / n for i, by_rank in enumerate(by_micro_batch)),
                }
                found["looks"] = next((text for text, guess in guesses.items() if apart(grad, guess) < 1e-6), "")
            found["gradient"] = max(found["gradient"], apart(grad, full))
            optimizer.step()
            for p, part in zip(learning(one), full.split([p.numel() for p in learning(one)])):
                p.grad = part.view_as(p)
            optimizer_of_one.step()
        return found | {"weights": apart(flat(module.parameters()), flat(one.parameters()))}

    train.__name__ = "your DDP"
    for what, make_model, ranks, k in (("an MLP with a buffer", Scaled, 2, 3), ("a TinyGPT with tied and frozen weights", gpt, 3, 2)):
        job = judge.run(train, make_model, make_ddp, k, ranks=ranks, timeout=TIMEOUT_S)
        case = f"{what}, {ranks} ranks"
        _judge_start(judge, case, job.results)
        _judge_values(judge, case, job, UPDATES)
        _judge_bytes(judge, f"{case}, {k} micro-batches", job, job.results[0]["P"], k)


def _judge_start(judge: Judge, case: str, results: list[dict]) -> None:
    apart = [rank for rank, found in enumerate(results) if found["start"] > 0]
    if judge.demand(not apart, f"{case}: all ranks start with the weights of rank 0",
                    f"{case}: rank {max(apart, default=0)} does not start with the weights of rank 0. Broadcast them from rank 0 when the wrapper is made: "
                    "ranks that start apart stay apart, however well their gradients are averaged."):
        judge.demand(all(found["buffers"] for found in results), f"{case}: and with its buffers",
                     f"{case}: the parameters start equal, but a buffer does not. `module.buffers()` must be broadcast too.")


def _judge_values(judge: Judge, case: str, job: Job, updates: int) -> None:
    wrong = next((found["other"] for found in job.results if found["other"]), "")
    if wrong:
        judge.demand(False, "", f"{case}: {wrong}.")
        return
    moved, error = (max(found[name] for found in job.results) for name in ("moved", "gradient"))
    judge.demand(moved < ERROR_LIMIT, f"{case}: forward and backward leave the weights alone",
                 f"{case}: your wrapper changes the weights during forward or backward. It averages weights, and it should average gradients: "
                 "the hook gets the parameter, and the gradient is its `.grad`. (Averaged weights equal averaged gradients for plain SGD only, and this is Adam.)")
    looks = next((f" It is {found['looks']}." for found in job.results if found["looks"]), "")
    if judge.demand(error < ERROR_LIMIT, f"{case}: every gradient is that of the whole batch",
                    f"{case}: the gradient is not that of the whole batch (relative error {error:.2g}).{looks}"):
        weights = max(found["weights"] for found in job.results)
        judge.demand(weights < ERROR_LIMIT, f"{case}: after {updates} updates with Adam, the weights are those of one process",
                     f"{case}: after {updates} updates the weights are not those of one process (relative error {weights:.2g}).")


def _judge_bytes(judge: Judge, case: str, job: Job, gradient_bytes: int, micro_batches: int) -> None:
    """Demand one synchronisation in the traced step, and no more bytes than one ring all_reduce of the gradients."""
    ring = theory.collective_bytes("all_reduce", gradient_bytes, job.ranks)
    calls = job.comm[~job.comm["op"].isin(["broadcast", "barrier"])]          # buffers may travel beside the gradients
    times = calls.groupby("rank")["algorithm_bytes"].sum().max() / ring if len(calls) else 0.0
    used = ", ".join(f"{count} {op}" for op, count in calls[calls["rank"] == 0]["op"].value_counts().items())
    gathers = "all_gather" in set(calls["op"]) and "reduce_scatter" not in set(calls["op"])
    if not gathers:
        why = ("nothing was summed: the gradients of the other ranks cannot have come into yours" if times == 0 else
               f"the gradients travelled {times:.2f} times ({used})" + (": once in every micro-batch. Under `no_sync` nothing may be sent: gradients "
               "add up in `.grad`, and the last backward sends the sum" if micro_batches * 0.95 < times < micro_batches * 1.05 else ""))
        judge.demand(0.98 <= times <= BYTES_LIMIT, f"{case}: exactly one synchronisation per update", f"{case}: exactly one synchronisation per update, but {why}.")
    wire = job.steps[job.steps["phase"] == "traced"]["wire_bytes"]
    sent = float(wire.max()) if wire.notna().all() else float(job.comm.groupby("rank")["algorithm_bytes"].sum().max() if len(job.comm) else 0)
    hint = " An all_gather brings the gradient of every rank to every rank, to be added up there; an all_reduce sends sums." if gathers else ""
    judge.demand(sent <= BYTES_LIMIT * ring, f"{case}: no rank sends more than {BYTES_LIMIT} times 2(n-1)/n P",
                 f"{case}: a rank sent {sent / ring:.1f} times the 2(n-1)/n P = {ring:,.0f} bytes of one all_reduce.{hint}")


@exercise
def one_synchronisation(judge: Judge, update: Callable) -> None:
    """`update(ddp, optimizer, micro_batches)`: one update with torch's DDP from micro-batches of different sizes, one at a time, and one synchronisation."""
    UPDATES, SIZES, WIDTHS = 3, (8, 3, 5), (64, 512, 256, 10)

    def train(update):
        from torch.nn.parallel import DistributedDataParallel

        def flat(tensors):
            return torch.cat([t.detach().flatten() for t in tensors])

        torch.set_default_dtype(torch.float64)
        rank, n, total = dist.get_rank(), dist.get_world_size(), sum(SIZES)
        torch.manual_seed(0)
        one, module = MLP(WIDTHS), MLP(WIDTHS)
        module.load_state_dict(one.state_dict())
        ddp = DistributedDataParallel(module)
        optimizer, optimizer_of_one = (torch.optim.SGD(model.parameters(), 0.5, momentum=0.9) for model in (module, one))
        forwards, waiting, most_waiting = 0, 0, 0         # of one update: forwards that have run, that wait for their backward, and at most

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
        images, labels = (data[:UPDATES * n * total] for data in digits())
        for number in range(UPDATES):
            start = (number * n + rank) * total
            mine = zip(images[start:start + total].double().split(SIZES), labels[start:start + total].split(SIZES))
            whole = slice(number * n * total, (number + 1) * n * total)
            forwards = waiting = most_waiting = 0
            before = flat(one.parameters())
            with measure.step(module, optimizer):
                update(ddp, optimizer, list(mine))
            optimizer_of_one.zero_grad()
            F.cross_entropy(one(images[whole].double()), labels[whole]).backward()
            optimizer_of_one.step()
            if number == 0:
                moved, wanted = (flat(model.parameters()) - before for model in (module, one))
                first, factor = ((moved - wanted).norm() / wanted.norm()).item(), ((moved @ wanted) / (wanted @ wanted)).item()
                if (moved - factor * wanted).norm() > 1e-6 * wanted.norm():
                    factor = None                 # another direction, and not only another length
        return {"first": first, "factor": factor, "forwards": forwards, "most_waiting": most_waiting, "P": before.nbytes,
                "weights": flat(module.parameters()), "wanted": flat(one.parameters())}

    train.__name__ = "your function"
    for ranks in (2, 3):
        job = judge.run(train, update, ranks=ranks, timeout=TIMEOUT_S)
        case = f"{ranks} ranks, micro-batches of 8, 3 and 5"
        first = max(found["first"] for found in job.results)
        error = max(((found["weights"] - found["wanted"]).norm() / found["wanted"].norm()).item() for found in job.results)
        equal = all(torch.equal(found["weights"], job.results[0]["weights"]) for found in job.results)
        if not equal:
            why = "the ranks have different weights: their last backward must not be under `no_sync`, or nobody averages"
        elif first < ERROR_LIMIT:
            why = "the first update is right, and a later one is not: are the gradients of the update before still there?"
        elif (factor := job.results[0]["factor"]) is None:
            why = (f"the first update misses that of one process by {first:.0%} of its length. A micro-batch counts by its samples: "
                   "divide the sum of all losses by the number of this rank's samples. And zero the gradients once, before the first backward")
        else:
            why = ("the first update leaves the weights as they were" if abs(factor) < 1e-6 else
                   f"the first update is {factor:.3g} times that of one process: by what do you divide the losses? (DDP itself divides by the number of ranks)")
        judge.demand(error < ERROR_LIMIT, f"{case}: the weights are those of one process", f"{case}: {why}.")
        forwards = job.results[0]["forwards"]
        judge.demand(forwards == len(SIZES), f"{case}: one forward per micro-batch", f"{case}: the model ran {forwards} times for {len(SIZES)} micro-batches.")
        judge.demand(job.results[0]["most_waiting"] <= 1, f"{case}: each backward follows its forward",
                     f"{case}: {job.results[0]['most_waiting']} forwards wait for one backward, and the activations of all their micro-batches are in memory at once. "
                     "Call backward after each forward: gradients add up in `.grad`.")
        _judge_bytes(judge, case, job, job.results[0]["P"], len(SIZES))


@exercise
def checkpoint(judge: Judge, save: Callable, load: Callable) -> None:
    """`save(path, ddp, optimizer, step)` by rank 0 alone and awaited by all; `load(path, ddp, optimizer)` returns the step and runs no code of the file."""
    WIDTHS = (64, 96, 10)

    def train(save, load, path):
        import io
        import os
        import time

        from torch.nn.parallel import DistributedDataParallel

        def make(seed):
            torch.manual_seed(seed)
            ddp = DistributedDataParallel(MLP(WIDTHS))
            return ddp, torch.optim.Adam(ddp.parameters(), 0.01)

        def steps(ddp, optimizer, first, last):
            images, labels = digits()
            for step in range(first, last):
                mine = slice((2 * step + rank) * 16, (2 * step + rank + 1) * 16)
                optimizer.zero_grad()
                F.cross_entropy(ddp(images[mine]), labels[mine]).backward()
                optimizer.step()
            return torch.cat([p.detach().flatten() for p in ddp.parameters()])

        def slow_save(obj, f, *args, **kwargs):   # as slow as a large model on a network drive
            if not isinstance(f, io.BytesIO):     # which torch uses itself, to send a tensor as an object
                found["saves"] += 1
                time.sleep(0.4)
            own_save(obj, f, *args, **kwargs)

        def noted_load(f, map_location=None, *args, **kwargs):
            if not isinstance(f, io.BytesIO):
                found["loads"].append(map_location is not None)
            return own_load(f, map_location, *args, **kwargs)

        def size():
            return os.path.getsize(path) if os.path.exists(path) else None

        def problem_of_the_file():
            try:
                content = own_load(path, map_location="cpu", weights_only=True)
            except Exception:
                return "torch.load refuses it with `weights_only=True`. Save state dicts and numbers, and no object of a class, such as the model itself."
            if not isinstance(content, dict) or not {"model", "optimizer", "step"} <= set(content):
                holds = f"a dict with the keys {', '.join(map(str, content))}" if isinstance(content, dict) else f"a {type(content).__name__}"
                return f"it holds {holds}, and it should hold a dict with the keys model, optimizer and step."
            try:
                MLP(WIDTHS).load_state_dict({name: tensor.cpu() for name, tensor in content["model"].items()})
            except Exception:
                return "a plain model cannot load its `model`. Save `ddp.module.state_dict()`: the wrapper puts \"module.\" before each name."
            return ""

        rank, found, own_save, own_load = dist.get_rank(), {"saves": 0, "loads": [], "problem": ""}, torch.save, torch.load
        torch.save, torch.load = slow_save, noted_load
        try:
            ddp, optimizer = make(0)
            steps(ddp, optimizer, 0, 3)
            save(path, ddp, optimizer, 3)
            then = size()
            dist.barrier()
            found["complete"] = then is not None and then == size()
            if size() is None:
                return found | {"problem": "it was not written."}
            found["problem"] = problem_of_the_file()
            if found["problem"]:
                return found
            straight = steps(ddp, optimizer, 3, 6)
            ddp, optimizer = make(1)
            found["step"] = load(path, ddp, optimizer)
            found["resumed"] = ((steps(ddp, optimizer, 3, 6) - straight).norm() / straight.norm()).item()
        finally:
            torch.save, torch.load = own_save, own_load
        return found

    def code_runs(load, path):
        """Whether code that came with a file runs when it is loaded."""
        import os

        from torch.nn.parallel import DistributedDataParallel

        class Planted:
            """Unpickled, it makes a directory."""
            def __reduce__(self):
                return os.mkdir, (f"{path}.mark",)

        torch.save({"model": Planted(), "optimizer": Planted(), "step": 3}, path)
        ddp = DistributedDataParallel(MLP(WIDTHS))
        try:
            load(path, ddp, torch.optim.Adam(ddp.parameters()))
        except Exception:
            pass                                  # as it should be
        return os.path.exists(f"{path}.mark")

    train.__name__ = code_runs.__name__ = "your function"
    with tempfile.TemporaryDirectory() as folder:
        job = judge.run(train, save, load, f"{folder}/checkpoint.pt", ranks=2, timeout=TIMEOUT_S)
        zero, other = job.results
        judge.demand((zero["saves"], other["saves"]) == (1, 0), "rank 0 alone saves, once",
                     f"rank 0 must call torch.save once and rank 1 never, and they called it {zero['saves']} and {other['saves']} times. All ranks have the same weights, "
                     "and two that write one file damage it.")
        judge.demand(other["complete"], "when `save` returns on any rank, the file is there",
                     "`save` returned on rank 1 before the file was there, and complete. The others must wait until rank 0 has written it: "
                     "a barrier, after torch.save, on every rank.")
        if not judge.demand(not zero["problem"], "a plain model can load it, without DDP", f"the file: {zero['problem']}"):
            return
        wrong = [found["step"] for found in job.results if found["step"] != 3]
        judge.demand(not wrong, "`load` returns the step", f"`load` must return the step, 3, on every rank, and returned {wrong[0] if wrong else 3!r:.60}.")
        resumed = max(found["resumed"] for found in job.results)
        judge.demand(resumed < 1e-6, "training goes on as if it had never stopped",
                     f"training does not go on as before: three steps later the weights are {resumed:.2g} away (relative). "
                     "Restore the optimizer's state too, on every rank.")
        loads = zero["loads"] + other["loads"]
        judge.demand(loads and all(loads), "`map_location` says where the tensors go",
                     "torch.load was called without `map_location`. A tensor that was saved from the GPU of rank 0 would then be loaded to that GPU by every rank."
                     if loads else "torch.load was not called.")
        planted = judge.run(code_runs, load, f"{folder}/planted.pt", ranks=1, timeout=TIMEOUT_S).results[0]
    judge.demand(not planted, "code that is hidden in a file does not run", "a file with code in it was loaded, and the code ran. Load with `weights_only=True`.")
