"""Checks of the chapter "DataParallel, the star"."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
import torch.distributed as dist

from course_lib import measure
from course_lib.check import on_rank
from course_lib.check.counted import sent_bytes
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import Demand, at_most, fact
from course_lib.collectives import of_kind
from course_lib.ranks.errors import RankError
from course_lib.record import Job, sent

__all__ = ["star_all_reduce", "loss_in_forward", "tree_all_reduce"]

LIMIT = 1.02  # times what theory says, of memory and time
# below it, the sum of 8 whole numbers is exact in float32, in every order, and in no smaller dtype
FLOAT32_WHOLE = 2**20
STARS = ((2, 0), (3, 2), (4, 1))  # ranks, root
STAR_SHAPE = (100, 500)
LARGE_SHAPE = (100, 10_000)  # where memory is looked at: beside it, what Python keeps for itself is small
OUTSIDE_LIMIT = 1.2  # times S, of memory that is not torch's: Python's own comes on top of the one tensor
TREES = (4, 8)  # ranks
# sequences, replicas (which get ceil(sequences / replicas) each, the last one fewer), and which one of them
# has no target that counts
BATCHES = ((10, 4, None), (7, 3, 1))
LENGTH, VOCABULARY = 12, 300
NUMBERS = 2 * 8  # bytes of two numbers of 64 bits
NEAR = 1e-4  # relative error; in float32, rounding stays far below it, and no mistake does


@exercise(
    sum="every rank has the sum",
    messages=Demand("only sends and receives are used", quiet=True),
    bytes="the root sends and receives (n-1) S, the others 1 S",
    held=at_most(
        "the root held one extra tensor at most",
        "held",
        LIMIT,
        "the root held {most:.1f} S of new tensors at once. One is enough: receive, add, and use it again",
    ),
)
def star_all_reduce(judge: Judge, answer: Callable) -> None:
    """`answer(tensor, root)` sums in place over all ranks: the root moves (n-1) S each way, the others S, and
    one extra tensor is enough.
    """

    def reduce(answer, root):
        import contextlib

        def mine(rank, case):
            generator = torch.Generator("cpu").manual_seed(seed + 100 * case + rank)
            return torch.randint(
                -FLOAT32_WHOLE, FLOAT32_WHOLE, shapes[case], generator=generator, device="cpu"
            ).float()

        rank, size = dist.get_rank(), dist.get_world_size()
        calls, problem, held = [], "", 0.0
        for case in range(len(shapes)):
            parts = [mine(other, case) for other in range(size)]
            tensor = mine(rank, case)
            if case == 1:  # the traced step, whose bytes are looked at
                with measure.step():
                    answer(tensor, root)
                    seen = tensor.clone()  # at once: who has not waited for it does not have it
            elif case == 3:
                with on_rank.NewTensors() as new, on_rank.Unseen() as unseen:
                    answer(tensor, root)
                    held, outside = new.peak_bytes / tensor.nbytes, unseen.peak() / tensor.nbytes
                    held = max(held, outside if outside > OUTSIDE_LIMIT else 0.0)
                seen = tensor.clone()
            else:
                before = on_rank.late("star") if case == 2 and rank == root else None
                with (
                    on_rank.Calls(before) as called,
                    measure.step() if case == 0 else contextlib.nullcontext(),
                ):
                    answer(tensor, root)
                    seen = tensor.clone()
                if case == 2:
                    on_rank.is_back("star")
                calls += [call["op"] for call in called.rows]
            if torch.equal(seen, sum(parts)) or problem:
                continue
            guesses = {
                "still holds its own tensor, unchanged: work in place, and wait for what comes": parts[rank],
                "has the average, and the sum is asked for": sum(parts) / size,
                "has the sum without the root's own tensor": sum(parts) - parts[root],
                "has the root's tensor alone": parts[root],
            }
            near = "has the sum only nearly: send and add in the tensor's own dtype, a smaller one rounds"
            if seen.shape == parts[0].shape and (
                not torch.isfinite(seen).all() or on_rank.apart(seen.double(), sum(parts).double()) < 0.01
            ):
                guesses[near] = seen
            problem = next(
                (text for text, guess in guesses.items() if torch.equal(seen, guess)), "has wrong values"
            )
        return {"wrong": problem, "held": held if rank == root else 0.0, "ops": calls}

    seed = judge.seed
    shapes = ((1 + seed % 9, 3), STAR_SHAPE, (1 + seed % 30,), LARGE_SHAPE)
    S = 4 * STAR_SHAPE[0] * STAR_SHAPE[1]
    for ranks, root in STARS:
        judge.case = f"{ranks} ranks, root {root}"
        try:
            job = judge.run(reduce, answer, root, ranks=ranks)
        except RankError as error:
            if not any(
                "Pair is not connected" in report.state
                or "same as the rank of the current process" in report.state
                for report in error.reports
            ):
                raise
            raise RankError(
                f"{error.headline} A rank cannot send to itself, or receive from itself: is the root here"
                f" rank {root}, and not always rank 0?",
                error.reports,
                error.label,
            ) from None
        bad = [f"rank {rank} {found['wrong']}" for rank, found in enumerate(job.results) if found["wrong"]]
        if not judge.demand("sum", f"; {judge.case}: ".join(bad)):
            return
        others = sorted(
            {*job.comm["op"], *(op for found in job.results for op in found["ops"])}
            - of_kind("send", "receive")
        )
        why = ""
        if others:
            sent = sent_bytes(job)
            why = (
                f"you used {', '.join(others)}, and rank {int(sent.idxmax())} sent {sent.max() / S:.2f} S. In"
                " a star, every message goes to the root or comes from it: send and recv are enough"
            )
        elif job.comm.empty:
            why = "no rank called a send: use dist.send and dist.recv of torch.distributed"
        if not judge.demand("messages", why):
            return
        sent, received = _in_messages(job, "send"), _in_messages(job, "recv")
        demands = [(root, sent, "sent", ranks - 1), (root, received, "received", ranks - 1)]
        demands += [
            (rank, bytes_, verb, 1)
            for rank in range(ranks)
            if rank != root
            for bytes_, verb in ((sent, "sent"), (received, "received"))
        ]
        wrong = [
            f"{'the root' if rank == root else f'rank {rank}'} {verb} {bytes_[rank] / S:.2f} S, and"
            f" {limit} S {'is' if limit == 1 else 'are'} enough"
            for rank, bytes_, verb, limit in demands
            if bytes_[rank] > limit * S
        ]
        said = f"the root sent and received {ranks - 1} S, the others 1 S"
        light = judge.demand("bytes", wrong[0] if wrong else "", said)
        judge.look(job, "held")
        if not light:
            return


@exercise(
    unchanged=fact(
        "the model and its inputs stay as they were",
        "unchanged",
        "the model, the tokens or the targets that you were given have changed. Leave them alone",
        quiet=True,
    ),
    loss=fact("the mean loss over all targets that count", "loss"),
    once="every sequence goes through one replica, once",
    gathered="the root gathers two numbers per replica at most",
    held="the root makes no tensor as large as the scores of one replica",
    gradient=fact("the model gets the gradient of one process", "gradient"),
)
def loss_in_forward(judge: Judge, answer: Callable) -> None:
    """`answer(model, tokens, targets, wrap)` is the mean loss over the targets that are not -100, computed by
    replicas, of which the root gathers two numbers each at most.
    """

    def examine(answer):
        from functools import partial
        from threading import current_thread, main_thread

        from torch import Tensor, nn
        from torch.nn.functional import cross_entropy

        from course_lib.mini import data_parallel
        from course_lib.torch_internals import tree_leaves

        class Watched(nn.Module):
            """Scores of the next token, from this one alone. It notes what goes through it, and where."""

            calls = []

            def __init__(self):
                super().__init__()
                self.embedding, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)

            def forward(self, tokens):
                Watched.calls.append((current_thread() is main_thread(), tokens.flatten(1)[:, 0].tolist()))
                return self.head(self.embedding(tokens))

        class Wrapped(nn.Module):
            """As nn.DataParallel, with threads for GPUs. It notes the bytes that the root gathers."""

            gathered = []

            def __init__(self, replicas, module):
                super().__init__()
                self.replicas, self.module = replicas, module

            def forward(self, *args, **kwargs):
                # in a thread, all of it: what is made here is no tensor of the answer
                with ThreadPoolExecutor(1) as aside:
                    outputs = aside.submit(self.of_replicas, args, kwargs).result()
                tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
                Wrapped.gathered.append(sum(tensor.nbytes for tensor in tensors))
                return joined(outputs)

            def of_replicas(self, args, kwargs):
                pieces = data_parallel.scatter([*args, *kwargs.values()], self.replicas)
                modules = data_parallel.replicate(self.module, len(pieces))
                calls = [
                    partial(module, *piece[: len(args)], **dict(zip(kwargs, piece[len(args) :])))
                    for module, piece in zip(modules, pieces)
                ]
                return data_parallel.parallel_apply(calls, [()] * len(calls))

        def joined(outputs):
            first = outputs[0]
            if isinstance(first, Tensor):
                return data_parallel.gather(outputs)
            if isinstance(first, dict):
                return {key: joined([output[key] for output in outputs]) for key in first}
            if isinstance(first, (list, tuple)):
                return type(first)([joined(column) for column in zip(*outputs)])
            raise TypeError(
                f"a replica returned {type(first).__name__}: what replicas return must be tensors"
            )

        def case_of(sequences, replicas, empty):
            """Random tokens; each sequence has a number of targets of its own that count, those of the
            replica `empty` none.
            """
            numbers = torch.Generator().manual_seed(seed + sequences)
            tokens = torch.randint(VOCABULARY, (sequences, LENGTH), generator=numbers)
            tokens[:, 0] = torch.arange(sequences)  # by which a sequence is known
            targets = torch.randint(VOCABULARY, (sequences, LENGTH), generator=numbers)
            counts = torch.randint(1, LENGTH, (sequences, 1), generator=numbers)
            counts[0], counts[-1] = LENGTH, 1  # the first and the last replica never have as many
            if empty is not None:
                counts.chunk(replicas)[empty].zero_()
            return tokens, targets.masked_fill(torch.arange(LENGTH) >= counts, -100)

        def of_one_process(model, tokens, targets, reduction="mean"):
            return cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction=reduction)

        def gradient(model):
            return on_rank.flat(p.grad if p.grad is not None else torch.zeros_like(p) for p in weights(model))

        def weights(model):
            return list(model.parameters())

        def problem_of(loss, model, tokens, targets, replicas, wanted):
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                shape = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
                return (
                    f"one number is asked for, as a tensor, and you returned {shape or type(loss).__name__}"
                )
            found = loss.detach().double().flatten()
            if on_rank.apart(found, wanted.double().view(1)) < NEAR:
                return ""
            pieces = list(zip(tokens.chunk(replicas), targets.chunk(replicas)))
            means = torch.stack([of_one_process(model, *piece) for piece in pieces])
            sums = torch.stack([of_one_process(model, *piece, "sum") for piece in pieces])
            guesses = {
                "the mean of the replicas' means, and they have different numbers of targets": means.mean(),
                "the mean of the means of those replicas that have targets": means.nanmean(),
                "the sum of the replicas' means": means.sum(),
                "the sum over all targets, not their mean": sums.sum(),
                "the sum over the targets, divided by all of them; those that are -100 do not count": (
                    sums.sum() / targets.numel()
                ),
                "the loss of the first replica alone": means[0],
            }
            if not torch.isfinite(found).all():
                return f"your loss is {found.item()}: where no target counts, a mean is 0 / 0"
            like = on_rank.looks(
                found, {words: guess.double().view(1) for words, guess in guesses.items()}, NEAR
            )
            return f"your loss is {found.item():.4f}, and that of one process {wanted.item():.4f}" + (
                f". It is {like}" if like else ""
            )

        rows = []
        on_rank.use_cpu()
        for sequences, replicas, empty in BATCHES:
            torch.manual_seed(seed + sequences)
            model, (tokens, targets) = Watched(), case_of(sequences, replicas, empty)
            wanted = of_one_process(model, tokens, targets)
            wanted.backward()
            whole = gradient(model)
            model.zero_grad()
            given = [tensor.detach().clone() for tensor in (tokens, targets, *weights(model))]
            Watched.calls, Wrapped.gathered = [], []
            with on_rank.NewTensors() as new:
                loss = answer(model, tokens, targets, partial(Wrapped, replicas))
            calls, gathered = [*Watched.calls], [*Wrapped.gathered]
            now = [tokens, targets, *weights(model)]
            row = {
                "unchanged": len(now) == len(given) and all(map(torch.equal, now, given)) and model.training,
                "calls": calls,
                "gathered": gathered,
                "held": new.peak_bytes,
                "loss": problem_of(loss, model, tokens, targets, replicas, wanted),
                "gradient": "",
            }
            model.zero_grad()
            if row["unchanged"] and not row["loss"]:
                if loss.requires_grad:
                    loss.backward()
                error = on_rank.apart(gradient(model).double(), whole.double())
                if error > NEAR:
                    row["gradient"] = (
                        "after backward() the model's gradient is not that of one process. Keep the graph: no"
                        " detach, no item, no torch.no_grad"
                    )
            rows.append(row)
        return rows

    seed = judge.seed
    job = judge.run(examine, answer, ranks=1)
    for (sequences, replicas, empty), row in zip(BATCHES, job.results[0]):
        case = replace(job, results=[row])
        judge.case = f"{sequences} sequences, {replicas} replicas" + (
            " (one without targets)" if empty is not None else ""
        )
        if not judge.look(case, "unchanged"):
            return
        judge.look(case, "loss")
        seen = sorted(sequence for _, its in row["calls"] for sequence in its)
        why = ""
        if any(on_root for on_root, _ in row["calls"]):
            why = "the root called the model itself. Call what `wrap` returns: it calls the replicas"
        elif seen != list(range(sequences)):
            why = f"{len(seen)} sequences went through the replicas. Each of the {sequences} must, once"
        judge.demand("once", why)
        its_bytes, share = sum(row["gathered"]), -(-sequences // replicas)
        count = -(-sequences // share)
        why = (
            f"the root gathered {its_bytes:,} bytes from {count} replicas, and two numbers of each are"
            f" {NUMBERS * count} bytes at most. Compute the loss inside of the forward that is wrapped"
        )
        judge.demand("gathered", why if its_bytes > NUMBERS * count else "")
        scores = share * LENGTH * VOCABULARY * 4
        why = (
            f"the root made {row['held']:,} bytes of new tensors, and the scores of one replica are"
            f" {scores:,}. What is as large as scores belongs into the forward that is wrapped"
        )
        judge.demand("held", why if row["held"] >= scores else "")
        if not row["loss"]:
            judge.look(case, "gradient")
        if not judge.met:
            return


def _elsewhere(job: Job) -> str:
    """A message over the link is two sends: of a tensor, and of the time."""
    for found in zip(*job.results):  # of each size, what each rank tells
        ops = [op for *_, its in found for op in its]
        over_link = sum(messages for _, _, messages, *_ in found)
        if set(ops) - of_kind("send", "receive") or ops.count("send") != 2 * over_link:
            return "some bytes did not go over `link`. Use link.send and link.recv only"
    return ""


@exercise(
    sum="every rank has the sum",
    over_link=Demand("all bytes go over `link`", _elsewhere, quiet=True),
    total="2(n-1) S are sent in all",
    each="no rank sends more than log2(n) S",
    time="done after the time of 2 log2(n) messages",
)
def tree_all_reduce(judge: Judge, answer: Callable) -> None:
    """`answer(tensor, link)` sums in place along a binomial tree: 2 log2(n) messages after one another,
    2(n-1) S in all.
    """

    def reduce(answer):
        class Link:
            """Counts, where the chapter's link sleeps: each message takes one unit of time for the sender's
            and for the receiver's link.
            """

            def __init__(self, S):
                self.S, self.clock, self.messages, self.sent = S, 0.0, 0, 0.0

            def send(self, tensor, dst):
                self.clock += tensor.nbytes / self.S
                self.messages += 1
                self.sent += tensor.nbytes / self.S
                dist.send(tensor, dst)
                dist.send(torch.tensor([self.clock], device="cpu"), dst)

            def recv(self, tensor, src):
                arrival = torch.zeros(1, device="cpu")
                dist.recv(tensor, src)
                dist.recv(arrival, src)
                self.clock = max(self.clock + tensor.nbytes / self.S, arrival.item())

        def mine(rank, numel):
            generator = torch.Generator("cpu").manual_seed(seed + rank)
            return torch.randint(
                -FLOAT32_WHOLE, FLOAT32_WHOLE, (numel,), generator=generator, device="cpu"
            ).float()

        found, rank, size = [], dist.get_rank(), dist.get_world_size()
        for numel in (1 + seed % 20, 50_000):
            tensor, wanted = mine(rank, numel), sum(mine(other, numel) for other in range(size))
            link = Link(tensor.nbytes)
            with on_rank.Calls() as calls:
                answer(tensor, link)
            near = not torch.isfinite(tensor).all() or on_rank.apart(tensor.double(), wanted.double()) < 0.01
            found.append(
                (
                    "" if torch.equal(tensor, wanted) else "nearly" if near else "no",
                    link.clock,
                    link.messages,
                    link.sent,
                    [call["op"] for call in calls.rows],
                )
            )
        return found

    seed = judge.seed
    for ranks in TREES:
        judge.case, depth = f"{ranks} ranks", (ranks - 1).bit_length()
        job = judge.run(reduce, answer, ranks=ranks)
        bad = [rank for rank, found in enumerate(job.results) if any(problem for problem, *_ in found)]
        near = any(problem == "nearly" for found in job.results for problem, *_ in found)
        why = ". It is near it, or overflows: send and add in the tensor's own dtype" if near else ""
        bad = ", ".join(map(str, bad))
        if not judge.demand("sum", bad and f"rank {bad} does not hold the sum of all tensors{why}"):
            return
        if not judge.look(job, "over_link"):
            return
        cases = list(zip(*job.results))  # of each size, what each rank tells
        sent = [max(its) for its in zip(*([sent for *_, sent, _ in found] for found in cases))]
        total, enough = sum(sent), 2 * (ranks - 1)
        why = f"{total:.1f} S were sent in all, and 2(n-1) S = {enough} S are enough"
        judge.demand("total", why if total > LIMIT * enough else "", f"{enough} S were sent in all")
        most = max(sent)
        why = (
            f"rank {sent.index(most)} sent {most:.1f} S, and log2(n) S = {depth} S must be enough for every"
            " rank"
        )
        judge.demand("each", why if most > LIMIT * depth else "", f"no rank sent more than {depth} S")
        time = max(clock for found in cases for _, clock, *_ in found)
        why = (
            f"done after the time of {time:.0f} messages, and 2 log2(n) = {2 * depth} must be enough. Let"
            " several pairs of ranks talk at the same time; on the way back, serve the rank with the most"
            " ranks behind it first"
        )
        said = f"done after the time of {2 * depth} messages"
        judge.demand("time", why if time > LIMIT * 2 * depth else "", said)
        if not judge.met:
            return


def _in_messages(job: Job, op: str) -> list[float]:
    """Bytes that each rank sent, or received, with calls of send or recv."""
    return sent(job, layer="payload", ops=[op]).tolist()
