"""Functions that tests run on ranks. They stand here, and not in a test file, so that a rank need not import
pytest.
"""

import time
import warnings

import numpy
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import _global_optimizer_post_hooks

from course_lib import measure
from course_lib.models import MLP, TinyGPT

# torch's own, read before any step is traced
_BACKWARD, _DISABLE = torch.autograd.backward, torch.autograd.graph.disable_saved_tensors_hooks
_ENTER = torch.autograd.graph.saved_tensors_hooks.__enter__


class Net(nn.Module):
    """Five layers of odd sizes; the last is tied to the first, one is frozen, one buffer."""

    def __init__(self, width: int = 301):
        super().__init__()
        self.first = nn.Linear(64, width, bias=False)
        self.middle = nn.Linear(width, 127)
        self.frozen = nn.Linear(127, 33).requires_grad_(False)
        self.back = nn.Linear(33, width)
        self.register_buffer("scale", torch.ones(5))

    def forward(self, x):
        hidden = F.relu(self.middle(F.relu(self.first(x))))
        return F.linear(self.back(F.relu(self.frozen(hidden))), self.first.weight.t())


def sizes(model: nn.Module) -> dict:
    """Bytes of the model's distinct parameters: all, and those that learn; and how many tensors learn."""
    params = list(model.parameters())
    learn = [p for p in params if p.requires_grad]
    return {
        "params": sum(p.nbytes for p in params),
        "grads": sum(p.nbytes for p in learn),
        "learning": len(learn),
        "shapes": [tuple(p.shape) for p in params],
        "learns": [p.requires_grad for p in params],
    }


def train(model, optimizer, steps: int = 4, accumulate: int = 1, inputs: int = 64, dtype=torch.float32):
    """Returns of each step, on the clock that all processes share: a moment before it, its first, and its
    last.
    """
    generator = torch.Generator().manual_seed(dist.get_rank())
    clock = []
    for _ in range(steps):
        before = time.perf_counter()
        with measure.step(model, optimizer, samples=8 * accumulate):
            begin = time.perf_counter()
            for micro in range(accumulate):
                x = torch.randn(8, inputs, generator=generator, dtype=dtype)
                if micro < accumulate - 1:
                    with model.no_sync():
                        model(x).square().mean().backward()
                else:
                    model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            clock.append((before, begin, time.perf_counter()))
    return clock


def ddp(hook=None, accumulate=1, zero=False, bucket_view=False, steps=4, width=301):
    torch.manual_seed(0)
    net = Net(width)
    told = sizes(net)
    model = DistributedDataParallel(net, gradient_as_bucket_view=bucket_view)
    if hook == "fp16":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    learn = [p for p in model.parameters() if p.requires_grad]
    optimizer = (
        ZeroRedundancyOptimizer(learn, optimizer_class=torch.optim.Adam) if zero else torch.optim.Adam(learn)
    )
    told["clock"] = train(model, optimizer, accumulate=accumulate, steps=steps)
    told["checksum"] = sum(p.double().abs().sum().item() for p in learn)
    # the optimizer inside has only the parameters that this rank updates
    if zero:
        told["mine"] = [tuple(p.shape) for group in optimizer.optim.param_groups for p in group["params"]]
    return told


def sharded(per_layer: bool = True, reshard: bool = True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 500), nn.ReLU(), nn.Linear(500, 333), nn.ReLU(), nn.Linear(333, 10))
    net[2].bias.requires_grad_(False)
    told = sizes(net)
    if per_layer:
        for layer in net:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, reshard_after_forward=reshard)
    fully_shard(net, reshard_after_forward=reshard)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad])
    train(net, optimizer)
    return told


def sharded_gpt():
    """A language model whose head and embedding are one weight, with its first block frozen, sharded as one
    piece.
    """
    torch.manual_seed(0)
    net = TinyGPT(context=16)
    net.blocks[0].requires_grad_(False)
    told = sizes(net)
    fully_shard(net)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad])
    for _ in range(2):
        with measure.step(net, optimizer):
            net(torch.ones(2, 17, dtype=torch.int64)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return told


def mlp(widths: tuple[int, ...], batch: int, accumulate: int = 1, classify: bool = False, wrap: bool = False):
    """Train an MLP; its inputs need no gradient."""
    torch.manual_seed(0)
    model = MLP(widths)
    if wrap:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        with measure.step(model, optimizer):
            for _ in range(accumulate):
                out = model(torch.ones(batch, widths[0]))
                loss = (
                    F.cross_entropy(out, torch.zeros(batch, dtype=torch.int64))
                    if classify
                    else out.square().mean()
                )
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()


class TwoLayers(nn.Module):
    def __init__(self, inputs=64, hidden=516):
        super().__init__()
        self.up, self.down = nn.Linear(inputs, hidden), nn.Linear(hidden, inputs)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


def tensor_parallel():
    torch.manual_seed(0)
    net = nn.Sequential(TwoLayers(), TwoLayers())
    told = sizes(net)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in net:
        parallelize_module(layer, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(3):
        with measure.step(net, optimizer, samples=256):
            net(torch.ones(256, 64, requires_grad=True)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return told


def torch_pipeline(num_microbatches: int = 4):
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    torch.manual_seed(0)
    rank, size = dist.get_rank(), dist.get_world_size()
    net = nn.Linear(256, 256)
    stage = PipelineStage(net, rank, size, torch.device("cpu"))
    schedule = ScheduleGPipe(
        stage, num_microbatches, loss_fn=lambda out, target: (out - target).square().mean()
    )
    x, target = torch.randn(64, 256), torch.zeros(64, 256)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        with measure.step(net, optimizer):
            if rank == 0:
                schedule.step(x)
            elif rank == size - 1:
                schedule.step(target=target)
            else:
                schedule.step()
            optimizer.step()
            optimizer.zero_grad()


def send_receive(numel: int = 100_000):
    """A ring shift with isend and irecv, then a plain send and recv between ranks 0 and 1, in float64."""
    rank, size = dist.get_rank(), dist.get_world_size()
    x, y = torch.ones(numel, dtype=torch.float64), torch.empty(numel, dtype=torch.float64)
    for _ in range(3):
        with measure.step():
            for work in dist.batch_isend_irecv(
                [dist.P2POp(dist.isend, x, (rank + 1) % size), dist.P2POp(dist.irecv, y, (rank - 1) % size)]
            ):
                work.wait()
            if rank == 0:
                dist.send(x, 1)
            elif rank == 1:
                dist.recv(y, 0)


def collectives(payloads: tuple[int, ...]):
    """Every collective: all of them in steps 0 and 1, then each alone in a step of its own, once per payload
    (bytes of the full tensor).
    """
    calls = [make_collectives(payload) for payload in payloads]
    clock = []
    for _step in range(2):
        before = time.perf_counter()
        with measure.step():
            begin = time.perf_counter()
            for call in calls[0].values():
                call()
            clock.append((before, begin, time.perf_counter()))
    order = []
    for of_one_payload in calls:
        for op, call in of_one_payload.items():
            with measure.step():
                call()
            order.append(op)
    return {"order": order, "clock": clock}


def make_collectives(payload_bytes: int) -> dict:
    """One call per collective over a full tensor of so many bytes, rounded up where each rank needs an equal
    part.
    """
    size, rank = dist.get_world_size(), dist.get_rank()
    odd = torch.ones(payload_bytes // 4)
    part = torch.ones(-(-odd.numel() // size))
    whole = torch.ones(part.numel() * size)
    pieces = list(whole.chunk(size))

    def send_recv():  # every rank to its right neighbour
        received = torch.empty_like(odd)
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, odd, (rank + 1) % size),
                dist.P2POp(dist.irecv, received, (rank - 1) % size),
            ]
        )
        for work in works:
            work.wait()

    return {
        "all_reduce": lambda: dist.all_reduce(odd),
        "all_gather": lambda: dist.all_gather(pieces, part),
        "reduce_scatter": lambda: dist.reduce_scatter(part, pieces),
        "all_to_all": lambda: dist.all_to_all_single(torch.empty_like(whole), whole),
        "broadcast": lambda: dist.broadcast(odd, 0),
        "reduce": lambda: dist.reduce(odd, 0),
        "gather": lambda: dist.gather(part, pieces if rank == 0 else None, 0),
        "scatter": lambda: dist.scatter(part, pieces if rank == 0 else None, 0),
        "send": send_recv,
        "barrier": dist.barrier,
    }


def nothing():
    dist.all_reduce(torch.ones(1))


def groups(numel: int = 300_001):
    """An all_reduce in each pair of a 2 x 2 mesh, in float16, and one over all ranks in float32."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    for _ in range(3):
        with measure.step():
            dist.all_reduce(torch.ones(numel, dtype=torch.float16), group=mesh.get_group("dp"))
            dist.all_reduce(torch.ones(numel, dtype=torch.float16), group=mesh.get_group("tp"))
            dist.all_reduce(torch.ones(numel))


def attached(optimizer=None) -> list[str]:
    """Names of the instruments that are attached in this process right now."""
    found = {
        "kernel of a collective": torch._C._dispatch_has_kernel_for_dispatch_key(
            "c10d::allreduce_", "BackendSelect"
        ),
        "saved-tensor hooks": torch._C._autograd._top_saved_tensors_default_hooks(True) is not None,
        "backward": torch.autograd.backward is not _BACKWARD,
        "profiler": torch.autograd.profiler._is_profiler_enabled,
        "optimizer.step": (
            optimizer is not None and "step" in vars(optimizer) or bool(_global_optimizer_post_hooks)
        ),
        "saved-tensor hooks of others": torch.autograd.graph.saved_tensors_hooks.__enter__ is not _ENTER,
        "torch.func": torch.autograd.graph.disable_saved_tensors_hooks is not _DISABLE,
    }
    return [name for name, there in found.items() if there]


def instruments(steps: int = 4):
    """What is attached before, in and after each step."""
    model = DistributedDataParallel(MLP())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    told = []
    for _ in range(steps):
        before = attached(optimizer)
        with measure.step(model, optimizer):
            inside = attached(optimizer)
            model(torch.ones(4, 64)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        told.append((before, inside, attached(optimizer)))
    return told


def fails_in_the_traced_step():
    """A step that raises, after the warm-up; then training goes on."""
    model = DistributedDataParallel(MLP())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    train(model, optimizer, steps=1)
    problem = KeyError("mine")
    try:
        with measure.step(model, optimizer):
            model(torch.ones(4, 64)).sum().backward()
            raise problem
    except KeyError as error:
        told = {
            "same": error is problem,
            "cause": error.__cause__ is None and error.__context__ is None,
            "left": attached(optimizer),
        }
    optimizer.zero_grad()
    train(model, optimizer, steps=3)
    return told


def sparse_gradients(steps: int = 3):
    """An embedding whose gradient is sparse: DDP sums indices and values."""
    model = DistributedDataParallel(nn.Embedding(100, 8, sparse=True))
    optimizer = torch.optim.SparseAdam(model.parameters())
    for _ in range(steps):
        with measure.step(model, optimizer):
            model(torch.tensor([1, 2, 2])).sum().backward()
            optimizer.step()
            optimizer.zero_grad()


def on_meta(steps: int = 2):
    model = nn.Linear(64, 3, device="meta")
    for _ in range(steps):
        with measure.step(model):
            model(torch.ones(4, 64, device="meta")).sum().backward()


def own_profiler(steps: int = 4):
    """The learner traces too."""
    model = DistributedDataParallel(MLP())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(steps):
        with measure.step(model, optimizer), torch.profiler.profile():
            model(torch.ones(4, 64)).sum().backward()
            optimizer.step()


def refused(arguments: list[dict]) -> list[str]:
    """What measure.step says of arguments that are none; then it still works."""
    told = []
    for options in arguments:
        try:
            with measure.step(**options):
                pass
        except (TypeError, ValueError) as error:
            told.append(str(error))
    for _ in range(2):
        with measure.step([nn.Linear(2, 2), nn.Linear(3, 3)], samples=numpy.int64(5)):
            pass
    return told


def nested():
    """A step inside a step; returns what was said of it."""
    with measure.step():
        try:
            with measure.step():
                pass
        except RuntimeError as error:
            return str(error)


def scheduled(steps: int = 4):
    """A learning rate scheduler puts a `step` of its own into the optimizer; returns the warnings, and
    whether it is still there.
    """
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    own = optimizer.step
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(steps):
            with measure.step(model, optimizer):
                model(torch.ones(4, 64)).sum().backward()
                optimizer.step()
        scheduler.step()  # at the end of the epoch
    return [str(warning.message) for warning in heard], optimizer.step is own


def drawn():
    """One DDP step with named spans, two of them long, one short, between pieces of computing."""
    model = DistributedDataParallel(MLP((64, 512, 512, 10)))
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.ones(256, 64)
    for _ in range(3):
        with measure.step(model, optimizer, samples=256):
            with measure.span("wait"):
                time.sleep(0.01)
            y = x * 2
            with measure.span("short"):
                y = y + 1
            y = y * 2
            loss = model(y).square().mean()
            with measure.span("micro-batch 1"):
                torch.mm(x, x.t())
                time.sleep(0.005)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def sleeper(seconds: float):
    time.sleep(seconds)
    return dist.get_rank()


def master_copies(steps: int = 3) -> dict:
    """A model in bfloat16, updated through a shard: this rank's part, in float32, of all parameters in one
    flat tensor.
    """
    net = nn.Sequential(nn.Linear(100, 30), nn.Linear(30, 7)).to(torch.bfloat16)
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    shard = nn.Parameter(flat.float().chunk(dist.get_world_size())[dist.get_rank()].clone())
    optimizer = torch.optim.Adam([shard])
    for _ in range(steps):
        with measure.step(net, optimizer):
            net(torch.ones(2, 100, dtype=torch.bfloat16)).sum().backward()
            shard.grad = (
                torch.cat([p.grad.flatten() for p in net.parameters()])
                .float()
                .chunk(dist.get_world_size())[dist.get_rank()]
                .clone()
            )
            net.zero_grad()
            optimizer.step()
    return {"numel": flat.numel(), "shard": shard.numel()}


def views_of_parameters(model_known: bool = True) -> int:
    """Parameters that are views of one flat tensor, and an optimizer that updates the half of it, through
    another view.
    """
    net = nn.Linear(9, 10)  # 100 parameters
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    net.weight.data, net.bias.data = flat[:90].view(10, 9), flat[90:]
    half = nn.Parameter(flat[:50])
    optimizer = torch.optim.SGD([half], momentum=0.9)
    for _ in range(2):
        with measure.step(net if model_known else None, optimizer):
            half.grad = torch.ones(50)
            optimizer.step()
    return flat.nbytes


def one_step_without(holder: str, name: str):
    """Three steps in a torch that lacks one of its private places."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    place = torch
    for part in holder.split(".")[1:]:
        place = getattr(place, part)
    delattr(place, name)
    for _ in range(3):
        with measure.step(model, optimizer):
            model(torch.ones(2, 4)).sum().backward()
            dist.all_reduce(model.weight.grad)
            optimizer.step()
            optimizer.zero_grad()
