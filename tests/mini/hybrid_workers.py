"""What the ranks of test_mini_hybrid.py run."""

import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from course_lib import measure
from course_lib.datasets import text_batches
from course_lib.mini import hybrid, pipeline, tensor_parallel
from course_lib.mini.ddp import DistributedDataParallel
from course_lib.models import TinyGPT
from course_lib.stand_ins.links import slow_link

BATCH, CONTEXT, STEPS = 12, 32, 3


def groups(sizes: dict) -> dict:
    """The ranks of this rank's groups, torch's own, and what an all_reduce along each axis sums."""
    torch.set_default_device("cpu")
    mine, found = hybrid.make_groups(sizes), {}
    mesh = init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    for axis, group in mine.items():
        total = torch.tensor(float(dist.get_rank()))
        dist.all_reduce(total, group=group)
        found[axis] = (
            dist.get_process_group_ranks(group),
            dist.get_process_group_ranks(mesh[axis].get_group()),
            total.item(),
        )
    place = dict(zip(sizes, mesh.get_coordinate()))
    return {"groups": found, "place": place}


def gpt() -> TinyGPT:
    torch.set_default_device("cpu")  # gloo, and the mesh of fully_shard, are the CPU's
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    return TinyGPT(tied=False)


def train(model, batches, step) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for tokens in batches:
        with measure.step(model, optimizer, samples=len(tokens)):
            step(tokens)
            optimizer.step()
            optimizer.zero_grad()


def named(model) -> dict:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def one_process() -> tuple[dict, dict]:
    """The weights before and after training."""
    model = gpt()
    start = named(model)
    train(model, text_batches(BATCH, CONTEXT, STEPS), lambda tokens: model(tokens).backward())
    return start, named(model)


def data_tensor(sizes: dict, average_over: str = "dp") -> dict:
    place, own = hybrid.coordinates(dist.get_rank(), sizes), {**hybrid.make_groups(sizes), "all": None}
    cut = tensor_parallel.parallelize(gpt(), own["tp"])
    model = DistributedDataParallel(cut, process_group=own[average_over])
    train(
        model,
        text_batches(BATCH, CONTEXT, STEPS, place["dp"], sizes["dp"]),
        lambda tokens: model(tokens).backward(),
    )
    return tensor_parallel.gather_full(cut, own["tp"])


def data_pipeline_tensor(sizes: dict, num_microbatches: int) -> dict:
    """All three axes; any of them may have size 1. Returns the parameters of this rank's stage, put together
    over tp.
    """
    place, own = hybrid.coordinates(dist.get_rank(), sizes), hybrid.make_groups(sizes)
    model = tensor_parallel.parallelize(gpt(), own["tp"]) if sizes["tp"] > 1 else gpt()
    stage = pipeline.split(model, sizes["pp"])[place["pp"]]
    wrapped = DistributedDataParallel(stage, process_group=own["dp"])

    def loss(logits, targets):
        if sizes["tp"] > 1:
            return tensor_parallel.vocab_parallel_cross_entropy(logits, targets, own["tp"])
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    pipe = pipeline.Pipeline(wrapped, pipeline.one_f_one_b(sizes["pp"], num_microbatches), loss, own["pp"])
    train(
        stage,
        text_batches(BATCH, CONTEXT, STEPS, place["dp"], sizes["dp"]),
        lambda tokens: pipe.step(tokens[:, :-1], tokens[:, 1:]),
    )
    mine = {name for name, p in model.named_parameters() if any(p is own_p for own_p in stage.parameters())}
    full = tensor_parallel.gather_full(model, own["tp"]) if sizes["tp"] > 1 else named(model)
    return {name: p for name, p in full.items() if name in mine}


def hybrid_sharding(shape: tuple[int, int]) -> dict:
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    model = gpt()
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh)
    train(
        model,
        text_batches(BATCH, CONTEXT, STEPS, dist.get_rank(), dist.get_world_size()),
        lambda tokens: model(tokens).backward(),
    )
    return {name: p.detach().full_tensor() for name, p in model.named_parameters()}


def through_a_slow_link(numel: int, bytes_per_s: float) -> dict:
    """Seconds of an all_reduce inside a host, between hosts, of two at once between hosts; what is refused;
    and values; ranks 0, 1 and 2, 3 share hosts.
    """
    torch.set_default_device("cpu")
    own, found = hybrid.make_groups({"across": 2, "inside": 2}), {}

    def seconds(call) -> float:
        dist.barrier()
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    with slow_link([[0, 1], [2, 3]], bytes_per_s):
        tensors = [torch.ones(numel) for _ in range(4)]
        found["inside"] = seconds(lambda: dist.all_reduce(tensors[0], group=own["inside"]))
        found["across"] = seconds(lambda: dist.all_reduce(tensors[1], group=own["across"]))
        dist.barrier()
        begin = time.perf_counter()
        works = [dist.all_reduce(t, group=own["across"], async_op=True) for t in tensors[2:]]
        found["launched"] = time.perf_counter() - begin
        for work in works:
            work.wait()
        found["two"] = time.perf_counter() - begin
    real = seconds(lambda: dist.all_reduce(torch.ones(numel), group=own["across"]))
    found["refused"] = []
    for hosts, speed in (
        ([[0, 1], [2]], 1),
        ([[0, 1], [1, 2, 3]], 1),
        ([0, 1, 2, 3], 1),
        ([[0, 1], [2, 3]], 0),
    ):
        try:
            with slow_link(hosts, speed):
                found["refused"].append("nothing")
        except ValueError as error:
            found["refused"].append(str(error))
    return found | {"sums": [t.unique().tolist() for t in tensors], "afterwards": real}
