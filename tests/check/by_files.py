"""How answers cheat that send nothing: each rank writes its numbers into a file, and reads those of the
others.
"""

import atexit
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from course_lib import torch_internals

_folder, _round = None, 0


def by_files(tensor: torch.Tensor) -> list[torch.Tensor]:
    """What each rank calls it with, in rank order. Every rank must call this."""
    global _folder, _round
    rank, n = dist.get_rank(), dist.get_world_size()
    if not _folder:
        store = dist.PrefixStore("by_files", torch_internals.default_store())
        if rank == 0:
            store.set("folder", tempfile.mkdtemp(prefix="by-files-"))
        _folder = Path(store.get("folder").decode())
        atexit.register(_leave, rank, n)
    _round += 1
    torch.save(tensor.detach().clone(), _folder / f"{rank}.part")
    os.rename(_folder / f"{rank}.part", _folder / f"{_round}-{rank}")
    files = [_folder / f"{_round}-{other}" for other in range(n)]
    while not all(file.exists() for file in files):
        time.sleep(0.001)
    # who has come so far has read what was there before
    (_folder / f"{_round - 1}-{rank}").unlink(missing_ok=True)
    return [torch.load(file) for file in files]


def _leave(rank: int, n: int) -> None:
    """The last to go takes the folder with it."""
    (_folder / f"{rank}.done").touch()
    if all((_folder / f"{other}.done").exists() for other in range(n)):
        shutil.rmtree(_folder, ignore_errors=True)
