"""What ranks on nodes of Slurm run."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from course_lib import measure

NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")


def trains(jobs: str, numel: int = 1000, steps: int = 3) -> dict:
    """Some steps with a collective, and all that a rank can tell of where it is."""
    values, model = torch.ones(numel), torch.nn.Linear(10, 10)
    for _ in range(steps):
        with measure.step(model):
            dist.all_reduce(values)
    print(f"rank {dist.get_rank()} has {values[0].item():g}")
    (folder,) = Path(jobs).iterdir()
    return {
        **{name: int(os.environ[name]) for name in NUMBERS},
        "sum": values[0].item(),
        "node": os.environ["SLURMD_NODENAME"],
        "master": (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])),
        "interface": os.environ["GLOO_SOCKET_IFNAME"],
        "environ": {name: value for name, value in os.environ.items() if name.startswith("MY_")},
        "cwd": os.getcwd(),
        "modes": {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder)},
        "with_token": [path.name for path in folder.iterdir() if b"my-secret" in path.read_bytes()],
        "script": next(folder.glob("*_submission.sh")).read_text(),
    }


def tells_and_waits(folder: str) -> str:
    """Print, and go on when a file is there."""
    print(f"rank {dist.get_rank()} is here", flush=True)
    while not Path(folder, "go").exists():
        time.sleep(0.05)
    return "went on"


def serve() -> None:
    """Wait for a message."""
    dist.recv(torch.zeros(1), 1)


def work() -> None:
    """Fail before it is sent."""
    raise ValueError("no work today")


def tells_and_hangs(folder: str) -> None:
    """Leave a program of one's own behind, say where this rank is, print, and wait for a message for ever."""
    left = subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    rank = dist.get_rank()
    print(f"rank {rank} hangs", flush=True)
    Path(folder, f"hangs{rank}").write_text(f"{os.getpid()} {left.pid} {os.environ['SLURM_JOB_ID']}")
    if rank < dist.get_world_size() - 1:
        dist.recv(torch.zeros(1), dist.get_world_size() - 1)
    time.sleep(600)


def grows(megabytes: int) -> None:
    """One rank takes memory, and holds it; the others wait for it."""
    held = []
    print("grows", flush=True)
    if dist.get_rank() == 1:
        for _ in range(megabytes // 50):
            held.append(torch.ones(50 * 2**18))
            time.sleep(0.05)
        time.sleep(600)
    dist.barrier()
