"""Ways to train one model on many ranks, as data: how each prepares model and optimizer, and what theory
expects of it.

A new strategy is a function that takes a model and returns a `Training`, and an entry in STRATEGIES. Most
train an MLP; those that cut a sequence train a model that reads an image row by row, those with experts a
mixture. What is compared trains the same network, and each has its one process in BASES.

`train_digits` and `all_reduce_seconds` are what the ranks run to compare them (see `course_lib.demo`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer

from course_lib import measure, theory
from course_lib.datasets import digit_batches, digits
from course_lib.mini import context, ddp, experts, hybrid, pipeline, ring, tensor_parallel, zero
from course_lib.models import MLP, Block

__all__ = [
    "Strategy",
    "Training",
    "ONE_PROCESS",
    "BASES",
    "STRATEGIES",
    "BATCH_SIZE",
    "train_digits",
    "all_reduce_seconds",
]

WIDTHS = (64, 256, 256, 256, 256, 256, 10)  # layers of like size, so that they can be dealt out evenly
HIDDEN = WIDTHS[1]
NUMEL = sum((width + 1) * following for width, following in zip(WIDTHS[:-1], WIDTHS[1:]))
LEARNING_RATE = 4e-3
BATCH_SIZE = 480  # samples of all ranks together; the digits are three such batches
MICROBATCHES = 8
AXIS = 2  # ranks along the second axis of a mesh
NUM_EXPERTS, TOP_K, EXPERT_WIDTH = 8, 2, 128  # of the mixture
ROWS, ROW_DIM, ROW_HEADS, ROW_LAYERS = 8, 32, 4, 2  # of the model that reads an image row by row


def mlp() -> MLP:
    """The network of most strategies."""
    return MLP(WIDTHS)


def mixture() -> nn.Sequential:
    """Between the first and the last layer of the MLP, experts, of which a rank keeps its own."""
    made = [
        nn.Sequential(nn.Linear(HIDDEN, EXPERT_WIDTH), nn.ReLU(), nn.Linear(EXPERT_WIDTH, HIDDEN))
        for _ in range(NUM_EXPERTS)
    ]
    layer = experts.Experts(experts.Router(HIDDEN, NUM_EXPERTS, TOP_K), made)
    ends = nn.Linear(WIDTHS[0], HIDDEN), nn.Linear(HIDDEN, WIDTHS[-1])
    return nn.Sequential(nn.Flatten(), ends[0], nn.ReLU(), layer, ends[1])


class RowReader(nn.Module):
    """Reads an image as a sequence of its 8 rows, and guesses the digit after each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Linear(ROWS, ROW_DIM), nn.Embedding(ROWS, ROW_DIM)
        self.blocks = nn.ModuleList(Block(ROW_DIM, ROW_HEADS) for _ in range(ROW_LAYERS))
        self.norm, self.head = nn.LayerNorm(ROW_DIM), nn.Linear(ROW_DIM, 10)

    def of_rows(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return scores [batch, own rows, 10] of some rows of images [batch, 1, 8, 8]."""
        x = self.embedding(images[:, 0, rows]) + self.position(rows)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def forward(self, images: Tensor) -> Tensor:
        """Return scores [batch, 10]: the means over the rows."""
        return self.of_rows(images, torch.arange(ROWS)).mean(1)


@dataclass
class Training:
    """What one rank trains.

    Attributes:
        model: what this rank holds of the model.
        optimizer: for that.
        place, places: this rank trains on slice number `place` of each global batch, which is cut into
            `places`. Ranks that share a model between them share a slice too.
        backward: forward and backward of a slice: a function (images, labels); None for the usual ones.
        whole: returns the trained model as one process can call it; every rank must call it. None if `model`
            can be called.
    """

    model: nn.Module
    optimizer: Optimizer
    place: int
    places: int
    backward: Callable[[Tensor, Tensor], None] | None = None
    whole: Callable[[], nn.Module] | None = None


@dataclass(frozen=True)
class Strategy:
    """One way to train.

    Attributes:
        name: as tables and figures show it.
        prepare: takes the model, and returns what this rank trains; every rank must call it.
        sent: (ranks, whether on gloo) -> bytes that each rank sends in a step, one number per rank.
        held: ranks -> params, grads and optimizer_states in bytes, one dict per rank.
        fits: on how many ranks it can run; `needs` says so in words.
        network: makes the model that it trains.
    """

    name: str
    prepare: Callable[[nn.Module], Training]
    sent: Callable[[int, bool], list[float]]
    held: Callable[[int], list[dict[str, float]]]
    fits: Callable[[int], bool] = lambda ranks: True
    needs: str = "any number of ranks"
    network: Callable[[], nn.Module] = mlp


# Everyone has the whole model, or a shard of everything: each rank trains on its own slice of the batch


def _data_parallel(model: nn.Module, optimizer: Optimizer) -> Training:
    return Training(model, optimizer, dist.get_rank(), dist.get_world_size())


def _alone(model: nn.Module) -> Training:
    return _data_parallel(model, Adam(model.parameters(), LEARNING_RATE))


def _ddp(model: nn.Module) -> Training:
    """Every rank has everything; gradients are averaged during backward."""
    return _alone(DistributedDataParallel(model))


def _mini_ddp(model: nn.Module) -> Training:
    """As DDP, from scratch: the course's own hooks and buckets, on its own ring of sends and receives."""
    return _alone(ddp.DistributedDataParallel(model, all_reduce=ring.all_reduce))


def _zero_redundancy_optimizer(model: nn.Module) -> Training:
    """As DDP, but each parameter has one owner, which alone keeps its optimizer state, updates it and
    broadcasts it.
    """
    model = DistributedDataParallel(model)
    return _data_parallel(
        model, ZeroRedundancyOptimizer(model.parameters(), optimizer_class=Adam, lr=LEARNING_RATE)
    )


def _mini_zero(stage: int) -> Callable[[nn.Module], Training]:
    """The three stages from scratch, on the course's own ring."""
    return lambda model: _data_parallel(*zero.shard(model, stage, Adam, lr=LEARNING_RATE))


def _fully_shard(
    mesh: DeviceMesh | None = None, reshard_after_forward: bool = True
) -> Callable[[nn.Module], Training]:
    """Every rank has a slice of everything; each layer is gathered for as long as it computes, or (no
    reshard) from forward until backward.
    """

    def prepare(model: nn.Module) -> Training:
        for layer in [layer for layer in model.modules() if isinstance(layer, nn.Linear)] + [model]:
            fully_shard(layer, mesh=mesh, reshard_after_forward=reshard_after_forward)
        return _alone(model)

    return prepare


def _hybrid_sharding(model: nn.Module) -> Training:
    """Slices of everything within pairs of ranks; between the pairs, as DDP."""
    mesh = init_device_mesh(
        torch.get_default_device().type,
        _mesh("replicate", "shard").values(),
        mesh_dim_names=("replicate", "shard"),
    )
    return _fully_shard(mesh)(model)


# Ranks share one model between them


def _tensor(model: nn.Module, group: dist.ProcessGroup | None = None) -> Training:
    """Every rank has 1/n of every weight matrix, and works on the same batch."""
    model = tensor_parallel.parallelize(model, group)
    return Training(
        model,
        Adam(model.parameters(), LEARNING_RATE),
        0,
        1,
        whole=lambda: _loaded(tensor_parallel.gather_full(model, group)),
    )


def _pipeline(
    model: nn.Module,
    group: dist.ProcessGroup | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda stage: stage,
) -> Training:
    """Every rank has some of the layers; micro-batches pass through them (1F1B)."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    stage = pipeline.split(model, ranks, _stage_sizes(ranks))[rank]
    pipe = pipeline.Pipeline(wrap(stage), pipeline.one_f_one_b(ranks, MICROBATCHES), F.cross_entropy, group)

    def whole() -> nn.Module:
        full = MLP(WIDTHS)
        for owner, part in enumerate(pipeline.split(full, ranks, _stage_sizes(ranks))):
            part.load_state_dict(stage.state_dict() if owner == rank else part.state_dict())
            for parameter in part.parameters():
                dist.broadcast(parameter.detach(), group_src=owner, group=group)
        return full

    return Training(pipe, Adam(pipe.parameters(), LEARNING_RATE), 0, 1, pipe.step, whole)


def _data_x_tensor(model: nn.Module) -> Training:
    """Pairs of ranks share a model by tensor parallelism; between the pairs, as DDP."""
    sizes = _mesh("dp", "tp")
    groups, place = hybrid.make_groups(sizes), hybrid.coordinates(dist.get_rank(), sizes)["dp"]
    training = _tensor(model, groups["tp"])
    training.model = ddp.DistributedDataParallel(training.model, process_group=groups["dp"])
    training.place, training.places = place, dist.get_world_size(groups["dp"])
    return training


def _data_x_pipeline(model: nn.Module) -> Training:
    """Pairs of ranks share a model as two pipeline stages; between the pairs, as DDP."""
    sizes = _mesh("dp", "pp")
    groups, place = hybrid.make_groups(sizes), hybrid.coordinates(dist.get_rank(), sizes)["dp"]
    training = _pipeline(
        model, groups["pp"], lambda stage: ddp.DistributedDataParallel(stage, process_group=groups["dp"])
    )
    training.place, training.places = place, dist.get_world_size(groups["dp"])
    return training


# Ranks share each image: every rank has the whole model, and some rows


def _by_rows(model: nn.Module, rows: Tensor) -> Training:
    """The mean loss of all rows and images; this rank adds those of its rows."""

    def backward(images: Tensor, labels: Tensor) -> None:
        scores = model.of_rows(images, rows)
        losses = F.cross_entropy(scores.flatten(0, 1), labels.repeat_interleave(len(rows)), reduction="sum")
        (losses / (len(labels) * ROWS)).backward()
        if len(rows) < ROWS:
            grads = [p.grad for p in model.parameters()]
            total = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(total)
            for grad, summed in zip(grads, total.split([grad.numel() for grad in grads])):
                grad.copy_(summed.view_as(grad))

    def whole() -> nn.Module:
        alone = RowReader()
        alone.load_state_dict(model.state_dict())
        return alone

    return Training(model, Adam(model.parameters(), LEARNING_RATE), 0, 1, backward, whole)


def _row_by_row(model: nn.Module) -> Training:
    return _by_rows(model, torch.arange(ROWS))


def _context(attention: Callable[..., Tensor]) -> Callable[[nn.Module], Training]:
    """Every rank has some rows of every image; keys and values of the others come to it."""

    def prepare(model: nn.Module) -> Training:
        context.attach(model, attention, time=ROWS)
        return _by_rows(model, context.positions(ROWS))

    return prepare


def _experts(model: nn.Sequential) -> Training:
    """Every rank has 1/n of the experts, and everything else; images travel to the experts they choose."""

    def backward(images: Tensor, labels: Tensor) -> None:
        loss = F.cross_entropy(model(images), labels)
        (loss + 0.1 * experts.balance_loss(model[3].routing)).backward()
        experts.average_gradients(model)

    training = _alone(model)
    training.backward = backward
    return training


def _mesh(outer: str, inner: str) -> dict[str, int]:
    return {outer: dist.get_world_size() // AXIS, inner: AXIS}


def _loaded(state: dict[str, Tensor]) -> nn.Module:
    model = MLP(WIDTHS)
    model.load_state_dict(state)
    return model


# What theory expects


def _sends(name: str, on_gloo: str | None = None) -> Callable[[int, bool], list[float]]:
    return lambda ranks, gloo: (
        [theory.step_bytes(on_gloo if gloo and on_gloo else name, 4 * NUMEL, ranks)] * ranks
    )


def _holds(stage: int) -> Callable[[int], list[dict[str, float]]]:
    return lambda ranks: [theory.zero_memory(NUMEL, ranks, stage)] * ranks


def _holds_parts(parts: list[int]) -> list[dict[str, float]]:
    return [theory.zero_memory(numel, 1, 0) for numel in parts]


def _tensor_numel(ranks: int) -> int:
    """Column layers are cut whole, of row layers the weights."""
    layers = list(zip(WIDTHS[:-1], WIDTHS[1:]))
    columns, rows = layers[::2], layers[1::2]
    cut = sum((fed + 1) * made for fed, made in columns) + sum(fed * made for fed, made in rows)
    return cut // ranks + sum(made for _, made in rows)


def _tensor_sent(ranks: int, batch: int) -> float:
    """An all_reduce of each pair's output in forward, and of its input's gradient in backward (the images
    need none).
    """
    features = sum(WIDTHS[2::2]) + sum(WIDTHS[2:-1:2])
    return theory.collective_bytes("all_reduce", 4 * batch * features, ranks)


def _stage_sizes(ranks: int) -> list[int]:
    """How many layers each stage gets, so that all have about the same number of parameters: a Linear goes
    where its middle falls.
    """
    sizes, before = [0] * ranks, 0
    for fed, made in zip(WIDTHS[:-1], WIDTHS[1:]):
        numel = (fed + 1) * made
        sizes[int(ranks * (before + numel / 2) / NUMEL)] += 2  # and its ReLU
        before += numel
    sizes[-1] -= 1  # the last Linear has none
    return sizes


def _stage_numels(ranks: int) -> list[int]:
    stages = pipeline.split(MLP(WIDTHS), ranks, _stage_sizes(ranks))
    return [sum(parameter.numel() for parameter in stage.parameters()) for stage in stages]


def _stage_sent(ranks: int, batch: int) -> list[float]:
    """Activations to the next stage, their gradients to the one before."""
    return [4 * batch * HIDDEN * ((stage < ranks - 1) + (stage > 0)) for stage in range(ranks)]


def _hybrid_sharding_sent(ranks: int, gloo: bool) -> list[float]:
    shard = theory.step_bytes("fully_shard_gloo" if gloo else "zero_3", 4 * NUMEL, AXIS)
    return [shard + theory.step_bytes("data_parallel", 4 * NUMEL / AXIS, ranks // AXIS)] * ranks


def _data_x_tensor_sent(ranks: int, gloo: bool) -> list[float]:
    outer = ranks // AXIS
    return [
        _tensor_sent(AXIS, BATCH_SIZE // outer)
        + theory.step_bytes("data_parallel", 4 * _tensor_numel(AXIS), outer)
    ] * ranks


def _data_x_pipeline_sent(ranks: int, gloo: bool) -> list[float]:
    outer = ranks // AXIS
    parts = zip(_stage_sent(AXIS, BATCH_SIZE // outer), _stage_numels(AXIS))
    return [
        between + theory.step_bytes("data_parallel", 4 * numel, outer) for between, numel in parts
    ] * outer


def _row_reader_numel() -> int:
    """An embedding of rows and one of their places, blocks, norm and head."""
    d = ROW_DIM
    return 2 * ROWS * d + d + ROW_LAYERS * (12 * d**2 + 13 * d) + 2 * d + 10 * (d + 1)


def _context_sent(method: str) -> Callable[[int, bool], list[float]]:
    """Attention in each layer, and one all_reduce of all gradients."""

    def sent(ranks: int, gloo: bool) -> list[float]:
        head = ROW_DIM // ROW_HEADS
        layer = theory.context_bytes(method, BATCH_SIZE, ROWS, ROW_HEADS, ROW_HEADS, head, ranks)
        gradients = theory.step_bytes("data_parallel", 4 * _row_reader_numel(), ranks)
        return [ROW_LAYERS * layer + gradients] * ranks

    return sent


def _holds_row_reader(ranks: int) -> list[dict[str, float]]:
    return _holds_parts([_row_reader_numel()] * ranks)


def _expert_numels() -> tuple[int, int]:
    """Parameters of all experts, and of what every rank has."""
    numel = theory.expert_numel(HIDDEN, EXPERT_WIDTH, NUM_EXPERTS, TOP_K, matrices=2)["total"]
    own = numel - HIDDEN * NUM_EXPERTS + NUM_EXPERTS * (HIDDEN + EXPERT_WIDTH)  # without router, with biases
    return own, (WIDTHS[0] + 1) * HIDDEN + HIDDEN * NUM_EXPERTS + (HIDDEN + 1) * WIDTHS[-1]


def _experts_sent(ranks: int, gloo: bool) -> list[float]:
    tokens = theory.expert_parallel_bytes(BATCH_SIZE // ranks, HIDDEN, TOP_K, ranks)
    return [tokens + theory.step_bytes("data_parallel", 4 * _expert_numels()[1], ranks)] * ranks


def _experts_held(ranks: int) -> list[dict[str, float]]:
    own, others = _expert_numels()
    return _holds_parts([own // ranks + others] * ranks)


_PAIRS = {
    "fits": (
        lambda ranks: (
            ranks >= 2 * AXIS and BATCH_SIZE % (ranks // AXIS * MICROBATCHES) == 0 and ranks % AXIS == 0
        )
    ),
    "needs": f"{2 * AXIS} ranks or more, an even number that divides {AXIS * BATCH_SIZE // MICROBATCHES}",
}

ONE_PROCESS = Strategy("one process", _alone, _sends("data_parallel"), _holds(0))
ROW_BY_ROW = Strategy(
    "one process, row by row", _row_by_row, _context_sent("ring"), _holds_row_reader, network=RowReader
)
MIXTURE = Strategy("mixture, one process", _experts, _experts_sent, _experts_held, network=mixture)
BASES = (ONE_PROCESS, ROW_BY_ROW, MIXTURE)
STRATEGIES = (
    Strategy("DDP", _ddp, _sends("data_parallel"), _holds(0)),
    Strategy("mini DDP", _mini_ddp, _sends("data_parallel"), _holds(0)),
    Strategy(
        "ZeroRedundancyOptimizer", _zero_redundancy_optimizer, _sends("zero_redundancy_optimizer"), _holds(1)
    ),
    Strategy("mini ZeRO-1", _mini_zero(1), _sends("zero_1"), _holds(1)),
    Strategy("mini ZeRO-2", _mini_zero(2), _sends("zero_2"), _holds(2)),
    Strategy("mini ZeRO-3", _mini_zero(3), _sends("zero_3"), _holds(3)),
    # gloo: r more, see theory
    Strategy(
        "fully_shard, no reshard",
        _fully_shard(reshard_after_forward=False),
        _sends("zero_2", "zero_3"),
        _holds(3),
    ),
    Strategy("fully_shard", _fully_shard(), _sends("zero_3", "fully_shard_gloo"), _holds(3)),
    Strategy(
        "pipeline, 1F1B",
        _pipeline,
        lambda ranks, gloo: _stage_sent(ranks, BATCH_SIZE),
        lambda ranks: _holds_parts(_stage_numels(ranks)),
        lambda ranks: ranks <= 4,
        "at most 4 ranks",
    ),
    Strategy(
        "tensor parallel",
        _tensor,
        lambda ranks, gloo: [_tensor_sent(ranks, BATCH_SIZE)] * ranks,
        lambda ranks: _holds_parts([_tensor_numel(ranks)] * ranks),
        lambda ranks: HIDDEN % ranks == 0,
        f"a number of ranks that divides {HIDDEN}",
    ),
    Strategy(
        "data x tensor",
        _data_x_tensor,
        _data_x_tensor_sent,
        lambda ranks: _holds_parts([_tensor_numel(AXIS)] * ranks),
        **_PAIRS,
    ),
    Strategy(
        "data x pipeline",
        _data_x_pipeline,
        _data_x_pipeline_sent,
        lambda ranks: _holds_parts(_stage_numels(AXIS) * (ranks // AXIS)),
        **_PAIRS,
    ),
    Strategy(
        "hybrid sharding",
        _hybrid_sharding,
        _hybrid_sharding_sent,
        lambda ranks: _holds_parts([NUMEL // AXIS] * ranks),
        **_PAIRS,
    ),
    Strategy(
        "context, ring",
        _context(context.ring_attention),
        _context_sent("ring"),
        _holds_row_reader,
        lambda ranks: ranks <= ROWS,
        f"at most {ROWS} ranks",
        RowReader,
    ),
    Strategy(
        "context, Ulysses",
        _context(context.ulysses_attention),
        _context_sent("ulysses"),
        _holds_row_reader,
        lambda ranks: ROW_HEADS % ranks == 0,
        f"a number of ranks that divides {ROW_HEADS}",
        RowReader,
    ),
    Strategy(
        "mixture, experts on ranks",
        _experts,
        _experts_sent,
        _experts_held,
        lambda ranks: NUM_EXPERTS % ranks == 0,
        f"a number of ranks that divides {NUM_EXPERTS}",
        mixture,
    ),
)


def train_digits(
    strategy: Strategy, epochs: int, batch_size: int = BATCH_SIZE, seed: int = 0
) -> dict[str, float]:
    """Train a strategy's network on the digits and test it; every rank must call this.

    The MLP has 282,378 parameters, the one that reads row by row 26,346, and the mixture 8 experts.

    The same seed gives the same start and the same global batches, however many ranks share them.

    Args:
        batch_size: samples of all ranks together in one step.

    Returns:
        Per rank: accuracy and loss over the 355 test images.
    """
    torch.manual_seed(seed)
    training = strategy.prepare(strategy.network())
    model, optimizer = training.model, training.optimizer

    def backward(images: Tensor, labels: Tensor) -> None:
        # Gradients are averaged over the slices, so this is the mean over the global batch, whether its
        # slices are equal or not.
        (F.cross_entropy(model(images), labels, reduction="sum") * training.places / batch_size).backward()

    for epoch in range(epochs):
        for images, labels in digit_batches(
            batch_size, training.place, training.places, epoch=epoch, seed=seed
        ):
            samples = len(labels) * training.places // dist.get_world_size()
            with measure.step(model, optimizer, samples=samples):
                (training.backward or backward)(images, labels)
                optimizer.step()
                optimizer.zero_grad()
    if training.whole:
        model = training.whole()
    images, labels = digits("test")
    with torch.no_grad():
        scores = model(images)
    return {
        "accuracy": (scores.argmax(1) == labels).float().mean().item(),
        "loss": F.cross_entropy(scores, labels).item(),
    }


def all_reduce_seconds(payload_bytes: int, times: int = 5) -> list[float]:
    """Time so many all_reduces of `payload_bytes`, after one that warms up; every rank must call this."""
    tensor = torch.zeros(payload_bytes // 4)
    seconds = []
    for _ in range(times + 1):
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(tensor)
        if tensor.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]
