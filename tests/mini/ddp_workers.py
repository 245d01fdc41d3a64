"""What people do with a DistributedDataParallel beside one forward and one backward a step: each case runs on
ranks, and tells what came of it.
"""

import copy
import dataclasses
import io
import pickle

import torch
import torch.distributed as dist
from mini_workers import difference, grads
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from course_lib.mini.ddp import DistributedDataParallel


@dataclasses.dataclass
class Output:
    logits: Tensor


class Net(nn.Module):
    """Two layers and two heads; `how` says what forward does with them."""

    def __init__(self, how: str = "plain"):
        super().__init__()
        torch.manual_seed(0)
        self.how, self.a, self.b, self.head, self.other = (
            how,
            *(nn.Linear(4, 4).double() for _ in range(3)),
            nn.Linear(4, 2).double(),
        )
        if how in ("plain", "dataclass", "shared"):
            del self.other
        if how == "shared":
            del self.b

    def forward(self, x: Tensor):
        if self.how == "shared":
            for _ in range(3):
                x = checkpoint(self.a, x.tanh(), use_reentrant=True)
            return self.head(x)
        if self.how == "dataclass":
            return Output(
                checkpoint(
                    self.head,
                    checkpoint(self.b, checkpoint(self.a, x, use_reentrant=True).tanh(), use_reentrant=True),
                    use_reentrant=True,
                )
            )
        hidden = self.b(self.a(x).tanh()).tanh()
        return self.head(hidden) if self.how == "plain" else (self.head(hidden), self.other(hidden))


def data(rank: int) -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def mine() -> Tensor:
    return data(dist.get_rank()).requires_grad_()


def alone(net: nn.Module, loss, scale: float = 1.0) -> list[Tensor]:
    """The gradients of one process over all ranks' data."""
    for rank in range(dist.get_world_size()):
        (scale * loss(net(data(rank).requires_grad_())) / dist.get_world_size()).backward()
    return grads(net)


def square(y) -> Tensor:
    return y.square().mean()


def both(outputs) -> Tensor:
    return outputs[0].square().mean() + 3 * outputs[1].square().mean()


def error_of(call) -> str:
    try:
        call()
    except Exception as error:  # whatever it is: the test reads the words
        return f"{type(error).__name__}: {error}"
    return "nothing"


def reentrant() -> float:
    model = DistributedDataParallel(Net("dataclass"), bucket_cap_mb=0)
    for _ in range(2):
        model.zero_grad()
        square(model(mine()).logits).backward()
    return difference(grads(model), alone(Net("dataclass"), lambda output: square(output.logits)))


def reentrant_twice() -> str:
    model = DistributedDataParallel(Net("shared"))
    return error_of(lambda: square(model(mine())).backward())


def two_forwards() -> float:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()

    ours, plain = DistributedDataParallel(net()), net()

    def by_hand(
        x: torch.Tensor,
    ) -> torch.Tensor:  # torch's own can't in 2.11: its broadcast changes what is saved
        for buffer in plain.buffers():
            dist.broadcast(buffer.data, src=0)
        return plain(x)

    for _ in range(2):
        for model in (ours, by_hand):
            (model(mine()).mean() - 2 * model(3 * mine().square()).mean()).backward()
    for parameter in plain.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
    return difference([*grads(ours), *ours.buffers()], [*grads(plain), *plain.buffers()])


def wrapped_twice() -> list:
    net = Net()
    older = DistributedDataParallel(net)
    error_of(lambda: square(older(mine()) / 0).register_hook(lambda grad: 1 / 0).backward())
    older(mine())  # a forward whose backward never comes
    newer = DistributedDataParallel(net, process_group=dist.new_group(list(range(dist.get_world_size()))))
    square(newer(mine())).backward()
    return [
        difference(grads(newer), alone(Net(), square)),
        error_of(lambda: older(mine())),
        len(net.a.weight._post_accumulate_grad_hooks),
    ]


def shared_between_two() -> list:
    first, second = Net(), Net()
    second.a = first.a
    older, newer = DistributedDataParallel(first), DistributedDataParallel(second)
    square(newer(mine())).backward()
    return [difference(grads(newer), alone(Net(), square)), error_of(lambda: older(mine()))]


def copies() -> list:
    model = DistributedDataParallel(Net())
    told = [
        error_of(lambda: call(model))
        for call in (copy.copy, copy.deepcopy, pickle.dumps, lambda model: torch.save(model, io.BytesIO()))
    ]
    again = DistributedDataParallel(copy.deepcopy(model.module))
    square(again(mine())).backward()
    return [*told, difference(grads(again), alone(Net(), square))]


def other_modules() -> list[str]:
    rank = dist.get_rank()
    conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last if rank else torch.contiguous_format)
    frozen = nn.Linear(3, 3).requires_grad_(rank == 0)
    return [
        error_of(lambda net=net: DistributedDataParallel(net))
        for net in (nn.Linear(3, 3 + rank), conv, frozen, nn.Linear(3, 3, bias=rank == 0))
    ]


def channels_last() -> bool:
    torch.manual_seed(0)
    net = nn.Conv2d(4, 5, 3).to(memory_format=torch.channels_last)
    other = copy.deepcopy(net)
    model, theirs = DistributedDataParallel(net), nn.parallel.DistributedDataParallel(other)
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(dist.get_rank()))
    for each in (model, theirs):
        each(x).square().sum().backward()
    return net.weight.grad.stride() == net.weight.stride() and torch.allclose(
        net.weight.grad, other.weight.grad
    )


def a_backward_for_each_output() -> list:
    models = [DistributedDataParallel(Net("heads"), find_unused_parameters=find) for find in (True, False)]
    for model in models[:1]:
        for _ in range(2):
            model.zero_grad()
            first, second = model(mine())
            square(first).backward(retain_graph=True)
            (3 * square(second)).backward()
    strict = error_of(lambda: square(models[1](mine())[0]).backward(retain_graph=True))
    return [difference(grads(models[0]), alone(Net("heads"), both)), strict]


def unused_everywhere() -> list:
    """Nobody's loss needs `other`: Adam with weight decay must leave it alone, as in one process."""
    nets = [Net("heads"), Net("heads")]
    model = DistributedDataParallel(nets[0], find_unused_parameters=True)
    for net, call in (
        (nets[0], lambda: square(model(mine())[0]).backward()),
        (nets[1], lambda: alone(nets[1], lambda outputs: square(outputs[0]))),
    ):
        optimizer = torch.optim.Adam(net.parameters(), 0.1, weight_decay=0.1)
        for _ in range(3):
            call()
            optimizer.step()
            optimizer.zero_grad()
    return [difference(nets[0].parameters(), nets[1].parameters()), nets[0].other.weight.grad is None]


def stepped_in_backward() -> list[str]:
    told = []
    for before, zero in ((True, True), (False, True), (False, False)):
        net = Net()
        optimizers = {parameter: torch.optim.SGD([parameter], 0.1) for parameter in net.parameters()}

        def step(parameter, optimizers=optimizers, zero=zero):
            optimizers[parameter].step()
            if zero:
                optimizers[parameter].zero_grad()

        model = None if before else DistributedDataParallel(net)
        for parameter in net.parameters():
            parameter.register_post_accumulate_grad_hook(step)
        model = DistributedDataParallel(net) if before else model
        told.append(error_of(lambda model=model: square(model(mine())).backward()))
    return told


def sparse() -> str:
    model = DistributedDataParallel(nn.Embedding(10, 3, sparse=True))
    return error_of(lambda: model(torch.tensor([1, 2])).sum().backward())


def graphs() -> list:
    model = DistributedDataParallel(Net())
    told = [error_of(lambda: square(model(mine())).backward(create_graph=True))]

    def penalty(net, x):
        y = net(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return square(y) + slope.square().mean()

    model.zero_grad()
    penalty(model, mine()).backward()
    net, size = Net(), dist.get_world_size()
    for rank in range(size):
        (penalty(net, data(rank).requires_grad_()) / size).backward()
    return [*told, difference(grads(model), grads(net))]


def frozen_later() -> list:
    model, net = DistributedDataParallel(Net()), Net()
    square(model(mine())).backward()
    model.zero_grad()
    for module in (model.module, net):
        module.b.requires_grad_(False)
    square(model(mine())).backward()
    told = [difference(grads(model), alone(net, square)), model.module.b.weight.grad is None]
    model.module.requires_grad_(False)
    square(model(mine())).backward()  # for the input's gradient: nothing to average
    model.module.requires_grad_(True)
    model.zero_grad()
    square(model(mine())).backward()
    return [*told, difference(grads(model), alone(Net(), square))]


def changed_later() -> list:
    def unfrozen(net):
        net.a.requires_grad_(True)

    def added(net):
        net.extra = nn.Linear(2, 2)

    def replaced(net):
        net.head = nn.Linear(4, 4).double()

    def other_dtype(net):
        net.float()

    told = []
    for change in (unfrozen, added, replaced, other_dtype):
        net = Net()
        net.a.requires_grad_(False)
        model = DistributedDataParallel(net)
        change(net)
        told.append(error_of(lambda model=model: model(mine())))
    net = Net()
    net.a.requires_grad_(False)
    DistributedDataParallel(net)
    unfrozen(net)
    model = DistributedDataParallel(net)
    square(model(mine())).backward()
    return [*told, difference(grads(model), alone(Net(), square))]


def other_ways_to_backward() -> list:
    model = DistributedDataParallel(Net())
    square(model.module(mine())).backward()
    told = [difference(grads(model), alone(Net(), square))]
    for parameter in model.parameters():
        parameter.grad = None
    y = model(mine())
    y += 0  # in place, on an output
    square(y).backward()
    told.append(difference(grads(model), alone(Net(), square)))
    model.zero_grad()
    with model.no_sync():
        loss = square(model(mine()))
    loss.backward()  # only where backward is counts
    told.append(difference(grads(model), alone(Net(), square)))
    model.zero_grad()
    failing = [True]
    y = model(mine())
    y.register_hook(lambda grad: 1 / 0 if failing else None)
    error_of(lambda: square(y).backward(retain_graph=True))
    failing.clear()
    square(y).backward()  # once more, without a forward
    told.append(difference(grads(model), alone(Net(), square)))
    whole = checkpoint(model, mine(), use_reentrant=True)
    model.zero_grad()
    square(whole).backward()  # the wrapper itself inside a reentrant checkpoint
    return [*told, difference(grads(model), alone(Net(), square))]


CASES = (
    reentrant,
    reentrant_twice,
    two_forwards,
    wrapped_twice,
    shared_between_two,
    copies,
    other_modules,
    channels_last,
    a_backward_for_each_output,
    unused_everywhere,
    stepped_in_backward,
    sparse,
    graphs,
    frozen_later,
    changed_later,
    other_ways_to_backward,
)


def all_cases() -> dict:
    return {case.__name__: case() for case in CASES}
