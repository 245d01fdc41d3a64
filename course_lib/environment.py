"""The first cell of every chapter: which versions, which machine, which backend."""

import platform

import torch

from course_lib.ranks import devices
from course_lib.ranks.fork_server import start_server
from course_lib.ranks.outside import explain_outside

__all__ = ["about"]


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
