"""Checks of chapter 02, "DataParallel, the star".

What a rank runs stands inside each check: it travels by value, so that a rank never imports this package (and pandas with it).
"""
from collections.abc import Callable

import torch
import torch.distributed as dist

from course_lib import measure
from course_lib.check.judge import Judge, exercise
from course_lib.job import Job

__all__ = ["star_all_reduce", "forward_in_threads", "tree_all_reduce"]

TIMEOUT_S = 20.0                    # an answer in which ranks wait for each other ends here, or before
LIMIT = 1.02                        # times what theory says: a message carries a few bytes that say what it is
STARS = ((2, 0), (3, 2), (4, 1))    # ranks, root
STAR_SHAPE = (100, 500)
TREES = (4, 8)                      # ranks
PIECES = ((12, 3), (10, 4), (3, 4)) # images, threads


@exercise
def star_all_reduce(judge: Judge, answer: Callable) -> None:
    """`answer(tensor, root)` sums in place over all ranks: the root moves (n-1) S each way, the others S, and one extra tensor is enough."""
    def reduce(answer, root):
        import weakref

        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        class NewTensors(TorchDispatchMode):
            """Follow the storages that come into being, and note the most bytes that were alive at once."""
            def __init__(self, given):
                super().__init__()
                self.given, self.made, self.peak_bytes = given.untyped_storage().data_ptr(), [], 0

            def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
                result = operator(*args, **(kwargs or {}))
                self.made += [weakref.ref(t) for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
                self.made = [ref for ref in self.made if ref() is not None]
                alive = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (ref() for ref in self.made) if t is not None}
                self.peak_bytes = max(self.peak_bytes, sum(count for address, count in alive.items() if address != self.given))
                return result

        def mine(rank):
            return torch.randint(-50, 50, STAR_SHAPE, generator=torch.Generator("cpu").manual_seed(rank), device="cpu").float()

        rank, size = dist.get_rank(), dist.get_world_size()
        for step in range(3):
            tensor = mine(rank)
            with measure.step():
                if step < 2:
                    answer(tensor, root)
                else:
                    with NewTensors(tensor) as new:
                        answer(tensor, root)
        parts = [mine(other) for other in range(size)]
        guesses = {"": sum(parts), "still holds its own tensor, unchanged: work in place": parts[rank], "has the average, and the sum is asked for": sum(parts) / size,
                   "has the sum without the root's own tensor": sum(parts) - parts[root], "has the root's tensor alone": parts[root]}
        return next((text for text, guess in guesses.items() if torch.equal(tensor, guess)), "has wrong values"), new.peak_bytes / tensor.nbytes

    reduce.__name__ = "your function"
    S = 4 * STAR_SHAPE[0] * STAR_SHAPE[1]
    for ranks, root in STARS:
        case = f"{ranks} ranks, root {root}"
        job = judge.run(reduce, answer, root, ranks=ranks, timeout=TIMEOUT_S)
        bad = [(rank, text) for rank, (text, _) in enumerate(job.results) if text]
        if not judge.demand(not bad, f"{case}: every rank has the sum", "; ".join(f"{case}: rank {rank} {text}" for rank, text in bad)):
            return
        sent, received = _sent_bytes(job), _received_bytes(job)
        if others := sorted(set(job.comm["op"]) - {"send", "recv"}):
            most = max(range(ranks), key=lambda rank: sent[rank])
            judge.demand(False, "", f"{case}: you used {', '.join(others)}, and rank {most} sent {sent[most] / S:.2f} S. In a star, every message goes to the root "
                                    "or comes from it: send and recv are enough")
            return
        demands = [(root, sent, "sent", ranks - 1), (root, received, "received", ranks - 1)]
        demands += [(rank, bytes_, verb, 1) for rank in range(ranks) if rank != root for bytes_, verb in ((sent, "sent"), (received, "received"))]
        wrong = [f"{case}: {'the root' if rank == root else f'rank {rank}'} {verb} {bytes_[rank] / S:.2f} S, and {limit} S {'is' if limit == 1 else 'are'} enough"
                 for rank, bytes_, verb, limit in demands if bytes_[rank] > LIMIT * limit * S]
        light = judge.demand(not wrong, f"{case}: the root sent and received {ranks - 1} S, the others 1 S", wrong[0] if wrong else "")
        held = job.results[root][1]
        judge.demand(held <= LIMIT, f"{case}: the root held one extra tensor at most",
                     f"{case}: the root held {held:.1f} S of new tensors at once. One is enough: receive, add, and use it again")
        if not light:
            return


@exercise
def forward_in_threads(judge: Judge, answer: Callable) -> None:
    """`answer(model, images, num_threads)` is the model's output, computed by replicas in threads, through which gradients reach the model."""
    def examine(answer):
        import threading

        class Watched(torch.nn.Module):
            """Two linear layers that note each call: thread, images, where the weights lie, and how many calls were inside at once."""
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
                    if not cls.condition.wait_for(lambda: cls.most >= cls.expected, timeout=1.0):
                        cls.expected = 0            # nobody else comes: the next call need not wait
                    cls.calls.append((threading.get_ident(), len(images), self.first.weight.data_ptr()))
                    cls.condition.notify_all()      # all look at their weights before one goes on, and perhaps puts others in their place
                    cls.condition.wait_for(lambda: len(cls.calls) >= cls.expected, timeout=1.0)
                try:
                    return self.second(self.first(images.flatten(1)).relu())
                finally:
                    with cls.condition:
                        cls.inside -= 1

        def gradients(model):
            return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

        def close(a, b):
            return isinstance(a, torch.Tensor) and (a.shape, a.dtype) == (b.shape, b.dtype) and torch.allclose(a, b, rtol=1e-4, atol=1e-6)

        rows = []
        for size, threads in PIECES:
            torch.manual_seed(size)
            model, images, weights = Watched(), torch.rand(size, 1, 8, 8), torch.rand(size, 10)
            Watched.expected = 0
            wanted = model(images)
            (wanted * weights).sum().backward()
            whole = gradients(model)
            model.zero_grad()
            Watched.calls, Watched.most, Watched.expected = [], 0, min(size, threads)
            output = answer(model, images, threads)
            calls, most, Watched.calls, Watched.expected = Watched.calls, Watched.most, [], 0
            row = {"calls": calls, "most": most, "root": model.first.weight.data_ptr(), "output": close(output, wanted), "grads": "no"}
            row["sorted"] = isinstance(output, torch.Tensor) and output.shape == wanted.shape and close(output.sort(0).values, wanted.sort(0).values)
            row["what"] = type(output).__name__
            if isinstance(output, torch.Tensor):
                right = (output.shape, output.dtype) == (wanted.shape, wanted.dtype)
                row["what"] = "other values" if right else f"a tensor of shape {tuple(output.shape)} and dtype {str(output.dtype).removeprefix('torch.')}"
            if row["output"] and output.requires_grad:
                (output * weights).sum().backward()
                found = gradients(model)
                row["grads"] = ("none" if all(g is None for g in found) else "yes" if all(g is not None and close(g, w) for g, w in zip(found, whole)) else "wrong")
            with torch.no_grad():
                row["graph"] = bool(getattr(answer(model, images, threads), "requires_grad", False))
            rows.append(row)
        return rows

    examine.__name__ = "your function"
    rows = judge.run(examine, answer, ranks=1, timeout=TIMEOUT_S).results[0]
    for (size, threads), row in zip(PIECES, rows):
        case = f"{size} images, {threads} threads"
        hint = " It has the right rows in the wrong order." if row["sorted"] else ""
        if not judge.demand(row["output"], f"{case}: the outputs of the whole batch, in order",
                            f"{case}: the outputs of the whole batch, in order, are asked for, and you returned {row['what']}.{hint}"):
            return
        sizes, count, largest = [length for _, length, _ in row["calls"]], min(size, threads), -(-size // threads)
        if not sizes:
            judge.demand(False, "", f"{case}: the model was never called. Call a replica of it with each piece of the images")
            return
        judge.demand(min(sizes) > 0 and max(sizes) <= largest and sum(sizes) == size, f"{case}: each image went through one replica, at most {largest} through each",
                     f"{case}: the model was called with {', '.join(map(str, sizes))} images. " +
                     ("Don't call it with none." if min(sizes) == 0 else f"Each image goes through one replica, and at most {largest} through each."))
        judge.demand(row["most"] >= count and len({thread for thread, _, _ in row["calls"]}) >= count, f"{case}: {count} threads were at work at once",
                     f"{case}: {row['most']} of {count} replicas were at work at once. Start all threads before you wait for one")
        places = [place for _, _, place in row["calls"]]
        judge.demand(len(set(places)) == len(places), f"{case}: each replica has weights of its own",
                     f"{case}: {len(places)} replicas share {len(set(places))} set of weights. On GPUs each needs a copy in its own memory")
        judge.demand(row["grads"] == "yes", f"{case}: the model got the gradient of the whole batch",
                     f"{case}: " + {"no": "the output has no graph, so backward is impossible", "none": "the model got no gradient. It stayed in the replicas: "
                                    "copy so that autograd knows where the copy came from", "wrong": "the model's gradient is not that of the whole batch. "
                                    "Does the gradient of every replica find its way back?"}.get(row["grads"], ""))
    judge.demand(not any(row["graph"] for row in rows), "under torch.no_grad() no graph is built",
                 "under torch.no_grad() your output has a graph. Each thread has its own switch for gradients: set it to that of the caller")


@exercise
def tree_all_reduce(judge: Judge, answer: Callable) -> None:
    """`answer(tensor, link)` sums in place along a binomial tree: 2 log2(n) messages after one another, 2(n-1) S in all."""
    def reduce(answer):
        class Link:
            """Counts, where the chapter's link sleeps: each message takes one unit of time for the sender's and for the receiver's link."""
            def __init__(self):
                self.clock, self.messages = 0.0, 0

            def send(self, tensor, dst):
                self.clock, self.messages = self.clock + tensor.nbytes / S, self.messages + 1
                dist.send(tensor, dst)
                dist.send(torch.tensor([self.clock], device="cpu"), dst)

            def recv(self, tensor, src):
                arrival = torch.zeros(1, device="cpu")
                dist.recv(tensor, src)
                dist.recv(arrival, src)
                self.clock = max(self.clock + tensor.nbytes / S, arrival.item())

        rank, size = dist.get_rank(), dist.get_world_size()
        for _ in range(2):
            link, tensor = Link(), torch.arange(numel, dtype=torch.float32, device="cpu") % 97 + rank
            with measure.step():
                answer(tensor, link)
        wanted = size * (torch.arange(numel, dtype=torch.float32, device="cpu") % 97) + sum(range(size))
        return torch.equal(tensor, wanted), link.clock, link.messages

    reduce.__name__ = "your function"
    numel = 50_000
    S = 4 * numel
    for ranks in TREES:
        case, depth = f"{ranks} ranks", (ranks - 1).bit_length()
        job = judge.run(reduce, answer, ranks=ranks, timeout=TIMEOUT_S)
        bad = [rank for rank, (right, _, _) in enumerate(job.results) if not right]
        if not judge.demand(not bad, f"{case}: every rank has the sum", f"{case}: rank {', '.join(map(str, bad))} does not hold the sum of all tensors"):
            return
        sent = _sent_bytes(job)
        over_link = [sum(messages for _, _, messages in job.results), len(job.comm[job.comm["op"] == "send"])]
        if set(job.comm["op"]) - {"send", "recv"} or over_link[1] != 2 * over_link[0]:
            judge.demand(False, "", f"{case}: some bytes did not go over `link`. Use link.send and link.recv only")
            return
        judge.demand(sum(sent) <= LIMIT * 2 * (ranks - 1) * S, f"{case}: {2 * (ranks - 1)} S were sent in all",
                     f"{case}: {sum(sent) / S:.1f} S were sent in all, and 2(n-1) S = {2 * (ranks - 1)} S are enough")
        judge.demand(max(sent) <= LIMIT * depth * S, f"{case}: no rank sent more than {depth} S",
                     f"{case}: rank {sent.index(max(sent))} sent {max(sent) / S:.1f} S, and log2(n) S = {depth} S must be enough for every rank")
        time = max(clock for _, clock, _ in job.results)
        judge.demand(time <= LIMIT * 2 * depth, f"{case}: done after the time of {2 * depth} messages",
                     f"{case}: done after the time of {time:.0f} messages, and 2 log2(n) = {2 * depth} must be enough. Let several pairs of ranks "
                     "talk at the same time; on the way back, serve the rank with the most ranks behind it first")
        if not judge.verdict():
            return


def _sent_bytes(job: Job) -> list[float]:
    """Bytes that each rank sent in the traced step: as the operating system counted them or, where it cannot, by algorithm."""
    wire = job.steps[job.steps["phase"] == "traced"].set_index("rank")["wire_bytes"]
    asked = job.comm.groupby("rank")["algorithm_bytes"].sum()
    return [float(wire[rank] if wire.notna().all() else asked.get(rank, 0)) for rank in range(job.ranks)]


def _received_bytes(job: Job) -> list[float]:
    received = job.comm[job.comm["op"] == "recv"].groupby("rank")["payload_bytes"].sum()
    return [float(received.get(rank, 0)) for rank in range(job.ranks)]
