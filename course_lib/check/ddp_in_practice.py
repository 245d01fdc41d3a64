"""Checks of the chapter "DDP in practice"."""

import random
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from course_lib import measure
from course_lib.check import on_rank
from course_lib.check.counted import ring_bytes
from course_lib.check.folder import trial_folder
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import Demand, at_most, fact, sends, values
from course_lib.datasets import digits
from course_lib.models import MLP
from course_lib.record import Job, sent

__all__ = ["exact_evaluation", "token_average", "checkpoint"]

MOST_BYTES = 1_000  # that an evaluation sends; two numbers are enough


def _few(job: Job) -> str:
    most = sent(job, layer="algorithm").max()
    return (
        ""
        if most <= MOST_BYTES
        else (f"a rank sends {most:,.0f} bytes. Two numbers are enough: how many are right, and of how many.")
    )


def _shares(job: Job) -> str:
    seen = [number for found in job.results for number in found["seen"]]
    samples = job.results[0]["samples"]
    if missing := set(range(samples)) - set(seen):
        return f"{len(missing)} of {samples} samples went through no model."
    if len(seen) > samples:
        return (
            f"{samples} samples, but {len(seen)} went through the models: some of them twice. A"
            " `DistributedSampler` fills up, so that all ranks have as many."
        )
    most = max(len(found["seen"]) for found in job.results)
    if most > -(-samples // job.ranks):
        return f"one rank took {most} of {samples} samples, and others had less to do. Deal them out evenly."
    return ""


def _quiet(job: Job) -> str:
    for rank, found in enumerate(job.results):
        for name, words in (
            (
                "training",
                "asked the model in the mode of training: dropout is at work then. Call `model.eval()`.",
            ),
            ("graph", "recorded operations for a backward that never comes. Use `torch.no_grad()`."),
            ("larger", "gave the model more than `batch_size` samples at once."),
            (
                "changed",
                "left a module in another mode than before. Some may have been in eval all the time.",
            ),
        ):
            if found[name]:
                return f"rank {rank} {words}"
    return ""


@exercise(
    exact=values(
        "the part of all samples that is right, on every rank",
        "what comes back is wrong by {error:.2g} (a rank without samples counts as well).",
        within=1e-6,
    ),
    shares=Demand("each sample goes through the model of one rank, once, in even shares", _shares),
    quiet=Demand("in eval mode, without a graph, in batches; and the modes are as before", _quiet),
    few=Demand(f"a rank sends at most {MOST_BYTES:,} bytes", _few),
)
def exact_evaluation(judge: Judge, evaluate: Callable) -> None:
    """`evaluate(model, data, batch_size)`: the part of the samples of a data set that the model gets right,
    exactly, with the work shared by all ranks.
    """
    seed, draw = judge.seed, random.Random(judge.seed)
    CLASSES = 10

    class Watched(nn.Module):
        """Scores that stand in the sample: its number, then a score for each class. Notes what is asked."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.dropout, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5).eval()
            self.seen, self.training_seen, self.graph, self.most, self.late = [], False, False, 0, False

        def forward(self, samples):
            if self.late:
                self.late = False
                on_rank.come_late("evaluate")
            self.seen += samples[:, 0].long().tolist()
            self.training_seen |= self.training or self.dropout.training
            self.graph |= torch.is_grad_enabled()
            self.most = max(self.most, len(samples))
            return self.scale * self.frozen(self.dropout(samples[:, 1:]))

    def train(evaluate, sizes, batch_size):
        from torch.utils.data import TensorDataset

        rank, n, found = dist.get_rank(), dist.get_world_size(), {}
        generator = torch.Generator().manual_seed(seed)
        on_rank.use_cpu()
        for turn, size in enumerate(sizes):  # the second is traced and judged
            scores = torch.rand(size, CLASSES, generator=generator)
            labels = torch.randint(CLASSES, (size,), generator=generator)
            easy = torch.rand(size, generator=generator) < 0.6
            scores[easy, labels[easy]] += 1
            right = (scores.argmax(1) == labels).float().mean().item()
            samples = torch.cat([torch.arange(size).float()[:, None], scores], 1)
            model = Watched()
            modes = [module.training for module in model.modules()]
            model.late = turn == 1 and rank == seed % n
            with measure.step():
                told = evaluate(model, TensorDataset(samples, labels), batch_size)
            if turn == 1:
                on_rank.is_back("evaluate")
            try:
                told = float(told)
            except Exception:
                problem = f"it returned {told!r:.60}, and should return a number from 0 to 1"
            else:
                problem = ""
            if problem := on_rank.first_problem(problem):
                return {"problem": problem}
            error = abs(told - right) if told == told else 1.0
            found = {
                "error": max(error, found.get("error", 0.0)),
                "looks": "",
                "seen": model.seen,
                "samples": size,
                "training": model.training_seen or found.get("training", False),
                "graph": model.graph or found.get("graph", False),
                "larger": model.most > batch_size or found.get("larger", False),
                "changed": modes != [module.training for module in model.modules()]
                or found.get("changed", False),
            }
        return found

    for what, first, size in (
        ("samples that do not divide by 3 ranks", 9, 3 * draw.randrange(170, 200) + draw.choice([1, 2])),
        ("fewer samples than ranks", 7, 2),
    ):
        judge.tried(what, train, evaluate, (first, size), 16, ranks=3)


def _too_often(job: Job) -> str:
    return (
        " Gradients travel once, in the last micro-batch's backward: the others are under `no_sync`, forward"
        " and backward. Beside them, one number is needed from each rank."
    )


@exercise(
    weights=values(
        "the weights are those of one process that has all tokens",
        "the weights are not those of one process (relative error {error:.2g}).",
    ),
    forwards=at_most(
        "each micro-batch goes through the model once",
        "wrong_forwards",
        0,
        "a rank has not sent each of its micro-batches through the model once.",
    ),
    bytes=sends(
        "2(n-1)/n P",
        ring_bytes,
        "a rank sent {times:.2f} times the 2(n-1)/n P = {limit:,.0f} bytes of one all_reduce.",
        _too_often,
    ),
)
def token_average(judge: Judge, update: Callable) -> None:
    """`update(ddp, optimizer, micro_batches)`: one update from the mean loss over the tokens of all ranks and
    micro-batches, with one synchronisation of gradients.
    """
    TOKENS, LENGTH, RATE, UPDATES = 64, 12, 0.5, 3
    seed = judge.seed

    def make():
        return nn.Sequential(nn.Embedding(TOKENS, 32), nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, TOKENS))

    def batches(ranks, k, number):
        """By rank, micro-batches of one update: (tokens, targets), padded to LENGTH."""
        generator = torch.Generator().manual_seed(seed + number)
        shape, all_of_them = (4, LENGTH), []
        for rank in range(ranks):
            own = []
            for i in range(k):
                tokens, targets = (torch.randint(TOKENS, shape, generator=generator) for _ in range(2))
                # one rank has long sequences, the others short ones; one micro-batch has nothing to learn
                most = LENGTH if rank == (seed + number) % ranks else 3
                lengths = torch.randint(1, most + 1, (4, 1), generator=generator)
                lengths *= (rank, i) != ((seed + number + 1) % ranks, number % k)
                targets[torch.arange(LENGTH) >= lengths] = -100
                own.append((tokens, targets))
            all_of_them.append(own)
        return all_of_them

    def summed(model, pairs):
        return sum(F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") for x, y in pairs)

    def counted(pairs):
        return sum(int((targets != -100).sum()) for _, targets in pairs)

    def train(update, k):
        from torch.nn.parallel import DistributedDataParallel

        flat, apart = on_rank.flat, on_rank.apart
        on_rank.use_cpu()
        rank, n = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(seed)
        one, module = make().double(), make().double()
        module.load_state_dict(one.state_dict())
        calls = []
        module.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].clone()))
        ddp = DistributedDataParallel(module)
        optimizers = [torch.optim.SGD(model.parameters(), RATE) for model in (module, one)]
        found = {"P": flat(one.parameters()).nbytes, "wrong_forwards": 0, "looks": "", "error": 0.0}
        start = flat(one.parameters())

        def gradient(loss):
            return flat(torch.autograd.grad(loss, list(one.parameters())))

        for number in range(UPDATES):
            everyone = batches(n, k, number)
            if number == 2 and rank == seed % n:
                on_rank.come_late("update")
            calls.clear()
            with measure.step():
                update(ddp, optimizers[0], [(x.clone(), y.clone()) for x, y in everyone[rank]])
            if number == 2:
                on_rank.is_back("update")
            own = [x for x, _ in everyone[rank]]
            if len(calls) != k or not all(map(torch.equal, calls, own)):
                found["wrong_forwards"] += 1
            pairs = [pair for own in everyone for pair in own]
            total = counted(pairs)
            now = flat(module.parameters())
            if number == 0:
                moved = (start - now) / RATE
                right = gradient(summed(one, pairs) / total)
                if apart(moved, right) > 1e-9:
                    own_means = sum(gradient(summed(one, p) / counted(p)) for p in everyone if counted(p))
                    means = sum(gradient(summed(one, [p]) / counted([p])) for p in pairs if counted([p]))
                    found["looks"] = on_rank.looks(
                        moved,
                        {
                            "divided by the number of ranks once too often: DDP does that, too": right / n,
                            "the mean over the ranks of their own means: a rank of few tokens counts as much"
                            " as one with many": own_means / n,
                            "a mean of means: each micro-batch counts the same, and it should count by its"
                            " tokens": means / len(pairs),
                        },
                    )
            optimizers[1].zero_grad()
            (summed(one, pairs) / total).backward()
            optimizers[1].step()
            found["error"] = max(found["error"], apart(now, flat(one.parameters())))
        return found

    for ranks, k in ((2, 3), (3, 2)):
        judge.tried(f"{ranks} ranks, {k} micro-batches each", train, update, k, ranks=ranks)


def _saves(job: Job) -> str:
    zero, other = job.results
    wanted = 1 if zero["lost"] == "it was not written." else 2
    if (zero["saves"], other["saves"]) == (wanted, 0):
        return ""
    return (
        f"rank 0 must call torch.save once for each checkpoint and rank 1 never, and for {wanted} they"
        f" called it {zero['saves']} and {other['saves']} times. All ranks have the same weights, and two"
        " that write one file damage it."
    )


def _where_to(job: Job) -> str:
    loads = [given for found in job.results for given in found["loads"]]
    if not loads:
        return "torch.load was not called."
    if all(loads):
        return ""
    return (
        "torch.load was called without `map_location`. A tensor that was saved from the GPU of rank 0 would"
        " then be loaded to that GPU by every rank."
    )


@exercise(
    saves=Demand("rank 0 alone saves, once", _saves),
    awaited=fact(
        "when `save` returns on any rank, the file is there",
        "complete",
        "`save` returned on rank {rank} before the file was there, and complete. The others must wait until"
        " rank 0 has written it: a barrier, after torch.save, on every rank.",
    ),
    unchanged=fact(
        "saving changes nothing",
        "unchanged",
        "after `save`, the model or the optimizer's state is another one than before.",
    ),
    plain=fact("a plain model can load it, without DDP", "lost", "the file: {wrong}"),
    step=fact("`load` returns the step", "step"),
    resumed=values(
        "training goes on as if it had never stopped",
        "training does not go on as before: three steps later the weights are {error:.2g} away (relative)."
        " Restore the optimizer's state too, all of it, on every rank.",
        "resumed",
        within=1e-6,
        advice=lambda job, error: on_rank.rounding(error),
    ),
    map_location=Demand("`map_location` says where the tensors go", _where_to),
    no_code=fact(
        "code that is hidden in a file does not run",
        "asleep",
        "a file with code in it was loaded, and the code ran. Load with `weights_only=True`.",
    ),
)
def checkpoint(judge: Judge, save: Callable, load: Callable) -> None:
    """`save(path, ddp, optimizer, step)` by rank 0 alone and awaited by all; `load(path, ddp, optimizer)`
    returns the step and runs no code of the file.
    """
    WIDTHS = (64, 96, 10)
    # so long the first and the second save take, unless the other rank comes back before: then it has not
    # waited
    SLOW_S = 0.4, 1.2
    seed = judge.seed
    last_step = seed % 1000 + 7  # of the second save

    def plain():
        # with buffers, which training changes
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), MLP(WIDTHS))

    def train(save, load, path):
        import builtins
        import copy
        import io
        import os
        import sys
        import time

        from torch.nn.parallel import DistributedDataParallel

        def make(seed):
            torch.manual_seed(seed)
            ddp = DistributedDataParallel(plain())
            return ddp, torch.optim.Adam(ddp.parameters(), 0.01)

        def steps(ddp, optimizer, first, last):
            for step in range(first, last):
                mine = slice((2 * step + rank) * 16, (2 * step + rank + 1) * 16)
                optimizer.zero_grad()
                F.cross_entropy(ddp(images[mine]), labels[mine]).backward()
                optimizer.step()
            return on_rank.flat(ddp.module.state_dict().values())

        def slow(own, name):
            """As slow as a large model on a network drive: the write ends late, or as soon as the other rank
            has come back, which is too soon.
            """

            def slower(*args, **kwargs):
                writes = (
                    name != "open"
                    or str(args[0]) == path
                    and any(letter in str(args[1:2] or kwargs.get("mode", "r")) for letter in "wax+")
                )
                if not writes or name == "save" and of_torch():
                    return own(*args, **kwargs)
                if name == "save":
                    found["saves"] += 1
                if rank == 0:
                    on_rank.come_late(f"save {turn}", SLOW_S[turn])
                return own(*args, **kwargs)

            return slower

        def noted_load(f, map_location=None, *args, **kwargs):
            if not of_torch():
                found["loads"].append(map_location is not None)
            return own_load(f, map_location, *args, **kwargs)

        def of_torch():
            """Whether torch itself asks, who pickles a tensor so, to send it as an object."""
            return sys._getframe(2).f_globals.get("__name__") == "torch.storage"

        def content():
            with own_open(path, "rb") as file:
                return file.read()

        def problem_of_the_file():
            try:
                content = own_load(path, map_location="cpu", weights_only=True)
            except Exception:
                return (
                    "torch.load refuses it with `weights_only=True`. Save state dicts and numbers, and no"
                    " object of a class, such as the model itself."
                )
            if not isinstance(content, dict) or not {"model", "optimizer", "step"} <= set(content):
                holds = (
                    f"a dict with the keys {', '.join(map(str, content))}"
                    if isinstance(content, dict)
                    else f"a {type(content).__name__}"
                )
                return f"it holds {holds}, and it should hold a dict with the keys model, optimizer and step."
            try:
                plain().load_state_dict({name: tensor.cpu() for name, tensor in content["model"].items()})
            except Exception:
                wrapped = isinstance(content["model"], dict) and all(
                    str(name).startswith("module.") for name in content["model"]
                )
                return "a plain model cannot load its `model`. Save `ddp.module.state_dict()`: " + (
                    'the wrapper puts "module." before each name.' if wrapped else "all of it, buffers too."
                )
            return ""

        rank, turn, sleep = dist.get_rank(), 0, time.sleep
        found = {"saves": 0, "loads": [], "lost": "", "complete": True, "unchanged": True}
        images, labels = digits()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        images, labels = images[order], labels[order]
        own = [
            (home, name, getattr(home, name))
            for home, name in (
                (torch, "save"),
                (torch, "load"),
                (os, "replace"),
                (os, "rename"),
                (builtins, "open"),
                (io, "open"),
                (time, "sleep"),
            )
        ]
        own_load, own_open = torch.load, open
        try:
            ddp, optimizer = make(seed)
            steps(ddp, optimizer, 0, 3)
            for turn, step in enumerate((3, last_step)):  # the second save finds a file
                before = copy.deepcopy((ddp.state_dict(), optimizer.state_dict()))
                # who sleeps has not waited
                special = {"load": noted_load, "sleep": lambda seconds: sleep(seconds / 1000)}
                for home, name, function in own:
                    setattr(home, name, special.get(name) or slow(function, name))
                save(path, ddp, optimizer, step)
                then = content() if os.path.exists(path) else None
                on_rank.is_back(f"save {turn}")
                for home, name, function in own:
                    setattr(home, name, function)
                dist.barrier()
                there = os.path.exists(path)
                if problem := on_rank.first_problem("" if there else "it was not written."):
                    return found | {"lost": problem.removeprefix("on rank 0 ")}
                found["complete"] &= rank == 0 or then == content()  # rank 0 has written it
                found["unchanged"] &= same(before, (ddp.state_dict(), optimizer.state_dict()))
                if turn == 0:
                    # as a schedule does: the state of the optimizer is more than its moments
                    optimizer.param_groups[0]["lr"] = 0.003
                    steps(ddp, optimizer, 3, 5)
            if problem := on_rank.first_problem(problem_of_the_file()):
                return found | {"lost": problem.removeprefix("on rank 0 ")}
            straight = steps(ddp, optimizer, 5, 8)
            ddp, optimizer = make(seed + 1)
            torch.load = noted_load
            told, found["step"] = load(path, ddp, optimizer), ""
            if on_rank.whole(told) != last_step:
                found["step"] = (
                    f"`load` must return the step, {last_step}, on every rank, and returned {told!r:.60}."
                )
            found["resumed"] = on_rank.apart(steps(ddp, optimizer, 5, 8), straight)
        finally:
            for home, name, function in own:
                setattr(home, name, function)
        return found

    def same(a, b):
        """Whether two nested values are equal, tensors by their numbers."""
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b

    def code_stays(load, path):
        """Whether code that came with a file does not run when it is loaded."""
        import os

        from torch.nn.parallel import DistributedDataParallel

        class Planted:
            """Unpickled, it makes a directory."""

            def __reduce__(self):
                return os.mkdir, (f"{path}.mark",)

        torch.save({"model": Planted(), "optimizer": Planted(), "step": 3}, path)
        ddp = DistributedDataParallel(plain())
        try:
            load(path, ddp, torch.optim.Adam(ddp.parameters()))
        except Exception:
            pass  # as it should be
        return {"asleep": not os.path.exists(f"{path}.mark")}

    with trial_folder() as folder:
        job = judge.run(train, save, load, f"{folder}/checkpoint.pt", ranks=2)
        judge.look(job, "saves", "awaited", "unchanged")
        if not judge.look(job, "plain"):
            return
        judge.look(job, "step", "resumed", "map_location")
        judge.look(judge.run(code_stays, load, f"{folder}/planted.pt", ranks=1), "no_code")
