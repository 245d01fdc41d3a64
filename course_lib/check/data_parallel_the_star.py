"""Checks of the chapter "DataParallel, the star"."""

from collections.abc import Callable
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

__all__ = ["star_all_reduce", "forward_in_threads", "tree_all_reduce"]

LIMIT = 1.02  # times what theory says, of memory and time
# below it, the sum of 8 whole numbers is exact in float32, in every order, and in no smaller dtype
FLOAT32_WHOLE = 2**20
TOGETHER_S = 12.0  # how long a replica waits for the others: threads of a busy machine may be late
STARS = ((2, 0), (3, 2), (4, 1))  # ranks, root
STAR_SHAPE = (100, 500)
LARGE_SHAPE = (100, 10_000)  # where memory is looked at: beside it, what Python keeps for itself is small
OUTSIDE_LIMIT = 1.2  # times S, of memory that is not torch's: Python's own comes on top of the one tensor
TREES = (4, 8)  # ranks
PIECES = ((12, 3), (10, 4), (3, 4))  # images, threads


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


def _shared(job: Job) -> str:
    places = [place for _, _, place in job.results[0]["calls"]]
    if len(set(places)) == len(places):
        return ""
    return (
        f"{len(places)} replicas share {len(set(places))} set of weights. On GPUs each needs a copy in its"
        " own memory"
    )


@exercise(
    unchanged=fact(
        "the model and the images stay as they were",
        "unchanged",
        "the model or the images that you were given have changed. Leave them alone: what they hold, and the"
        " mode of training",
        quiet=True,
    ),
    outputs=fact(
        "the outputs of the whole batch, in order",
        "outputs",
        "the outputs of the whole batch, in order, are asked for, and you returned {wrong}",
    ),
    pieces="each image goes through one replica, and no replica gets more than its share",
    at_once="all threads are at work at once",
    own_weights=Demand("each replica has weights of its own", _shared),
    gradient=fact("the model got the gradient of the whole batch", "gradient"),
    no_grad=fact(
        "under torch.no_grad() no graph is built",
        "no_graph",
        "under torch.no_grad() your output has a graph. Each thread has its own switch for gradients: set it"
        " to that of the caller",
    ),
)
def forward_in_threads(judge: Judge, answer: Callable) -> None:
    """`answer(model, images, num_threads)` is the model's output, computed by replicas in threads, through
    which gradients reach the model.
    """

    def examine(answer):
        import threading

        class Watched(torch.nn.Module):
            """Two linear layers that note each call: thread, images, where the weights lie, and how many
            calls were inside at once.
            """

            condition, calls, inside, most, expected = threading.Condition(), [], 0, 0, 0

            def __init__(self):
                super().__init__()
                self.first, self.second = torch.nn.Linear(64, 32), torch.nn.Linear(32, 10)

            def forward(self, images):
                cls = Watched
                with cls.condition:
                    cls.inside += 1
                    cls.most = max(cls.most, cls.inside)
                    cls.condition.notify_all()
                    if not cls.condition.wait_for(lambda: cls.most >= cls.expected, timeout=TOGETHER_S):
                        cls.expected = 0  # nobody else comes: the next call need not wait
                    cls.calls.append((threading.get_ident(), len(images), self.first.weight.data_ptr()))
                    # all look at their weights before one goes on, and perhaps puts others in their place
                    cls.condition.notify_all()
                    cls.condition.wait_for(lambda: len(cls.calls) >= cls.expected, timeout=TOGETHER_S)
                try:
                    return self.second(self.first(images.flatten(1)).relu())
                finally:
                    with cls.condition:
                        cls.inside -= 1

        def gradients(model):
            return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

        def close(a, b):
            return (
                isinstance(a, torch.Tensor)
                and (a.shape, a.dtype) == (b.shape, b.dtype)
                and torch.allclose(a, b, rtol=1e-4, atol=1e-6)
            )

        def shown(output, wanted):
            if not isinstance(output, torch.Tensor):
                return type(output).__name__
            if (output.shape, output.dtype) == (wanted.shape, wanted.dtype):
                return "other values"
            dtype = str(output.dtype).removeprefix("torch.")
            return f"a tensor of shape {tuple(output.shape)} and dtype {dtype}"

        def problem_of_gradients(found, whole):
            if all(g is None for g in found):
                return (
                    "the model got no gradient. It stayed in the replicas: copy so that autograd knows where"
                    " the copy came from"
                )
            if all(g is not None and close(g, w) for g, w in zip(found, whole)):
                return ""
            return (
                "the model's gradient is not that of the whole batch. Does the gradient of every replica find"
                " its way back?"
            )

        rows = []
        for size, threads in PIECES:
            torch.manual_seed(seed + size)
            model, images, weights = Watched(), torch.rand(size, 1, 8, 8), torch.rand(size, 10)
            Watched.expected = 0
            wanted = model(images)
            (wanted * weights).sum().backward()
            whole = gradients(model)
            model.zero_grad()
            Watched.calls, Watched.most, Watched.expected = [], 0, min(size, threads)
            given = [images.clone(), *(p.detach().clone() for p in model.parameters())]
            output = answer(model, images, threads)
            now = [images, *(p.detach() for p in model.parameters())]
            unchanged = len(now) == len(given) and all(map(torch.equal, now, given)) and model.training
            calls, most, Watched.calls, Watched.expected = Watched.calls, Watched.most, [], 0
            row = {"calls": calls, "most": most, "outputs": "", "unchanged": unchanged}
            if not close(output, wanted):
                row["outputs"] = f"{shown(output, wanted)}."
                same_shape = isinstance(output, torch.Tensor) and output.shape == wanted.shape
                if same_shape and close(output.sort(0).values, wanted.sort(0).values):
                    row["outputs"] += " It has the right rows in the wrong order."
            row["gradient"] = "the output has no graph, so backward is impossible"
            if not row["outputs"] and output.requires_grad and unchanged:
                (output * weights).sum().backward()
                row["gradient"] = problem_of_gradients(gradients(model), whole)
            with torch.no_grad():
                row["no_graph"] = not getattr(answer(model, images, threads), "requires_grad", False)
            rows.append(row)
            if most < min(size, threads):  # each further case would wait for others in vain
                break
        return rows

    seed = judge.seed
    job = judge.run(examine, answer, ranks=1)
    rows = job.results[0]
    for (size, threads), row in zip(PIECES, rows):
        judge.case, case = f"{size} images, {threads} threads", replace(job, results=[row])
        if not judge.look(case, "unchanged") or not judge.look(case, "outputs"):
            return
        sizes = [length for _, length, _ in row["calls"]]
        count, largest = min(size, threads), -(-size // threads)
        if not sizes:
            judge.refuse("the model was never called. Call a replica of it with each piece of the images")
        why = f"the model was called with {', '.join(map(str, sizes))} images. " + (
            "Don't call it with none."
            if min(sizes) == 0
            else f"Each image goes through one replica, and at most {largest} through each."
        )
        dealt_out = min(sizes) > 0 and max(sizes) <= largest and sum(sizes) == size
        said = f"each image went through one replica, at most {largest} through each"
        judge.demand("pieces", "" if dealt_out else why, said)
        together = row["most"] >= count and len({thread for thread, _, _ in row["calls"]}) >= count
        why = (
            f"{row['most']} of {count} replicas were at work at once. Start all threads before you wait"
            " for one"
        )
        judge.demand("at_once", "" if together else why, f"{count} threads were at work at once")
        judge.look(case, "own_weights", "gradient")
    judge.case = ""
    judge.look(replace(job, results=rows), "no_grad")


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
