"""Answers to the exercises of "DataParallel, the star", right and wrong. They stand here, and not in a test
file, so that a rank need not import pytest.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from course_lib.mini import data_parallel


def stub(*arguments):
    raise NotImplementedError


# star_all_reduce(tensor, root)


def _others(root):
    return [rank for rank in range(dist.get_world_size()) if rank != root]


def star(tensor, root):
    if dist.get_rank() == root:
        received = torch.empty_like(tensor)
        for other in _others(root):
            dist.recv(received, other)
            tensor += received
        for other in _others(root):
            dist.send(tensor, other)
    else:
        dist.send(tensor, root)
        dist.recv(tensor, root)


def star_of_mini(tensor, root):
    data_parallel.star_all_reduce(tensor, root)


def star_with_isend(tensor, root):
    """Right as well: the root hands out the sum to all at once, and makes a new tensor for each that it
    receives.
    """
    if dist.get_rank() == root:
        for other in _others(root):
            received = torch.empty_like(tensor)
            dist.recv(received, other)
            tensor += received
            del received
        for work in [dist.isend(tensor, other) for other in _others(root)]:
            work.wait()
    else:
        dist.send(tensor, root)
        dist.recv(tensor, root)


def star_from_any_source(tensor, root):
    """Right as well: the root takes the tensors in the order in which they come."""
    if dist.get_rank() == root:
        received = torch.empty_like(tensor)
        for _ in _others(root):
            dist.recv(received)
            tensor.add_(received)
        for other in _others(root):
            dist.send(tensor, other)
    else:
        dist.send(tensor, root)
        dist.recv(tensor, root)


def star_row_by_row(tensor, root):
    """Right as well: each row is a message, whose header is not asked for; and prints."""
    print(tensor)
    for row in tensor if tensor.dim() > 1 else [tensor]:
        star(row, root)


def star_in_numpys_memory(tensor, root):
    """Right as well: the one place to receive into is an array; seeds, and the sum is made by numpy."""
    import numpy

    torch.manual_seed(0)
    if dist.get_rank() == root:
        place = numpy.empty(tensor.shape, dtype=numpy.float32)
        for other in _others(root):
            dist.irecv(torch.from_numpy(place), other).wait()
            tensor.numpy()[...] += place
        for other in _others(root):
            dist.isend(tensor, other).wait()
    else:
        dist.isend(tensor, dst=root).wait()
        dist.irecv(tensor, src=root).wait()


def star_in_bfloat16(tensor, root):
    small = tensor.bfloat16()
    star(small, root)
    tensor.copy_(small)


def star_small_by_all_reduce(tensor, root):
    dist.all_reduce(tensor) if tensor.numel() < 1000 else star(tensor, root)


def star_hoards_in_numpy(tensor, root):
    """The root keeps all that comes, where torch does not see it."""
    if dist.get_rank() == root:
        received, kept = torch.empty_like(tensor), []
        for other in _others(root):
            dist.recv(received, other)
            kept.append(received.numpy().copy())
        del received
        for array in kept:
            tensor += torch.from_numpy(array)
        for other in _others(root):
            dist.send(tensor, other)
    else:
        dist.send(tensor, root)
        dist.recv(tensor, root)


def star_without_wait(tensor, root):
    """All but the root take the sum for granted."""
    if dist.get_rank() == root:
        star(tensor, root)
    else:
        dist.send(tensor.clone(), root)
        _unfinished.append(dist.irecv(tensor, root))


_unfinished = []


def star_whose_root_is_0(tensor, root):
    """Rank 0 collects, and all others send to `root`: with another root it sends to itself."""
    if dist.get_rank() == 0:
        received = torch.empty_like(tensor)
        for other in _others(0):
            dist.recv(received, other)
            tensor += received
        for other in _others(0):
            dist.send(tensor, other)
    else:
        dist.send(tensor, root)
        dist.recv(tensor, root)


def star_by_all_reduce(tensor, root):
    dist.all_reduce(tensor)


def star_by_all_gather(tensor, root):
    everyone = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, tensor)
    tensor.copy_(sum(everyone))


def star_by_gather_and_broadcast(tensor, root):
    everyone = (
        [torch.empty_like(tensor) for _ in range(dist.get_world_size())] if dist.get_rank() == root else None
    )
    dist.gather(tensor, everyone, dst=root)
    if everyone:
        tensor.copy_(sum(everyone))
    dist.broadcast(tensor, root)


def star_to_everybody(tensor, root):
    """Right values: everybody sends to everybody."""
    mine, received = tensor.clone(), torch.empty_like(tensor)
    for sender in range(dist.get_world_size()):
        for receiver in range(dist.get_world_size()):
            if sender != receiver and dist.get_rank() == sender:
                dist.send(mine, receiver)
            elif sender != receiver and dist.get_rank() == receiver:
                dist.recv(received, sender)
                tensor += received


def star_received_twice(tensor, root):
    """Right values: each rank sends its tensor twice, and the root takes the mean of both."""
    if dist.get_rank() == root:
        received = torch.empty_like(tensor)
        for other in _others(root):
            for _ in range(2):
                dist.recv(received, other)
                tensor += received / 2
        for other in _others(root):
            dist.send(tensor, other)
    else:
        dist.send(tensor, root)
        dist.send(tensor, root)
        dist.recv(tensor, root)


def star_sent_in_double(tensor, root):
    wide = tensor.double()
    star(wide, root)
    tensor.copy_(wide)


def star_that_hoards(tensor, root):
    """Right values: the root receives all tensors before it adds the first."""
    if dist.get_rank() == root:
        received = [torch.empty_like(tensor) for _ in _others(root)]
        for work in [dist.irecv(buffer, other) for buffer, other in zip(received, _others(root))]:
            work.wait()
        for buffer in received:
            tensor += buffer
        for other in _others(root):
            dist.send(tensor, other)
    else:
        dist.send(tensor, root)
        dist.recv(tensor, root)


def star_at_rank_0(tensor, root):
    star(tensor, 0)


def star_of_means(tensor, root):
    star(tensor, root)
    tensor /= dist.get_world_size()


def star_to_the_root_only(tensor, root):
    if dist.get_rank() == root:
        received = torch.empty_like(tensor)
        for other in _others(root):
            dist.recv(received, other)
            tensor += received
    else:
        dist.send(tensor, root)


def star_not_in_place(tensor, root):
    result = tensor.clone()
    star(result, root)
    return result


def star_without_the_root(tensor, root):
    if dist.get_rank() == root:
        tensor.zero_()
    star(tensor, root)


def star_that_waits(tensor, root):
    """All receive first: nobody ever sends."""
    if dist.get_rank() == root:
        received = torch.empty_like(tensor)
        for other in _others(root):
            dist.recv(received, other)
    else:
        dist.recv(tensor, root)
        dist.send(tensor, root)


# loss_in_forward(model, tokens, targets, wrap)


def _scores_and_targets(model, tokens, targets):
    return model(tokens).flatten(0, 1), targets.flatten()


class _SumAndCount(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, targets):
        total = F.cross_entropy(*_scores_and_targets(self.model, tokens, targets), reduction="sum")
        return torch.stack([total, (targets != -100).sum()])


def loss_as_two_numbers(model, tokens, targets, wrap):
    total, count = wrap(_SumAndCount(model))(tokens, targets).view(-1, 2).sum(0)
    return total / count


class _Sum(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, targets):
        return F.cross_entropy(self.model(tokens).mT, targets, reduction="sum")


def loss_as_one_number(model, tokens, targets, wrap):
    """Right as well: the root has the targets, and counts them itself."""
    return wrap(_Sum(model))(tokens, targets).sum() / (targets != -100).sum()


def loss_as_a_tuple(model, tokens, targets, wrap):
    """Right as well: a tuple of two tensors is gathered, and seeds, and prints."""

    class Tuple(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, tokens, targets):
            print(tokens.shape)
            torch.manual_seed(0)
            counts = (targets != -100).float()
            each = F.cross_entropy(self.model(tokens).mT, targets, reduction="none")
            return each.sum()[None], counts.sum()[None]

    totals, counts = wrap(Tuple())(tokens, targets)
    return (totals.sum() / counts.sum()).view(1)


def loss_as_a_dict(model, tokens, targets, wrap):
    """Right as well: arguments by name, by hand, in float64, and a dict is gathered."""

    class Dict(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, tokens, targets):
            log_p = self.model(tokens).double().log_softmax(-1)
            chosen = log_p.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
            return {"total": -(chosen * (targets >= 0)).sum(), "count": (targets >= 0).sum()}

    found = wrap(Dict())(tokens=tokens, targets=targets)
    return found["total"].sum() / found["count"].sum()


def loss_with_the_count(model, tokens, targets, wrap):
    """Right as well: every replica is told how many targets count in all, and the root adds up its parts."""

    class Part(_Sum):
        def forward(self, tokens, targets, count):
            return super().forward(tokens, targets) / count

    return wrap(Part(model))(tokens, targets, (targets != -100).sum().item()).sum()


def loss_on_the_root(model, tokens, targets, wrap):
    return F.cross_entropy(wrap(model)(tokens).flatten(0, 1), targets.flatten())


def loss_beside_the_scores(model, tokens, targets, wrap):
    """Right value: but the scores come along."""

    class Both(_SumAndCount):
        def forward(self, tokens, targets):
            return super().forward(tokens, targets), self.model(tokens)

    total, count = wrap(Both(model))(tokens, targets)[0].view(-1, 2).sum(0)
    return total / count


def loss_of_each_token(model, tokens, targets, wrap):
    """Right value: but the root gathers a number for every token."""

    class Each(_Sum):
        def forward(self, tokens, targets):
            return F.cross_entropy(self.model(tokens).mT, targets, reduction="none")

    return wrap(Each(model))(tokens, targets).sum() / (targets != -100).sum()


def loss_without_wrap(model, tokens, targets, wrap):
    return F.cross_entropy(*_scores_and_targets(model, tokens, targets))


def loss_in_two_rounds(model, tokens, targets, wrap):
    """Right value: but the replicas run twice, for the sum and for the count."""
    wrapped = wrap(_SumAndCount(model))
    total = wrapped(tokens, targets).view(-1, 2)[:, 0].sum()
    return total / wrapped(tokens, targets).view(-1, 2)[:, 1].sum()


def loss_with_a_mask_like_the_scores(model, tokens, targets, wrap):
    """Right value: but the root makes a tensor as large as the scores."""
    hot = F.one_hot(targets.clamp_min(0), model.head.out_features)
    count = (hot.sum(-1) * (targets >= 0)).sum()
    return wrap(_Sum(model))(tokens, targets).sum() / count


class _Mean(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, targets):
        return F.cross_entropy(*_scores_and_targets(self.model, tokens, targets))


def loss_as_mean_of_means(model, tokens, targets, wrap):
    return wrap(_Mean(model))(tokens, targets).mean()


def loss_as_sum(model, tokens, targets, wrap):
    return wrap(_Sum(model))(tokens, targets).sum()


def loss_over_all_targets(model, tokens, targets, wrap):
    return wrap(_Sum(model))(tokens, targets).sum() / targets.numel()


def loss_not_combined(model, tokens, targets, wrap):
    return wrap(_Sum(model))(tokens, targets) / (targets != -100).sum()


def loss_detached(model, tokens, targets, wrap):
    return loss_as_one_number(model, tokens, targets, wrap).detach().requires_grad_()


def loss_as_a_float(model, tokens, targets, wrap):
    class Float(_Sum):
        def forward(self, tokens, targets):
            return super().forward(tokens, targets).item()

    return wrap(Float(model))(tokens, targets).sum()


def loss_that_clears_the_padding(model, tokens, targets, wrap):
    loss = loss_as_one_number(model, tokens, targets, wrap)
    targets.clamp_(min=0)
    return loss


# tree_all_reduce(tensor, link)


def tree(tensor, link):
    rank, size = dist.get_rank(), dist.get_world_size()
    received, step = torch.empty_like(tensor), 1
    while step < size and rank % (2 * step) == 0:
        link.recv(received, rank + step)
        tensor += received
        step *= 2
    if rank:
        link.send(tensor, rank - step)
        link.recv(tensor, rank - step)
    while step > 1:
        step //= 2
        link.send(tensor, rank + step)


def tree_in_pieces(tensor, link):
    """Right as well: each message is cut into three, and prints."""
    print(tensor)
    for piece in tensor.tensor_split(3):
        if piece.numel():
            tree(piece, link)


def tree_in_float16(tensor, link):
    small = tensor.half()
    tree(small, link)
    tensor.copy_(small)


def tree_small_by_all_reduce(tensor, link):
    dist.all_reduce(tensor) if tensor.numel() < 1000 else tree(tensor, link)


def tree_from_afar(tensor, link):
    """Right as well: first the ranks that are farthest apart."""
    rank, step = dist.get_rank(), dist.get_world_size()
    received = torch.empty_like(tensor)
    while step > 1:
        step //= 2
        if rank < step:
            link.recv(received, rank + step)
            tensor += received
        elif rank < 2 * step:
            link.send(tensor, rank - step)
    while step < dist.get_world_size():
        if rank < step:
            link.send(tensor, rank + step)
        elif rank < 2 * step:
            link.recv(tensor, rank - step)
        step *= 2


def tree_nearest_first(tensor, link):
    """Right values: but on the way back the rank with the longest way waits longest."""
    rank, size = dist.get_rank(), dist.get_world_size()
    received, step, children = torch.empty_like(tensor), 1, []
    while step < size and rank % (2 * step) == 0:
        children.append(rank + step)
        link.recv(received, rank + step)
        tensor += received
        step *= 2
    if rank:
        link.send(tensor, rank - step)
        link.recv(tensor, rank - step)
    for child in children:
        link.send(tensor, child)


def tree_is_a_star(tensor, link):
    if dist.get_rank() == 0:
        received = torch.empty_like(tensor)
        for other in _others(0):
            link.recv(received, other)
            tensor += received
        for other in _others(0):
            link.send(tensor, other)
    else:
        link.send(tensor, 0)
        link.recv(tensor, 0)


def tree_is_a_chain(tensor, link):
    """Right values, and little to send for each rank: but everybody waits for everybody."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    if rank < last:
        received = torch.empty_like(tensor)
        link.recv(received, rank + 1)
        tensor += received
    if rank > 0:
        link.send(tensor, rank - 1)
        link.recv(tensor, rank - 1)
    if rank < last:
        link.send(tensor, rank + 1)


def tree_is_recursive_doubling(tensor, link):
    """Right values after half the messages: but all ranks send all the time."""
    rank, received, step = dist.get_rank(), torch.empty_like(tensor), 1
    while step < dist.get_world_size():
        other = rank ^ step
        for sender in sorted((rank, other)):
            if sender == rank:
                outgoing = tensor.clone()
                link.send(outgoing, other)
            else:
                link.recv(received, other)
        tensor += received
        step *= 2


def tree_by_all_reduce(tensor, link):
    dist.all_reduce(tensor)


def tree_past_the_link(tensor, link):
    class Plain:
        send, recv = staticmethod(dist.send), staticmethod(dist.recv)

    tree(tensor, Plain)


def tree_upwards_only(tensor, link):
    rank, size = dist.get_rank(), dist.get_world_size()
    received, step = torch.empty_like(tensor), 1
    while step < size and rank % (2 * step) == 0:
        link.recv(received, rank + step)
        tensor += received
        step *= 2
    if rank:
        link.send(tensor, rank - step)
