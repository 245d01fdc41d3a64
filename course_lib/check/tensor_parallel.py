"""Checks of the chapter "Tensor parallelism": the operators f and g, a parallel MLP, a loss over a cut
vocabulary, a product in pieces under which sums travel.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from course_lib import measure, theory
from course_lib.check import on_rank
from course_lib.check.counted import header_bytes, sent_bytes
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import BYTES_LIMIT, ERROR_LIMIT, Demand, collectives, fact, holds, sends, values
from course_lib.collectives import of_kind
from course_lib.record import Job, held, sent

__all__ = ["f_and_g", "parallel_mlp", "vocabulary_loss", "product_in_pieces"]

BATCH, SEQUENCE, HIDDEN = 8, 64, 32  # x is [8, 64, 32]: large enough for the headers of messages not to count
TOKENS, VOCABULARY = 24, 600  # of the loss
STEPS = 3  # of the parallel MLP
FG = "your f and g"
S = 8 * BATCH * SEQUENCE * HIDDEN  # bytes of x in float64


def _part(name: str, words: str) -> Demand:
    """The demand that one tensor of the parallel MLP is that of one process."""

    def missed(job: Job) -> str:
        error, absent, looks = max((found[name] for found in job.results), key=lambda found: found[0])
        if error < ERROR_LIMIT:
            return ""
        why = "there is none: backward does not reach it" if absent else f"relative error {error:.2g}"
        return f"{words} is not that of one process: " + (
            f"it is {looks}." if looks and not absent else f"{why}.{on_rank.rounding(error)}"
        )

    return Demand(f"{words} is that of one process", missed)


PARTS = {
    "output": _part("output", "the output"),
    "input_grad": _part("x", "the gradient of the input"),
    "A_grad": _part("A", "the gradient of A's part"),
    "B_grad": _part("B", "the gradient of B's part"),
}


def _two_all_reduces(where: str, gathered: str) -> Demand:
    """`gathered`: the advice where an all_gather is found."""
    words = f"exactly two all_reduces, {where}"
    return collectives(
        words,
        lambda ops: {op: ops[op] for op in set(ops) - of_kind("meeting")} == {"all_reduce": 2},
        f"{words}; you used {{used}}.",
        advice={"all_gather": gathered},
    )


def _as_two_rings(what: str) -> Demand:
    """No more bytes than two ring all_reduces of x: 4 r S. `what` sends so much."""
    return sends(
        "4(n-1)/n S",
        lambda job: 2 * theory.collective_bytes("all_reduce", S, job.ranks),
        f"a rank sent {{times:.1f}} times the 4(n-1)/n S = {{limit:,.0f}} bytes of {what}. Something larger"
        " than the input travels, or whole tensors travel where sums would do.",
    )


@exercise(
    **PARTS,
    calls=_two_all_reduces(
        "one in forward (g) and one in backward (f)",
        "An all_gather brings the whole tensor of every rank to every rank, to be added up there; an"
        " all_reduce sends sums.",
    ),
    bytes=_as_two_rings("two all_reduces of x"),
)
def f_and_g(judge: Judge, f: Callable, g: Callable) -> None:
    """`f(x)` and `g(x)`: in an MLP that is cut by columns, then by rows, they give values and gradients of
    one process with two all_reduces.
    """

    def mlp(f, g, seed):
        """For the output and the gradients of x, A and B: the error against one process, whether it is
        absent, and what it looks like.
        """
        on_rank.use_cpu()
        torch.set_default_dtype(torch.float64)
        rank, n = dist.get_rank(), dist.get_world_size()

        def mine(tensor, dim):
            return tensor.tensor_split(n, dim)[rank]

        class NotATensor(Exception):
            pass

        def checked(found, name, shape):
            what = f"one of shape {list(found.shape)}" if isinstance(found, torch.Tensor) else repr(found)
            problem = (
                ""
                if isinstance(found, torch.Tensor) and found.shape == shape
                else f"your {name} must return a tensor of shape {list(shape)}, and it returned {what}"
            )
            # in the first step, whose calls are not counted, all ranks leave together
            if number == 0:
                problem = on_rank.first_problem(problem)
            if problem:
                raise NotATensor(problem)
            return found

        def comes_late(tensor, call):
            """The last rank is slow here: whoever does not wait for it goes on with numbers that are not
            there yet.
            """
            if late:
                dist.barrier()
                if rank == n - 1:
                    on_rank.come_late(call, 1.0)
            return tensor

        def at_once(tensor, call):
            """What a call has returned, as it is now."""
            kept = None if tensor is None else tensor.detach().clone()
            if late:
                on_rank.is_back(call)
            return kept

        def gradients(x, A, B, weights, enter, leave):
            given, (x, A, B) = x, (tensor.clone().requires_grad_() for tensor in (x, A, B))
            with measure.step() if enter is f else torch.enable_grad():
                entered = checked(enter(comes_late(x, "f")), "f", (BATCH, SEQUENCE, HIDDEN))
                kept = at_once(entered, "f")
                part = F.gelu(entered @ A) @ B
                part.register_hook(lambda grad: comes_late(grad, "backward"))
                y = checked(leave(comes_late(part, "g")), "g", weights.shape)
                output = at_once(y, "g")
                (y * weights).sum().backward()
                x_grad = at_once(x.grad, "backward")
            if late and not (torch.equal(kept, entered.detach()) and torch.equal(output, y.detach())):
                raise NotATensor(
                    "what your f or g had returned was changed afterwards: a message was still on its way."
                    " Wait for it before you return"
                )
            if late and not torch.equal(x.detach(), given):
                raise NotATensor("your f changes the `x` that it was given; leave it alone")
            return {"output": output, "x": x_grad, "A": A.grad, "B": B.grad}

        torch.manual_seed(seed)
        weights = torch.randn(BATCH, SEQUENCE, HIDDEN)
        # all before an answer runs
        sets = [
            (
                torch.randn(BATCH, SEQUENCE, HIDDEN),
                torch.randn(HIDDEN, 4 * HIDDEN),
                torch.randn(4 * HIDDEN, HIDDEN),
            )
            for _ in range(3)
        ]
        founds, problem = [], ""
        for number, (x, A, B) in enumerate(sets):
            late = number == 2  # after the traced one
            try:
                founds.append(gradients(x, mine(A, 1), mine(B, 0), weights, f, g))
            except NotATensor as wrong:
                problem = str(wrong)
            if problem := problem if number == 0 else on_rank.first_problem(problem):
                return {"problem": problem}
        found = founds[-1]
        late = False
        wanted = gradients(x, A, B, weights, nn.Identity(), nn.Identity())
        wanted = {
            "output": wanted["output"],
            "x": wanted["x"],
            "A": mine(wanted["A"], 1),
            "B": mine(wanted["B"], 0),
        }
        # without any communication
        own = gradients(x, mine(A, 1), mine(B, 0), weights, nn.Identity(), nn.Identity())
        summed_first = gradients(n * x, mine(A, 1), mine(B, 0), weights, nn.Identity(), nn.Identity())
        below = (
            "The weights of this MLP do not notice, but every layer below would learn from a wrong gradient"
        )
        times = (
            f"{n} times too large. Every rank has the same loss, so the gradient that comes to g is already"
            " complete: g must pass it on as it is"
        )
        guesses = {
            "output": {
                "this rank's own part: g must add up the parts of all ranks in forward": own["output"],
                "the mean: do not divide": wanted["output"] / n,
                "what comes out if x is added up where it enters: in forward f hands x on, and g adds up": (
                    summed_first["output"]
                ),
            },
            "x": {
                f"this rank's own part: f must add up the gradients of all ranks in backward. {below}": own[
                    "x"
                ],
                f"{n} times too large: it was added up where it was already complete": n * wanted["x"],
                "the mean: do not divide": wanted["x"] / n,
                f"this rank's own part, and {n} times too large: f must add up in backward, and g must not": (
                    n * own["x"]
                ),
            },
            "A": {times: n * wanted["A"]},
            "B": {times: n * wanted["B"]},
        }
        return {
            name: (
                on_rank.apart(found[name], wanted[name]),
                found[name] is None,
                on_rank.looks(found[name], guesses[name]),
            )
            for name in wanted
        }

    for ranks in (3, 2):
        if not judge.tried(f"{ranks} ranks", mlp, f, g, judge.seed, ranks=ranks, label=FG):
            return  # what is wrong on three ranks need not be said again of two


def _or_not_waited(advice: str) -> Callable[[Job, float], str]:
    """What to look at, where it is not a rank that comes late that makes the difference."""

    def of(job: Job, error: float) -> str:
        if any(found["not_waited"] for found in job.results):
            return f" It is {on_rank.NOT_WAITED}."
        return f" {advice}{on_rank.rounding(error)}"

    return of


CUT_BYTES = 8 * (4 * HIDDEN**2 + 4 * HIDDEN + 4 * HIDDEN**2)  # of everything but the second bias


def _one_nth(job: Job) -> int:
    """Bytes of parameters that a rank may hold."""
    return CUT_BYTES // job.ranks + 8 * HIDDEN


def _let_go(job: Job) -> str:
    too_many = held(job)["params"].max() > _one_nth(job)  # of which `held` tells
    if too_many or not any(found["kept"] for found in job.results):
        return ""
    return (
        "your module's parameters are small, but it keeps a whole weight, or a copy of one, in another place."
    )


def _whole(job: Job) -> str:
    """Why a rank holds too much."""
    why = ". All weights are on every rank" if held(job)["params"].max() >= CUT_BYTES else ""
    if any(found["views"] for found in job.results):
        why += ": a slice is a view, and keeps the whole weight in memory. Take a `.clone()` of it"
    return f"{why}."


@exercise(
    output=values(
        "the output is that of one process",
        "the output is not that of one process (relative error {error:.2g}).",
        "output",
        advice=_or_not_waited(
            "Cut the first weight by columns, the second by rows, and add the second bias once, after g."
        ),
    ),
    input_grad=values(
        "the gradient of the input is that of one process",
        "the gradient of the input is not that of one process (relative error {error:.2g}).",
        "x",
        advice=_or_not_waited("An all_reduce in backward is missing or too many: that is what f is for."),
        after=("output",),
    ),
    later=values(
        f"after {STEPS - 1} updates with SGD, it still is",
        f"after {STEPS - 1} updates with SGD, the output is not that of one process (relative error"
        " {error:.2g}).",
        "later",
        advice="So a weight or a bias has got a wrong gradient.",
        after=("output",),
    ),
    let_go=Demand("the whole weights are let go", _let_go),
    held=holds(
        "each rank holds 1/{n} of the weights, to the byte",
        "params",
        _one_nth,
        "a rank holds {held:,} bytes of parameters, {times:.2f} times (weights / {n} + the second bias) ="
        " {limit:,}",
        advice=_whole,
    ),
    calls=_two_all_reduces(
        "one in forward and one in backward",
        "An all_gather puts the hidden layer (or a weight) together on every rank, and it may stay in parts:"
        " GELU works on each number alone.",
    ),
    bytes=_as_two_rings("two all_reduces of x"),
)
def parallel_mlp(judge: Judge, make: Callable) -> None:
    """`make(mlp)` returns a module that computes what `mlp` (Linear, GELU, Linear) does, with 1/n of its
    weights and two all_reduces. At the end one rank comes late to forward, and to backward.
    """

    def train(make, seed):
        import copy
        import gc

        on_rank.use_cpu()
        torch.set_default_dtype(torch.float64)

        def large():
            """The storages with as many numbers as a whole weight, of whatever size, wherever a tensor keeps
            them.
            """
            tensors = [found for found in gc.get_objects() if type(found) in (torch.Tensor, nn.Parameter)]
            return {
                t.untyped_storage().data_ptr()
                for t in tensors
                if t.untyped_storage().nbytes() >= t.element_size() * HIDDEN * 4 * HIDDEN
            }

        torch.manual_seed(seed)
        one = nn.Sequential(nn.Linear(HIDDEN, 4 * HIDDEN), nn.GELU(), nn.Linear(4 * HIDDEN, HIDDEN))
        # an answer may seed, or build layers
        target, *inputs = (torch.randn(BATCH, SEQUENCE, HIDDEN) for _ in range(1 + STEPS))
        others, unseen = large(), on_rank.outside_torch()
        whole = copy.deepcopy(one)
        module = make(whole)
        problem = (
            ""
            if isinstance(module, nn.Module)
            else f"ParallelMLP(mlp) must be a module, and it is {module!r}"
        )
        if problem := on_rank.first_problem(problem):
            return {"problem": problem}
        params = list(module.parameters())
        del whole
        gc.collect()
        found = {
            "views": any(p.nbytes < p.untyped_storage().nbytes() for p in params),
            "kept": bool(large() - others) or on_rank.outside_torch() - unseen > 8 * 4 * HIDDEN * HIDDEN // 2,
        }
        if not all(on_rank.everyone(bool(params))):
            return {
                "problem": (
                    "your module has no parameters. Put the slices into nn.Parameter, so that the"
                    " optimizer can find them"
                )
            }
        errors = []  # of output and gradient of the input, step by step
        optimizer, optimizer_of_one = (torch.optim.SGD(model.parameters(), 0.5) for model in (module, one))
        for data in inputs:
            grads, problem = [], ""
            for model, its_optimizer in ((module, optimizer), (one, optimizer_of_one)):
                x = data.clone().requires_grad_()
                its_optimizer.zero_grad()
                with measure.step(model, its_optimizer) if model is module else torch.enable_grad():
                    y = model(x)
                    if not isinstance(y, torch.Tensor) or y.shape != x.shape:
                        what = f"one of shape {list(y.shape)}" if isinstance(y, torch.Tensor) else repr(y)
                        problem = (
                            f"the forward of your module must return a tensor of shape {list(x.shape)}, and"
                            f" it returned {what}"
                        )
                    elif not y.requires_grad:
                        problem = (
                            "the forward of your module returns a tensor without a grad_fn: backward has"
                            " nowhere to begin"
                        )
                    else:
                        F.mse_loss(y, target).backward()
                        its_optimizer.step()
                if problem := on_rank.first_problem(problem):
                    return {"problem": problem}
                grads.append((y.detach(), x.grad))
            errors.append([on_rank.apart(mine, wanted) for mine, wanted in zip(*grads)])
        if all(on_rank.everyone(max(map(max, errors)) < ERROR_LIMIT)):

            def forward_and_backward(model, is_late):
                x = data.clone().requires_grad_()
                if is_late:
                    on_rank.come_late("forward")
                y = model(x)
                output = y.detach().clone()  # at once: who has not waited for it does not have it
                on_rank.is_back("forward")
                loss = F.mse_loss(y, target)
                if is_late:
                    on_rank.come_late("backward")
                loss.backward()
                grad = None if x.grad is None else x.grad.clone()
                on_rank.is_back("backward")
                return output, grad

            its = forward_and_backward(module, dist.get_rank() == seed % dist.get_world_size())
            late = [on_rank.apart(*both) for both in zip(its, forward_and_backward(one, False))]
            if max(late) > ERROR_LIMIT:
                return found | {"output": late[0], "x": late[1], "later": 0.0, "not_waited": True}
        return found | {
            "output": errors[0][0],
            "x": errors[0][1],
            "later": max(output for output, _ in errors),
            "not_waited": False,
        }

    for ranks in (2, 4):
        if not judge.tried(f"{ranks} ranks", train, make, judge.seed, ranks=ranks, label="your parallel MLP"):
            return


def _small(job: Job) -> str:
    most = max(sent(job, layer="algorithm").max(), (sent_bytes(job) - header_bytes(job)).max())
    numbers = most / (8 * TOKENS)
    enough = theory.collective_bytes("all_reduce", 3, job.ranks)
    if numbers <= BYTES_LIMIT * enough:
        return ""
    return (
        f"your collectives send {numbers:,.1f} numbers per token, and all_reduces of three numbers send"
        f" {enough:.1f}. The logits must stay where they are: only a maximum and two sums over the vocabulary"
        " need to travel."
    )


@exercise(
    loss="the loss is that of one process, on every rank",
    gradient="the gradient of each rank's logits is that of one process",
    calls=collectives(
        "at most three collectives",
        lambda ops: ops.total() <= 3,
        "{used}, and three are enough: the largest logit, the sum of exp(), and the target's logit.",
    ),
    bytes=Demand("together they send no more than all_reduces of three numbers per token", _small),
)
def vocabulary_loss(judge: Judge, answer: Callable) -> None:
    """`answer(logits, targets)`: the mean cross-entropy, from logits of which each rank has the columns of
    its part of the vocabulary. In the last case one rank comes late with each message.
    """

    def losses(answer, seed):
        on_rank.use_cpu()
        torch.set_default_dtype(torch.float64)
        rank, n = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(seed)
        found, cases = [], []
        # first and last tokens of the parts of 2 and 3 ranks
        borders = torch.tensor([0, 199, 200, 299, 300, 399, 400, 599])
        inner = torch.tensor([token for token in range(VOCABULARY) if token not in borders])
        for kind in ("plain", "plain", "large", "uneven", "borders", "late"):  # all before an answer runs
            # The largest logit of a token is not on every rank (large: exp(2000) is more than a float64 can
            # hold), and not the same for all tokens (uneven).
            full = torch.randn(TOKENS, VOCABULARY)
            if kind == "large":
                full += 2000.0 * torch.arange(VOCABULARY).div(VOCABULARY / 3).floor()
            if kind == "uneven":
                full += torch.linspace(-2000, 2000, TOKENS)[:, None]
            others = inner[torch.randint(len(inner), (TOKENS,))]
            cases.append((kind, full, borders.repeat(3) if kind == "borders" else others))
        for kind, full, targets in cases:
            mine = full.tensor_split(n, 1)[rank].clone().requires_grad_()
            whole = full.clone().requires_grad_()
            wanted = F.cross_entropy(whole, targets)
            wanted.backward()
            given, is_late = targets.clone(), kind == "late" and rank == seed % n
            late = on_rank.late("loss", [on_rank.LATE_S] * 3) if is_late else None
            with on_rank.Calls(late) if kind == "late" else measure.step():
                loss = answer(mine, given)
                problem, is_tensor = "", isinstance(loss, torch.Tensor)
                if not is_tensor or loss.numel() != 1 or not loss.requires_grad:
                    if not is_tensor:
                        what = repr(loss)
                    elif loss.numel() != 1:
                        what = f"one of shape {list(loss.shape)}"
                    else:
                        what = "one without a grad_fn"
                    problem = (
                        "your function must return the mean loss, a tensor with one number and a grad_fn,"
                        f" and it returned {what}"
                    )
                else:
                    loss.sum().backward()
                    # at once: who has not waited for them does not have them
                    loss, grad = loss.detach().clone(), None if mine.grad is None else mine.grad.clone()
                if kind == "late":
                    on_rank.is_back("loss")
            if not problem and not (
                torch.equal(mine.detach(), full.tensor_split(n, 1)[rank]) and torch.equal(given, targets)
            ):
                problem = (
                    "your function changes the logits or the targets that it was given, and they are not its"
                    " own. Work on another tensor (`logits - m`, not `logits -= m`)"
                )
            if problem := on_rank.first_problem(problem):
                return {"problem": problem}
            part, loss = whole.grad.tensor_split(n, 1)[rank], loss.reshape(())
            factor = 0.0
            if grad is not None and grad.shape == part.shape:
                near = [by for by in (n, 1 / n) if torch.allclose(grad.double(), part * by, rtol=1e-6)]
                factor = near[0] if near else 0.0
            found.append(
                {
                    "loss": on_rank.apart(loss.double(), wanted.detach()),
                    "finite": bool(loss.isfinite()),
                    "sum": abs(loss.item() / wanted.item() / TOKENS - 1) < 1e-6,
                    "grad": on_rank.apart(grad, part),
                    "times": factor,
                }
            )
        return found

    for ranks in (2, 3):
        judge.case = f"{ranks} ranks"
        job = judge.run(losses, answer, judge.seed, ranks=ranks, label="your loss")
        for case, name in (
            (1, f"{ranks} ranks"),
            (2, f"{ranks} ranks, logits up to 4000"),
            (3, f"{ranks} ranks, other largest logits from token to token"),
            (4, f"{ranks} ranks, targets at the borders of the parts"),
        ):
            judge.case, found = name, [result[case] for result in job.results]
            why = _wrong_loss(found, small=case == 1)
            if why and case == 4 and judge.met:  # nothing but the borders is wrong
                first = VOCABULARY // ranks
                why += f" Rank 1 has the tokens {first} to {2 * first - 1}, both included."
            if judge.demand("loss", why):
                judge.demand("gradient", _wrong_gradient(found))
            elif case == 1 and not all(f["finite"] for f in found):
                break  # the other cases would only say another thing of the same
        # of one that comes late nothing is said where all is right, or something else is wrong
        judge.case, found = f"{ranks} ranks", [result[5] for result in job.results]
        for key, why in (("loss", _wrong_loss(found, small=True)), ("gradient", _wrong_gradient(found))):
            if why and judge.met:
                judge.demand(key, f"{why} It is {on_rank.NOT_WAITED}.")
        judge.look(job, "calls", "bytes")
        if not judge.met:
            return


def _wrong_loss(found: list[dict], small: bool) -> str:
    """`small`: whether the logits are."""
    finite = all(f["finite"] for f in found)
    worst = max(f["loss"] if f["finite"] else 2.0 for f in found)
    if worst < ERROR_LIMIT:
        return ""
    if not finite and small:
        why = (
            "it is not finite, with small logits: is something masked with -inf, which stays -inf in a sum? A"
            " rank without the target must add a zero"
        )
    elif not finite:
        why = (
            "exp() of a large logit overflows, or all of them become zero. Subtract the token's largest logit"
            " first: the largest of **all** ranks"
        )
    elif found[0]["sum"]:
        why = "it is the sum over the tokens; divide by their number"
    else:
        why = f"relative error {worst:.2g}"
    return f"the loss is not that of one process on every rank: {why}.{on_rank.rounding(worst)}"


def _wrong_gradient(found: list[dict]) -> str:
    worst, times = max(f["grad"] for f in found), found[0]["times"]
    if worst < ERROR_LIMIT:
        return ""
    if times > 1:
        why = f"it is {times:g} times as large. Is something added up again in backward?"
    elif times:
        why = f"it is 1/{len(found)} of it"
    else:
        why = f"relative error {worst:.2g}"
    return f"the gradient of a rank's logits is not that of one process: {why}.{on_rank.rounding(worst)}"


C_AND_W = ((1.0, 0.5), (1.0, 2.0))  # units of time that a piece needs to be multiplied, and to travel
PIECE, WIDE, OUT = 6, 8, 5  # tokens and features of a piece on a rank, and numbers of a product


def _passed_on(job: Job) -> str:
    for rank, cases in enumerate(job.results):
        for found in cases["cases"]:
            if found["others"]:
                return f"rank {rank} also calls {found['others'][0]}: all that travels must take pass_right."
            if round(found["passed"], 6) != job.ranks - 1:
                return (
                    f"rank {rank} passes on {found['passed']:g} pieces, and n-1 = {job.ranks - 1} sums of one"
                    " piece must travel."
                )
    return ""


def _multiplied(job: Job) -> str:
    for rank, cases in enumerate(job.results):
        for found in cases["cases"]:
            if round(found["multiplied"], 6) != job.ranks:
                return f"rank {rank} multiplies {found['multiplied']:g} pieces, and there are {job.ranks}."
    return ""


def _in_time(job: Job) -> str:
    for number, (c, w) in enumerate(C_AND_W):
        found = [result["cases"][number] for result in job.results]
        clock, enough = max(its["clock"] for its in found), c + (job.ranks - 1) * max(c, w)
        if clock <= BYTES_LIMIT * enough:
            continue
        if any(its["before"] > job.ranks - 1 for its in found):
            why = "all products stand before the first message. Make one, and let its sum set out"
        elif not any(its["under"] for its in found):
            why = "no product is made while a sum travels. Call pass_right, then multiply, and only then wait"
        else:
            why = "let each message travel while a product is made"
        return f"with c = {c:g} and w = {w:g} it takes {clock:g}, and {enough:g} is enough: {why}."
    return ""


@exercise(
    kept=fact(
        "pieces stay as they were, and so does what is on its way",
        "changed",
        "rank {rank} {wrong}.",
        quiet=True,
    ),
    sum=fact(
        "each rank has the sum for its own tokens, that of one process", "wrong", "rank {rank} {wrong}."
    ),
    once=Demand("each piece is multiplied once", _multiplied),
    passed=Demand("n-1 sums of one piece travel, all through pass_right", _passed_on),
    time=Demand("it takes c + (n-1) max(c, w)", _in_time, after=("sum",)),
)
def product_in_pieces(judge: Judge, answer: Callable) -> None:
    """`answer(pieces, multiply, pass_right)`: the sum over the ranks of the products of this rank's tokens,
    while sums travel round a ring. Time is counted, not measured: each rank has a clock, and messages carry
    it.
    """

    def scatter(answer, seed, c_and_w, piece, wide, out, within):
        class Ring:
            """Multiplies and passes on, and counts the time of both. A link carries one message at a time,
            and one sets out when both ranks are there.
            """

            def __init__(self, c, w, B):
                self.c, self.w, self.B = c, w, B
                self.clock = self.free_at = self.multiplied = self.passed = 0.0
                self.before = self.under = self.travelling = 0
                self.inside, self.others, self.changed, self.on_the_way = False, [], "", []

            def saw(self, row):
                if not self.inside and row["op"] not in self.others:
                    self.others.append(row["op"])

            def multiply(self, tokens):
                share = tokens.shape[0] / piece
                self.clock += self.c * share
                self.multiplied += share
                self.before += share * (not self.passed)
                self.under += self.travelling > 0
                return tokens @ self.B

            def pass_right(self, tensor):
                self.inside, share, begun = True, tensor.numel() / (piece * out), self.clock
                kept, clock = tensor.detach().clone().contiguous(), torch.zeros(1)
                arriving, right, left = torch.empty_like(kept), (rank + 1) % n, (rank - 1) % n
                works = [dist.isend(kept, right), dist.irecv(arriving, left)]
                works += [dist.isend(torch.tensor([begun]), right), dist.irecv(clock, left)]
                self.inside, arrived_at = False, []
                self.passed += share
                self.travelling += 1

                def arrived():
                    for work in works if not arrived_at else ():
                        work.wait()
                    if not arrived_at:
                        self.free_at = max(begun, clock.item(), self.free_at) + self.w * share
                        arrived_at.append(self.free_at)
                        self.travelling -= 1
                        if not torch.equal(kept, tensor.detach()):
                            self.changed = "changes a tensor that is still on its way"
                    self.clock = max(self.clock, arrived_at[0])
                    return arriving

                self.on_the_way.append(arrived)
                return arrived

        on_rank.use_cpu()
        torch.set_default_dtype(torch.float64)
        rank, n = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(seed)
        cases = [(torch.randn(n, n, piece, wide), torch.randn(n, wide, out)) for _ in c_and_w]
        told = []
        for (c, w), (x, B) in zip(c_and_w, cases):  # x: of each rank, pieces for each rank
            ring, pieces = Ring(c, w, B[rank]), [part.clone() for part in x[rank]]
            with on_rank.Calls(ring.saw):
                found = answer(list(pieces), ring.multiply, ring.pass_right)
            clock = ring.clock
            for arrived in ring.on_the_way:  # those that the answer has not waited for, too
                arrived()
            sums = torch.stack([sum(x[other, owner] @ B[other] for other in range(n)) for owner in range(n)])
            wrong = ""
            if not isinstance(found, torch.Tensor) or found.shape != sums[rank].shape:
                what = f"one of shape {list(found.shape)}" if isinstance(found, torch.Tensor) else repr(found)
                wrong = f"must return a tensor of shape {[piece, out]}, and returned {what}"
            elif (error := on_rank.apart(found, sums[rank])) > within:
                guesses = {f"the sum for the tokens of rank {owner}": sums[owner] for owner in range(n)}
                guesses["its own addend: nothing was added to it"] = x[rank, rank] @ B[rank]
                looks = on_rank.looks(found, guesses) or (
                    f"something else, with a relative error of {error:.2g}. A sum visits all ranks, and last"
                    " the one that it is for: which piece does a rank begin with, and which comes next"
                )
                wrong = f"returns {looks}{on_rank.rounding(error).rstrip('.')}"
            if not torch.equal(torch.stack(pieces), x[rank]):
                ring.changed = "changes the pieces that it was given"
            told.append(
                {
                    "wrong": wrong,
                    "changed": ring.changed,
                    "others": ring.others,
                    "clock": clock,
                    "multiplied": ring.multiplied,
                    "passed": ring.passed,
                    "before": ring.before,
                    "under": ring.under,
                }
            )
        first = {name: next((its[name] for its in told if its[name]), "") for name in ("wrong", "changed")}
        return first | {"cases": told}

    for ranks in (4, 3):
        case = f"{ranks} ranks"
        asked = answer, judge.seed, C_AND_W, PIECE, WIDE, OUT, ERROR_LIMIT
        if not judge.tried(case, scatter, *asked, ranks=ranks, label="your function"):
            return
