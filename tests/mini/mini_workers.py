"""Functions that the tests and benches of course_lib.mini run on ranks, and what reads their jobs."""

import gc
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib import measure
from course_lib.datasets import digit_batches, text_batches
from course_lib.mini import data_parallel, ddp, ring
from course_lib.models import CNN, MLP, TinyGPT

DTYPES = (torch.float32, torch.float64, torch.int64, torch.bfloat16)
# float32: each of four chunks is over 1 MiB, so cut in two, and nothing divides evenly
LARGE = 1_100_003
SMALL_NUMEL = 300_007


def part(rank: int, numel: int, dtype: torch.dtype) -> Tensor:
    """What a rank contributes: small whole numbers, which every dtype adds up exactly."""
    return ((torch.arange(numel) + 3 * rank) % 7).to(dtype)


# The ring


def ring_values(dtypes=DTYPES, sizes=(0, 1, 2, 3, 4, 5, 7, 1001)) -> list[str]:
    """What differs from the sum that each rank works out itself, in words: [] if nothing."""
    rank, size, wrong = dist.get_rank(), dist.get_world_size(), []

    def expect(what: str, found: Tensor, wanted: Tensor) -> None:
        if found.dtype != wanted.dtype or not torch.equal(found, wanted):
            wrong.append(what)

    cases = [(dtype, numel) for dtype in dtypes for numel in sizes] + [
        (torch.float32, LARGE),
        (torch.bfloat16, 2 * LARGE),
    ]
    for dtype, numel in cases:
        name = f"{str(dtype).removeprefix('torch.')}[{numel}]"
        total = sum(part(r, numel, dtype) for r in range(size))
        found = part(rank, numel, dtype)
        ring.all_reduce(found)
        expect(f"all_reduce {name}", found, total)
        share = -(-numel // size)  # for equal chunks, as torch wants them
        full = sum(part(r, share * size, dtype) for r in range(size))
        given, output = part(rank, share * size, dtype), torch.full((share,), 5, dtype=dtype)
        ring.reduce_scatter(output, given)
        expect(f"reduce_scatter {name}", output, full.view(size, -1)[rank])
        expect(f"reduce_scatter reads only, {name}", given, part(rank, share * size, dtype))
        gathered = torch.full((size, share), 5, dtype=dtype)
        ring.all_gather(gathered, part(rank, share, dtype))
        expect(f"all_gather {name}", gathered, torch.stack([part(r, share, dtype) for r in range(size)]))
        # Lists of uneven chunks; the last one is empty, and the first much larger than the others.
        bounds = [
            0,
            *(numel - numel // 3 + c for c in range(size - 1)),
            max(numel, numel - numel // 3 + size - 2),
        ]
        whole = [part(r, bounds[-1], dtype) for r in range(size)]
        lists = [sum(whole)[a:b] for a, b in zip(bounds[:-1], bounds[1:])]
        mine = [whole[rank][a:b].clone() for a, b in zip(bounds[:-1], bounds[1:])]
        output = torch.zeros_like(mine[rank])
        ring.reduce_scatter(output, mine)
        expect(f"reduce_scatter of uneven chunks {name}", output, lists[rank])
        ring.reduce_scatter(mine[rank], mine)
        expect(f"reduce_scatter in place {name}", mine[rank], lists[rank])
        ring.all_gather(mine, mine[rank])
        expect(f"all_gather in place of uneven chunks {name}", torch.cat(mine), torch.cat(lists))
    for shape in ((4, 6), (600, 700)):
        transposed = torch.ones(shape).t()
        ring.all_reduce(transposed)
        expect("all_reduce of a transposed tensor", transposed, torch.full(shape[::-1], float(size)))
        columns = torch.zeros(shape[0], size).t()  # [size, n], not contiguous
        ring.all_gather(columns, torch.full((shape[0],), float(rank)))
        expect(
            "all_gather into a transposed tensor",
            columns,
            torch.arange(float(size))[:, None].expand(size, shape[0]),
        )
        every_other = torch.zeros(2 * shape[0])[::2]
        ring.reduce_scatter(every_other, torch.ones(shape[0], size).t())
        expect("reduce_scatter to and from other layouts", every_other, torch.full((shape[0],), float(size)))
    weight = nn.Parameter(torch.full((3,), float(rank)))
    ring.all_reduce(weight)
    expect("all_reduce of a parameter", weight.data, torch.full((3,), float(sum(range(size)))))
    return wrong


def ring_refusals() -> list[str]:
    """What the ring says of arguments that do not fit."""
    size, told = dist.get_world_size(), []
    chunks = [torch.zeros(3) for _ in range(size)]
    for call in (
        lambda: ring.reduce_scatter(torch.zeros(3), torch.zeros(3 * size + 1)),
        lambda: ring.all_gather(torch.zeros(3 * size), torch.zeros(4)),
        lambda: ring.all_gather(torch.zeros(3 * size), torch.zeros(3, dtype=torch.int64)),
        lambda: ring.all_gather(chunks[1:], torch.zeros(3)),
        lambda: ring.reduce_scatter(torch.zeros(4), chunks),
    ):
        try:
            call()
            told.append("nothing")
        except ValueError as error:
            told.append(str(error))
    return told


RING_OPS = ("all_reduce", "reduce_scatter", "all_gather")


def ring_bytes(numel: int) -> None:
    """Each of RING_OPS in every warm-up and traced step, and then each alone in a step of its own."""
    rank, size = dist.get_rank(), dist.get_world_size()
    whole, chunks = torch.ones(numel), list(torch.ones(numel).tensor_split(size))
    calls = (
        lambda: ring.all_reduce(whole),
        lambda: ring.reduce_scatter(torch.empty_like(chunks[rank]), chunks),
        lambda: ring.all_gather(chunks, chunks[rank]),
    )
    for step in range(5):
        with measure.step():
            for call in calls if step < 2 else calls[step - 2 : step - 1]:
                call()


def in_pairs(numel: int = 100_001) -> list:
    """The ring and the star in two groups at once: ranks 1 and 3, and ranks 2 and 0; then the ring in a group
    of one.
    """
    rank = dist.get_rank()
    odd, even = dist.new_group([1, 3]), dist.new_group([2, 0])
    alone = [dist.new_group([r]) for r in range(4)][rank]
    group = odd if rank % 2 else even
    x, y = torch.full((numel,), float(rank)), torch.full((numel,), float(rank))
    for _ in range(2):
        with measure.step():
            ring.all_reduce(x, group)
            data_parallel.star_all_reduce(y, root=1, group=group)
    chunk, full, mine = torch.zeros(3), torch.zeros(6), torch.zeros(3)
    ring.reduce_scatter(chunk, torch.arange(6.0) + rank, group)
    ring.all_gather(full, torch.full((3,), float(rank)), group)
    ring.reduce_scatter(mine, torch.full((3,), float(rank)), alone)
    return [x.unique().tolist(), y.unique().tolist(), chunk.tolist(), full.tolist(), mine.unique().tolist()]


# The star


def star_values() -> list[str]:
    rank, size, wrong = dist.get_rank(), dist.get_world_size(), []
    for dtype in DTYPES:
        for root in range(size):
            total = sum(part(r, 1001, dtype) for r in range(size))
            for call, wanted in (
                (data_parallel.star_all_reduce, total),
                (data_parallel.star_broadcast, part(root, 1001, dtype)),
                (data_parallel.star_reduce, total if rank == root else part(rank, 1001, dtype)),
            ):
                found = part(rank, 1001, dtype)
                call(found, root)
                if not torch.equal(found, wanted):
                    wrong.append(f"{call.__name__} {dtype} root {root}")
    return wrong


def star_views() -> list[list]:
    """The star over tensors that are not contiguous, that have no elements, or no dimensions."""
    rank, size, told = dist.get_rank(), dist.get_world_size(), []
    column, transposed, every_other = torch.zeros(4, 3), torch.zeros(3, 4), torch.zeros(8)
    for view in (column[:, 1], transposed.t(), every_other[::2], torch.zeros(0), torch.zeros(())):
        view += rank + 1
        data_parallel.star_all_reduce(view, root=size - 1)
        told.append(view.unique().tolist())
    return [*told, column.unique().tolist(), every_other.unique().tolist()]


def not_to_be_sent() -> list[str]:
    """What ring and star say of tensors that cannot be sent or added."""
    told = []
    for tensor in (
        torch.eye(3).to_sparse(),
        torch.ones(4, dtype=torch.complex64).conj(),
        torch.ones(4).to(torch.float8_e4m3fn),
        torch.ones(4).to(torch.uint16),
    ):
        for call in (
            ring.all_reduce,
            data_parallel.star_all_reduce,
            lambda tensor: ring.reduce_scatter(tensor, [tensor] * dist.get_world_size()),
        ):
            try:
                call(tensor)
                told.append("nothing")
            except TypeError as error:
                told.append(str(error))
    gathered = torch.zeros(2 * dist.get_world_size()).to(torch.float8_e4m3fn)
    # only passed on
    ring.all_gather(gathered, torch.full((2,), dist.get_rank() + 1.0).to(torch.float8_e4m3fn))
    return [*told, gathered.float().tolist()]


def kept_by_the_ring(numel: int) -> int:
    """Bytes of tensors that are alive after a sum and were not before."""

    def alive() -> dict[int, int]:
        gc.collect()
        found = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
        return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}

    x = torch.ones(numel)
    before = alive()
    ring.all_reduce(x)
    ring.reduce_scatter(x[: numel // dist.get_world_size()], x.clone())
    return sum(count for address, count in alive().items() if address not in before)


def star_bytes(root: int) -> None:
    x = torch.ones(SMALL_NUMEL)
    for _ in range(3):
        with measure.step():
            data_parallel.star_all_reduce(x, root)


# DistributedDataParallel


class Branches(nn.Module):
    """Three layers of which a batch uses one or two; the third is never used.

    Buckets go backwards: that of `always` is full on every rank, the next one on some ranks, and the last one
    nowhere.
    """

    def __init__(self):
        super().__init__()
        self.never, self.sometimes, self.always = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, use: bool):
        return self.sometimes(self.always(x)) if use else self.always(x)


def make(name: str) -> nn.Module:
    if name == "MLP":
        model = MLP((64, 33, 17, 10))
        model.layers[2].weight.requires_grad_(False)  # a frozen layer between learning ones
    elif name == "TinyGPT":
        model = TinyGPT(context=8, dim=16, heads=2)  # head and embedding are one weight
        model.blocks[0].mlp.requires_grad_(False)
    else:
        model = CNN(4, batch_norm=name == "CNN with batch norm")
    return model


def global_batches(
    name: str, steps: int, batch_size: int, dtype, rank: int = 0, size: int = 1
) -> list[tuple]:
    if name == "TinyGPT":
        return [(tokens,) for tokens in text_batches(batch_size, 8, steps, rank, size, num_bytes=50_000)]
    batches = digit_batches(batch_size, rank, size, drop_last=True)
    return [(images.to(dtype), labels) for (images, labels), _ in zip(batches, range(steps))]


def loss_of(model: nn.Module, batch: tuple, scale: float = 1.0) -> Tensor:
    return scale * (model(batch[0]) if len(batch) == 1 else F.cross_entropy(model(batch[0]), batch[1]))


def difference(own, other) -> float:
    """Norm of the difference of all tensors together over their norm. (A single one may be zero but for
    rounding: a bias of attention's keys.)
    """
    own, other = ([t.detach().double().flatten() for t in tensors] for tensors in (own, other))
    assert len(own) == len(other)
    return ((torch.cat(own) - torch.cat(other)).norm() / torch.cat(other).norm()).item()


def grads(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.requires_grad]


def parity(cases: list[tuple]) -> list[dict]:
    """For each case (model, dtype, batch size, options): the worst relative difference over ten steps to
    torch's DDP and to one process.

    Every rank starts from another seed and sees other data. Uneven slices are weighted by their size, as one
    process would.
    """
    return [_parity(*case) for case in cases]


def _parity(name: str, dtype: torch.dtype, batch_size: int, options: dict) -> dict:
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    alone = make(name).to(dtype)  # rank 0's seed
    torch.manual_seed(rank)
    if options.get("all_reduce") == "ring":
        options = {**options, "all_reduce": ring.all_reduce}
    nets = {"mine": ddp.DistributedDataParallel(make(name).to(dtype), **options)}
    torch.manual_seed(rank)
    nets |= {"torch": nn.parallel.DistributedDataParallel(make(name).to(dtype)), "alone": alone}
    optimizers = [
        torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.05, momentum=0.9)
        for net in nets.values()
    ]
    worst = {"torch": 0.0, "alone": 0.0}
    for slice_, whole in zip(
        global_batches(name, 10, batch_size, dtype, rank, size), global_batches(name, 10, batch_size, dtype)
    ):
        for kind, net in nets.items():
            (
                loss_of(net, whole).backward()
                if kind == "alone"
                else loss_of(net, slice_, len(slice_[0]) * size / batch_size).backward()
            )
        for kind in worst:
            worst[kind] = max(worst[kind], difference(grads(nets["mine"]), grads(nets[kind])))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():  # the buffers are rank 0's from the next forward on
        for net in nets.values():
            net.eval()(whole[0])
    for kind in worst:
        worst[kind] = max(
            worst[kind],
            difference(
                nets["mine"].module.state_dict().values(),
                getattr(nets[kind], "module", nets[kind]).state_dict().values(),
            ),
        )
    frozen = [p.grad for p in nets["mine"].parameters() if not p.requires_grad]
    worst["frozen"] = sum(grad is not None for grad in frozen)
    return worst


def starts_equal() -> float:
    """How far parameters and buffers are from rank 0's after construction, from other seeds on each rank."""
    torch.manual_seed(dist.get_rank())
    module = CNN(4, batch_norm=True)
    module.features[1].running_mean.add_(dist.get_rank())
    module.features[0].weight.data = module.features[0].weight.data.to(memory_format=torch.channels_last)
    model = ddp.DistributedDataParallel(module)
    states = [None] * dist.get_world_size()
    dist.all_gather_object(states, model.state_dict())
    return max(
        float((a.double() - b.double()).abs().max())
        for state in states
        for a, b in zip(state.values(), states[0].values())
    )


EQUAL = (100, 100, 100, 100, 100)  # four layers of 100 x 100 weights and 100 biases: 40,400 bytes each


def updates(
    kind: str,
    bucket_cap_mb: float = 25.0,
    num_microbatches: int = 1,
    sync_always: bool = False,
    steps: int = 4,
) -> dict:
    """Accumulate gradients over micro-batches and update, with mini's ("mine") or torch's DDP."""
    torch.manual_seed(0)
    make_ddp = ddp.DistributedDataParallel if kind == "mine" else nn.parallel.DistributedDataParallel
    model = make_ddp(MLP(EQUAL), bucket_cap_mb=bucket_cap_mb)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(steps):
        with measure.step(model, optimizer):
            for micro in range(num_microbatches):
                x = torch.randn(4, 100, generator=generator)
                if micro == num_microbatches - 1 or sync_always:
                    model(x).square().mean().backward()
                else:
                    with model.no_sync():
                        model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return {
        "params": sum(p.nbytes for p in model.parameters()),
        "weights": [p.detach() for p in model.parameters()],
    }


def special_backwards() -> dict:
    """Backwards that are not one per step: two in a row, with gradients kept, after a failure, with gradients
    zeroed and not removed.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    data = [
        torch.randn(6, 4, generator=torch.Generator().manual_seed(r), dtype=torch.float64)
        for r in range(size)
    ]

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return MLP((4, 5, 3)).double()

    def expected(scales: list[float]) -> list[Tensor]:
        alone = fresh()
        for scale in scales:
            for x in data:
                (scale / size * alone(x).square().mean()).backward()
        return grads(alone)

    told, x = {}, data[rank]
    model = ddp.DistributedDataParallel(fresh(), bucket_cap_mb=0)
    model(x).square().mean().backward()
    (3 * model(x).square().mean()).backward()
    told["two backwards"] = difference(grads(model), expected([1, 3]))
    model.zero_grad(set_to_none=False)
    model(x).square().mean().backward()
    told["zeroed, not removed"] = difference(grads(model), expected([1]))
    model.zero_grad()
    first, second = model(x), model(x)
    first.square().mean().backward()
    (3 * second.square().mean()).backward()
    told["two forwards, two backwards"] = difference(grads(model), expected([1, 3]))
    model.zero_grad()
    with model.no_sync():
        with model.no_sync():
            model(x).square().mean().backward()
        model(x).square().mean().backward()
    told["no_sync leaves each rank its own"] = difference(grads(model), [2 * g for g in _own(fresh(), x)])
    model(x).square().mean().backward()
    told["accumulated"] = difference(grads(model), expected([3]))
    model.zero_grad()
    try:
        out = model(x)
        out.register_hook(lambda grad: 1 / 0)
        out.square().mean().backward()
    except ZeroDivisionError:
        pass
    model(x).square().mean().backward()
    told["after a backward that failed"] = difference(grads(model), expected([1]))
    return told


def _own(model: nn.Module, x: Tensor) -> list[Tensor]:
    model(x).square().mean().backward()
    return grads(model)


def unused(find: bool) -> dict:
    """Rank 0 uses a layer that the others do not; one layer nobody uses. What comes of it, against torch's
    DDP.
    """
    rank, told = dist.get_rank(), {}
    torch.manual_seed(0)
    mine = ddp.DistributedDataParallel(Branches().double(), bucket_cap_mb=0, find_unused_parameters=find)
    x = torch.ones(2, 4, dtype=torch.float64) * (rank + 1)
    try:
        mine(x, use=rank == 0).sum().backward()
    except RuntimeError as error:
        return {"error": str(error)}
    torch.manual_seed(0)
    theirs = nn.parallel.DistributedDataParallel(Branches().double(), find_unused_parameters=True)
    theirs(x, use=rank == 0).sum().backward()
    told["never"] = [p.grad is None for p in mine.module.never.parameters()]
    told["difference"] = difference(
        [p.grad for p in mine.parameters() if p.grad is not None],
        [p.grad for p in theirs.parameters() if p.grad is not None],
    )
    return told


def ddp_in_pairs() -> list[Tensor]:
    """A DDP in each of two groups: ranks 1 and 3, and ranks 2 and 0. Returns the weights from which it
    starts, and its gradient.
    """
    rank = dist.get_rank()
    odd, even = dist.new_group([1, 3]), dist.new_group([2, 0])
    torch.manual_seed(rank)
    model = ddp.DistributedDataParallel(nn.Linear(3, 1, bias=False), process_group=odd if rank % 2 else even)
    for _ in range(2):
        model.zero_grad()
        with measure.step(model):
            model(torch.full((1, 3), float(rank))).sum().backward()
    return [model.module.weight.detach(), model.module.weight.grad]


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, seconds, name):
        ctx.seconds, ctx.name = seconds, name
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        with measure.span(ctx.name):
            time.sleep(ctx.seconds)
        return grad, None, None


class Sleeper(nn.Module):
    """Layers whose backward sleeps: compute that takes its time on every rank, also where ranks share cores.
    Each has `numel` parameters.
    """

    def __init__(self, layers: int, numel: int, seconds: float):
        super().__init__()
        self.weights = nn.ParameterList(torch.full((numel,), 0.5) for _ in range(layers))
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        for number, weight in enumerate(self.weights):
            # in backward: sleep, then the weight's gradient
            x = _Sleep.apply(x + weight.sum(), self.seconds, f"backward {number}")
        return x


def sleepy(
    kind: str = "mine",
    bucket_cap_mb: float = 0.0,
    layers: int = 4,
    numel: int = 250_000,
    seconds: float = 0.03,
    steps: int = 3,
) -> None:
    module = Sleeper(layers, numel, seconds)
    make_ddp = ddp.DistributedDataParallel if kind == "mine" else nn.parallel.DistributedDataParallel
    model = make_ddp(module, bucket_cap_mb=bucket_cap_mb if bucket_cap_mb < 1e6 else 1e6)
    for _ in range(steps):
        with measure.step(model):
            model(torch.ones(1)).sum().backward()
            model.zero_grad()
