"""Checks of the chapter "Hybrid parallelism": a mesh, its process groups, gradients averaged over the right
axis, a norm, a plan.
"""

import math
import random
from collections.abc import Callable

import torch
import torch.distributed as dist

from course_lib import measure, theory
from course_lib.check import on_rank
from course_lib.check.counted import header_bytes, sent_bytes
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import ERROR_LIMIT, Demand, it_is, largest, sends, values
from course_lib.collectives import of_kind
from course_lib.mini import hybrid, tensor_parallel
from course_lib.mini.hybrid.refusals import mesh_in_words
from course_lib.models import TinyGPT
from course_lib.record import Job, sent

__all__ = ["mesh", "process_groups", "hybrid_weights", "gradient_norm", "mesh_plan"]

UPDATES = 3


@exercise(
    places="every rank has its place",
    groups="the groups of each axis are right",
    drawn="and so on 8 meshes that were drawn",
)
def mesh(judge: Judge, coordinates: Callable, axis_groups: Callable) -> None:
    """`coordinates(rank, sizes)` and `axis_groups(axis, sizes)` of meshes with one to four axes, the last
    axis being the fastest.
    """
    named = [
        {"dp": 2, "tp": 2},
        {"dp": 2, "tp": 4},
        {"dp": 2, "pp": 3, "tp": 4},
        {"dp": 5},
        {"dp": 2, "cp": 1, "pp": 3, "tp": 2},
    ]
    draw = random.Random(judge.seed)
    drawn = [
        {
            axis: draw.randint(1, 4)
            for axis in draw.sample(["dp", "pp", "cp", "ep", "tp"], k=draw.randint(1, 4))
        }
        for _ in range(8)
    ]
    meshes = named + drawn

    def listed(axis, sizes):
        """The groups as lists, whatever holds them: a zip, or an array."""
        groups = on_rank.plain(axis_groups(axis, sizes))
        try:
            return [
                on_rank.plain(group if isinstance(group, (str, dict)) else list(group)) for group in groups
            ]
        except TypeError:
            return groups

    everywhere = [(rank, sizes) for sizes in meshes for rank in range(math.prod(sizes.values()))]
    places = iter(judge.call(coordinates, everywhere))
    groups = iter(judge.call(listed, [(axis, sizes) for sizes in meshes for axis in sizes]))
    for number, sizes in enumerate(meshes):
        judge.case, named_one = f"mesh {mesh_in_words(sizes)}", number < len(named)
        wanted = [hybrid.coordinates(rank, sizes) for rank in range(math.prod(sizes.values()))]
        found = [on_rank.plain(next(places)) for _ in wanted]
        problem = _wrong_place(found, wanted, sizes) if found != wanted else ""
        if problem or named_one:  # of those that were drawn, only what is wrong is told
            judge.demand("places", problem)
        if problem:
            return
        problem = next(filter(None, (_wrong_groups(next(groups), axis, sizes) for axis in sizes)), "")
        if problem or named_one:
            judge.demand("groups", problem)
        if problem:
            return
    judge.case = ""
    judge.demand("drawn", "")


def _wrong_place(found: list, wanted: list[dict[str, int]], sizes: dict[str, int]) -> str:
    mirrored = dict(reversed(sizes.items()))
    if found == [
        {axis: hybrid.coordinates(rank, mirrored)[axis] for axis in sizes} for rank in range(len(wanted))
    ]:
        return (
            "your first axis is the fastest, and it must be the last one: along it, neighbours have"
            " neighbouring ranks."
        )
    rank = next(rank for rank, (mine, right) in enumerate(zip(found, wanted)) if mine != right)
    return f"rank {rank} stands at {wanted[rank]}, and your function returns {found[rank]!r}."


def _wrong_groups(found, axis: str, sizes: dict[str, int]) -> str:
    """What is wrong with the groups of one axis, as lists of ranks; "" if nothing."""
    if not isinstance(found, list) or not all(
        isinstance(group, list) and all(isinstance(rank, int) for rank in group) for group in found
    ):
        return f"the groups of {axis!r} must be a list of lists of ranks, not {found!r:.80}."
    groups = sorted(sorted(group) for group in found)
    wanted = hybrid.axis_groups(axis, sizes)
    if groups == sorted(wanted):
        return ""
    shown, count = f"your groups of {axis!r} are {groups}", math.prod(sizes.values())
    for other in sizes:
        if other != axis and groups == sorted(hybrid.axis_groups(other, sizes)):
            return (
                f"{shown}: those are the groups of {other!r}. In a group of {axis!r}, the ranks differ in"
                f" {axis!r}, and agree in all else."
            )
    members = [rank for group in groups for rank in group]
    double = next((rank for rank in members if members.count(rank) > 1), None)
    if double is not None:
        return (
            f"{shown}: rank {double} is in more than one of them. The groups of one axis have no rank in"
            " common."
        )
    if missing := sorted(set(range(count)) - set(members)):
        return f"{shown}: rank {missing[0]} is in none of them. Every rank belongs to one group of each axis."
    if groups == [list(range(count))]:
        return (
            f"{shown}: that is all ranks in one. A group of {axis!r} has {sizes[axis]} ranks, which differ in"
            f" {axis!r} alone."
        )
    return f"{shown}, and they must be {wanted}."


@exercise(
    same_calls="every rank makes every group, in the same order",
    groups="every rank has its group of each axis",
)
def process_groups(judge: Judge, make_groups: Callable) -> None:
    """`make_groups(sizes)` runs on every rank and returns its group of each axis; all ranks make all groups,
    in the same order.
    """
    MEETING_S = 12.0  # for a rank that makes other calls, or waits elsewhere; one that has returned says so

    def trial(make_groups, sizes):
        """What this rank's groups are, by axis, or under "wrong" what is. The ranks' calls of new_group are
        compared, so that none waits.
        """
        import json
        import time

        rank, count = dist.get_rank(), dist.get_world_size()
        store, real, calls = on_rank.store(), dist.new_group, []

        class Mismatch(Exception):
            pass

        def seen(key, unless=None):
            """Wait until another rank has set the key; False if it never will."""
            deadline = time.monotonic() + MEETING_S
            while not store.check([key]):
                if time.monotonic() > deadline or unless and store.check([unless]):
                    return store.check([key])  # it may have been set in between
                time.sleep(0.002)
            return True

        def new_group(ranks=None, *args, **options):
            if not options.get("use_local_synchronization"):
                number, mine = len(calls), sorted(map(int, range(count) if ranks is None else ranks))
                calls.append(mine)
                store.set(f"{number}/{rank}", json.dumps(mine))
                for other in range(count):
                    if not seen(f"{number}/{other}", unless=f"calls/{other}"):
                        raise Mismatch(f"rank {rank} makes the group {mine}, and rank {other} does not")
                    theirs = json.loads(store.get(f"{number}/{other}"))
                    if theirs != mine:
                        raise Mismatch(
                            f"in its call number {number + 1} of new_group, rank {min(rank, other)} makes the"
                            f" group {mine if rank < other else theirs}, and rank {max(rank, other)} makes"
                            f" {theirs if rank < other else mine}"
                        )
            return real(ranks, *args, **options)

        dist.new_group = new_group
        try:
            groups = make_groups(dict(sizes))
        except Mismatch as mismatch:
            return {"wrong": str(mismatch), "unequal": True}
        finally:
            dist.new_group = real
            store.set(f"calls/{rank}", str(len(calls)))
        if not isinstance(groups, dict) or set(groups) != set(sizes):
            return {
                "wrong": f"rank {rank} must return a dict with the keys {', '.join(sizes)}, not {groups!r}"
            }
        found = {}
        for axis, group in groups.items():
            wrong = ""
            if group is None:
                wrong = (
                    f"rank {rank} returns None for {axis!r}, and to a collective None means all ranks. Make a"
                    " group, also of one rank"
                )
            elif group is dist.GroupMember.NON_GROUP_MEMBER:
                wrong = f"rank {rank} returns for {axis!r} a group that it is not in"
            elif not isinstance(group, dist.ProcessGroup):
                wrong = (
                    f"rank {rank} returns {group!r} for {axis!r}, and it must be a process group, as"
                    " `dist.new_group` returns it"
                )
            else:
                found[axis] = dist.get_process_group_ranks(group)
                if rank not in found[axis]:
                    wrong = f"rank {rank} returns for {axis!r} a group that it is not in, {found[axis]}"
            if wrong:
                return {"wrong": wrong}
        for other in range(count):
            if not seen(f"calls/{other}"):
                wrong = f"rank {rank} has made its groups, and rank {other} still waits for another rank"
                return {"wrong": wrong, "unequal": True}
            if (theirs := int(store.get(f"calls/{other}"))) != len(calls):
                wrong = f"rank {rank} makes {len(calls)} groups, and rank {other} makes {theirs}"
                return {"wrong": wrong, "unequal": True}
        return found

    for sizes in ({"dp": 2, "tp": 2}, {"dp": 3, "pp": 1, "tp": 2}):
        judge.case = f"mesh {mesh_in_words(sizes)}"
        results = judge.run(trial, make_groups, sizes, ranks=math.prod(sizes.values())).results
        first = next((found for found in results if "wrong" in found), {})
        why = (
            f"{first.get('wrong')}. `new_group` is a collective of all ranks: every rank must make every"
            " group, in the same order, also those that it is not in. Otherwise ranks wait for each other,"
            " or take each other's messages."
        )
        if not judge.demand("same_calls", why if first.get("unequal") else ""):
            return
        if first:
            judge.refuse(f"{first['wrong']}.")
        for axis in sizes:
            groups = hybrid.axis_groups(axis, sizes)
            wrong = [rank for rank, found in enumerate(results) if sorted(found[axis]) != _own(groups, rank)]
            why = ""
            if wrong:
                why = _wrong_groups(_distinct(results, axis), axis, sizes)
                why = why or f"rank {wrong[0]} has the group of another rank."
            if not judge.demand("groups", why, f"every rank has its group of {axis}"):
                return


def _own(groups: list[list[int]], rank: int) -> list[int]:
    return next(group for group in groups if rank in group)


def _distinct(results: list[dict], axis: str) -> list[list[int]]:
    return [list(group) for group in sorted({tuple(sorted(found[axis])) for found in results})]


def _gpt() -> Callable[[], TinyGPT]:
    """Makes the model of the trials, as a function that travels by value. Its matrices are so large that the
    headers of messages are small beside them.
    """

    def make() -> TinyGPT:
        torch.manual_seed(0)
        return TinyGPT(vocab_size=48, context=16, dim=48, heads=6, layers=1, tied=False)

    return make


def _of_dp(job: Job) -> str:
    """Every collective is within a group of dp; a message of two ranks is nobody else's business."""
    sizes = job.results[0]["sizes"]
    columns = {",".join(map(str, ranks)) for ranks in hybrid.axis_groups("dp", sizes)}
    return _strange(
        job.comm[~job.comm["group"].isin(columns) & ~job.comm["op"].isin(of_kind("send", "receive"))], sizes
    )


@exercise(
    groups=Demand("every collective is within a group of dp", _of_dp),
    gradient=values(
        "every gradient is that of the whole batch",
        "the gradient is not that of the whole batch (relative error {error:.2g}).",
        "gradient",
    ),
    weights=values(
        f"after {UPDATES} updates, the weights are those of one process",
        f"after {UPDATES} updates, the weights are not those of one process (relative error {{error:.2g}}).",
        "weights",
        advice=lambda job, error: it_is(job),
        after=("gradient",),
    ),
    bytes=sends(
        "2(n-1)/n of its gradients",
        lambda job: theory.collective_bytes(
            "all_reduce", job.results[0]["held"], job.results[0]["sizes"]["dp"]
        ),
        "a rank sends {times:.2f} times the {limit:,.0f} bytes of one all_reduce of its gradients over dp.",
        lambda job: f" {_wasteful(job.comm)}",
        right=lambda job: largest(job, "gradient") < ERROR_LIMIT,
    ),
)
def hybrid_weights(judge: Judge, average: Callable) -> None:
    """`average(model, groups)` makes the gradients of a model that is cut over groups["tp"] those of the
    whole batch: over groups["dp"] alone.

    The first mesh is 3 x 2: on two rows an all_gather would send no more than an all_reduce.
    """
    make = _gpt()

    def trial(average, sizes, seed):
        torch.set_default_dtype(torch.float64)
        on_rank.use_cpu()
        flat, apart = on_rank.flat, on_rank.apart
        place, groups = hybrid.coordinates(dist.get_rank(), sizes), hybrid.make_groups(sizes)
        one = make()
        cut = tensor_parallel.parallelize(make(), groups["tp"])
        optimizer, optimizer_of_one = (
            torch.optim.SGD(model.parameters(), 0.5, momentum=0.9) for model in (cut, one)
        )
        names, found = [name for name, _ in one.named_parameters()], {"gradient": 0.0, "looks": ""}
        cut_names = {
            f"{prefix}.{name}"
            for prefix, module in cut.named_modules()
            for name in getattr(module, "cut_dims", {})
        }
        is_cut = flat(torch.full_like(p, name in cut_names) for name, p in one.named_parameters())
        batches = torch.randint(
            48, (UPDATES, 4 * sizes["dp"], 17), generator=torch.Generator().manual_seed(seed)
        )

        def put_together():
            full = tensor_parallel.gather_full(cut, groups["tp"], grads=True)
            return flat(full[name] for name in names)

        for update, whole in enumerate(batches):
            one(whole).backward()
            cut(whole.chunk(sizes["dp"])[place["dp"]]).backward()
            full, own = flat(p.grad for p in one.parameters()), put_together()
            dist.barrier()
            with measure.step(cut, optimizer):
                if update == 2 and dist.get_rank() == seed % dist.get_world_size():
                    on_rank.come_late("average")  # who does not wait for it has wrong numbers
                average(cut, dict(groups))
                # before what comes late can still come
                now = [None if p.grad is None else p.grad.detach().clone() for p in cut.parameters()]
            if update == 2:
                on_rank.is_back("average")
            strange = any(grad is None or grad.shape != p.shape for grad, p in zip(now, cut.parameters()))
            if problem := on_rank.first_problem(
                "a parameter has no gradient afterwards, or one of another shape" if strange else ""
            ):
                return {"problem": problem}
            for p, grad in zip(cut.parameters(), now):
                p.grad = grad
            grad = put_together()
            if apart(grad, full) > ERROR_LIMIT and not found["looks"]:
                guesses = {
                    "the sum over dp, not the average: divide by the size of dp": full * sizes["dp"],
                    "divided by the number of all ranks; only dp counts, since the ranks of a row have the"
                    " same samples": (full / sizes["tp"]),
                    "this row's own gradient: nothing was averaged": own,
                    "this row's own where a parameter is whole: that is the same along tp, but each row has"
                    " had other samples": (own + is_cut * (full - own)),
                }
                late = on_rank.NOT_WAITED if update == 2 and found["gradient"] < ERROR_LIMIT else ""
                found["looks"] = on_rank.looks(grad, guesses) or late
            found["gradient"] = max(found["gradient"], apart(grad, full))
            optimizer.step()
            optimizer_of_one.step()
            optimizer.zero_grad()
            optimizer_of_one.zero_grad()
        full = tensor_parallel.gather_full(cut, groups["tp"])
        return found | {
            "weights": apart(flat(full[name] for name in names), flat(one.parameters())),
            "held": flat(cut.parameters()).nbytes,
            "sizes": sizes,
        }

    for sizes in ({"dp": 3, "tp": 2}, {"dp": 2, "tp": 2}):
        ranks = math.prod(sizes.values())
        if not judge.tried(mesh_in_words(sizes), trial, average, sizes, judge.seed, ranks=ranks):
            return  # the other mesh would say it again


def _wasteful(calls) -> str:
    """Why an average took more bytes than an all_reduce."""
    ops = set(calls["op"])
    if "all_gather" in ops and "reduce_scatter" not in ops:
        return (
            "An all_gather brings everybody's numbers, to be added up everywhere; an all_reduce sends sums."
        )
    if "reduce_scatter" in ops:
        return (
            "An all_reduce can be made of a reduce_scatter and an all_gather, but gloo's reduce_scatter sends"
            " as much as a whole all_reduce (measured)."
        )
    if "reduce" in ops:
        return (
            "The rank to which all reduce, and which sends the sums to all, has more to send than the others:"
            " an all_reduce shares that out."
        )
    return "What it holds must be summed, once, with the ranks that hold the same."


def _strange(calls, sizes: dict[str, int]) -> str:
    """Why a collective in another group than one of dp is wrong."""
    if calls.empty:
        return ""
    op, group = calls.iloc[0]["op"], calls.iloc[0]["group"]
    rows = {",".join(map(str, ranks)) for ranks in hybrid.axis_groups("tp", sizes)}
    if op == "barrier":
        return (
            f"your barrier is a collective too, over the ranks {group}, and it moves nothing: an all_reduce"
            " waits for all whom it needs, and the columns need not wait for each other."
        )
    if group == ",".join(map(str, range(math.prod(sizes.values())))):
        return (
            f"your {op} goes over all ranks. Ranks of one row hold different parts of a matrix: averaged,"
            ' they mix numbers that belong to different weights. Only the ranks of a column, groups["dp"],'
            " hold the same parameters."
        )
    if group in rows:
        return (
            f"your {op} goes over the ranks {group}, a group of tp. They hold different parts of the model,"
            ' and have had the same samples; what must be averaged is on the ranks of groups["dp"].'
        )
    return f"your {op} goes over the ranks {group}, which are no group of dp."


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


@exercise(
    sizes="the sizes fit the GPUs, the server, the layers and the memory, and cut no more than they must",
    paper="the models of the Megatron paper are cut as they were there",
)
def mesh_plan(judge: Judge, plan: Callable) -> None:
    """`plan(numel, layers, gpus)`: the sizes of dp, pp and tp, with at most 40 GB of model states on a GPU
    and as little model parallelism as that needs.
    """
    MEMORY, SERVER, DRAWN = 40e9, 8, 40
    made_up = [
        {"model": 1, "layers": 16, "gpus": 8},
        {"model": 20, "layers": 44, "gpus": 64},
        {"model": 60, "layers": 36, "gpus": 72},
        {"model": 3, "layers": 24, "gpus": 6},
        {"model": 7, "layers": 24, "gpus": 24},
    ]
    published, draw = theory.published("megatron_configurations")["rows"], random.Random(judge.seed)
    drawn = []
    while len(drawn) < DRAWN:
        row = {
            "model": draw.choice([1, 2, 3, 5, 8, 13, 20, 35, 60, 100, 175, 300]),
            "layers": draw.choice([12, 16, 18, 24, 30, 32, 36, 44, 48, 96]),
            "gpus": draw.choice([1, 2, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 72, 96, 256]),
        }
        drawn += [row] if _possible(row["model"] * 1e9, row["layers"], row["gpus"], MEMORY, SERVER) else []
    rows = made_up + published + drawn
    agree = 0
    # an answer that fails at what was drawn has got a reason before, if it is wrong elsewhere too
    for some in (made_up + published, drawn):
        for row, found in zip(
            some, judge.call(plan, [(row["model"] * 1e9, row["layers"], row["gpus"]) for row in some])
        ):
            model, layers, gpus = row["model"], row["layers"], row["gpus"]
            if problem := _wrong_plan(found, model * 1e9, layers, gpus, MEMORY, SERVER):
                judge.case = f"{model}B parameters, {layers} layers, {gpus} GPUs"
                judge.demand("sizes", problem)
                return
            agree += "tp_size" in row and (found["tp"], found["pp"]) == (row["tp_size"], row["pp_size"])
    judge.case = f"{len(rows)} models"
    judge.demand("sizes", "")
    judge.case = ""
    said = f"{agree} of {len(published)} models are cut as in the Megatron paper"
    judge.demand("paper", f"{said}." if agree != len(published) else "", said)


def _possible(numel: float, layers: int, gpus: int, memory: float, server: int) -> list[tuple[int, int]]:
    """The pairs (parts, -tp) of every mesh that has room for the model states."""
    return [
        (size * stages, -size)
        for size in range(1, server + 1)
        if server % size == 0
        for stages in range(1, layers + 1)
        if layers % stages == 0 and gpus % (size * stages) == 0 and 16 * numel / (size * stages) <= memory
    ]


def _wrong_plan(found, numel: float, layers: int, gpus: int, memory: float, server: int) -> str:
    sizes = {axis: on_rank.whole(size) for axis, size in found.items()} if isinstance(found, dict) else {}
    if set(sizes) != {"dp", "pp", "tp"} or not all(size and size > 0 for size in sizes.values()):
        return f"return a dict of dp, pp and tp, whole numbers above 0, not {found!r:.80}."
    tp, pp, shown = sizes["tp"], sizes["pp"], mesh_in_words(sizes)
    if math.prod(sizes.values()) != gpus:
        return f"{shown} is {math.prod(sizes.values())} GPUs."
    if server % tp:
        return (
            f"tp {tp} does not stay inside a server of {server}: between servers it would wait for the slow"
            " link in every layer."
        )
    if layers % pp:
        return f"{layers} layers cannot be dealt out evenly to pp {pp} stages."
    if (gb := 16 * numel / (tp * pp) / 1e9) > memory / 1e9:
        return f"{shown} leaves {gb:.1f} GB of model states on a GPU, and it may be {memory / 1e9:.0f}."
    cuts, best_tp = min(_possible(numel, layers, gpus, memory, server))
    if tp * pp > cuts:
        return (
            f"{shown} cuts the model into {tp * pp} parts, and {cuts} are enough: the rest could be data"
            " parallel, which sends least."
        )
    if tp < -best_tp:
        return (
            f"{shown} has a longer pipeline than it need: with tp {-best_tp}, inside a server, there is less"
            " of a bubble."
        )
    return ""
