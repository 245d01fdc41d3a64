"""Functions that tests of course_lib.mini run on ranks."""
import torch
import torch.distributed as dist
from torch import nn

from course_lib import measure, models
from course_lib.datasets import digit_batches, rank_slice, text_batches
from course_lib.mini import ddp, ring
from course_lib.mini.data_parallel import DataParallel, star_all_reduce

DTYPES = (torch.float32, torch.float64, torch.int64, torch.bfloat16)
SIZES = (0, 1, 2, 3, 5, 1001)


def ring_values() -> list[str]:
    """Every size and dtype against the sum and concatenation worked out by this rank itself; what is wrong, in words."""
    rank, size, wrong = dist.get_rank(), dist.get_world_size(), []

    def part(r, numel, dtype):            # what rank r contributes: small whole numbers, exact in every dtype
        return ((torch.arange(numel) * (r + 1)) % 7).to(dtype)

    for dtype in DTYPES:
        for numel in SIZES:
            total = sum(part(r, numel, dtype) for r in range(size))
            mine = part(rank, numel, dtype)
            ring.all_reduce(mine)
            wrong += [f"all_reduce {dtype} {numel}"] * (not torch.equal(mine, total))
            chunks = torch.zeros(numel, dtype=dtype)
            ring.reduce_scatter(chunks, torch.cat([part(rank, numel, dtype) + c for c in range(size)]))
            wrong += [f"reduce_scatter {dtype} {numel}"] * (not torch.equal(chunks, total + rank * size))
            gathered = torch.zeros(size * numel, dtype=dtype)
            ring.all_gather(gathered, part(rank, numel, dtype))
            wrong += [f"all_gather {dtype} {numel}"] * (not torch.equal(gathered, torch.cat([part(r, numel, dtype) for r in range(size)])))
    uneven = torch.arange(10).tensor_split(size)
    pieces = [torch.zeros_like(piece) for piece in uneven]
    ring.all_gather(pieces, uneven[rank])
    wrong += ["all_gather of uneven chunks"] * (not torch.equal(torch.cat(pieces), torch.arange(10)))
    whole = torch.ones(6, 4).t()
    ring.all_reduce(whole)
    wrong += ["all_reduce of a transposed tensor"] * (not torch.equal(whole, torch.full((4, 6), float(size))))
    if size > 1:
        halves = [dist.new_group([r for r in range(size) if r % 2 == parity]) for parity in (0, 1)]
        x = torch.full((5,), float(rank))
        ring.all_reduce(x, halves[rank % 2])
        wrong += ["all_reduce in a subgroup"] * (x[0].item() != sum(r for r in range(size) if r % 2 == rank % 2))
    for call in (lambda: ring.reduce_scatter(torch.zeros(3), torch.zeros(3 * size + 1)), lambda: ring.all_gather(torch.zeros(size), torch.zeros(2))):
        try:
            call()
            wrong.append("wrong sizes were taken")
        except ValueError:
            pass
    return wrong


def ring_bytes(op: str, numel: int):
    size = dist.get_world_size()
    whole, part = torch.ones(numel * size), torch.ones(numel)
    for _ in range(3):
        with measure.step():
            {"all_reduce": lambda: ring.all_reduce(whole), "reduce_scatter": lambda: ring.reduce_scatter(part, whole),
             "all_gather": lambda: ring.all_gather(whole, part)}[op]()


def star(numel: int):
    rank = dist.get_rank()
    for _ in range(3):
        x = torch.full((numel,), float(rank + 1))
        with measure.step():
            star_all_reduce(x)
    return x[0].item()


def make(name: str) -> nn.Module:
    torch.manual_seed(7)
    model = {"MLP": lambda: models.MLP((64, 33, 10)), "CNN": lambda: models.CNN(4), "TinyGPT": lambda: models.TinyGPT(dim=16, heads=2, context=16)}[name]()
    if name == "MLP":
        model.layers[0].bias.requires_grad_(False)
    return model


def batches(name: str, steps: int, batch_size: int, dtype):
    """Whole batches: (inputs, loss of a model on them)."""
    if name == "TinyGPT":
        return [(tokens,) for tokens in text_batches(batch_size, 16, steps)]
    return [(images.to(dtype), labels) for (images, labels), _ in zip(digit_batches(batch_size), range(steps))]


def loss_of(model, batch, part: slice):
    if len(batch) == 1:
        return model(batch[0][part])
    return nn.functional.cross_entropy(model(batch[0][part]), batch[1][part])


def distance(own, other) -> float:
    """Norm of the difference of all tensors together, over their norm. (One tensor alone may be zero but for rounding: a bias of attention keys.)"""
    own, other = (torch.cat([t.flatten() for t in tensors if t is not None]) for tensors in (own, other))
    return ((own - other).norm() / other.norm()).item()


def parity(name: str, dtype=torch.float64, steps: int = 10, batch_size: int = 12, bucket_cap_mb: float = 0.005) -> dict:
    """Largest relative difference of gradients and weights to one process over the whole batch, and to torch's DDP."""
    rank, size = dist.get_rank(), dist.get_world_size()
    part = rank_slice(batch_size, rank, size)
    alone, theirs = make(name).to(dtype), nn.parallel.DistributedDataParallel(make(name).to(dtype))
    scrambled = make(name).to(dtype)
    if rank:
        with torch.no_grad():                     # the first broadcast has to repair this
            for parameter in scrambled.parameters():
                parameter.add_(rank)
    mine = ddp.DistributedDataParallel(scrambled, bucket_cap_mb=bucket_cap_mb)
    nets = {"alone": alone, "torch": theirs, "mine": mine}
    optimizers = [torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1, momentum=0.9) for net in nets.values()]
    worst = {"alone": 0.0, "torch": 0.0}
    for batch in batches(name, steps, batch_size, dtype):
        for (kind, net), optimizer in zip(nets.items(), optimizers):
            optimizer.zero_grad()
            loss_of(net, batch, slice(None) if kind == "alone" else part).backward()
        for kind in worst:
            worst[kind] = max(worst[kind], distance([p.grad for p in mine.parameters()], [p.grad for p in nets[kind].parameters()]))
        for optimizer in optimizers:
            optimizer.step()
    for kind in worst:
        worst[kind] = max(worst[kind], distance(mine.parameters(), nets[kind].parameters()))
    return worst


def accumulate(num_microbatches: int, bucket_cap_mb: float = 25.0):
    model = ddp.DistributedDataParallel(models.MLP((64, 256, 10)), bucket_cap_mb=bucket_cap_mb)
    for _ in range(3):
        with measure.step(model):
            for micro in range(num_microbatches):
                x = torch.ones(4, 64)
                if micro < num_microbatches - 1:
                    with model.no_sync():
                        model(x).sum().backward()
                else:
                    model(x).sum().backward()
            model.zero_grad()
    return sum(p.nbytes for p in model.parameters()), len(list(model.parameters()))


def threads(num_replicas: int = 3) -> list[float]:
    """nn.DataParallel's algorithm against the plain module: output and gradients."""
    alone, parallel = make("CNN").double(), DataParallel(make("CNN").double(), num_replicas)
    (images, labels), = [(i.double(), t) for (i, t), _ in zip(digit_batches(10), range(1))]
    for net in (alone, parallel):
        nn.functional.cross_entropy(net(images), labels).backward()
    return [((a.grad - b.grad).norm() / a.grad.norm()).item() for a, b in zip(alone.parameters(), parallel.parameters())]
