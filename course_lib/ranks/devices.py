"""Which backend and which device each rank gets."""

import ctypes
import os
import platform
from dataclasses import dataclass
from functools import lru_cache

import psutil
import torch

__all__ = ["BACKENDS", "Placement", "place", "gpu_name", "cpu_name", "usable_cores", "loopback"]

BACKENDS = ("auto", "gloo", "nccl")


@dataclass(frozen=True)
class Placement:
    """Where the ranks of a job run."""

    backend: str  # "gloo" or "nccl"
    devices: tuple[str, ...]  # one per rank: "cpu", "cuda:0", ...
    hardware: str  # in words: "2 cores of an Intel Xeon", "1 NVIDIA H200, shared by 4 ranks"


def place(ranks: int, backend: str) -> Placement:
    """Choose backend and devices: NCCL with one GPU per rank, else gloo on shared GPUs, else gloo on the CPU.

    CUDA_VISIBLE_DEVICES="" in the notebook's environment makes every job a CPU job.

    Errors: ValueError if NCCL is asked for and there are fewer GPUs than ranks (NCCL wants one GPU per rank).
    """
    gpus = 0 if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else torch.cuda.device_count()
    if backend == "nccl" and gpus < ranks:
        raise ValueError(
            f"backend='nccl' needs one GPU per rank, and there {'is' if gpus == 1 else 'are'} {gpus or 'no'} "
            f"GPU{'' if gpus == 1 else 's'} for {ranks} rank{'' if ranks == 1 else 's'}; "
            "use backend='gloo', or 'auto', which picks what this machine can run."
        )
    if not gpus:
        return Placement("gloo", ("cpu",) * ranks, cpu_name())
    used = min(gpus, ranks)
    hardware = f"{used} {gpu_name(os.environ.get('CUDA_VISIBLE_DEVICES') or '0')}"
    if ranks > used:
        hardware += f", shared by {ranks} ranks"
    chosen = backend if backend != "auto" else "nccl" if gpus >= ranks else "gloo"
    return Placement(chosen, tuple(f"cuda:{rank % gpus}" for rank in range(ranks)), hardware)


@lru_cache
def gpu_name(visible: str) -> str:
    """The name of the first of the GPUs of CUDA_VISIBLE_DEVICES, or "GPU" where it cannot be known.

    The driver's own library is asked (NVML). torch would open CUDA to find out, and that takes memory of the
    GPU for as long as the notebook lives, and the whole GPU where it serves one process at a time.
    """
    first, handle, name = visible.split(",")[0].strip(), ctypes.c_void_p(), ctypes.create_string_buffer(96)
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return "GPU"
        failed = (
            nvml.nvmlDeviceGetHandleByIndex_v2(int(first), ctypes.byref(handle))
            if first.isdigit()
            else nvml.nvmlDeviceGetHandleByUUID(first.encode(), ctypes.byref(handle))
        )
        failed = failed or nvml.nvmlDeviceGetName(handle, name, len(name))
        nvml.nvmlShutdown()
    except (OSError, AttributeError):  # no such library, or without one of these functions
        return "GPU"
    return "GPU" if failed else name.value.decode()


@lru_cache
def cpu_name() -> str:
    """The processor in words, with the cores that this process may use."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            name = next(
                (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name
            )
    for noise in ("(R)", "(TM)", " CPU", " Processor"):
        name = name.replace(noise, "")
    cores = usable_cores()
    return f"{cores} core{'' if cores == 1 else 's'}, {name.split(' @')[0]}"


def usable_cores() -> int:
    """Cores that this process may run on, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache
def loopback() -> str:
    """The name of the loopback interface, to which gloo is bound: "lo" on Linux, "lo0" on macOS."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == "127.0.0.1" for address in addresses):
            return name
    return "lo"
