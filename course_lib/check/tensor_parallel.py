"""Checks of chapter 09, "Tensor parallelism": the operators f and g, a parallel MLP, a loss over a cut
vocabulary, f and g for cut tokens.
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
from course_lib.record import Job

__all__ = ["f_and_g", "parallel_mlp", "vocabulary_loss", "sequence_operators"]

# relative, in float64: rounding stays a thousand times below it, and no mistake does
ERROR_LIMIT = 1e-9
BYTES_LIMIT = 1.02  # times what ring all_reduces of the same tensors send
# x is [8, 64, 32]: large enough for the headers of messages not to count
BATCH, SEQUENCE, HIDDEN = 8, 64, 32
S = 8 * BATCH * SEQUENCE * HIDDEN  # bytes of x in float64


@exercise
def f_and_g(judge: Judge, f: Callable, g: Callable) -> None:
    """`f(x)` and `g(x)`: in an MLP that is cut by columns, then by rows, they give values and gradients of
    one process with two all_reduces.
    """
    for ranks in (3, 2):
        job = _run_mlp(judge, f, g, ranks, cut_tokens=False)
        if not _judge_returned(judge, job):
            return
        _judge_values(judge, job)
        _judge_calls(
            judge,
            job,
            "one in forward (g) and one in backward (f)",
            "An all_gather brings the whole tensor of every rank to every rank, to be added up there; an"
            " all_reduce sends sums.",
        )
        _judge_bytes(judge, job, "two all_reduces of x")
        if not judge.verdict():  # what is wrong on three ranks need not be said again of two
            return


@exercise
def sequence_operators(judge: Judge, f: Callable, g: Callable) -> None:
    """`f(x)` gathers the tokens of all ranks, `g(x)` adds up and keeps this rank's tokens: values of one
    process, bytes of two all_reduces.
    """
    for ranks in (4, 2):
        job = _run_mlp(judge, f, g, ranks, cut_tokens=True)
        if not _judge_returned(judge, job):
            return
        _judge_values(judge, job)
        sums = job.comm[job.comm["rank"] == 0]["op"].value_counts().get("all_reduce", 0)
        judge.demand(
            not sums,
            f"{ranks} ranks: no all_reduce",
            f"{ranks} ranks: you used {sums} all_reduce. It gives every rank the sum for all tokens, and a"
            " rank needs only its own: that is a reduce_scatter.",
        )
        rooted = sorted(set(job.comm["op"]) & {"broadcast", "reduce", "gather", "scatter"})
        if rooted:
            judge.demand(
                False,
                "",
                f"{ranks} ranks: you used {_used(job)}. A {rooted[0]} has one root, so the ranks take turns."
                " In an all_gather and a reduce_scatter all send at the same time.",
            )
        _judge_bytes(
            judge,
            job,
            "two all_gathers and two reduce_scatters (gloo's own reduce_scatter is an all_reduce: use a"
            " ring)",
        )
        if not judge.verdict():
            return


def _run_mlp(judge: Judge, f: Callable, g: Callable, ranks: int, cut_tokens: bool) -> Job:
    """Run y = g(GELU(f(x) A) B) with this rank's part of A and B, on all tokens or on this rank's.

    Each rank returns, for the output and the gradients of x, A and B, the error against one process, whether
    it is absent, and what it looks like.
    """

    def mlp(f, g, seed):
        torch.set_default_device("cpu")
        torch.set_default_dtype(torch.float64)
        rank, n = dist.get_rank(), dist.get_world_size()

        def mine(tensor, dim):
            return tensor.tensor_split(n, dim)[rank]

        def tokens(tensor):
            return mine(tensor, 1) if cut_tokens else tensor

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
            x, A, B = (tensor.clone().requires_grad_() for tensor in (x, A, B))
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
            if (
                late
                and cut_tokens
                and not torch.equal(kept, whole)
                and torch.equal(kept.flatten().sort().values, whole.flatten().sort().values)
            ):
                raise NotATensor(
                    "your f returns the right numbers in another order than one process has them, [batch,"
                    " time, h]. This MLP looks at each token alone and does not notice; attention would"
                )
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
            whole, late = x, number == 2  # after the traced one
            try:
                founds.append(gradients(tokens(x), mine(A, 1), mine(B, 0), tokens(weights), f, g))
            except NotATensor as wrong:
                problem = str(wrong)
            if problem := problem if number == 0 else on_rank.first_problem(problem):
                return {"problem": problem}
        found = founds[-1]
        late = False
        wanted = gradients(x, A, B, weights, nn.Identity(), nn.Identity())
        wanted = {
            "output": tokens(wanted["output"]),
            "x": tokens(wanted["x"]),
            "A": mine(wanted["A"], 1),
            "B": mine(wanted["B"], 0),
        }
        # without any communication
        own = gradients(x, mine(A, 1), mine(B, 0), weights, nn.Identity(), nn.Identity())
        own = {name: tokens(own[name]) for name in ("output", "x")}
        summed_first = gradients(n * x, mine(A, 1), mine(B, 0), weights, nn.Identity(), nn.Identity())[
            "output"
        ]
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
                    summed_first
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
        looks = {
            name: [text for text, guess in guesses[name].items() if on_rank.apart(found[name], guess) < 1e-6]
            for name in wanted
        }
        return {
            name: (on_rank.apart(found[name], wanted[name]), found[name] is None, "".join(looks[name][:1]))
            for name in wanted
        }

    mlp.__name__ = "your f and g"
    return judge.run(mlp, f, g, judge.seed, ranks=ranks)


def _judge_returned(judge: Judge, job: Job) -> bool:
    """Refuse an answer that returns something of another kind."""
    problem = next(
        (found["problem"] for found in job.results if isinstance(found, dict) and "problem" in found), ""
    )
    return not problem or judge.demand(False, "", f"{job.ranks} ranks: {problem}.")


def _judge_values(judge: Judge, job: Job) -> None:
    names = {
        "output": "the output",
        "x": "the gradient of the input",
        "A": "the gradient of A's part",
        "B": "the gradient of B's part",
    }
    for name, words in names.items():
        error, absent, looks = max((found[name] for found in job.results), key=lambda found: found[0])
        why = (
            "there is none: backward does not reach it"
            if absent
            else f"it is {looks}"
            if looks
            else f"relative error {error:.2g}"
        )
        hint = on_rank.rounding(error) if not looks else ""
        judge.demand(
            error < ERROR_LIMIT,
            f"{job.ranks} ranks: {words} is that of one process",
            f"{job.ranks} ranks: {words} is not that of one process: {why}.{hint}",
        )


@exercise
def parallel_mlp(judge: Judge, make: Callable) -> None:
    """`make(mlp)` returns a module that computes what `mlp` (Linear, GELU, Linear) does, with 1/n of its
    weights and two all_reduces.
    """
    STEPS = 3

    def train(make, seed):
        import copy
        import gc

        torch.set_default_device("cpu")
        torch.set_default_dtype(torch.float64)

        def large():
            """The storages that are as large as a whole weight, wherever a tensor keeps them."""
            tensors = [found for found in gc.get_objects() if type(found) in (torch.Tensor, nn.Parameter)]
            return {
                t.untyped_storage().data_ptr()
                for t in tensors
                if t.untyped_storage().nbytes() >= 8 * HIDDEN * 4 * HIDDEN
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
            "output": [],
            "x": [],
            "views": any(p.nbytes < p.untyped_storage().nbytes() for p in params),
            "params": len(params),
            "kept": bool(large() - others) or on_rank.outside_torch() - unseen > 8 * 4 * HIDDEN * HIDDEN // 2,
        }
        if not all(on_rank.everyone(bool(params))):
            return found
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
            for name, mine, wanted in zip(("output", "x"), *grads):
                found[name].append(on_rank.apart(mine, wanted))
        return found

    train.__name__ = "your parallel MLP"
    for ranks in (2, 4):
        job = judge.run(train, make, judge.seed, ranks=ranks)
        if not _judge_returned(judge, job):
            return
        if not all(found["params"] for found in job.results):
            judge.demand(
                False,
                "",
                f"{ranks} ranks: your module has no parameters. Put the slices into nn.Parameter, so that the"
                " optimizer can find them.",
            )
            return
        errors = {
            name: [max(found[name][step] for found in job.results) for step in range(STEPS)]
            for name in ("output", "x")
        }
        if judge.demand(
            errors["output"][0] < ERROR_LIMIT,
            f"{ranks} ranks: the output is that of one process",
            f"{ranks} ranks: the output is not that of one process (relative error"
            f" {errors['output'][0]:.2g}). Cut the first weight by columns, the second by rows, and add the"
            f" second bias once, after g.{on_rank.rounding(errors['output'][0])}",
        ):
            judge.demand(
                errors["x"][0] < ERROR_LIMIT,
                f"{ranks} ranks: the gradient of the input is that of one process",
                f"{ranks} ranks: the gradient of the input is not that of one process (relative error"
                f" {errors['x'][0]:.2g}). An all_reduce in backward is missing or too many: that is what f is"
                f" for.{on_rank.rounding(errors['x'][0])}",
            )
            judge.demand(
                max(errors["output"]) < ERROR_LIMIT,
                f"{ranks} ranks: after {STEPS - 1} updates with SGD, it still is",
                f"{ranks} ranks: after {STEPS - 1} updates with SGD, the output is not that of one process"
                f" (relative error {max(errors['output']):.2g}). So a weight or a bias has got a wrong"
                " gradient.",
            )
        _judge_weights(judge, job)
        _judge_calls(
            judge,
            job,
            "one in forward and one in backward",
            "An all_gather puts the hidden layer (or a weight) together on every rank, and it may stay in"
            " parts: GELU works on each number alone.",
        )
        _judge_bytes(judge, job, "two all_reduces of x")
        if not judge.verdict():
            return


def _judge_weights(judge: Judge, job: Job) -> None:
    """Demand 1/n of everything but the second bias, by storages."""
    h, n = HIDDEN, job.ranks
    cut, bias = 8 * (4 * h * h + 4 * h + 4 * h * h), 8 * h
    rows = job.memory[job.memory["category"] == "params"]
    held = int(rows["bytes"].max())
    allowed = cut // n + bias
    why = (
        f"a rank holds {held:,} bytes of parameters, {held / allowed:.2f} times (weights / {n} + the second"
        f" bias) = {allowed:,}"
    )
    if held >= cut:
        why += ". All weights are on every rank"
    if any(found["views"] for found in job.results):
        why += ": a slice is a view, and keeps the whole weight in memory. Take a `.clone()` of it"
    kept = held <= allowed and any(found["kept"] for found in job.results)
    judge.demand(
        not kept,
        f"{n} ranks: the whole weights are let go",
        f"{n} ranks: your module's parameters are small, but it keeps a whole weight, or a copy of one, in"
        " another place.",
    )
    judge.demand(
        held <= allowed, f"{n} ranks: each rank holds 1/{n} of the weights, to the byte", f"{n} ranks: {why}."
    )


@exercise
def vocabulary_loss(judge: Judge, answer: Callable) -> None:
    """`answer(logits, targets)`: the mean cross-entropy, from logits of which each rank has the columns of
    its part of the vocabulary.
    """
    TOKENS, VOCABULARY = 24, 600

    def losses(answer, seed):
        torch.set_default_device("cpu")
        torch.set_default_dtype(torch.float64)
        rank, n = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(seed)
        found, cases = [], []
        # first and last tokens of the parts of 2 and 3 ranks
        borders = torch.tensor([0, 199, 200, 299, 300, 399, 400, 599])
        inner = torch.tensor([token for token in range(VOCABULARY) if token not in borders])
        for kind in ("plain", "plain", "large", "uneven", "borders"):  # all before an answer runs
            # The largest logit of a token is not on every rank (large: exp(2000) is more than a float64 can
            # hold), and not the same for all tokens (uneven).
            full = torch.randn(TOKENS, VOCABULARY)
            if kind == "large":
                full += 2000.0 * torch.arange(VOCABULARY).div(VOCABULARY / 3).floor()
            if kind == "uneven":
                full += torch.linspace(-2000, 2000, TOKENS)[:, None]
            others = inner[torch.randint(len(inner), (TOKENS,))]
            cases.append((full, borders.repeat(3) if kind == "borders" else others))
        for full, targets in cases:
            mine, whole = (
                full.tensor_split(n, 1)[rank].clone().requires_grad_(),
                full.clone().requires_grad_(),
            )
            wanted = F.cross_entropy(whole, targets)
            wanted.backward()
            given = targets.clone()
            with measure.step():
                loss = answer(mine, given)
                problem, is_tensor = "", isinstance(loss, torch.Tensor)
                if not is_tensor or loss.numel() != 1 or not loss.requires_grad:
                    what = (
                        repr(loss)
                        if not is_tensor
                        else (
                            f"one of shape {list(loss.shape)}"
                            if loss.numel() != 1
                            else "one without a grad_fn"
                        )
                    )
                    problem = (
                        "your function must return the mean loss, a tensor with one number and a grad_fn,"
                        f" and it returned {what}"
                    )
                else:
                    loss.sum().backward()
            if not problem and not (
                torch.equal(mine.detach(), full.tensor_split(n, 1)[rank]) and torch.equal(given, targets)
            ):
                problem = (
                    "your function changes the logits or the targets that it was given, and they are not its"
                    " own. Work on another tensor (`logits - m`, not `logits -= m`)"
                )
            if problem := on_rank.first_problem(problem):
                return {"problem": problem}
            grad, part, loss = mine.grad, whole.grad.tensor_split(n, 1)[rank], loss.detach().reshape(())
            found.append(
                {
                    "loss": on_rank.apart(loss.double(), wanted.detach()),
                    "finite": bool(loss.isfinite()),
                    "sum": abs(loss.item() / wanted.item() / TOKENS - 1) < 1e-6,
                    "grad": on_rank.apart(grad, part),
                    "times": (
                        0.0
                        if grad is None or grad.shape != part.shape
                        else next(
                            (
                                times
                                for times in (n, 1 / n)
                                if torch.allclose(grad.double(), part * times, rtol=1e-6)
                            ),
                            0.0,
                        )
                    ),
                }
            )
        return found

    losses.__name__ = "your loss"
    for ranks in (2, 3):
        job = judge.run(losses, answer, judge.seed, ranks=ranks)
        if not _judge_returned(judge, job):
            return
        for case, name in (
            (1, f"{ranks} ranks"),
            (2, f"{ranks} ranks, logits up to 4000"),
            (3, f"{ranks} ranks, other largest logits from token to token"),
            (4, f"{ranks} ranks, targets at the borders of the parts"),
        ):
            found = [result[case] for result in job.results]
            worst = max(f["loss"] if f["finite"] else 2.0 for f in found)
            why = (
                "it is not finite, with small logits: is something masked with -inf, which stays -inf in a"
                " sum? A rank without the target must add a zero"
                if not all(f["finite"] for f in found) and case == 1
                else (
                    "exp() of a large logit overflows, or all of them become zero. Subtract the token's"
                    " largest logit first: the largest of **all** ranks"
                    if not all(f["finite"] for f in found)
                    else (
                        "it is the sum over the tokens; divide by their number"
                        if found[0]["sum"]
                        else f"relative error {worst:.2g}"
                    )
                )
            )
            if case == 4 and judge.verdict():  # nothing but the borders is wrong
                why += (
                    f". Rank 1 has the tokens {VOCABULARY // ranks} to {2 * VOCABULARY // ranks - 1}, both"
                    " included"
                )
            if not judge.demand(
                worst < ERROR_LIMIT,
                f"{name}: the loss is that of one process, on every rank",
                f"{name}: the loss is not that of one process on every rank: {why}.{on_rank.rounding(worst)}",
            ):
                if case == 1 and not all(f["finite"] for f in found):
                    break  # the other cases would only say another thing of the same
                continue
            grad, times = max(f["grad"] for f in found), found[0]["times"]
            why = (
                f"it is {times:g} times as large. Is something added up again in backward?"
                if times > 1
                else f"it is 1/{ranks} of it"
                if times
                else f"relative error {grad:.2g}"
            )
            judge.demand(
                grad < ERROR_LIMIT,
                f"{name}: the gradient of each rank's logits is that of one process",
                f"{name}: the gradient of a rank's logits is not that of one process:"
                f" {why}.{on_rank.rounding(grad)}",
            )
        _judge_small(judge, job, 8 * TOKENS)
        if not judge.verdict():
            return


def _judge_small(judge: Judge, job: Job, token_bytes: int) -> None:
    """Demand at most three collectives, which send no more than all_reduces of three numbers per token."""
    calls = job.comm[job.comm["rank"] == 0]
    judge.demand(
        len(calls) <= 3,
        f"{job.ranks} ranks: at most three collectives",
        f"{job.ranks} ranks: {_used(job)}, and three are enough: the largest logit, the sum of exp(), and the"
        " target's logit.",
    )
    sent = calls["algorithm_bytes"].sum() / token_bytes if len(calls) else 0.0
    enough = theory.collective_bytes("all_reduce", 3, job.ranks)
    judge.demand(
        sent <= BYTES_LIMIT * enough,
        f"{job.ranks} ranks: together they send no more than all_reduces of three numbers per token",
        f"{job.ranks} ranks: your collectives send {sent:,.1f} numbers per token, and all_reduces of three"
        f" numbers send {enough:.1f}. The logits must stay where they are: only a maximum and two sums over"
        " the vocabulary need to travel.",
    )


def _used(job: Job) -> str:
    counts = job.comm[job.comm["rank"] == 0]["op"].value_counts()
    return ", ".join(f"{count} {op}" for op, count in counts.items()) or "no collective"


def _judge_calls(judge: Judge, job: Job, where: str, gathered: str) -> None:
    """Demand exactly two all_reduces in the traced step, and nothing else; `gathered` is the advice where an
    all_gather is found.
    """
    calls = job.comm[job.comm["op"] != "barrier"]
    right = all(list(calls[calls["rank"] == rank]["op"]) == ["all_reduce"] * 2 for rank in range(job.ranks))
    advice = f" {gathered}" if "all_gather" in set(calls["op"]) else ""
    judge.demand(
        right,
        f"{job.ranks} ranks: exactly two all_reduces, {where}",
        f"{job.ranks} ranks: exactly two all_reduces, {where}; you used {_used(job)}.{advice}",
    )


def _judge_bytes(judge: Judge, job: Job, calls: str) -> None:
    """Demand no more bytes than two ring all_reduces of x: 4 r S. `calls`: what sends so much."""
    ring = 2 * theory.collective_bytes("all_reduce", S, job.ranks)
    each = sent_bytes(job)
    sent, beside = each.max(), (each - header_bytes(job)).max()
    judge.demand(
        beside <= BYTES_LIMIT * ring,
        f"{job.ranks} ranks: no rank sends more than {BYTES_LIMIT} times 4(n-1)/n S",
        f"{job.ranks} ranks: a rank sent {sent / ring:.1f} times the 4(n-1)/n S = {ring:,.0f} bytes of"
        f" {calls}. Something larger than the input travels, or whole tensors travel where sums would do.",
    )
