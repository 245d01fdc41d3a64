"""Checks of chapter 10, "Hybrid parallelism": a mesh, its process groups, gradients averaged over the right axis, a norm, a plan.

What a rank runs stands inside each check: it travels by value, so that a rank never imports this package (and pandas with it).
"""
import math
from collections.abc import Callable

import torch
import torch.distributed as dist

from course_lib import measure, theory
from course_lib.check.judge import Judge, exercise
from course_lib.mini import hybrid, tensor_parallel
from course_lib.models import TinyGPT

__all__ = ["mesh", "process_groups", "hybrid_weights", "gradient_norm", "mesh_plan"]

ERROR_LIMIT = 1e-9                  # relative, in float64: rounding stays a thousand times below it, and no mistake does
BYTES_LIMIT = 1.02                  # times what a ring all_reduce of a rank's gradients sends
TIMEOUT_S = 20.0
UPDATES = 3


def _in_words(sizes: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items())


@exercise
def mesh(judge: Judge, coordinates: Callable, axis_groups: Callable) -> None:
    """`coordinates(rank, sizes)` and `axis_groups(axis, sizes)` of meshes with one to four axes, the last axis being the fastest."""
    for sizes in ({"dp": 2, "tp": 2}, {"dp": 2, "tp": 4}, {"dp": 2, "pp": 3, "tp": 4}, {"dp": 5}, {"dp": 2, "cp": 1, "pp": 3, "tp": 2}):
        case, count = f"mesh {_in_words(sizes)}", math.prod(sizes.values())
        found, wanted = ([function(rank, dict(sizes)) for rank in range(count)] for function in (coordinates, hybrid.coordinates))
        if found != wanted:
            judge.demand(False, "", f"{case}: {_wrong_place(found, wanted, sizes)}")
            return
        judge.demand(True, f"{case}: every rank has its place", "")
        for axis in sizes:
            problem = _wrong_groups(axis_groups(axis, dict(sizes)), axis, sizes)
            if problem:
                judge.demand(False, "", f"{case}: {problem}")
                return
        judge.demand(True, f"{case}: the groups of each axis are right", "")


def _wrong_place(found: list, wanted: list[dict[str, int]], sizes: dict[str, int]) -> str:
    mirrored = dict(reversed(sizes.items()))
    if found == [{axis: hybrid.coordinates(rank, mirrored)[axis] for axis in sizes} for rank in range(len(wanted))]:
        return "your first axis is the fastest, and it must be the last one: along it, neighbours have neighbouring ranks."
    rank = next(rank for rank, (mine, right) in enumerate(zip(found, wanted)) if mine != right)
    return f"rank {rank} stands at {wanted[rank]}, and your function returns {found[rank]!r}."


def _wrong_groups(found, axis: str, sizes: dict[str, int]) -> str:
    """What is wrong with the groups of one axis, as lists of ranks; "" if nothing."""
    try:
        groups = sorted(sorted(group) for group in found)
    except TypeError:
        return f"the groups of {axis!r} must be a list of lists of ranks, not {found!r}."
    wanted = hybrid.axis_groups(axis, sizes)
    if groups == sorted(wanted):
        return ""
    shown, count = f"your groups of {axis!r} are {groups}", math.prod(sizes.values())
    for other in sizes:
        if other != axis and groups == sorted(hybrid.axis_groups(other, sizes)):
            return f"{shown}: those are the groups of {other!r}. In a group of {axis!r}, the ranks differ in {axis!r}, and agree in all else."
    members = [rank for group in groups for rank in group]
    double = next((rank for rank in members if members.count(rank) > 1), None)
    if double is not None:
        return f"{shown}: rank {double} is in more than one of them. The groups of one axis have no rank in common."
    if missing := sorted(set(range(count)) - set(members)):
        return f"{shown}: rank {missing[0]} is in none of them. Every rank belongs to one group of each axis."
    if groups == [list(range(count))]:
        return f"{shown}: that is all ranks in one. A group of {axis!r} has {sizes[axis]} ranks, which differ in {axis!r} alone."
    return f"{shown}, and they must be {wanted}."


@exercise
def process_groups(judge: Judge, make_groups: Callable) -> None:
    """`make_groups(sizes)` runs on every rank and returns its group of each axis; all ranks make all groups, in the same order."""
    MEETING_S = 3.0

    def trial(make_groups, sizes):
        """What this rank's groups are, by axis, or under "problem" what went wrong. The ranks' calls of new_group are compared, so that none waits."""
        import json
        from datetime import timedelta

        rank, count = dist.get_rank(), dist.get_world_size()
        store, real, calls = dist.PrefixStore("check", dist.distributed_c10d._get_default_store()), dist.new_group, []

        class Mismatch(Exception):
            pass

        def new_group(ranks=None, *args, **options):
            if not options.get("use_local_synchronization"):
                number, mine = len(calls), sorted(range(count) if ranks is None else ranks)
                calls.append(mine)
                store.set(f"{number}/{rank}", json.dumps(mine))
                for other in range(count):
                    try:
                        store.wait([f"{number}/{other}"], timedelta(seconds=MEETING_S))
                    except Exception:
                        raise Mismatch(f"rank {rank} makes the group {mine}, and rank {other} does not") from None
                    theirs = json.loads(store.get(f"{number}/{other}"))
                    if theirs != mine:
                        raise Mismatch(f"in its call number {number + 1} of new_group, rank {min(rank, other)} makes the group "
                                       f"{mine if rank < other else theirs}, and rank {max(rank, other)} makes {theirs if rank < other else mine}")
            return real(ranks, *args, **options)

        dist.new_group = new_group
        try:
            groups = make_groups(dict(sizes))
        except Mismatch as mismatch:
            return {"problem": str(mismatch), "unequal": True}
        finally:
            dist.new_group = real
            store.set(f"calls/{rank}", str(len(calls)))
        if not isinstance(groups, dict) or set(groups) != set(sizes):
            return {"problem": f"rank {rank} must return a dict with the keys {', '.join(sizes)}, not {groups!r}"}
        found = {}
        for axis, group in groups.items():
            if group is None:
                return {"problem": f"rank {rank} returns None for {axis!r}, and to a collective None means all ranks. Make a group, also of one rank"}
            if group is dist.GroupMember.NON_GROUP_MEMBER:
                return {"problem": f"rank {rank} returns for {axis!r} a group that it is not in"}
            if not isinstance(group, dist.ProcessGroup):
                return {"problem": f"rank {rank} returns {group!r} for {axis!r}, and it must be a process group, as `dist.new_group` returns it"}
            found[axis] = dist.get_process_group_ranks(group)
            if rank not in found[axis]:
                return {"problem": f"rank {rank} returns for {axis!r} a group that it is not in, {found[axis]}"}
        for other in range(count):
            store.wait([f"calls/{other}"], timedelta(seconds=5 * MEETING_S))
            if int(store.get(f"calls/{other}")) != len(calls):
                return {"problem": f"rank {rank} makes {len(calls)} groups, and rank {other} makes {int(store.get(f'calls/{other}'))}", "unequal": True}
        return found

    trial.__name__ = "your function"
    for sizes in ({"dp": 2, "tp": 2}, {"dp": 3, "pp": 1, "tp": 2}):
        case = f"mesh {_in_words(sizes)}"
        results = judge.run(trial, make_groups, sizes, ranks=math.prod(sizes.values()), timeout=TIMEOUT_S).results
        problem = next((found for found in results if "problem" in found), None)
        equal = problem is None or not problem.get("unequal")
        judge.demand(equal, f"{case}: every rank makes every group, in the same order",
                     f"{case}: {problem and problem['problem']}. `new_group` is a collective of all ranks: every rank must make every group, in the same "
                     "order, also those that it is not in. Otherwise ranks wait for each other, or take each other's messages.")
        if not equal:
            return
        if problem:
            judge.demand(False, "", f"{case}: {problem['problem']}.")
            return
        for axis in sizes:
            wrong = next((rank for rank, found in enumerate(results) if sorted(found[axis]) != _own(hybrid.axis_groups(axis, sizes), rank)), None)
            why = "" if wrong is None else _wrong_groups(_distinct(results, axis), axis, sizes) or f"rank {wrong} has the group of another rank."
            if not judge.demand(wrong is None, f"{case}: every rank has its group of {axis}", f"{case}: {why}"):
                return


def _own(groups: list[list[int]], rank: int) -> list[int]:
    return next(group for group in groups if rank in group)


def _distinct(results: list[dict], axis: str) -> list[list[int]]:
    return [list(group) for group in sorted({tuple(sorted(found[axis])) for found in results})]


def _tools() -> tuple[Callable, Callable, Callable]:
    """What the trials share, as functions that travel by value."""
    def make() -> TinyGPT:
        torch.manual_seed(0)
        return TinyGPT(vocab_size=48, context=16, dim=24, heads=2, layers=1, tied=False)

    def flat(tensors) -> torch.Tensor:
        return torch.cat([tensor.detach().flatten() for tensor in tensors])

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        return ((a - b).norm() / b.norm()).item()

    return make, flat, apart


@exercise
def hybrid_weights(judge: Judge, average: Callable) -> None:
    """`average(model, groups)` makes the gradients of a model that is cut over groups["tp"] those of the whole batch: over groups["dp"] alone.

    The mesh is 3 x 2: on two rows an all_gather would send no more than an all_reduce.
    """
    make, flat, apart = _tools()

    def trial(average, sizes):
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("cpu")
        place, groups = hybrid.coordinates(dist.get_rank(), sizes), hybrid.make_groups(sizes)
        one = make()
        cut = tensor_parallel.parallelize(make(), groups["tp"])
        optimizer, optimizer_of_one = (torch.optim.SGD(model.parameters(), 0.5, momentum=0.9) for model in (cut, one))
        names, found = [name for name, _ in one.named_parameters()], {"gradient": 0.0, "looks": ""}
        cut_names = {f"{prefix}.{name}" for prefix, module in cut.named_modules() for name in getattr(module, "cut_dims", {})}
        is_cut = flat(torch.full_like(p, name in cut_names) for name, p in one.named_parameters())

        def put_together():
            full = tensor_parallel.gather_full(cut, groups["tp"], grads=True)
            return flat(full[name] for name in names)

        for update in range(UPDATES):
            whole = torch.arange(4 * sizes["dp"] * 17).add(update).pow(3).remainder(47).view(-1, 17)       # tokens without a pattern that matters
            one(whole).backward()
            cut(whole.chunk(sizes["dp"])[place["dp"]]).backward()
            full, own = flat(p.grad for p in one.parameters()), put_together()
            dist.barrier()
            with measure.step(cut, optimizer):
                average(cut, dict(groups))
            if any(p.grad is None or p.grad.shape != p.shape for p in cut.parameters()):
                return found | {"problem": "a parameter has no gradient afterwards, or one of another shape"}
            grad = put_together()
            if update == 0 and apart(grad, full) > ERROR_LIMIT:
                guesses = {"the sum over dp, not the average: divide by the size of dp": full * sizes["dp"],
                           "divided by the number of all ranks; only dp counts, since the ranks of a row have the same samples": full / sizes["tp"],
                           "this row's own gradient: nothing was averaged": own,
                           "this row's own where a parameter is whole: that is the same along tp, but each row has had other samples": own + is_cut * (full - own)}
                found["looks"] = next((text for text, guess in guesses.items() if apart(grad, guess) < 1e-6), "")
            found["gradient"] = max(found["gradient"], apart(grad, full))
            optimizer.step()
            optimizer_of_one.step()
            optimizer.zero_grad()
            optimizer_of_one.zero_grad()
        full = tensor_parallel.gather_full(cut, groups["tp"])
        return found | {"weights": apart(flat(full[name] for name in names), flat(one.parameters())), "held": flat(cut.parameters()).nbytes}

    trial.__name__ = "your function"
    sizes = {"dp": 3, "tp": 2}
    job = judge.run(trial, average, sizes, ranks=6, timeout=TIMEOUT_S)
    if problem := next((found["problem"] for found in job.results if "problem" in found), ""):
        judge.demand(False, "", f"{problem}.")
        return
    columns = {",".join(map(str, ranks)) for ranks in hybrid.axis_groups("dp", sizes)}
    strange = job.comm[~job.comm["group"].isin(columns)]
    judge.demand(strange.empty, "every collective is within a group of dp", _strange(strange, sizes))
    error, looks = max(found["gradient"] for found in job.results), next((found["looks"] for found in job.results if found["looks"]), "")
    if judge.demand(error < ERROR_LIMIT, "every gradient is that of the whole batch",
                    f"the gradient is not that of the whole batch (relative error {error:.2g}).{f' It is {looks}.' if looks else ''}"):
        weights = max(found["weights"] for found in job.results)
        judge.demand(weights < ERROR_LIMIT, f"after {UPDATES} updates, the weights are those of one process",
                     f"after {UPDATES} updates, the weights are not those of one process (relative error {weights:.2g}).")
    ring = theory.collective_bytes("all_reduce", job.results[0]["held"], sizes["dp"])
    sent = float(job.comm.groupby("rank")["algorithm_bytes"].sum().max()) if len(job.comm) else 0.0
    judge.demand(sent <= BYTES_LIMIT * ring, f"no rank sends more than {BYTES_LIMIT} times 2(n-1)/n of its gradients",
                 f"a rank sends {sent / ring:.2f} times the {ring:,.0f} bytes of one all_reduce of its gradients over dp. What it holds must be summed, "
                 "once, with the ranks that hold the same; an all_gather brings everybody's numbers, to be added up everywhere.")


def _strange(calls, sizes: dict[str, int]) -> str:
    """Why a collective in another group than one of dp is wrong."""
    if calls.empty:
        return ""
    op, group = calls.iloc[0]["op"], calls.iloc[0]["group"]
    rows = {",".join(map(str, ranks)) for ranks in hybrid.axis_groups("tp", sizes)}
    if group == ",".join(map(str, range(math.prod(sizes.values())))):
        return (f"your {op} goes over all ranks. Ranks of one row hold different parts of a matrix: averaged, they mix numbers that belong to different "
                "weights. Only the ranks of a column, groups[\"dp\"], hold the same parameters.")
    if group in rows:
        return (f"your {op} goes over the ranks {group}, a group of tp. They hold different parts of the model, and have had the same samples; what "
                "must be averaged is on the ranks of groups[\"dp\"].")
    return f"your {op} goes over the ranks {group}, which are no group of dp."


@exercise
def gradient_norm(judge: Judge, norm: Callable) -> None:
    """`norm(model, groups)` returns the norm of the whole gradient of a model that is cut over groups["tp"], on every rank; only numbers travel."""
    make, flat, _ = _tools()
    LIMIT_BYTES = 100

    def trial(norm, sizes):
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("cpu")
        groups = hybrid.make_groups(sizes)
        one, found = make(), []
        cut = tensor_parallel.parallelize(make(), groups["tp"])
        for update in range(2):
            tokens = torch.arange(4 * 17).add(update).pow(3).remainder(47).view(-1, 17)
            one.zero_grad()
            one(tokens).backward()
            cut.zero_grad()
            cut(tokens).backward()                # all rows have the same tokens: as after an average over dp
            before = flat(p.grad for p in cut.parameters())
            with measure.step():
                answer = norm(cut, dict(groups))
            if not isinstance(answer, (int, float)) and not (isinstance(answer, torch.Tensor) and answer.numel() == 1):
                return {"problem": f"your function must return the norm, a number, and it returned {answer!r}"}
            found.append(float(answer))
            if not torch.equal(before, flat(p.grad for p in cut.parameters())):
                return {"problem": "your function changes the gradients; it must only look at them"}
        parts, whole = 0.0, 0.0
        for module in cut.modules():
            for name, p in module.named_parameters(recurse=False):
                square = p.grad.square().sum()
                parts, whole = (parts + square, whole) if name in getattr(module, "cut_dims", {}) else (parts, whole + square)
        squares = torch.stack([parts, parts + whole])
        local = squares.clone()
        dist.all_reduce(squares, group=groups["tp"])
        right = flat(p.grad for p in one.parameters()).norm().item()
        guesses = {"of this rank's gradients alone: nothing was added up": local[1], "of the cut parameters alone: the whole ones are missing": squares[0],
                   "with the whole parameters counted once per rank of the row: they are the same on all of them": squares[1],
                   "too large by the root of the size of dp: the rows have the same gradients, so nothing is added up over dp": sizes["dp"] * right**2,
                   "the square of the norm: take the root": right**4}
        looks = next((text for text, guess in guesses.items() if abs(found[-1] - guess**0.5) < 1e-9 * right), "")
        return {"error": abs(found[-1] - right) / right, "looks": looks}

    trial.__name__ = "your function"
    job = judge.run(trial, norm, {"dp": 3, "tp": 2}, ranks=6, timeout=TIMEOUT_S)
    if problem := next((found["problem"] for found in job.results if "problem" in found), ""):
        judge.demand(False, "", f"{problem}.")
        return
    wrong = next((rank for rank, found in enumerate(job.results) if not found["error"] < ERROR_LIMIT), None)
    looks = "" if wrong is None else job.results[wrong]["looks"]
    judge.demand(wrong is None, "every rank has the norm of one process",
                 f"on rank {wrong} it is not the norm that one process has.{f' It is {looks}.' if looks else ''}")
    most = float(job.comm.groupby("rank")["algorithm_bytes"].sum().max()) if len(job.comm) else 0.0
    judge.demand(most <= LIMIT_BYTES, f"no rank sends more than {LIMIT_BYTES} bytes",
                 f"a rank sends {most:,.0f} bytes. Gradients need not travel: add up their squares on each rank, and send the sum, a number.")


@exercise
def mesh_plan(judge: Judge, plan: Callable) -> None:
    """`plan(numel, layers, gpus)`: the sizes of dp, pp and tp, with at most 40 GB of model states on a GPU and as little model parallelism as that needs."""
    MEMORY, SERVER = 40e9, 8
    made_up = [{"model": 1, "layers": 16, "gpus": 8}, {"model": 20, "layers": 44, "gpus": 64}, {"model": 60, "layers": 36, "gpus": 72},
               {"model": 3, "layers": 24, "gpus": 6}, {"model": 7, "layers": 24, "gpus": 24}]
    published = theory.published("megatron_configurations")["rows"]
    agree = 0
    for row in made_up + published:
        model, layers, gpus = row["model"], row["layers"], row["gpus"]
        case = f"{model}B parameters, {layers} layers, {gpus} GPUs"
        found = plan(model * 1e9, layers, gpus)
        if problem := _wrong_plan(found, model * 1e9, layers, gpus, MEMORY, SERVER):
            judge.demand(False, "", f"{case}: {problem}")
            return
        agree += "tp_size" in row and (found["tp"], found["pp"]) == (row["tp_size"], row["pp_size"])
    count = len(made_up) + len(published)
    judge.demand(True, f"{count} models: the sizes fit the GPUs, the server, the layers and the memory, and cut no more than they must", "")
    judge.demand(agree == len(published), f"{agree} of {len(published)} models are cut as in the Megatron paper",
                 f"{agree} of {len(published)} models are cut as in the Megatron paper.")


def _wrong_plan(found, numel: float, layers: int, gpus: int, memory: float, server: int) -> str:
    if not isinstance(found, dict) or set(found) != {"dp", "pp", "tp"} or not all(isinstance(size, int) and size > 0 for size in found.values()):
        return f"return a dict of dp, pp and tp, whole numbers above 0, not {found!r}."
    tp, pp, shown = found["tp"], found["pp"], _in_words(found)
    if math.prod(found.values()) != gpus:
        return f"{shown} is {math.prod(found.values())} GPUs."
    if server % tp:
        return f"tp {tp} does not stay inside a server of {server}: between servers it would wait for the slow link in every layer."
    if layers % pp:
        return f"{layers} layers cannot be dealt out evenly to pp {pp} stages."
    if (gb := 16 * numel / (tp * pp) / 1e9) > memory / 1e9:
        return f"{shown} leaves {gb:.1f} GB of model states on a GPU, and it may be {memory / 1e9:.0f}."
    possible = [(size * stages, -size) for size in range(1, server + 1) if server % size == 0 for stages in range(1, layers + 1)
                if layers % stages == 0 and gpus % (size * stages) == 0 and 16 * numel / (size * stages) <= memory]
    cuts, best_tp = min(possible)
    if tp * pp > cuts:
        return f"{shown} cuts the model into {tp * pp} parts, and {cuts} are enough: the rest could be data parallel, which sends least."
    if tp < -best_tp:
        return f"{shown} has a longer pipeline than it need: with tp {-best_tp}, inside a server, there is less of a bubble."
    return ""
