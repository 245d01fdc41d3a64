"""Functions that the tests of course_lib.mini.pipeline run on ranks."""

import contextlib
import functools
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib import measure
from course_lib.mini import ddp, pipeline
from course_lib.mini.pipeline import backward, forward
from course_lib.models import MLP, TinyGPT
from course_lib.stand_ins.sleeping import SleepingStage

BATCH = 48
WIDTHS = (12, 20, 7, 16, 9, 11, 13, 8, 10)  # eight layers that differ, and so do the tensors at the cuts


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = MLP(WIDTHS) if name == "MLP" else TinyGPT(layers=8, dim=16, heads=2, context=8, tied=False)
    return model.to(dtype)


def data(name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if name == "MLP":
        return torch.randn(BATCH, WIDTHS[0], generator=generator, dtype=dtype), torch.randint(
            WIDTHS[-1], (BATCH,), generator=generator
        )
    tokens = torch.randint(256, (BATCH, 9), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def loss_fn(output: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, -2), targets.flatten())


@functools.cache
def alone(name: str, steps: int = 1) -> tuple[nn.Module, float]:
    """The whole batch in one process: a model with its gradients, and the loss."""
    model, (inputs, targets) = make(name), data(name)
    for _ in range(steps):
        loss = loss_fn(
            model.layers(inputs) if name == "MLP" else nn.Sequential(*pipeline.split(model, 1))(inputs),
            targets,
        )
        loss.backward()
    return model, loss.item()


def by_name(schedule: str, ranks: int, num_microbatches: int, chunks: int = 1):
    if schedule == "interleaved":
        return pipeline.interleaved(ranks, num_microbatches, chunks)
    # odd ranks go the other way round: messages are needed in another order than sent
    if schedule == "contrary":
        orders = [[*range(num_microbatches)][:: 1 - 2 * (rank % 2)] for rank in range(ranks)]
        return [
            [forward(k, rank) for k in order] + [backward(k, rank) for k in order]
            for rank, order in enumerate(orders)
        ]
    return getattr(pipeline, schedule)(ranks, num_microbatches)


def compare(cases: list[tuple]) -> list[tuple]:
    """For each case (model, schedule, micro-batches, stages per rank, sizes): the relative difference of this
    rank's gradients to those of one process, of the loss (None where there is none), the peak in flight, and
    how many parameters have no gradient.
    """
    return [_compare(*case) for case in cases]


def _compare(
    name: str,
    schedule: str,
    num_microbatches: int,
    chunks: int = 1,
    sizes: tuple | None = None,
    steps: int = 1,
) -> tuple:
    rank, size = dist.get_rank(), dist.get_world_size()
    whole, loss_alone = alone(name, steps)
    model, (inputs, targets) = make(name), data(name)
    stages = pipeline.split(model, size * chunks, sizes)[rank::size]
    pipe = pipeline.Pipeline(
        stages if chunks > 1 else stages[0], by_name(schedule, size, num_microbatches, chunks), loss_fn
    )
    for _ in range(steps):  # a second one adds to .grad
        loss = pipe.step(inputs if rank == 0 else None, targets if rank == size - 1 else None)
    own = set(pipe.parameters())
    pairs = [
        (p.grad, q.grad) for p, q in zip(model.parameters(), whole.parameters(), strict=True) if p in own
    ]
    return (
        distance(pairs),
        None if loss is None else abs(loss.item() / loss_alone - 1),
        pipe.peak_in_flight,
        sum(p.grad is None for p in own),
    )


def distance(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Norm of all differences together over the norm of what is right; 0 for a stage without parameters."""
    if not pairs:
        return 0.0
    own, other = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in zip(*pairs))
    return ((own - other).norm() / other.norm()).item()


def sleep(schedule: str, counts: list[int], chunks: int, forward_s: float) -> dict[int, list[dict]]:
    """For each number of micro-batches, a step whose stages sleep: its spans by this rank's clock. `chunks`
    stages of a rank sleep as long as one would.

    The first of these steps is also the job's traced one, with the profiler in it; the others carry
    nothing."""
    spans, timed = {m: [] for m in counts}, measure.span

    @contextlib.contextmanager
    def clocked(name: str):
        begin_s = time.perf_counter()
        with timed(name):
            yield
        spans[m].append(
            {
                "rank": dist.get_rank(),
                "kind": "span",
                "name": name,
                "start_s": begin_s,
                "seconds": time.perf_counter() - begin_s,
            }
        )

    measure.span = clocked  # this process ends with the job
    for m in counts:
        stages, batch = [SleepingStage(0.0, 0.0) for _ in range(chunks)], torch.ones(m, 8)
        pipe = pipeline.Pipeline(stages, by_name(schedule, dist.get_world_size(), m, chunks), F.mse_loss)
        with measure.step(pipe) if m == counts[0] else contextlib.nullcontext():
            pipe.step(batch, batch)  # warm-up
        spans[m].clear()
        for stage in stages:
            stage.forward_s, stage.backward_s = forward_s / chunks, 2 * forward_s / chunks
        dist.barrier()
        with measure.step(pipe):
            pipe.step(batch, batch)
    return spans


def first_step(num_microbatches: int) -> None:
    """GPipe with stages that sleep; what is traced is a pipeline's first step."""
    batch = torch.ones(num_microbatches, 8)
    for _ in range(2):
        pipe = pipeline.Pipeline(
            SleepingStage(0.01, 0.02), pipeline.gpipe(dist.get_world_size(), num_microbatches), F.mse_loss
        )
        with measure.step(pipe):
            pipe.step(batch, batch)


def train_gpt(schedule: str, num_microbatches: int, per_microbatch: int = 2) -> int:
    """Steps of a TinyGPT, with as many samples per micro-batch, however many of these there are; the peak in
    flight.
    """
    pipe, _, tokens = gpt(schedule, num_microbatches, per_microbatch)
    for _ in range(2):
        pipe.zero_grad()
        with measure.step(pipe):
            pipe.step(tokens[:, :-1], tokens[:, 1:])
    return pipe.peak_in_flight


def gpt(
    schedule: str, num_microbatches: int, per_microbatch: int, chunks: int = 1
) -> tuple[pipeline.Pipeline, list[nn.Module], Tensor]:
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = TinyGPT(layers=6, dim=32, heads=2, context=16, tied=False)
    tokens = torch.randint(256, (num_microbatches * per_microbatch, 17))
    stages = pipeline.split(model, size * chunks)[rank::size]
    return (
        pipeline.Pipeline(stages, by_name(schedule, size, num_microbatches, chunks), loss_fn),
        stages,
        tokens,
    )


def train_gpts(
    cases: list[tuple[str, int]], num_microbatches: int, per_microbatch: int, kind: str
) -> list[list[Tensor]]:
    """The gradients of each (schedule, stages per rank), under mini's ("mine") or torch's pipeline; in each
    step, all of them run, and a barrier after each.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    pipes, stages, (tokens, *_) = zip(
        *(gpt(schedule, num_microbatches, per_microbatch, chunks) for schedule, chunks in cases)
    )
    steps = [
        pipe.step if kind == "mine" else torchs_step(schedule, theirs, num_microbatches, rank, size)
        for (schedule, _), pipe, theirs in zip(cases, pipes, stages)
    ]
    for _ in range(3):
        with measure.step():
            for pipe, step in zip(pipes, steps):
                pipe.zero_grad()
                step(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
                dist.barrier()
    return [[p.grad for p in pipe.parameters()] for pipe in pipes]


def torchs_step(schedule: str, stages: list[nn.Module], num_microbatches: int, rank: int, size: int):
    from torch.distributed import pipelining

    theirs = [
        pipelining.PipelineStage(stage, rank + i * size, size * len(stages), torch.device("cpu"))
        for i, stage in enumerate(stages)
    ]
    make_schedule = {
        "gpipe": "ScheduleGPipe",
        "one_f_one_b": "Schedule1F1B",
        "interleaved": "ScheduleInterleaved1F1B",
    }[schedule]
    runs = getattr(pipelining, make_schedule)(
        theirs if schedule == "interleaved" else theirs[0], num_microbatches, loss_fn=loss_fn
    )

    def step(inputs: Tensor, targets: Tensor) -> None:
        runs.step(*[inputs] * (rank == 0), target=targets if rank == size - 1 else None)

    return step


def hybrid(wrapped: bool) -> list[tuple]:
    """Two pipelines of two stages, on ranks 0 and 2, and 1 and 3. Equal stages average their gradients: by
    mini's DDP, or by hand afterwards.
    """
    rank = dist.get_rank()
    pp_groups, dp_groups = [
        [dist.new_group(ranks) for ranks in pairs] for pairs in (([0, 2], [1, 3]), ([0, 1], [2, 3]))
    ]
    pp_rank, dp_rank = divmod(rank, 2)
    pp_group, dp_group = pp_groups[dp_rank], dp_groups[pp_rank]
    whole, _ = alone("TinyGPT")
    model = make("TinyGPT")
    inputs, targets = (tensor.chunk(2)[dp_rank] for tensor in data("TinyGPT"))
    stage = pipeline.split(model, 2)[pp_rank]
    pipe = pipeline.Pipeline(
        ddp.DistributedDataParallel(stage, process_group=dp_group) if wrapped else stage,
        pipeline.one_f_one_b(2, 4),
        loss_fn,
        process_group=pp_group,
    )
    for _ in range(2):
        pipe.zero_grad()
        with measure.step(pipe):
            loss = pipe.step(inputs, targets)
            if not wrapped:
                for p in pipe.parameters():
                    dist.all_reduce(p.grad, group=dp_group)
                    p.grad /= 2
    own = set(pipe.parameters())
    pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), whole.parameters()) if p in own]
    return distance(pairs), loss is not None, sum(p.nbytes for p in own)


def frozen() -> tuple:
    """The first stage learns nothing; the others do."""
    rank, size = dist.get_rank(), dist.get_world_size()
    model, (inputs, targets) = make("MLP"), data("MLP")
    stages = pipeline.split(model, size)
    stages[0].requires_grad_(False)
    pipe = pipeline.Pipeline(stages[rank], pipeline.one_f_one_b(size, 4), loss_fn)
    pipe.step(inputs, targets)
    whole, _ = alone("MLP")
    own = set(pipe.parameters())
    pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), whole.parameters()) if p in own]
    return all(grad is None for grad, _ in pairs) if rank == 0 else distance(pairs)


def in_place() -> list[float]:
    """Cut before each layer in turn: the difference of this rank's gradients, and of the loss, to one
    process.
    """

    def layers() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(4, 4),
            nn.ReLU(inplace=True),
            nn.Linear(4, 4),
            nn.SiLU(),
            nn.Hardtanh(inplace=True),
            nn.Linear(4, 4),
        ).double()

    rank, size, told = dist.get_rank(), dist.get_world_size(), []
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = layers()
    F.mse_loss(whole(x.clone()), x).backward()
    for cut in range(1, 6):
        model = layers()
        stages = pipeline.split(model, 2, (cut, 6 - cut))
        pipe = pipeline.Pipeline(
            stages[rank] if size == 2 else stages,
            by_name("gpipe" if size == 2 else "interleaved", size, 3, 2),
            F.mse_loss,
        )
        pipe.step(x, x)
        own = set(pipe.parameters())
        told.append(
            distance([(p.grad, q.grad) for p, q in zip(model.parameters(), whole.parameters()) if p in own])
        )
    return told


def evaluate(schedule: str, chunks: int) -> tuple:
    """Train, evaluate on batches of another size, and train again: losses and gradients beside those of one
    process, and what evaluation holds.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    whole, (inputs, targets) = make("MLP"), data("MLP")
    model = make("MLP")
    stages = pipeline.split(model, size * chunks)[rank::size]
    pipe = pipeline.Pipeline(stages if chunks > 1 else stages[0], by_name(schedule, size, 3, chunks), loss_fn)
    own, losses, gradients, in_flight = set(pipe.parameters()), [], [], 0
    for _ in range(2):
        whole.zero_grad()
        pipe.zero_grad()
        loss_fn(whole(inputs), targets).backward()
        pipe.step(inputs, targets)
        gradients.append(
            distance([(p.grad, q.grad) for p, q in zip(model.parameters(), whole.parameters()) if p in own])
        )
        for mode in (torch.no_grad(), torch.inference_mode()):
            with mode:
                loss = pipe.step(inputs[:12], targets[:12])
                losses.append(
                    None
                    if loss is None
                    else abs(loss.item() / loss_fn(whole(inputs[:12]), targets[:12]).item() - 1)
                )
            in_flight += pipe.peak_in_flight
    return losses, gradients, in_flight


def other_shapes() -> tuple:
    """Sequences of two lengths in turn, through two pipelines of the same stages."""
    rank, size = dist.get_rank(), dist.get_world_size()
    whole, model = make("TinyGPT"), make("TinyGPT")
    stage, losses = pipeline.split(model, size)[rank], []
    pipes = [pipeline.Pipeline(stage, pipeline.one_f_one_b(size, 4), loss_fn) for _ in range(2)]
    for length in (8, 5, 8, 5):
        inputs, targets = (tensor[:16, :length] for tensor in data("TinyGPT"))
        expected = loss_fn(nn.Sequential(*pipeline.split(whole, 1))(inputs), targets)
        expected.backward()
        loss = pipes[length == 5].step(inputs, targets)
        losses.append(None if loss is None else abs(loss.item() / expected.item() - 1))
    own = set(stage.parameters())
    return distance([(p.grad, q.grad) for p, q in zip(model.parameters(), whole.parameters()) if p in own]), (
        losses if rank == size - 1 else None
    )


def refused(what: str):
    """Mistakes in what Pipeline and step are given."""
    rank, size = dist.get_rank(), dist.get_world_size()
    inputs, targets = data("MLP")
    stage = pipeline.split(make("MLP"), size)[rank]
    if what == "lists":
        pipeline.Pipeline(stage, pipeline.gpipe(size + 1, 2), loss_fn)
    if what == "stages":
        pipeline.Pipeline([stage, stage], pipeline.gpipe(size, 2), loss_fn)
    if what == "words":
        pipeline.Pipeline(stage, [["F0", "B0"]] * size, loss_fn)
    if what == "uncalled":
        pipeline.Pipeline(stage, pipeline.gpipe, loss_fn)
    if what in CHANGES and rank == CHANGES[what][0]:
        stage = nn.Sequential(stage, CHANGES[what][1]())
    losses = {
        "losses": lambda output, targets: F.cross_entropy(output, targets, reduction="none"),
        "item": lambda *both: loss_fn(*both).item(),
    }
    pipe = pipeline.Pipeline(
        stage, pipeline.gpipe(size, 5 if what == "batch" else 2), losses.get(what, loss_fn)
    )
    if what == "inputs":
        inputs = None
    pipe.step(inputs, targets)
    if what == "shape":
        pipe.step(inputs[:24], targets[:24])


class Detach(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Choose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(-1)


class Spread(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape, *[1] * 7)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple:
        return x, x


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> None:
        pass


# On which rank, what comes after its stage.
CHANGES = {
    "detached": (1, Detach),
    "tuple": (0, Pair),
    "nothing": (0, Nothing),
    "whole numbers": (0, Choose),
    "dimensions": (0, Spread),
}
