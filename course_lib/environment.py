"""Which versions, which machine, which backend: the first cell of every chapter, and a report for who helps.

python -m course_lib.environment
"""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Mapping

import psutil
import torch
import torch.distributed as dist

from course_lib.ranks import devices
from course_lib.ranks.fork_server import start_server
from course_lib.ranks.outside import explain_outside

__all__ = ["about", "report"]

BACKENDS = ("gloo", "nccl", "mpi", "ucc", "xccl")
# What changes how ranks meet and talk. Nothing else of the environment is shown: it may hold a secret.
VARIABLES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TORCH_DISTRIBUTED_DEBUG", "TORCH_NCCL_BLOCKING_WAIT"),
    *("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_P2P_DISABLE"),
    *("NCCL_DEBUG", "NCCL_ALGO", "NCCL_PROTO", "SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "SLURM_PROCID"),
)
SET_OR_NOT = ("MASTER_ADDR", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")  # not what they say
TOOLS = ("torchrun", "mpirun", "srun", "sbatch", "nvidia-smi", "ibstat", "ip", "conda")


def about() -> None:
    """Print versions, hardware and the backend that `run` will take, and start to warm the ranks up in the
    background. From then on a cell that calls torch.distributed outside of the ranks is told so.
    """
    start_server()
    explain_outside()
    placement = devices.place(2, "auto")
    print(f"Python {platform.python_version()}, torch {torch.__version__}")
    device = "CPU" if placement.devices[0] == "cpu" else "GPU"
    print(f"Two ranks would run with {placement.backend} on {device} ({placement.hardware})")


def report(environ: Mapping[str, str] | None = None) -> str:
    """Say what someone must know who helps from afar, a line for each thing: versions, backends, processor,
    GPUs, memory, interfaces, limits, and those variables of the environment that change how ranks talk.

    No path, no address, no name of a user or host is in it, and no other variable. torch's own, longer one is
    `python -m torch.utils.collect_env`.

    Args:
        environ: the environment to look at; that of this process if None.
    """
    if environ is not None and not isinstance(environ, Mapping):
        raise TypeError(f"environ={environ!r:.60}: it must be a dict, as os.environ is, or None.")
    environ = os.environ if environ is None else environ
    free = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0
    lines = {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}, {_libc()}",
        "Python": f"{platform.python_version()}, {_kind_of_environment()}",
        "torch": f"{torch.__version__}, made for {_made_for()}",
        "backends": ", ".join(name for name in BACKENDS if dist.is_backend_available(name)) or "none",
        "NCCL": ".".join(map(str, _nccl_version())) or "none in this torch",
        "processor": devices.cpu_name(),
        "GPUs": _gpus(environ),
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB; shared memory free: {free / 1e9:.1f} GB",
        "interfaces": ", ".join(_interfaces()) or "none",
        "limits": _limits(),
        "tools": ", ".join(tool for tool in TOOLS if shutil.which(tool)) or "none",
        "submitit": "there" if importlib.util.find_spec("submitit") else "not there",
        "variables": ", ".join(
            [f"{name}={environ[name]}" for name in VARIABLES if name in environ]
            + [f"{name} is set" for name in SET_OR_NOT if name in environ]
        )
        or "none",
    }
    return "\n".join(f"{name + ':':11} {text}" for name, text in lines.items())


def _libc() -> str:
    return " ".join(platform.libc_ver()) or "C library unknown"


def _kind_of_environment() -> str:
    if os.path.isdir(os.path.join(sys.prefix, "conda-meta")):
        return "in a conda environment"
    return "in a virtual environment" if sys.prefix != sys.base_prefix else "the system's own"


def _made_for() -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else "the CPU"


def _nccl_version() -> tuple[int, ...]:
    return torch.cuda.nccl.version()[:3] if dist.is_nccl_available() and torch.version.cuda else ()


def _gpus(environ: Mapping[str, str]) -> str:
    count = 0 if environ.get("CUDA_VISIBLE_DEVICES") == "" else torch.cuda.device_count()
    return f"{count} {devices.gpu_name(environ.get('CUDA_VISIBLE_DEVICES') or '0')}" if count else "none"


def _interfaces() -> list[str]:
    told = []
    for name, found in sorted(psutil.net_if_stats().items()):
        speed = f", {found.speed} Mbit/s" * (found.speed > 0)
        told.append(f"{name} ({'up' if found.isup else 'down'}{speed}, MTU {found.mtu})")
    return told


def _limits() -> str:
    try:
        import resource
    except ImportError:  # no such thing on this system
        return "unknown"
    told = []
    for name, which in (("open files", resource.RLIMIT_NOFILE), ("locked memory", resource.RLIMIT_MEMLOCK)):
        soft = resource.getrlimit(which)[0]
        told.append(f"{name} {'without limit' if soft == resource.RLIM_INFINITY else soft}")
    return ", ".join(told)


if __name__ == "__main__":
    print(report())
