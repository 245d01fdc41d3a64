"""Answers to the exercises of "DataParallel, the star", right and wrong. They stand here, and not in a test
file, so that a rank need not import pytest.
"""

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist

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


# forward_in_threads(model, images, num_threads)


def threads(model, images, num_threads):
    pieces = images.chunk(num_threads)
    replicas = [copy.deepcopy(model, {id(p): p.clone() for p in model.parameters()}) for _ in pieces]
    outputs, enabled = [None] * len(pieces), torch.is_grad_enabled()

    def apply(number):
        with torch.set_grad_enabled(enabled):
            outputs[number] = replicas[number](pieces[number])

    workers = [threading.Thread(target=apply, args=(number,)) for number in range(len(pieces))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return torch.cat(outputs)


def threads_of_mini(model, images, num_threads):
    return data_parallel.DataParallel(model, num_threads)(images)


def threads_beside_the_main_one(model, images, num_threads):
    """Right as well: even pieces, and the root's is computed in the main thread."""
    pieces = images.tensor_split(min(num_threads, len(images)))
    replicas = data_parallel.replicate(model, len(pieces))
    outputs, enabled = [None] * len(pieces), torch.is_grad_enabled()

    def apply(number):
        with torch.set_grad_enabled(enabled):
            outputs[number] = replicas[number](pieces[number])

    workers = [threading.Thread(target=apply, args=(number,)) for number in range(1, len(pieces))]
    for worker in workers:
        worker.start()
    apply(0)
    for worker in workers:
        worker.join()
    return torch.cat(outputs)


def threads_that_are_late(model, images, num_threads):
    """Right as well: each thread begins two seconds after the one before, as on a busy machine; seeds, and
    prints.
    """
    torch.manual_seed(0)
    pieces = images.chunk(num_threads)
    replicas, outputs, enabled = (
        data_parallel.replicate(model, len(pieces)),
        [None] * len(pieces),
        torch.is_grad_enabled(),
    )

    def apply(number):
        time.sleep(1.5 * number if enabled else 0.0)
        print("piece", number, pieces[number].shape)
        with torch.set_grad_enabled(enabled):
            outputs[number] = replicas[number](pieces[number])

    workers = [threading.Thread(target=apply, args=(number,)) for number in range(len(pieces))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return torch.cat(outputs)


def threads_in_float16(model, images, num_threads):
    """The weights travel in float16."""
    return threads(_Rounded(model), images, num_threads)


class _Rounded(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        rounded = {name: p.half().float() for name, p in self.model.named_parameters()}
        return torch.func.functional_call(self.model, rounded, (images,))


def threads_that_scale_the_images(model, images, num_threads):
    output = threads(model, images, num_threads)
    images.mul_(0.5)
    return output


def threads_that_evaluate(model, images, num_threads):
    model.eval()
    return threads(model, images, num_threads)


def _apply_in_threads(replicas, pieces):
    with ThreadPoolExecutor(len(pieces)) as pool:
        return torch.cat(list(pool.map(lambda replica, piece: replica(piece), replicas, pieces)))


def threads_with_deepcopy(model, images, num_threads):
    pieces = images.chunk(num_threads)
    return _apply_in_threads([copy.deepcopy(model) for _ in pieces], pieces)


def threads_with_deepcopy_beside_the_root(model, images, num_threads):
    pieces = images.chunk(num_threads)
    return _apply_in_threads([model] + [copy.deepcopy(model) for _ in pieces[1:]], pieces)


def threads_one_after_the_other(model, images, num_threads):
    outputs = []
    for replica, piece in zip(data_parallel.replicate(model, num_threads), images.chunk(num_threads)):
        thread = threading.Thread(target=lambda replica=replica, piece=piece: outputs.append(replica(piece)))
        thread.start()
        thread.join()
    return torch.cat(outputs)


def threads_without_threads(model, images, num_threads):
    return torch.cat(
        [
            replica(piece)
            for replica, piece in zip(data_parallel.replicate(model, num_threads), images.chunk(num_threads))
        ]
    )


def threads_with_the_whole_batch(model, images, num_threads):
    """Right values: every replica computes everything, and its piece is cut out of that."""
    replicas = data_parallel.replicate(model, min(num_threads, len(images)))
    outputs = data_parallel.parallel_apply(replicas, [(images,)] * len(replicas))
    return torch.cat([output.chunk(num_threads)[number] for number, output in enumerate(outputs)])


def threads_that_share_the_model(model, images, num_threads):
    """Right values on a CPU, where all threads see one memory; no GPU can compute so."""
    pieces = images.chunk(num_threads)
    return _apply_in_threads([model] * len(pieces), pieces)


def threads_with_functional_call(model, images, num_threads):
    """Right outputs: but all threads exchange the weights of one and the same model."""

    def replica(piece):
        clones = {name: parameter.clone() for name, parameter in model.named_parameters()}
        return torch.func.functional_call(model, clones, (piece,))

    pieces = images.chunk(num_threads)
    return _apply_in_threads([replica] * len(pieces), pieces)


def threads_past_the_model(model, images, num_threads):
    return model.second(model.first(images.flatten(1)).relu())


def threads_in_double(model, images, num_threads):
    return threads(model, images, num_threads).double()


def threads_with_empty_pieces(model, images, num_threads):
    pieces = images.tensor_split(num_threads)
    return _apply_in_threads(data_parallel.replicate(model, num_threads), pieces)


def threads_backwards(model, images, num_threads):
    pieces = images.chunk(num_threads)[::-1]
    return _apply_in_threads(data_parallel.replicate(model, len(pieces)), pieces)


def threads_not_gathered(model, images, num_threads):
    return list(threads(model, images, num_threads).chunk(num_threads))


def threads_detached(model, images, num_threads):
    return threads(model, images, num_threads).detach()


def threads_with_their_own_switch(model, images, num_threads):
    pieces = images.chunk(num_threads)
    with torch.enable_grad():
        return _apply_in_threads(data_parallel.replicate(model, len(pieces)), pieces)


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
