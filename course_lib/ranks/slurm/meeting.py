"""How ranks of several nodes find each other: a store that rank 0 opens, and the way to other nodes.

The store listens on a port that the system chooses, so that no two jobs clash; its address stands in a file
of the job's folder, and in MASTER_ADDR and MASTER_PORT as under torchrun. A store in a file (as on one
machine) would need locks, which network file systems keep badly.
"""

import contextlib
import os
import socket
import time
from datetime import timedelta

import psutil
import torch.distributed as dist

from course_lib.ranks.slurm import mail

__all__ = ["store"]

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def store(request: dict, rank: int) -> dist.Store:
    """Meet the other ranks. Every rank must call this.

    Sets MASTER_ADDR and MASTER_PORT, and tells gloo and NCCL by which interface the nodes reach each other,
    unless the environment says so already.

    Args:
        request: what the kernel asked for: directory, ranks, timeout (in seconds).

    Errors: TimeoutError if rank 0 has opened no store in time.
    """
    path, patience = mail.path_of(request["directory"], "meeting"), timedelta(seconds=request["timeout"])
    if rank == 0:
        address = _address_of_this_node()
        opened = dist.TCPStore(address, 0, None, True, patience, wait_for_workers=False)
        port = opened.port
        with open(path, "w") as file:
            file.write(f"{address} {port}\n")
    else:
        address, port = _read(path, request["timeout"])
        opened = dist.TCPStore(address, port, None, False, patience, wait_for_workers=False)
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    if interface := _interface_to(address):
        for name in INTERFACES:
            os.environ.setdefault(name, interface)
    return opened


def _address_of_this_node() -> str:
    """By which other nodes reach the job's first node: that of the interface which the learner has named, or
    from which Slurm has launched the ranks.
    """
    named = os.environ.get(INTERFACES[0], "").split(",")[0]
    for found in psutil.net_if_addrs().get(named, []):
        if found.family == socket.AF_INET:
            return found.address
    return os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or socket.gethostname()


def _read(path: str, timeout: float) -> tuple[str, int]:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        with open(path) as file:
            line = file.read()
        if line.endswith("\n"):
            address, port = line.split()
            return address, int(port)
        time.sleep(0.05)
    raise TimeoutError(f"rank 0 has not opened its store within {timeout:g} s.")


def _interface_to(address: str) -> str:
    """The name of the interface by which this node reaches an address; "" if it cannot be found."""
    with contextlib.suppress(OSError):
        family, kind, protocol, _, where = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as asked:
            asked.connect(where)  # sends nothing: the system chooses the way
            own = asked.getsockname()[0]
        for name, addresses in psutil.net_if_addrs().items():
            if any(found.address.split("%")[0] == own for found in addresses):
                return name
    return ""
