"""Checks of the chapter "ZeRO stage 1"."""

import math
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.nn import functional as F

from course_lib import measure, theory
from course_lib.check import on_rank
from course_lib.check.counted import header_bytes, sent_bytes
from course_lib.check.folder import trial_folder
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import ERROR_LIMIT, Demand, fact, it_is, largest, sends, values
from course_lib.collectives import of_kind
from course_lib.datasets import digits
from course_lib.models import MLP, TinyGPT
from course_lib.ranks.errors import RankError
from course_lib.record import Job, calls

__all__ = ["sharded_adam", "clip_grad_norm", "sharded_checkpoint"]

PATIENCE_S = 10.0  # for what comes a little later
UPDATES = 4


def _wrong_weights(job: Job, error: float) -> str:
    """What to look at if the weights are wrong."""
    results, looks = job.results, it_is(job, "They are")
    if any(found["unmoved"] for found in results):
        return " They have not changed at all: does the update reach the model's own parameters?"
    if any(found["old"] for found in results):
        return " After `zero_grad` the old gradients are still there, and the next backward adds to them."
    if not all(torch.equal(found["final"], results[0]["final"]) for found in results):
        return f" And the ranks do not agree: the new weights of each rank must reach all others.{looks}"
    if hint := looks or on_rank.rounding(error):
        return hint
    if (share := float(sent_bytes(job).max()) / _two_rings(job)) < 0.75:
        return (
            f" A rank sends only {share:.2f} times 2(n-1)/n P: do the gradients and the new weights of all"
            " ranks arrive?"
        )
    return ""


def _kept(job: Job) -> str:
    """Two moments of one n-th; padding may add one element per tensor, and a counter counts as 16 bytes."""
    n, first, kept = job.ranks, job.results[0], [found["kept"] for found in job.results]
    share, most = 16 * sum(first["sizes"]) / n, max(kept)  # two moments in float64
    if most <= first["allowed"]:
        return ""
    if min(kept) < 0.7 * most:
        advice = (
            "Some ranks hold much more than others: cut the elements into equal parts, not the list of"
            " parameters."
        )
    elif most > 0.95 * n * share:
        advice = "That is the state of all parameters, on every rank: nothing is sharded."
    elif most <= first["allowed"] + 16 * math.ceil(first["frozen"] / n):
        advice = "That is what it would be with the frozen parameters: they need no moments."
    else:
        advice = (
            "Is something kept that could be a view, or freed after the step: a copy of the weights, a flat"
            " copy of the gradients?"
        )
    return (
        f"besides parameters and gradients, rank {kept.index(most)} keeps {most / share:.2f} times the two"
        f" moments of 1/{n} of the elements. {advice}"
    )


def _two_rings(job: Job) -> float:
    """Bytes of a reduce_scatter of the gradients, and an all_gather of the new weights."""
    return theory.step_bytes("zero_1", 8 * sum(job.results[0]["sizes"]), job.ranks)


def _too_much(job: Job) -> str:
    sent = sent_bytes(job)
    if sent.min() < 0.7 * sent.max():
        return " The others send less, and wait for this rank: on a ring all send the same."
    if "reduce_scatter" in set(job.comm["op"]):
        return (
            " gloo's reduce_scatter is an all_reduce that keeps one chunk. `ring.reduce_scatter` sends half"
            " of it."
        )
    return " Does a rank need the sum of all gradients, or only that of its own part?"


@exercise(
    weights=values(
        f"after {UPDATES} updates, the weights are those of one process",
        f"after {UPDATES} updates the weights are not those of one process (relative error {{error:.2g}}).",
        advice=_wrong_weights,
    ),
    kept=Demand("no rank keeps more than the two moments of 1/{n}", _kept),
    bytes=sends(
        "2(n-1)/n P",
        _two_rings,
        "rank {rank} sends {times:.2f} times 2(n-1)/n P.",
        _too_much,
        right=lambda job: largest(job, "error") < ERROR_LIMIT,
    ),
)
def sharded_adam(judge: Judge, make_optimizer: Callable) -> None:
    """`make_optimizer(groups)` has `step` and `zero_grad`: the weights of one process, the moments of one
    n-th, and 2 r P bytes. In the last update, the last messages of one rank come late.
    """

    def mlp():
        model = MLP((64, 131, 61, 10))
        vectors = [p for p in model.parameters() if p.dim() == 1]
        return model, [
            {"params": [p for p in model.parameters() if p.dim() > 1], "lr": 0.003},
            {"params": vectors, "lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.02},
        ]

    def gpt():
        model = TinyGPT(dim=48, layers=1, context=16)
        model.position.requires_grad_(False)
        return model, [{"params": list(model.parameters()), "lr": 0.002}]

    def data(model, samples, update, seed):
        """Inputs and targets of one update, the same on every rank."""
        if isinstance(model, MLP):
            first = seed % 1000 + update * samples
            images, labels = (all_[first : first + samples] for all_ in digits())
            return images.double(), labels
        # tokens without a pattern that matters
        return (torch.arange(samples * 9).add(update + seed % 1000).pow(3).remainder(251).view(samples, 9),)

    def train(make, make_optimizer, seed):
        import gc
        import time

        torch.set_default_dtype(torch.float64)
        on_rank.use_cpu()
        n = dist.get_world_size()

        def loss_of(model, batch):
            return model(batch[0]) if len(batch) == 1 else F.cross_entropy(model(batch[0]), batch[1])

        def weights(model):
            return on_rank.flat(model.parameters())

        def one_process(
            pieces_of=lambda pieces: pieces,
            scale=1 / n,
            options=lambda group, first: group,
            updates=UPDATES,
        ):
            """Weights of one process that uses, of each batch, the pieces that `pieces_of` picks."""
            torch.manual_seed(seed)
            model, groups = make()
            groups = [
                {**options(group, groups[0]), "params": [p for p in group["params"] if p.requires_grad]}
                for group in groups
            ]
            optimizer = torch.optim.Adam(groups)
            for update in range(updates):
                pieces = list(zip(*(tensor.split(4) for tensor in data(model, 4 * n, update, seed))))
                optimizer.zero_grad()
                (sum(loss_of(model, piece) for piece in pieces_of(pieces)) * scale).backward()
                optimizer.step()
            return weights(model)

        def storages(tensors):
            return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}

        def alive():
            """Storages of all tensors that anybody in this process still holds."""
            gc.collect()
            return storages(found for found in gc.get_objects() if issubclass(type(found), torch.Tensor))

        rank = dist.get_rank()
        wanted, wanted_before = one_process(), one_process(updates=UPDATES - 1)
        torch.manual_seed(seed)
        model, groups = make()
        start, sizes = weights(model), [p.numel() for p in model.parameters() if p.requires_grad]
        others = on_rank.outside_torch()
        # holds these storages, so that no new one gets the address of an old one
        before = alive()
        optimizer = make_optimizer(groups)
        whole = all(callable(getattr(optimizer, method, None)) for method in ("step", "zero_grad"))
        why = (
            "it must make an object with the methods `step` and `zero_grad`, and made"
            f" {type(optimizer).__name__}"
        )
        if problem := on_rank.first_problem("" if whole else why):
            return {"problem": problem}
        found = {
            "sizes": sizes,
            "frozen": sum(p.numel() for p in model.parameters() if not p.requires_grad),
            "looks": "",
            "old": False,
            "unmoved": False,
            # two moments of one n-th, padding, a counter
            "allowed": sum(16 * math.ceil(size / n) + 16 for size in sizes),
        }
        in_step, late = math.inf, None
        for update in range(UPDATES):
            mine = [tensor.split(4)[rank] for tensor in data(model, 4 * n, update, seed)]
            with measure.step(model):
                loss_of(model, mine).backward()
                # not in the traced step
                with on_rank.Calls(late) if update > 1 else torch.enable_grad() as calls:
                    optimizer.step()
                final = weights(model)  # at once: who has not waited for them does not have them
                if update == UPDATES - 1:
                    on_rank.is_back("step")
            if update == UPDATES - 2:
                in_step = on_rank.apart(final - start, wanted_before - start)
                if rank == seed % n:
                    count = sum(row["op"] not in of_kind("receive") for row in calls.rows)
                    late = on_rank.late(
                        "step", [on_rank.LATE_S * (k == 0 or k >= count - 3) for k in range(count)]
                    )
            if update < UPDATES - 1:
                optimizer.zero_grad()
                found["old"] |= any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
        del mine, calls
        of_model = storages(
            [final, *model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
        )
        # a thread of gloo's may let go of what it has sent a little later
        end = time.monotonic() + PATIENCE_S
        while True:
            hidden = on_rank.outside_torch() - others
            found["kept"] = sum(
                storage.nbytes()
                for address, storage in alive().items()
                if address not in before and address not in of_model
            )
            # some floats and bytes everybody has
            found["kept"] += hidden if hidden > found["allowed"] / 5 else 0
            if found["kept"] <= found["allowed"] or time.monotonic() > end:
                break
            time.sleep(0.05)
        found["error"] = on_rank.apart(final - start, wanted - start)
        if found["error"] > ERROR_LIMIT:
            guesses = {
                "as if the gradients were summed, and not averaged: divide by the number of ranks": (
                    one_process(scale=1.0)
                ),
                "as if this rank had used its own gradients alone": one_process(
                    lambda pieces: pieces[rank : rank + 1], 1.0
                ),
                "as if all groups had the options of the first": one_process(
                    options=lambda group, first: {**first}
                ),
                "as if all groups had the `lr` of the first": one_process(
                    options=lambda group, first: {**group, "lr": first["lr"]}
                ),
                "as if of a group's options only `lr` counted": one_process(
                    options=lambda group, first: {"lr": group["lr"]}
                ),
            }
            guesses = {words: guess - start for words, guess in guesses.items()}
            found["looks"] = on_rank.looks(final - start, guesses) or (
                on_rank.NOT_WAITED if in_step < ERROR_LIMIT else ""
            )
            found["unmoved"] = bool(torch.equal(final, start))
        return found | {"final": final}

    for what, make, ranks in (("an MLP in two groups", mlp, 3), ("a TinyGPT, tied and frozen", gpt, 4)):
        judge.case = f"{what}, {ranks} ranks"
        job = judge.run(train, make, make_optimizer, judge.seed, ranks=ranks, label="your optimizer")
        right = judge.look(job, "weights")
        judge.look(job, "kept", "bytes")
        if not right:
            return


def _few_bytes(job: Job) -> str:
    sent = (sent_bytes(job) - header_bytes(job)).max()
    if sent <= 1000:
        return ""
    return (
        f"a rank sends {sent:,.0f} bytes. To know a norm, nobody needs the gradients of the others: add up"
        " the squares first."
    )


def _one_collective(job: Job) -> str:
    called = calls(job)
    most = called.sum(axis=1).max()
    if most == 1:
        return ""
    own = "sends and receives" if set(called) & of_kind("send", "receive") else "collectives"
    return (
        f"a rank calls {int(most)} {own}, and one collective is needed: each rank needs one number from the"
        " others."
    )


@exercise(
    norm="the norm and the gradients are those of one process",
    calls=Demand("one collective", _one_collective),
    bytes=Demand("no rank sends more than 1,000 bytes", _few_bytes),
)
def clip_grad_norm(judge: Judge, clip: Callable) -> None:
    """`clip(grads, max_norm)`: this rank's shards, scaled in place by the norm of the whole gradient; one
    collective, hardly any bytes.
    """
    # max_norm over the whole norm, and by how much the gradient grows from one rank to the next
    CASES = (
        ("a gradient that is too long", 0.01, 2.0),
        ("a gradient that is too long", 0.01, 2.0),
        ("a gradient that is short enough", 3.0, 2.0),
        ("a gradient that is too long, with parts that are short", 0.5, 10.0),
        ("a gradient that is too long, with parts that are all short", 0.95, 1.0),
        ("a rank that comes late", 0.01, 2.0),
        ("a rank without any shard", 0.01, 2.0),
    )

    def trial(clip, seed):
        on_rank.use_cpu()
        rank, n, problems = dist.get_rank(), dist.get_world_size(), []

        def shards(number, rank):
            name, _, growth = CASES[number]
            generator = torch.Generator().manual_seed(seed + 10 * number + rank)
            shapes = ((100 * (rank + 1), 30), (7,))
            if "without" in name and rank == n - 1:
                shapes = ()
            elif growth == 1:
                shapes = ((100, 30), (7,))
            return [
                torch.randn(shape, generator=generator, dtype=torch.float64) * growth**rank
                for shape in shapes
            ]

        def norm_of(tensors):
            return math.sqrt(sum(tensor.square().sum().item() for tensor in tensors))

        def near(a, b):
            return abs(a - b) <= ERROR_LIMIT * abs(b)

        def close(found, wanted, rtol=1e-6):  # torch divides by norm + 1e-6
            return all(
                a.shape == b.shape and torch.allclose(a.double(), b, rtol=rtol, atol=0)
                for a, b in zip(found, wanted, strict=True)
            )

        def wrong_norm(returned, own, whole, norms, max_norm):
            looks = {
                "it is the norm of this rank's own shards": own,
                "it is the sum of the ranks' norms; norms do not add up, their squares do": sum(norms),
                "it is the norm after clipping": max_norm,
                "it is the mean over the ranks, not the sum": whole / math.sqrt(n),
            }
            if returned is None:
                return "the function returned nothing"
            if not isinstance(returned, float):
                return f"the function returned {type(returned).__name__}"
            if look := next((look for look, norm in looks.items() if near(returned, norm)), ""):
                return look
            error = abs(returned / whole - 1)
            if hint := on_rank.rounding(error):
                return f"it is off by {error:.1g} of it.{hint}"
            return f"it is {returned:.4g}"

        def wrong_gradients(grads, given, before, own, max_norm, factor):
            if len(grads) == len(given) and close(grads, [tensor * factor for tensor in before]):
                return "other tensors were put into the list: scale those that are in it"
            if all(map(torch.equal, given, before)):
                by_all = ", by the norm of all, and not only where this rank's own is large"
                return f"the gradients are unchanged: scale them in place{by_all if own <= max_norm else ''}"
            if close(given, [tensor * min(1.0, max_norm / own) for tensor in before] if own else []):
                return "each rank has scaled by its own norm, so the gradient has another direction now"
            if factor == 1:
                return "a gradient that is short enough must stay as it is"
            return "the gradients are scaled by another factor than max_norm / norm"

        for number, (name, share, _) in enumerate(CASES):
            everyone = [shards(number, other) for other in range(n)]
            own, norms = norm_of(everyone[rank]), [norm_of(part) for part in everyone]
            whole = norm_of([tensor for part in everyone for tensor in part])
            max_norm = share * whole
            given = shards(number, rank)
            grads = list(given)
            dist.barrier()
            with measure.step():
                if "late" in name and rank == seed % n:
                    on_rank.come_late("clip")
                returned = clip(grads, max_norm)
                # at once: who has not waited for it does not have it
                try:
                    returned = float(returned)
                except (TypeError, ValueError, RuntimeError):  # None, a text, a long tensor
                    pass
                if "late" in name:
                    on_rank.is_back("clip")
            factor, problem = min(1.0, max_norm / whole), ""
            if not (isinstance(returned, float) and near(returned, whole)):
                look = wrong_norm(returned, own, whole, norms, max_norm)
                if "late" in name and not any(problems):
                    look = f"it is {on_rank.NOT_WAITED}"
                problem = f"the norm must be that of the whole gradient, {whole:.4g}, and {look}"
            elif not close(given, [tensor * factor for tensor in everyone[rank]]):
                problem = wrong_gradients(grads, given, everyone[rank], own, max_norm, factor)
            problems.append(problem)
        return problems

    for ranks in (2, 3):
        job = judge.run(trial, clip, judge.seed, ranks=ranks)
        wrong = [
            (CASES[number][0], rank, problems[number])
            for number in range(len(CASES))
            for rank, problems in enumerate(job.results)
            if problems[number]
        ]
        judge.case = f"{ranks} ranks" + (f", {wrong[0][0]}" if wrong else "")
        judge.demand("norm", f"on rank {wrong[0][1]} {wrong[0][2]}" if wrong else "")
        judge.case = f"{ranks} ranks"
        judge.look(job)


FIRST, SECOND = 9, 10  # the steps that are saved; as text, the later one comes first
NUMEL = 40_001


def _written(job: Job) -> str:
    """Where the system counts what a rank writes, to files and to other ranks."""
    written, shard_bytes = [found["written"] for found in job.results], 8 * 3 * -(-NUMEL // 4)
    most = max(written)
    if most <= int(1.1 * shard_bytes) + 20_000:
        return ""
    advice = (
        "A view is saved with the whole storage behind it: `clone()` it first."
        if min(written) > 0.7 * most
        else "The others wait for this rank, and it needs room for everything."
    )
    return (
        f"rank {written.index(most)} writes {most / shard_bytes:.1f} times the bytes of its shard. {advice}"
    )


def _saves(job: Job) -> str:
    if all(found["calls"] == 1 for found in job.results):
        return ""
    return (
        "each rank must call torch.save once, for its own shard, and they called it"
        f" {', '.join(str(found['calls']) for found in job.results)} times."
    )


@exercise(
    saves=Demand("each rank calls torch.save once, for its own shard", _saves),
    written=Demand("no rank writes more than 1.1 times its shard", _written),
    complete=fact(
        "when `save` returns, the save is complete, and the shard as before",
        "unsafe",
        "{wrong}.",
        after=("saves", "written"),
        quiet=True,
    ),
    loaded="saved by 4 ranks, loaded by 3: every element is right, to the last bit",
    killed=(
        f"rank 1 is killed while 4 ranks save step {SECOND}: 3 ranks load step {FIRST}, right to the last bit"
    ),
    again=f"they save step {SECOND} again: 2 ranks load it, right to the last bit",
    held="no rank holds all states beside its shard while it loads (what `mmap=True` maps is not held)",
)
def sharded_checkpoint(judge: Judge, save: Callable, load: Callable) -> None:
    """`save(root, step, shard, numel)` and `load(root, numel)`: each rank its own part, another number of
    ranks, and a kill in the middle.
    """
    NAMES = ("params", "exp_avg", "exp_avg_sq")

    def shard_of(step, rank, n, seed):
        """What a rank has at a step: views of longer tensors, as in training."""
        padded = -(-NUMEL // n) * n
        full = {}
        for number, name in enumerate(NAMES):
            values = torch.zeros(padded, dtype=torch.float64)
            generator = torch.Generator().manual_seed(seed + 10 * step + number)
            values[:NUMEL] = torch.randn(NUMEL, generator=generator, dtype=torch.float64)
            full[name] = values.chunk(n)[rank]
        return full

    def saving(save, root, step, seed, killed=""):
        """killed: "in the middle" of its file, or "before" it, is when rank 1 dies. In the first step the
        last rank comes late.
        """
        import io
        import os
        import signal

        from course_lib.measure import wire

        on_rank.use_cpu()
        rank, n, own_save, calls = dist.get_rank(), dist.get_world_size(), torch.save, []
        done = root.parent / "done" / str(seed)  # who has written: a file per rank
        done.mkdir(parents=True, exist_ok=True)

        def wait_for(others):
            files = [done / f"{step}-{killed}-{other}" for other in others]
            # some answers let one rank write after the other
            on_rank.wait_until(lambda: all(file.exists() for file in files), 2.0, on_rank.SOON_LOOKS)

        def killed_here(content, f, *args, **kwargs):
            wait_for(set(range(n)) - {rank})
            if killed == "in the middle":
                file = io.BytesIO()
                own_save(content, file, *args, **kwargs)
                half = file.getvalue()[: file.tell() // 2]
                if hasattr(f, "write"):
                    f.write(half)
                    f.flush()
                else:
                    with open(f, "wb") as opened:
                        opened.write(half)
            on_rank.come_late("save", 1.0)  # time for the others to do what they should not
            os.kill(os.getpid(), signal.SIGKILL)

        def noted(content, f, *args, **kwargs):
            if step == FIRST and rank == n - 1:
                on_rank.come_late("save")  # who does not wait for the last one is seen
            calls.append(1)
            own_save(content, f, *args, **kwargs)
            (done / f"{step}-{killed}-{rank}").touch()

        torch.save = killed_here if killed and rank == 1 else noted

        def names():  # os.walk: another rank may take an old save away meanwhile
            return {os.path.join(place, name) for place, *kinds in os.walk(root) for name in sum(kinds, [])}

        dist.barrier()
        before = wire.written_bytes()
        try:
            shard = shard_of(step, rank, n, seed)
            given = dict(shard)
            save(root, step, shard, NUMEL)
        finally:
            torch.save = own_save
        there, written = names(), wire.written_bytes() - before
        on_rank.is_back("save")
        dist.barrier()
        problem = ""
        if names() - there:
            problem = (
                "`save` returned before the save was complete: other ranks were still writing, or the new"
                " name was not there yet. End with a barrier"
            )
        elif set(given) != set(shard) or not all(
            shard[name] is given[name] and torch.equal(tensor, shard[name])
            for name, tensor in shard_of(step, rank, n, seed).items()
            if name in given
        ):
            problem = "`save` changes the shard that it was given, and training needs it"
        return {"calls": len(calls), "written": written, "unsafe": on_rank.first_problem(problem)}

    def loading(load, root, wanted_step, seed):
        import gc
        import tracemalloc

        on_rank.use_cpu()
        tracemalloc.start()  # and no stop: see `on_rank.Unseen`
        returned, problem = None, ""
        try:
            returned = load(root, NUMEL)
        except NotImplementedError:
            raise
        except Exception as error:
            in_it = error.__traceback__.tb_next
            place = f" in line {in_it.tb_lineno}" if in_it else ""
            problem = (
                f"`load` raised {type(error).__name__}{place}:"
                f" {' '.join(str(error).split()).replace(str(root), '...')[:160]}"
            )
        problem = problem or problem_of(returned, wanted_step, seed)
        if any(on_rank.everyone(problem)):
            return problem, 0.0
        # What is held on the way; and memory that torch does not count, and that ends with the tensors. What
        # else a rank does meanwhile (it is asked where it is, say) does so in one try, and not in all.
        share = len(NAMES) * 8 * -(-NUMEL // dist.get_world_size())
        most, peak, least = len(NAMES) * 8 * NUMEL + 0.75 * share, math.inf, math.inf
        for _ in range(5):
            returned = None
            gc.collect()
            with unmapped_loads(), on_rank.NewTensors() as new, on_rank.Unseen() as unseen:
                returned = load(root, NUMEL)
                peak = min(peak, new.peak_bytes + unseen.peak())
            gc.collect()
            held = tracemalloc.get_traced_memory()[0]
            returned = None
            gc.collect()
            freed = held - tracemalloc.get_traced_memory()[0]
            least = min(least, freed)
            if not any(on_rank.everyone(freed > 2.2 * share or peak > most)):
                return "", 0.0
        if least > 2.2 * share:
            return (
                "a tensor of it is a view that keeps the elements of all ranks alive, in a numpy array or in"
                " bytes: take a `clone()`"
            ), 0.0
        return "", peak / share if peak > most else 0.0

    @contextmanager
    def unmapped_loads():
        """What `torch.load` maps is not held: it is loaded in a thread of its own, where no one looks."""
        own_load = torch.load

        def load_elsewhere(*args, **kwargs):
            if not kwargs.get("mmap"):
                return own_load(*args, **kwargs)
            with ThreadPoolExecutor(1) as other:
                return other.submit(own_load, *args, **kwargs).result()

        torch.load = load_elsewhere
        try:
            yield
        finally:
            torch.load = own_load

    def problem_of(returned, wanted_step, seed):
        """What is wrong with what was loaded, in words."""
        rank, n = dist.get_rank(), dist.get_world_size()
        if not isinstance(returned, (tuple, list)) or len(returned) != 2 or not isinstance(returned[1], dict):
            return "`load` returned something else than a step and a dict of tensors"
        step, found = returned
        try:
            right = int(step) == wanted_step and not isinstance(step, str)
        except (TypeError, ValueError, RuntimeError):
            right = False
        if not right:
            return f"`load` returned step {step!r}, and not {wanted_step}"
        wanted = shard_of(wanted_step, rank, n, seed)
        if set(found) != set(wanted):
            return f"`load` returned {list(found)}, and {list(wanted)} were saved"
        for name, tensor in wanted.items():
            if not isinstance(found[name], torch.Tensor) or found[name].dtype != tensor.dtype:
                return (
                    f"{name!r} is {getattr(found[name], 'dtype', type(found[name]).__name__)}, and a tensor"
                    f" of {tensor.dtype} was saved"
                )
            if found[name].shape != tensor.shape:
                return (
                    f"{name!r} has the shape {tuple(found[name].shape)}, and it must be"
                    f" {tuple(tensor.shape)}: padded for {n} ranks"
                )
            if not torch.equal(found[name], tensor):
                return (
                    f"{name!r} has other values than the elements {rank * len(tensor)} to"
                    f" {(rank + 1) * len(tensor) - 1} of what was saved"
                )
            if found[name].untyped_storage().nbytes() > 2 * tensor.nbytes:
                return f"{name!r} is a view that keeps the elements of all ranks alive: take a `clone()`"
        return ""

    def loading_then_saving(load, save, root, wanted_step, next_step, seed):
        problem, peak = loading(load, root, wanted_step, seed)
        if not any(on_rank.everyone(problem)):  # now all have loaded
            saving(save, root, next_step, seed)
        return problem, peak

    def loaded(ranks, function, *args):
        """The first problem on any rank, in words."""
        results = judge.run(function, load, *args, judge.seed, ranks=ranks).results
        too_much.extend((rank, ranks, peak) for rank, (_, peak) in enumerate(results) if peak)
        return next(
            (f"on rank {rank}, {problem}" for rank, (problem, _) in enumerate(results) if problem), ""
        )

    too_much: list[tuple[int, int, float]] = []  # a rank, of so many, and what it held, in shards

    with trial_folder() as folder:
        root = folder / "root"
        root.mkdir()
        if not judge.look(judge.run(saving, save, root, FIRST, judge.seed, ranks=4)):
            return
        for killed, words in (  # noqa: B007  (told below)
            ("before", "before it had written anything"),
            ("in the middle", "in the middle of its file"),
        ):
            try:
                judge.run(saving, save, root, SECOND, judge.seed, killed, ranks=4)
                judge.refuse(
                    "rank 1 was to be killed in the middle of its torch.save, and it did not call it."
                )
            except RankError:  # rank 1 was killed
                pass
            if killed == "before":
                after_kill = loaded(3, loading, root, FIRST)
            else:
                after_kill = loaded(3, loading_then_saving, save, root, FIRST, SECOND)
            if after_kill:
                break
        plain = ""
        if after_kill:  # is it the kill, or does it fail without one?
            shutil.rmtree(root)
            root.mkdir()
            judge.run(saving, save, root, FIRST, judge.seed, ranks=4)
            plain = loaded(3, loading, root, FIRST)
        if not judge.demand("loaded", plain and f"saved by 4 ranks, loaded by 3: {plain}."):
            return
        why = (
            f"step {FIRST} was saved, and while step {SECOND} was saved rank 1 was killed {words}. Step"
            f" {FIRST} must be loaded now, but {after_kill}. A save must not touch the one before, and it"
            " must not look complete before every rank has written."
        )
        if judge.demand("killed", why if after_kill else ""):
            again = loaded(2, loading, root, SECOND)
            why = (
                f"then 3 ranks saved step {SECOND} again and 2 ranks loaded it, but {again}. Has the killed"
                " save left files that are still there? And which step is the last one, as a number? (As"
                f" text, {SECOND} comes before {FIRST}.)"
            )
            judge.demand("again", why if again else "")
        held = ""
        if too_much:
            rank, ranks, peak = too_much[0]
            judge.case = f"loaded by {ranks} ranks"
            held = (
                f"rank {rank} holds {peak:.1f} times the bytes of its shard at once, and all states are"
                f" {ranks} times. Load with `mmap=True` and copy what falls into the shard, or load file by"
                " file."
            )
        judge.demand("held", held)
