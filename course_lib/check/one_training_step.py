"""Checks of the chapter "One training step"."""

import random
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.nn import functional as F

from course_lib import measure, theory
from course_lib.check import on_rank
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import Demand, at_most, collectives, holds, it_is, sends, values
from course_lib.datasets import digits
from course_lib.models import CNN, MLP, TinyGPT
from course_lib.record import Job

__all__ = ["memory_ledger", "uneven_accumulation", "weighted_average"]

CATEGORIES = ("params", "grads", "optimizer_states")
RELATIVE_ERROR = 1e-5  # float32 gradients, summed in another order, differ by about 1e-7
ACTIVATIONS_LIMIT = 1.1  # times the activations of the largest micro-batch
# of Python objects: sets of addresses, say; lists of all numbers of a TinyGPT are larger
UNSEEN_BYTES = 1_000_000


@exercise(
    exact=(
        "exact for every model: frozen or tied, with buffers, in views of one flat buffer, with any optimizer"
    ),
    looks=at_most(
        "it only looks: it makes no tensors of its own",
        "made_bytes",
        1000,
        "the ledger itself made {most:,} bytes of new tensors. A ledger only looks: ask a tensor for its"
        " storage, copy nothing.",
    ),
)
def memory_ledger(judge: Judge, ledger: Callable) -> None:
    """`ledger(model, optimizer)` returns the bytes of params, grads and optimizer_states: exact, shared
    storages once, nothing copied.
    """

    def examine(ledger, width, spare):
        def mlp():
            return MLP((64, width, 10))

        def frozen():
            model = MLP((64, width, 10))
            model.layers[0].requires_grad_(False)
            return model

        def flat(model, extra):
            """Put all parameters into one buffer, which has `extra` elements more than they need: nobody
            touches them, so they take no memory.
            """
            params = list(model.parameters())
            buffer = torch.empty(sum(p.numel() for p in params) + extra)
            for p, part in zip(params, buffer.split([p.numel() for p in params] + [extra])):
                p.data = part.copy_(p.detach().flatten()).view_as(p)
            return model

        def train(model, optimizer):
            output = (
                model(torch.zeros(4, 9, dtype=torch.long))
                if isinstance(model, TinyGPT)
                else model(torch.ones(4, 1, 8, 8)).sum()
            )
            output.backward()
            optimizer.step()

        def counted(value):
            """A number of bytes, of a float too, which is right as long as it is exact; else its text."""
            if isinstance(value, float) and value.is_integer():
                return int(value)
            number = on_rank.whole(value)
            return repr(value) if number is None else number

        def looked_at(model, optimizer):
            """What a ledger may look at, and must leave as it is, in words."""
            states = {
                (id(p), key): value for p, state in optimizer.state.items() for key, value in state.items()
            }
            return {
                "the model's parameters or buffers": model.state_dict(),
                "the gradients": {name: p.grad for name, p in model.named_parameters()},
                "the states of the optimizer": states,
            }

        def copied(tensors):
            return {
                key: value.clone() if isinstance(value, torch.Tensor) else value
                for key, value in tensors.items()
            }

        def same(a, b):
            if a.keys() != b.keys():
                return False
            pairs = [(a[key], b[key]) for key in a]
            return all(
                torch.equal(one, other)
                if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
                else type(one) is type(other) and one == other
                for one, other in pairs
            )

        # P: bytes of the parameters, worked out from the shapes and not from the tensors that the answer sees
        P = 4 * (64 * width + width + width * 10 + 10)
        P_last = 4 * (width * 10 + 10)
        P_gpt = 4 * ((256 + 64 + 2) * 64 + 2 * (12 * 64**2 + 13 * 64))
        P_cnn = 4 * (16 * 9 + 16 + 2 * 16 + 32 * 16 * 9 + 32 + 2 * 32 + 10 * 128 + 10)
        adam, momentum = torch.optim.Adam, (lambda params: torch.optim.SGD(params, 0.1, momentum=0.9))

        def plain_sgd(params):
            return torch.optim.SGD(params, 0.1)

        cases = [
            ("an MLP before its first step", mlp, adam, False, (P, 0, 0)),
            ("an MLP with Adam", mlp, adam, True, (P, P, 2 * P + 4 * 4)),
            ("an MLP with SGD", mlp, plain_sgd, True, (P, P, 0)),
            ("an MLP with SGD and momentum", mlp, momentum, True, (P, P, P)),
            ("an MLP whose first layer is frozen", frozen, adam, True, (P, P_last, 2 * P_last + 2 * 4)),
            (
                "a TinyGPT with tied weights",
                TinyGPT,
                adam,
                True,
                (P_gpt, P_gpt, 2 * P_gpt + 4 * (2 + 2 * 16 + 2)),
            ),
            (
                "a CNN with buffers (batch norm)",
                lambda: CNN(batch_norm=True),
                adam,
                True,
                (P_cnn, P_cnn, 2 * P_cnn + 4 * 10),
            ),
            (
                "parameters that are views of one flat buffer",
                lambda: flat(mlp(), 0),
                plain_sgd,
                True,
                (P, P, 0),
            ),
            (
                "the same, in a buffer with 64 MB to spare",
                lambda: flat(mlp(), spare),
                plain_sgd,
                True,
                (P + 4 * spare, P, 0),
            ),
        ]
        rows, made_bytes = [], []
        for name, make_model, make_optimizer, trained, expected in cases:
            model = make_model()
            optimizer = make_optimizer(model.parameters())
            if trained:
                train(model, optimizer)
            before = {what: copied(tensors) for what, tensors in looked_at(model, optimizer).items()}
            with on_rank.NewTensors() as new, on_rank.Unseen() as unseen:
                found = ledger(model, optimizer)
                unseen_bytes = unseen.peak()
            after = looked_at(model, optimizer)
            changed = next((what for what in before if not same(before[what], after[what])), "")
            if isinstance(found, dict):
                found = {str(key): counted(value) for key, value in on_rank.plain(found).items()}
            else:
                found = type(found).__name__
            rows.append((name, dict(zip(CATEGORIES, expected)), found, changed))
            made_bytes.append(new.peak_bytes + (unseen_bytes if unseen_bytes > UNSEEN_BYTES else 0))
        return {"cases": rows, "made_bytes": max(made_bytes)}

    # above 2**26, float32 rounds to multiples of 8
    width, spare = 80 + 2 * (judge.seed % 20), 2**24 + 1 + 2 * (judge.seed % 100)
    job = judge.run(examine, ledger, width, spare, ranks=1, label="your ledger")
    rows = job.results[0]["cases"]
    for name, expected, found, _ in rows:
        difference = _difference(expected, found)
        judge.demand("exact", difference and f"{name}: {difference}", f"exact for {name}")
        if not isinstance(found, dict) or set(found) != set(expected):
            return  # the same for all others
    for name, *_, what in rows:
        if what:
            why = (
                f"{name}: after the call, {what} are not what they were. A ledger only looks: change nothing."
            )
            judge.demand("looks", why)
            return
    judge.look(job, "looks")


def _difference(expected: dict, found) -> str:
    """What is wrong with one answer, in words; "" if nothing."""
    if not isinstance(found, dict):
        return (
            f"the ledger returned a value of type {found}, and not a dict with the keys"
            f" {', '.join(CATEGORIES)}"
        )
    if set(found) != set(expected):
        return (
            f"the ledger has the keys {', '.join(sorted(found)) or '(none)'}; it should have"
            f" {', '.join(CATEGORIES)}"
        )
    wrong = [
        (
            f"{key} should be {count:,} bytes, and you count {found[key]:,}"
            if isinstance(found[key], int)
            else f"{key} is {found[key]}, and not a whole number of bytes"
        )
        for key, count in expected.items()
        if found[key] != count
    ]
    return "; ".join(wrong)


def _forwards(job: Job) -> str:
    found = job.results[0]
    if found["forwards"] == found["micro_batches"]:
        return ""
    return (
        f"the model ran {found['forwards']} times for {found['micro_batches']} micro-batches. One forward for"
        " each is enough, and each is needed."
    )


@exercise(
    gradient=values(
        "the gradient is that of the whole batch",
        "the gradient is not that of the whole batch (relative error {error:.2g}).",
        within=RELATIVE_ERROR,
        advice=lambda job, error: it_is(job),
    ),
    activations=holds(
        f"never more than {ACTIVATIONS_LIMIT} times the activations of the largest micro-batch",
        "activations",
        lambda job: job.results[0]["largest_bytes"],
        "at its peak your step held {held:,} bytes of activations, {times:.1f} times those of the largest"
        " micro-batch. Call backward for one micro-batch before the forward of the next.",
        times=ACTIVATIONS_LIMIT,
    ),
    forwards=Demand("one forward per micro-batch", _forwards),
)
def uneven_accumulation(judge: Judge, accumulate: Callable) -> None:
    """`accumulate(model, micro_batches)` leaves the whole batch's gradient in `.grad`, and holds one
    micro-batch's activations at a time.
    """
    widths = (64, 256, 10)

    def step(sizes, accumulate, seed):
        class Counted(MLP):
            def forward(self, images):  # also called as model.forward
                calls.append(len(images))
                return super().forward(images)

        torch.manual_seed(seed)
        calls, model, twin = [], Counted(widths), MLP(widths)
        twin.load_state_dict(model.state_dict())
        chosen = torch.randperm(len(digits()[1]))[: sum(sizes)]
        images, labels = (data[chosen] for data in digits())
        micro_batches = [(x.clone(), y.clone()) for x, y in zip(images.split(sizes), labels.split(sizes))]

        def gradient(x, y):
            return on_rank.flat(torch.autograd.grad(F.cross_entropy(twin(x), y), list(twin.parameters())))

        full, parts = gradient(images, labels), [gradient(*batch) for batch in micro_batches]
        for _ in range(2):
            model.zero_grad()
            calls.clear()
            with measure.step(model):
                accumulate(model, list(micro_batches))
        if any(not torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters())):
            return {"problem": "the parameters have changed; leave them alone"}
        if not (
            torch.equal(torch.cat([x for x, _ in micro_batches]), images)
            and torch.equal(torch.cat([y for _, y in micro_batches]), labels)
        ):
            return {"problem": "the images or labels of a micro-batch have changed; leave them alone"}
        if any(p.grad is None for p in model.parameters()):
            return {"problem": "a parameter has no gradient; call backward, and leave the result in .grad"}
        found = on_rank.flat(p.grad for p in model.parameters())
        guesses = {
            "the sum of the micro-batches' gradients: nothing was divided": sum(parts),
            "the plain mean of the micro-batches' gradients, which gives a sample in a small micro-batch more"
            " weight": (sum(parts) / len(parts)),
            "the sum over all samples, not their mean": full * sum(sizes),
            "the gradient of the last micro-batch alone": parts[-1],
        }
        return {
            "error": on_rank.apart(found, full),
            "looks": on_rank.looks(found, guesses, 1e-3),
            "forwards": len(calls),
            "micro_batches": len(sizes),
            "largest_bytes": max(sizes) * (4 * sum(widths) + 8) + 4,  # as section 2 of the chapter predicts
        }

    for sizes in ([10, 7, 4, 3], [1, 16, 2]):
        case = f"micro-batches of {', '.join(map(str, sizes[:-1]))} and {sizes[-1]}"
        judge.tried(case, step, sizes, accumulate, judge.seed, ranks=1)


def _averaged(job: Job) -> str:
    for rank, found in enumerate(job.results):
        if problem := found["unlike"]:
            return f"on rank {rank}, {problem}."
        if not found["error"] < RELATIVE_ERROR:
            looks = f". It is {found['looks']}" if found["looks"] else ""
            return f"on rank {rank}, the gradient has a relative error of {found['error']:.2g}{looks}."
    return ""


def _by_reduce_scatter(job: Job) -> str:
    if job.backend != "gloo" or "reduce_scatter" not in set(job.comm["op"]):
        return ""
    return " On gloo a reduce_scatter sends as much as an all_reduce: it is one, and keeps one part."


@exercise(
    gradient=Demand("every rank has the gradient of the whole batch", _averaged),
    calls=collectives(
        "at most 2 collectives",
        lambda ops: ops.total() <= 2,
        "a rank called {count} collectives ({used}); 2 are enough: put all gradients into one flat tensor.",
        none="no rank called a collective; 2 are enough: put all gradients into one flat tensor.",
    ),
    bytes=sends(
        "the bytes of one ring all_reduce",
        lambda job: theory.collective_bytes("all_reduce", job.results[0]["gradient_bytes"], job.ranks),
        "a rank sent {sent:,.0f} bytes, {times:.2f} times what one ring all_reduce of the gradients sends"
        " ({limit:,.0f} bytes).",
        _by_reduce_scatter,
    ),
)
def weighted_average(judge: Judge, average_gradients: Callable) -> None:
    """`average_gradients(model, num_samples)` gives every rank the whole batch's gradient, in two collectives
    and the bytes of one all_reduce.
    """

    def step(sizes, average_gradients, seed):
        flat, apart = on_rank.flat, on_rank.apart
        rank, total = dist.get_rank(), sum(sizes)
        torch.manual_seed(seed)
        model = MLP((64, 512, 256, 10))
        model.layers[0].bias.requires_grad_(False)
        params, before = [p for p in model.parameters() if p.requires_grad], flat(model.parameters())
        # so no rank can make the samples of another
        data = torch.Generator("cpu").manual_seed(on_rank.private_seed())
        images = torch.rand(sizes[rank], 1, 8, 8, generator=data, device="cpu").to(before.device)
        labels = torch.randint(10, (sizes[rank],), generator=data, device="cpu").to(before.device)

        def backward():
            model.zero_grad()
            F.cross_entropy(model(images), labels).backward()

        for _ in range(2):
            backward()
            with measure.step():
                average_gradients(model, sizes[rank])
        backward()
        mine = flat(p.grad for p in params)
        with on_rank.Calls(on_rank.late("average") if rank == 1 else None):
            average_gradients(model, sizes[rank])
        lost = any(p.grad is None or p.grad.shape != p.shape for p in params)
        # at once: who has not waited for it does not have it
        found = None if lost else flat(p.grad for p in params).double()
        on_rank.is_back("average")
        own = [gradient.double() for gradient in on_rank.everyone(mine)]
        full, unlike = sum(size * gradient for size, gradient in zip(sizes, own)) / total, ""
        if model.layers[0].bias.grad is not None:
            unlike = "the frozen parameter has got a gradient"
        elif not torch.equal(flat(model.parameters()), before):
            unlike = "the parameters have changed; leave them alone"
        elif lost:
            unlike = "a parameter has lost its gradient, or its gradient has another shape"
        if unlike:
            return {"unlike": unlike, "gradient_bytes": mine.nbytes}
        guesses = {
            "the plain mean over ranks, which gives a sample on a rank with few samples more weight": (
                sum(own) / len(own)
            ),
            "the sum over ranks: nothing was divided": sum(own),
            "the sum over all samples, not their mean": full * total,
            "this rank's own gradient, unchanged": own[rank],
        }
        error, looks = apart(found, full), on_rank.looks(found, guesses, 1e-3)
        if not looks and 1e-5 < error < 0.02:
            looks = "near the right one: were the gradients sent or added in a smaller dtype?"
        return {"unlike": "", "error": error, "looks": looks, "gradient_bytes": mine.nbytes}

    for ranks in (2, 4):
        sizes = random.Random(judge.seed).sample(range(1, 12), ranks)  # no two of them equal
        judge.case = f"{ranks} ranks with different numbers of samples"
        job = judge.run(step, sizes, average_gradients, judge.seed, ranks=ranks)
        judge.look(job, "gradient", "calls")
        if len(job.comm):
            judge.look(job, "bytes")
