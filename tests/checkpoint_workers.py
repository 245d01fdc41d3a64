"""What ranks run for the tests of checkpoints and restarts."""

import itertools
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from course_lib import measure
from course_lib.datasets import digit_batches

STEPS, EVERY = 12, 4


def attempt() -> int:
    return int(os.environ["TORCHELASTIC_RESTART_COUNT"])


def trains(folder: str, killed_at: int | None = None, dropout: float = 0.2, background=False, forgets=""):
    """Twelve steps in shards, saved after each fourth; in the first attempt rank 1 is killed in `killed_at`.
    Returns all weights, and the first step of this attempt.
    """
    rank, n = dist.get_rank(), dist.get_world_size()
    group = dist.new_group(backend="gloo")
    torch.manual_seed(0)
    layers = nn.Linear(64, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 10)
    model = fully_shard(nn.Sequential(nn.Flatten(), *layers))
    torch.manual_seed(rank)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def everything():
        weights, moments = states.get_state_dict(model, optimizer)
        return {"weights": weights, "optimizer": moments, f"random {rank}": torch.get_rng_state()}

    first = max((int(found.parent.name) for found in Path(folder).glob("*/.metadata")), default=0)
    if first:
        saved = everything()
        dcp.load(saved, checkpoint_id=f"{folder}/{first}")
        states.set_model_state_dict(model, saved["weights"])
        states.set_optimizer_state_dict(model, optimizer, saved["optimizer"])
        if forgets != "random":
            torch.set_rng_state(saved[f"random {rank}"])
    saving = None
    for step, (x, y) in enumerate(itertools.islice(digit_batches(24, rank, n), first, STEPS), first):
        with measure.step(number=step):
            F.cross_entropy(model(x), y).backward()
            if (step, attempt(), rank) == (killed_at, 0, 1):
                if saving:
                    saving.result()
                os.kill(os.getpid(), signal.SIGKILL)
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % EVERY == 0:
            path = f"{folder}/{step + 1}"
            if background:
                if saving:
                    saving.result()
                saving = dcp.async_save(everything(), checkpoint_id=path, process_group=group)
            else:
                dcp.save(everything(), checkpoint_id=path)
    if saving:
        saving.result()
    return torch.cat([p.full_tensor().detach().flatten() for p in model.parameters()]), first


def endures(folder: str, steps: int, every: int, lifetimes: list, step_s: float = 0, save_s: float = 0):
    """So many steps, saved after each `every`; in attempt a rank 1 is killed in its step lifetimes[a].

    Returns the seconds that this attempt has worked.
    """
    saved, begin = Path(folder) / "step", time.monotonic()
    first = int(saved.read_text()) if saved.exists() else 0
    for step in range(first, steps):
        with measure.step(number=step):
            time.sleep(step_s)
            dist.all_reduce(torch.ones(1))
            if dist.get_rank() == 1 and step - first == lifetimes[attempt()]:
                os.kill(os.getpid(), signal.SIGKILL)
        if (step + 1) % every == 0:
            time.sleep(save_s)
            dist.barrier()
            if dist.get_rank() == 0:
                saved.with_suffix(".new").write_text(str(step + 1))
                saved.with_suffix(".new").replace(saved)
            dist.barrier()
    return time.monotonic() - begin
