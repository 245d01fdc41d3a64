"""What ranks on linked hosts run."""

import os
import signal
import socket
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from course_lib import measure

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")


def place() -> dict:
    """Where this rank is, as a script under torchrun would find it, and a sum over all ranks."""
    total = torch.tensor([float(dist.get_rank())])
    dist.all_reduce(total)
    return {
        **{name: int(os.environ[name]) for name in NAMES},
        "host": socket.gethostname(),
        "network": network(),
        "interfaces": sorted(psutil.net_if_addrs()),
        "sum": total.item(),
    }


def network() -> int:
    """The number of the network namespace in which this process is."""
    return os.stat("/proc/self/ns/net").st_ino


def reduces(numel: int, steps: int) -> float:
    """One all_reduce over all ranks in each step."""
    values = torch.ones(numel)
    for _ in range(steps):
        with measure.step():
            dist.all_reduce(values)
    return values[0].item()


def reduces_by_host(numel: int, steps: int) -> float:
    """The same sum in three: within each host, between one rank of each host, within each host again."""
    rank, ranks, per_host = dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"])
    first = rank // per_host * per_host
    inside = [dist.new_group(list(range(at, at + per_host))) for at in range(0, ranks, per_host)]
    between = dist.new_group(list(range(0, ranks, per_host)))
    own, values = inside[first // per_host], torch.ones(numel)
    for _ in range(steps):
        with measure.step():
            dist.all_reduce(values, group=own)
            if rank == first:
                dist.all_reduce(values, group=between)
            dist.broadcast(values, first, group=own)
    return values[0].item()


def reduces_by_parts(numel: int, steps: int) -> float:
    """The same sum once more: each rank takes a part of its host's sum to the other hosts."""
    rank, ranks, per_host = dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"])
    inside = [dist.new_group(list(range(at, at + per_host))) for at in range(0, ranks, per_host)]
    between = [dist.new_group(list(range(at, ranks, per_host))) for at in range(per_host)]
    own, other, values = inside[rank // per_host], between[rank % per_host], torch.ones(numel)
    for _ in range(steps):
        with measure.step():
            parts = list(values.chunk(per_host))
            mine = torch.empty_like(parts[0])
            dist.reduce_scatter(mine, parts, group=own)
            dist.all_reduce(mine, group=other)
            dist.all_gather(parts, mine, group=own)
    return values[0].item()


def chats_inside(numel: int, steps: int) -> None:
    """Each host for itself."""
    rank, ranks, per_host = dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"])
    groups = [dist.new_group(list(range(at, at + per_host))) for at in range(0, ranks, per_host)]
    for _ in range(steps):
        with measure.step():
            dist.all_reduce(torch.ones(numel), group=groups[rank // per_host])


def sends_past_torch(addresses: list[str]) -> None:
    """In step 1 rank 0 sends 5 MB to rank 1 by a plain socket, in step 2 50 kB in a datagram."""
    rank = dist.get_rank()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((addresses[rank], 0))
    server = socket.create_server((addresses[rank], 0))
    ports = [None, None]
    dist.all_gather_object(ports, (server.getsockname(), datagrams.getsockname()))
    line = socket.create_connection(ports[1][0]) if rank == 0 else server.accept()[0]
    with measure.step():
        pass
    with measure.step():
        if rank == 0:
            line.sendall(bytes(5_000_000))
        else:
            got = 0
            while got < 5_000_000:
                got += len(line.recv(2**20))
    with measure.step():
        if rank == 0:
            datagrams.sendto(bytes(50_000), ports[1][1])
        else:
            datagrams.recv(2**20)


def sends(numel: int) -> None:
    """Rank 0 sends once, to rank 1."""
    if dist.get_rank() == 0:
        dist.send(torch.ones(numel), 1)
    else:
        dist.recv(torch.ones(numel), 0)
    dist.barrier()


def answers(numel: int, steps: int) -> None:
    """Send back what each of the others sends, and measure nothing."""
    values = torch.ones(numel)
    for _ in range(steps * (dist.get_world_size() - 1)):
        dist.send(values, dist.recv(values))


def asks(numel: int, steps: int) -> None:
    """Send to rank 0 and wait for its answer, in each step."""
    values = torch.ones(numel)
    for _ in range(steps):
        with measure.step():
            dist.send(values, 0)
            dist.recv(values, 0)


def serve() -> None:
    """Waits for the last rank, before it serves the others."""
    dist.recv(torch.empty(3), dist.get_world_size() - 1)


def work() -> None:
    """Waits to be served."""
    dist.recv(torch.empty(3), 0)


def tells_and_kills(folder: str, which: str) -> int:
    """Say in which network this rank is, then kill one of the processes of the job, or end well."""
    Path(folder, f"network{dist.get_rank()}").write_text(str(network()))
    dist.barrier()
    if dist.get_rank() == 1:
        supervisor = psutil.Process(os.getppid())
        victim = {
            "rank": os.getpid(),
            "supervisor": supervisor.pid,
            "server": supervisor.ppid(),
            "nobody": None,
        }[which]
        if victim:
            os.kill(victim, signal.SIGKILL)
        if which == "supervisor":
            signal.pause()  # the end comes with the supervisor's, which may take a moment
    dist.barrier()
    return network()


def tells_and_hangs(folder: str) -> None:
    Path(folder, f"network{dist.get_rank()}.part").write_text(str(network()))
    Path(folder, f"network{dist.get_rank()}.part").rename(Path(folder, f"network{dist.get_rank()}"))
    signal.pause()


def train(steps: int = 3) -> list[float]:
    """A few steps of data parallel training; the same under run and under torchrun."""
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        batch = torch.full((4, 8), 1.0 + dist.get_rank() + step)
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [round(value.item(), 5) for value in model.module.bias]
