"""What the ranks of the timelines' tests run. It stands apart because a rank that is asked for a function
loads the module around it: the tests' own would bring pandas and matplotlib into each.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from course_lib import measure
from course_lib.mini import ddp, zero
from course_lib.models import MLP

WIDTHS, ROWS, LR = (64, 256, 256, 10), 64, 0.01


def prepared(way: str):
    """A model and its optimizer, each in another way of data parallel training."""
    torch.manual_seed(0)
    model = MLP(WIDTHS)
    if way in (
        "DDP",
        "DDP in float16",
        "DDP, then all ranks' loss",
        "DDP, clipped",
        "ZeroRedundancyOptimizer",
        "DDP in small buckets",
    ):
        model = DistributedDataParallel(model, bucket_cap_mb=0.1 if way == "DDP in small buckets" else 25)
    if way == "DDP in float16":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    if way == "mini.ddp":
        model = ddp.DistributedDataParallel(model)
    if way == "fully_shard":
        for layer in model.layers:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(model)
    if way.startswith("mini.zero"):
        return zero.shard(model, int(way[-1]), torch.optim.Adam, lr=LR)
    if way == "ZeroRedundancyOptimizer":
        return model, ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=LR)
    return model, torch.optim.Adam(model.parameters(), LR)


def train(way: str):
    model, optimizer = prepared(way)
    x = torch.ones(ROWS, WIDTHS[0])
    for _ in range(2):
        with measure.step(model, optimizer):
            loss = model(x).square().mean()
            loss.backward()
            if way == "by hand":
                for p in model.parameters():
                    dist.all_reduce(p.grad)
                    p.grad /= dist.get_world_size()
                with torch.no_grad():
                    for p in model.parameters():
                        p -= LR * p.grad
            elif way == "averaged by hand":
                for p in model.parameters():
                    dist.all_reduce(p.grad)
                    p.grad /= dist.get_world_size()
                optimizer.step()
            else:
                if way == "DDP, clipped":
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            if way == "DDP, then all ranks' loss":
                loss = loss.detach().clone()
                dist.all_reduce(loss)
                (loss / dist.get_world_size()).item()
            optimizer.zero_grad()


def coalesced():
    """A coalesced call after a larger one of the same kind, and lists."""
    size = dist.get_world_size()
    for _ in range(2):
        with measure.step():
            dist.reduce_scatter(torch.ones(50_000), list(torch.ones(50_000 * size).chunk(size)))
            with dist._coalescing_manager():
                dist.all_reduce(torch.ones(10))
                dist.all_reduce(torch.ones(20))
            dist.scatter(
                torch.ones(5), list(torch.ones(5 * size).chunk(size)) if dist.get_rank() == 0 else None, 0
            )
            dist.barrier()


def in_threads():
    """Blocking collectives in a thread of the learner's, while the main thread computes; several threads,
    each with a group of its own.
    """
    groups = [dist.new_group() for _ in range(2)]
    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            with measure.step():
                sent = pool.submit(lambda: dist.all_reduce(torch.ones(1000)))
                torch.ones(300, 300) @ torch.ones(300, 300)
                sent.result()
                threads = [
                    threading.Thread(
                        target=dist.all_reduce, args=(torch.ones(100 + number),), kwargs={"group": group}
                    )
                    for number, group in enumerate(groups)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
