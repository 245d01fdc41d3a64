"""Answers to the exercises of "Tensor parallelism", right and wrong. They stand here, and not in a test file,
so that a rank need not import pytest.
"""

import time

import torch
import torch.distributed as dist
from by_files import by_files
from torch import nn
from torch.nn import functional as F


def stub(*arguments):
    raise NotImplementedError


def summed(tensor):
    tensor = tensor.contiguous().clone()
    dist.all_reduce(tensor)
    return tensor


def operator(forward, backward):
    """An operator from what it does in each direction."""

    class Operator(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return forward(x)

        @staticmethod
        def backward(ctx, grad):
            return backward(grad)

    return Operator.apply


def same(tensor):
    return tensor.view_as(tensor)


# f(x) and g(x)


def f(x):
    return operator(same, summed)(x)


def g(x):
    return operator(summed, same)(x)


def f_in_place(x):
    """Right as well: the gradient is nobody else's here."""

    def backward(grad):
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad

    return operator(same, backward)(x)


def f_and_zero(x):
    """Right, on a copy; and what was given is gone."""
    copy = f(x.clone())
    x.data.zero_()
    return copy


def f_identity(x):
    return x


def f_sums_forward(x):
    return operator(summed, summed)(x)


def f_averages(x):
    return operator(same, lambda grad: summed(grad) / dist.get_world_size())(x)


def g_sums_both_ways(x):
    return operator(summed, summed)(x)


def g_identity(x):
    return x


def g_mean(x):
    return operator(lambda x: summed(x) / dist.get_world_size(), same)(x)


def f_by_hook(x):
    """Right as well, without a class."""
    x = x.view_as(x)
    x.register_hook(summed)
    return x


def g_straight_through(x):
    """Right as well: the value of the sum, and the gradient of x."""
    return x + (summed(x.detach()) - x.detach())


def nothing(*arguments):
    """A `return` that was forgotten."""


def g_detached(x):
    return summed(x.detach()).requires_grad_()


def gathered(tensor):
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return parts


def g_by_all_gather(x):
    return operator(lambda x: sum(gathered(x)), same)(x)


def f_by_all_gather(x):
    return operator(same, lambda grad: sum(gathered(grad)))(x)


def g_by_reduce_and_broadcast(x):
    def forward(x):
        x = x.clone()
        dist.reduce(x, 0)
        dist.broadcast(x, 0)
        return x

    return operator(forward, same)(x)


def summed_in_the_background(tensor):
    """Never waited for."""
    tensor = tensor.contiguous().clone()
    tensor.work = dist.all_reduce(tensor, async_op=True)
    return tensor


def g_without_waiting(x):
    return operator(summed_in_the_background, same)(x)


def g_that_sleeps(x):
    """As on a busy machine: what a rank sends that is only a little late is there before anybody looks."""

    def forward(x):
        x = summed_in_the_background(x)
        time.sleep(0.5)
        return x

    return operator(forward, same)(x)


def summed_while_it_sleeps(tensor):
    tensor = summed_in_the_background(tensor)
    time.sleep(0.4)
    return tensor


def f_without_waiting(x):
    return operator(same, summed_in_the_background)(x)


def g_waits(x):
    """Right as well: in the background, and waited for. It prints what it does."""

    def forward(x):
        print("before", x)
        x = x.clone()
        work = dist.all_reduce(x, async_op=True)
        work.wait()
        print("after", x, "\n" * 2000)
        return x

    return operator(forward, same)(x)


def g_in_float32(x):
    return operator(lambda x: summed(x.float()).double(), same)(x)


def g_nothing_on_rank_0(x):
    y = g(x)
    return None if dist.get_rank() == 0 else y


# ParallelMLP(mlp)


def share(tensor, dim):
    return tensor.detach().tensor_split(dist.get_world_size(), dim)[dist.get_rank()].clone()


class ParallelMLP(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        first, _, second = mlp
        self.A, self.a = nn.Parameter(share(first.weight, 0)), nn.Parameter(share(first.bias, 0))
        self.B, self.b = nn.Parameter(share(second.weight, 1)), nn.Parameter(second.bias.detach().clone())

    def forward(self, x):
        return g(F.gelu(F.linear(f(x), self.A, self.a)) @ self.B.T) + self.b


class BiasOnRank0(ParallelMLP):
    """Right as well: one rank adds the bias before g."""

    def forward(self, x):
        y = F.gelu(F.linear(f(x), self.A, self.a)) @ self.B.T
        return g(y + self.b if dist.get_rank() == 0 else y)


def of_mini(mlp):
    from course_lib.mini import tensor_parallel

    return nn.Sequential(
        tensor_parallel.ColumnParallelLinear(mlp[0]), nn.GELU(), tensor_parallel.RowParallelLinear(mlp[2])
    )


class GathersHidden(ParallelMLP):
    """Both weights by columns: the hidden layer and the output are put together on every rank."""

    def __init__(self, mlp):
        super().__init__(mlp)
        self.B, self.b = nn.Parameter(share(mlp[2].weight, 0)), nn.Parameter(share(mlp[2].bias, 0))

    def forward(self, x):
        rank, n = dist.get_rank(), dist.get_world_size()

        def gather(x):
            return torch.cat(gathered(x), dim=-1)

        hidden = operator(gather, lambda grad: summed(grad).chunk(n, -1)[rank])(
            F.gelu(F.linear(f(x), self.A, self.a))
        )
        return operator(gather, lambda grad: grad.chunk(n, -1)[rank])(F.linear(hidden, self.B, self.b))


class GathersHiddenByAllReduce(ParallelMLP):
    """The hidden layer travels in an all_reduce of tensors that are zero but for this rank's part. Two
    all_reduces, and far too many bytes.
    """

    def forward(self, x):
        rank, n = dist.get_rank(), dist.get_world_size()

        def place(part):
            return F.pad(part, (rank * part.shape[-1], (n - 1 - rank) * part.shape[-1]))

        hidden = operator(lambda part: summed(place(part)), lambda grad: grad.chunk(n, -1)[rank])(
            F.gelu(F.linear(f(x), self.A, self.a))
        )
        return g(hidden.chunk(n, -1)[rank] @ self.B.T) + self.b


class WeightsOnEveryRank(nn.Module):
    """Right values and right communication; but every rank holds everything."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        rank, n = dist.get_rank(), dist.get_world_size()
        first, _, second = self.mlp
        hidden = F.gelu(F.linear(f(x), first.weight.chunk(n)[rank], first.bias.chunk(n)[rank]))
        return g(hidden @ second.weight.chunk(n, 1)[rank].T) + second.bias


class NotParallel(nn.Module):
    """Every rank computes everything: right values, and nothing is gained."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        return self.mlp(x)


class Views(ParallelMLP):
    def __init__(self, mlp):
        super().__init__(mlp)
        n, rank = dist.get_world_size(), dist.get_rank()
        self.A, self.a = (
            nn.Parameter(mlp[0].weight.detach().chunk(n)[rank]),
            nn.Parameter(mlp[0].bias.detach().chunk(n)[rank]),
        )
        self.B = nn.Parameter(mlp[2].weight.detach().chunk(n, 1)[rank])


class KeepsTheWhole(ParallelMLP):
    """The slices are small, and the whole model hides in a list, where `parameters()` does not look."""

    def __init__(self, mlp):
        super().__init__(mlp)
        self.saved = [mlp]


class KeepsACopy(ParallelMLP):
    """The same with a copy, in a buffer."""

    def __init__(self, mlp):
        super().__init__(mlp)
        self.register_buffer("saved", mlp[0].weight.detach().clone(), persistent=False)


class KeepsACopyInHalf(ParallelMLP):
    """The same, in half precision: as many numbers, and a quarter of the bytes."""

    def __init__(self, mlp):
        super().__init__(mlp)
        self.register_buffer("saved", mlp[0].weight.detach().half(), persistent=False)


class CutInPlace(nn.Module):
    """Right as well: the given layers are made small."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp, (first, _, second) = mlp, mlp
        first.weight, first.bias, second.weight = (
            nn.Parameter(share(p, dim)) for p, dim in ((first.weight, 0), (first.bias, 0), (second.weight, 1))
        )

    def forward(self, x):
        first, gelu, second = self.mlp
        return g(gelu(first(f(x))) @ second.weight.T) + second.bias


class GathersWeights(ParallelMLP):
    """Right values, and 1/n of the weights between the steps; but whole weights travel, as in ZeRO."""

    def forward(self, x):
        rank, n = dist.get_rank(), dist.get_world_size()

        def whole(part, dim):
            return operator(
                lambda part: torch.cat(gathered(part), dim),
                lambda grad: grad.chunk(n, dim)[rank].contiguous(),
            )(part)

        return F.linear(F.gelu(F.linear(x, whole(self.A, 0), whole(self.a, 0))), whole(self.B, 1), self.b)


class ReturnsNothing(ParallelMLP):
    def forward(self, x):
        super().forward(x)


class NoF(ParallelMLP):
    def forward(self, x):
        return g(F.gelu(F.linear(x, self.A, self.a)) @ self.B.T) + self.b


class BiasOnEveryRank(ParallelMLP):
    def forward(self, x):
        return g(F.linear(F.gelu(F.linear(f(x), self.A, self.a)), self.B, self.b))


class SharedBias(ParallelMLP):
    """Each rank adds 1/n of the bias: the right output, and a gradient that is 1/n of what it should be."""

    def forward(self, x):
        return g(F.linear(F.gelu(F.linear(f(x), self.A, self.a)), self.B, self.b / dist.get_world_size()))


class WrongCut(ParallelMLP):
    """The first weight by rows of the matrix that torch stores in the other direction."""

    def __init__(self, mlp):
        super().__init__(mlp)
        n, rank = dist.get_world_size(), dist.get_rank()
        self.A = nn.Parameter(
            mlp[0].weight.detach().flatten().chunk(n)[(rank + 1) % n].view_as(self.A).clone()
        )


class NoParameters(ParallelMLP):
    def __init__(self, mlp):
        super().__init__(mlp)
        tensors = {name: p.detach().requires_grad_() for name, p in self.named_parameters()}
        self._parameters.clear()
        for name, tensor in tensors.items():
            setattr(self, name, tensor)


class OfNewLayers(nn.Module):
    """Right as well: new layers, which draw random numbers, and a seed per rank."""

    def __init__(self, mlp):
        super().__init__()
        torch.manual_seed(100 + dist.get_rank())
        n, (first, _, second) = dist.get_world_size(), mlp
        self.first = nn.Linear(first.in_features, first.out_features // n)
        self.second = nn.Linear(second.in_features // n, second.out_features, bias=False)
        self.bias = nn.Parameter(second.bias.detach().clone())
        with torch.no_grad():
            for p, whole, dim in (
                (self.first.weight, first.weight, 0),
                (self.first.bias, first.bias, 0),
                (self.second.weight, second.weight, 1),
            ):
                p.copy_(share(whole, dim))

    def forward(self, x):
        return g(self.second(F.gelu(self.first(f(x))))) + self.bias


class SleepsInForward(ParallelMLP):
    """The sum is not waited for: while all ranks are in step, it happens to be there."""

    def forward(self, x):
        y = F.gelu(F.linear(f(x), self.A, self.a)) @ self.B.T
        return operator(summed_while_it_sleeps, same)(y) + self.b


class SleepsInBackward(ParallelMLP):
    def forward(self, x):
        x = operator(same, summed_while_it_sleeps)(x)
        return g(F.gelu(F.linear(x, self.A, self.a)) @ self.B.T) + self.b


class KeepsNumpy(ParallelMLP):
    """The whole weights stay, where torch does not see them."""

    def __init__(self, mlp):
        super().__init__(mlp)
        self.saved = [p.detach().numpy().copy() for p in mlp.parameters()]


class InFloat32(ParallelMLP):
    def forward(self, x):
        return g_in_float32(F.gelu(F.linear(f(x), self.A, self.a)) @ self.B.T) + self.b


class NoModuleOnRank1:
    def __new__(cls, mlp):
        return ParallelMLP(mlp) if dist.get_rank() != 1 else None


# vocabulary_loss(logits, targets)


def own_part(logits, targets):
    """Which targets are in this rank's part of the vocabulary, and where; 0 for those that are not."""
    width = logits.shape[1]
    local = targets - dist.get_rank() * width
    mine = (local >= 0) & (local < width)
    return mine, local.where(mine, 0)


def largest_logit(logits):
    largest = logits.detach().amax(1)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def target_logit(logits, targets):
    mine, local = own_part(logits, targets)
    return logits.gather(1, local[:, None])[:, 0] * mine


def loss(logits, targets):
    logits = logits - largest_logit(logits)[:, None]
    return (g(logits.exp().sum(1)).log() - g(target_logit(logits, targets))).mean()


def loss_by_logsumexp(logits, targets):
    """Right as well, and in fewer numbers: each rank's own log-sum-exp is gathered."""
    own = logits.logsumexp(1)
    total = torch.stack(gathered(own.detach())).logsumexp(0)
    part = (own.detach() - total).exp()  # of the sum of exponentials
    return (total + part * (own - own.detach()) - g(target_logit(logits, targets))).mean()


def loss_by_gathered_numbers(logits, targets):
    """Right values by a wasteful way: three numbers per token of every rank to every rank."""
    largest = logits.detach().amax(1)
    mine = torch.stack([(logits - largest[:, None]).exp().sum(1), target_logit(logits, targets)])
    largest, sums, found = operator(
        lambda part: torch.stack(gathered(part), 1), lambda grad: grad[:, dist.get_rank()]
    )(torch.cat([largest[None], mine]))
    top = largest.detach().amax(0)
    return ((sums * (largest.detach() - top).exp()).sum(0).log() + top - found.sum(0)).mean()


def loss_without_first_token(logits, targets):
    """Off by one: the first token of each part belongs to nobody."""
    logits = logits - largest_logit(logits)[:, None]
    local = targets - dist.get_rank() * logits.shape[1]
    mine = (local > 0) & (local < logits.shape[1])
    return (
        g(logits.exp().sum(1)).log() - g(logits.gather(1, local.where(mine, 0)[:, None])[:, 0] * mine)
    ).mean()


def loss_with_next_token(logits, targets):
    """Off by one: the first token of the next part counts twice."""
    logits = logits - largest_logit(logits)[:, None]
    local, last = targets - dist.get_rank() * logits.shape[1], logits.shape[1] - 1
    mine = (local >= 0) & (local <= last + 1)
    return (
        g(logits.exp().sum(1)).log() - g(logits.gather(1, local.clamp(0, last)[:, None])[:, 0] * mine)
    ).mean()


def loss_in_a_row(logits, targets):
    """Right as well: one number in a tensor of shape [1], and a seed."""
    torch.manual_seed(dist.get_rank())
    return loss(logits, targets)[None]


def loss_that_sleeps(logits, targets):
    """Two of three sums are not waited for: while all ranks are in step, they happen to be there."""
    total = operator(summed_while_it_sleeps, same)
    logits = logits - largest_logit(logits)[:, None]
    return (total(logits.exp().sum(1)).log() - total(target_logit(logits, targets))).mean()


def loss_that_sleeps_at_the_end(logits, targets):
    logits = logits - largest_logit(logits)[:, None]
    total = g(logits.exp().sum(1))
    return (total.log() - operator(summed_while_it_sleeps, same)(target_logit(logits, targets))).mean()


def loss_that_changes_logits(logits, targets):
    largest = largest_logit(logits)
    with torch.no_grad():
        logits -= largest[:, None]
    return (g(logits.exp().sum(1)).log() - g(target_logit(logits, targets))).mean()


def loss_that_changes_targets(logits, targets):
    value = loss(logits, targets)
    targets -= dist.get_rank() * logits.shape[1]
    return value


def loss_with_one_maximum(logits, targets):
    """One number for all tokens."""
    largest = logits.detach().max()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    logits = logits - largest
    return (g(logits.exp().sum(1)).log() - g(target_logit(logits, targets))).mean()


def loss_masked_with_infinity(logits, targets):
    logits = logits - largest_logit(logits)[:, None]
    mine, local = own_part(logits, targets)
    return (
        g(logits.exp().sum(1)).log()
        - g(logits.gather(1, local[:, None])[:, 0].masked_fill(~mine, -float("inf")))
    ).mean()


def loss_masked_by_a_logarithm(logits, targets):
    """Adds log(1) where the target is, and log(0) elsewhere."""
    logits = logits - largest_logit(logits)[:, None]
    mine, local = own_part(logits, targets)
    return (
        g(logits.exp().sum(1)).log() - g(logits.gather(1, local[:, None])[:, 0] + mine.to(logits.dtype).log())
    ).mean()


def loss_in_float32(logits, targets):
    return loss(logits.float(), targets).double()


def loss_nothing_on_rank_1(logits, targets):
    value = loss(logits, targets)
    return None if dist.get_rank() == 1 else value


def loss_per_token(logits, targets):
    logits = logits - largest_logit(logits)[:, None]
    return g(logits.exp().sum(1)).log() - g(target_logit(logits, targets))


def loss_as_number(logits, targets):
    return loss(logits, targets).item()


def loss_detached(logits, targets):
    return loss(logits, targets).detach()


def loss_of_mini(logits, targets):
    from course_lib.mini import tensor_parallel

    return tensor_parallel.vocab_parallel_cross_entropy(logits, targets)


def loss_gathered(logits, targets):
    n, rank = dist.get_world_size(), dist.get_rank()
    full = operator(lambda part: torch.cat(gathered(part), 1), lambda grad: grad.chunk(n, 1)[rank])(logits)
    return F.cross_entropy(full, targets)


def loss_below_torch_distributed(logits, targets):
    """Right values: all logits are gathered, by the object that torch.distributed itself asks."""
    backend, mine = dist.group.WORLD._get_backend(torch.device("cpu")), logits.detach().contiguous()
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    backend.allgather([parts], [mine]).wait()
    parts[dist.get_rank()] = logits
    return F.cross_entropy(torch.cat(parts, 1), targets)


def loss_without_maximum(logits, targets):
    return (g(logits.exp().sum(1)).log() - g(target_logit(logits, targets))).mean()


def loss_own_maximum(logits, targets):
    logits = logits - logits.detach().amax(1)[:, None]
    return (g(logits.exp().sum(1)).log() - g(target_logit(logits, targets))).mean()


def loss_summed_both_ways(logits, targets):
    logits = logits - largest_logit(logits)[:, None]
    return (
        g_sums_both_ways(logits.exp().sum(1)).log() - g_sums_both_ways(target_logit(logits, targets))
    ).mean()


def loss_of_own_part(logits, targets):
    mine, local = own_part(logits, targets)
    return F.cross_entropy(logits, local)


def loss_sum(logits, targets):
    return loss(logits, targets) * len(targets)


def loss_exact_but_padded(logits, targets):
    """Right values; the target's logit travels as a tensor that is as wide as the vocabulary."""
    logits = logits - largest_logit(logits)[:, None]
    n, rank, width = dist.get_world_size(), dist.get_rank(), logits.shape[1]
    full = g(F.pad(logits, (rank * width, (n - 1 - rank) * width)))
    return (g(logits.exp().sum(1)).log() - full.gather(1, targets[:, None])[:, 0]).mean()


# product_in_pieces(pieces, multiply, pass_right): `pieces` are this rank's features of each rank's tokens


def sums_that_travel(pieces, multiply, pass_right):
    n, rank = dist.get_world_size(), dist.get_rank()
    total = multiply(pieces[rank - 1])
    for step in range(2, n + 1):
        arrived = pass_right(total)
        addend = multiply(pieces[rank - step])
        total = arrived() + addend
    return total


def sums_one_ahead(pieces, multiply, pass_right):
    """Two products before the first message: nothing is left for the last one to travel under."""
    n, rank = dist.get_world_size(), dist.get_rank()
    order = [pieces[(rank - step) % n] for step in range(1, n + 1)]
    total, *ahead = multiply(order[0]), multiply(order[1])
    for piece in (*order[2:], None):
        arrived = pass_right(total)
        if piece is not None:
            ahead.append(multiply(piece))
        total = arrived()
        total += ahead.pop(0)
    return total


def sums_in_place(pieces, multiply, pass_right):
    """Right as well: by recursion, and sums are made in what has arrived. It prints what it does."""
    rank = dist.get_rank()

    def total_after(step):
        if step == 1:
            return multiply(pieces[rank - 1])
        arrived, addend = pass_right(total_after(step - 1)), multiply(pieces[rank - step])
        print("step", step, addend, "\n" * 500)
        total = arrived()
        total += addend
        return total

    return total_after(len(pieces))


def sums_in_halves(pieces, multiply, pass_right):
    """Right as well: half a piece at a time, in two messages that follow each other."""
    halves = [[half[: len(half) // 2] for half in pieces], [half[len(half) // 2 :] for half in pieces]]
    n, rank = dist.get_world_size(), dist.get_rank()
    totals = [multiply(part[rank - 1]) for part in halves]
    for step in range(2, n + 1):
        arrivals = [pass_right(total) for total in totals]
        addends = [multiply(part[rank - step]) for part in halves]
        totals = [arrived() + addend for arrived, addend in zip(arrivals, addends)]
    return torch.cat(totals)


def sums_of_mini(pieces, multiply, pass_right):
    """The library's, through the check's own multiply and pass_right."""
    from unittest import mock

    from course_lib.mini.tensor_parallel import pieces as library

    with mock.patch.object(library, "pass_right", lambda total, group: pass_right(total)):
        return library.multiply_while_scattering(torch.cat(pieces), multiply)


def products_first(pieces, multiply, pass_right):
    n, rank = dist.get_world_size(), dist.get_rank()
    products = [multiply(piece) for piece in pieces]
    total = products[rank - 1]
    for step in range(2, n + 1):
        total = pass_right(total)() + products[rank - step]
    return total


def product_in_one(pieces, multiply, pass_right):
    """The same in one large product."""
    products = multiply(torch.cat(pieces)).chunk(len(pieces))
    n, rank = dist.get_world_size(), dist.get_rank()
    total = products[rank - 1]
    for step in range(2, n + 1):
        total = pass_right(total)() + products[rank - step]
    return total


def waits_at_once(pieces, multiply, pass_right):
    n, rank = dist.get_world_size(), dist.get_rank()
    total = multiply(pieces[rank - 1])
    for step in range(2, n + 1):
        received = pass_right(total)()
        total = received + multiply(pieces[rank - step])
    return total


def multiplies_twice(pieces, multiply, pass_right):
    multiply(pieces[0])
    return sums_that_travel(pieces, multiply, pass_right)


def begins_with_its_own(pieces, multiply, pass_right):
    """All the way round, but from the wrong piece on: the sum of the neighbour's tokens."""
    rank = dist.get_rank()
    return sums_that_travel(pieces[rank + 1 :] + pieces[: rank + 1], multiply, pass_right)


def sums_of_the_neighbour(pieces, multiply, pass_right):
    return sums_that_travel(pieces[1:] + pieces[:1], multiply, pass_right)


def own_addend(pieces, multiply, pass_right):
    return multiply(pieces[dist.get_rank()])


def changes_what_travels(pieces, multiply, pass_right):
    n, rank = dist.get_world_size(), dist.get_rank()
    total = multiply(pieces[rank - 1])
    for step in range(2, n + 1):
        arrived = pass_right(total)
        total.copy_(multiply(pieces[rank - step]))
        total = arrived() + total
    return total


def changes_pieces(pieces, multiply, pass_right):
    total = sums_that_travel(pieces, multiply, pass_right)
    pieces[0].zero_()
    return total


def sums_by_all_reduce(pieces, multiply, pass_right):
    total = multiply(torch.cat(pieces))
    dist.all_reduce(total)
    return total.chunk(len(pieces))[dist.get_rank()]


def sums_by_files(pieces, multiply, pass_right):
    addends = [multiply(piece) for piece in pieces]
    return sum(parts.chunk(len(pieces))[dist.get_rank()] for parts in by_files(torch.cat(addends)))


def sums_in_float32(pieces, multiply, pass_right):
    return sums_that_travel(pieces, lambda piece: multiply(piece).float(), pass_right).double()


def passes_on_everything(pieces, multiply, pass_right):
    """Right values; whole tensors travel where sums of one piece would do."""
    n, rank = dist.get_world_size(), dist.get_rank()
    total = sending = torch.stack([multiply(piece) for piece in pieces])
    for _ in range(n - 1):
        sending = pass_right(sending)()
        total = total + sending
    return total[rank]
