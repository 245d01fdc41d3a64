"""Answers to the exercises of "Distributed data parallel", right and wrong. They stand here, and not in a
test file, so that a rank need not import pytest.
"""

import hashlib
import zlib
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from course_lib import mini


def stub(*arguments):
    raise NotImplementedError


# make_ddp(module)


class OwnDDP(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module, self.sync = module, True
        self.start()
        for p in module.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(self.average)

    def start(self):
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            dist.broadcast(tensor.detach(), src=0)

    def average(self, p):
        if self.sync:
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()

    def forward(self, *inputs):
        return self.module(*inputs)

    @contextmanager
    def no_sync(self):
        self.sync = False
        yield
        self.sync = True


class PrintsAndCounts(OwnDDP):
    """Right as well: all in one message, sent by the hook of the gradient that comes last. And it prints what
    it does, as one does who looks for a mistake.
    """

    def __init__(self, module):
        super().__init__(module)
        torch.manual_seed(7)  # whatever it is good for
        self.learning = [p for p in module.parameters() if p.requires_grad]
        self.missing = len(self.learning)

    def average(self, p):
        print("gradient", tuple(p.shape), self.sync, p.grad)
        if self.sync:
            self.missing -= 1
            if not self.missing:
                flat = torch.cat([q.grad.flatten() for q in self.learning])
                dist.all_reduce(flat)
                for q, part in zip(
                    self.learning, (flat / dist.get_world_size()).split([q.numel() for q in self.learning])
                ):
                    q.grad = part.view_as(q)
                self.missing = len(self.learning)


def torchs_ddp(module):
    return DistributedDataParallel(module)


def minis_ddp(module):
    return mini.ddp.DistributedDataParallel(module)


class Untouched(nn.Module):
    def __init__(self, module):
        super().__init__()
        raise NotImplementedError


class SyncsEveryMicroBatch(OwnDDP):
    @contextmanager
    def no_sync(self):
        yield


class AveragesWeights(OwnDDP):
    """The hook gets the parameter, and takes it for the gradient."""

    def average(self, p):
        if self.sync:
            dist.all_reduce(p.data)
            p.data /= dist.get_world_size()


class AveragesWeightsInForward(OwnDDP):
    """Equals averaged gradients for plain SGD."""

    def average(self, p):
        pass

    def forward(self, *inputs):
        if self.sync:
            for p in self.module.parameters():
                if p.requires_grad:
                    dist.all_reduce(p.data)
                    p.data /= dist.get_world_size()
        return self.module(*inputs)


class GathersGradients(OwnDDP):
    def average(self, p):
        if self.sync:
            grads = [torch.empty_like(p.grad) for _ in range(dist.get_world_size())]
            dist.all_gather(grads, p.grad)
            p.grad.copy_(sum(grads) / len(grads))


class Sums(OwnDDP):
    def average(self, p):
        if self.sync:
            dist.all_reduce(p.grad)


class DividesTwice(OwnDDP):
    def average(self, p):
        if self.sync:
            p.grad /= dist.get_world_size()
            super().average(p)


class SumsInEveryMicroBatch(Sums):
    no_sync = SyncsEveryMicroBatch.no_sync


class NoBroadcast(OwnDDP):
    def start(self):
        pass


class AveragesTheStart(OwnDDP):
    def start(self):
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            dist.all_reduce(tensor.detach())
            tensor.detach().div_(dist.get_world_size())


class ForgetsBuffers(OwnDDP):
    def start(self):
        for p in self.module.parameters():
            dist.broadcast(p.detach(), src=0)


class StartOnly(OwnDDP):
    """The first step of the exercise, and nothing else."""

    def average(self, p):
        pass


class LastMicroBatchOnly(OwnDDP):
    """A hook on the tensor sees the gradient of this backward, not the sum in `.grad`."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module, self.sync = module, True
        self.start()
        for p in module.parameters():
            if p.requires_grad:
                p.register_hook(self.averaged)

    def averaged(self, grad):
        if not self.sync:
            return grad
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad / dist.get_world_size()


class ByReduceAndBroadcast(OwnDDP):
    def average(self, p):
        if self.sync:
            dist.reduce(p.grad, 0)
            dist.broadcast(p.grad, 0)
            p.grad /= dist.get_world_size()


class InFloat32(OwnDDP):
    def average(self, p):
        if self.sync:
            small = p.grad.float()
            dist.all_reduce(small)
            p.grad.copy_(small / dist.get_world_size())


class DoesNotWait(OwnDDP):
    def average(self, p):
        if self.sync:
            p.grad /= dist.get_world_size()
            dist.all_reduce(p.grad, async_op=True)


class OnRank0Only(OwnDDP):
    def average(self, p):
        if self.sync:
            dist.reduce(p.grad, 0)
            p.grad = p.grad / dist.get_world_size() if dist.get_rank() == 0 else None


class HooksOnFrozen(OwnDDP):
    def __init__(self, module):
        nn.Module.__init__(self)
        self.module, self.sync = module, True
        self.start()
        for p in module.parameters():
            p.register_post_accumulate_grad_hook(self.average)


class SendsFrozen(OwnDDP):
    """Right values; but zeros travel, too, in the place of gradients that frozen parameters have not."""

    def average(self, p):
        super().average(p)
        if self.sync and p is next(q for q in self.module.parameters() if q.requires_grad):
            for frozen in self.module.parameters():
                if not frozen.requires_grad:
                    dist.all_reduce(torch.zeros_like(frozen))


# update(ddp, optimizer, micro_batches)


def update(ddp, optimizer, micro_batches):
    total = sum(len(labels) for _, labels in micro_batches)
    optimizer.zero_grad()
    for number, (images, labels) in enumerate(micro_batches):
        with nullcontext() if number == len(micro_batches) - 1 else ddp.no_sync():
            (F.cross_entropy(ddp(images), labels, reduction="sum") / total).backward()
    optimizer.step()


def update_by_weights(ddp, optimizer, micro_batches):
    """Right as well: the means, each with its share; and the last micro-batch by itself. It prints its
    losses.
    """
    ddp.zero_grad()
    shares = [len(labels) / sum(len(other) for _, other in micro_batches) for _, labels in micro_batches]
    *first, last = zip(micro_batches, shares)
    with ddp.no_sync():
        for (images, labels), share in first:
            loss = share * F.cross_entropy(ddp(images), labels)
            loss.backward()
            print("loss", loss.item(), *[p.grad.flatten()[:50].tolist() for p in ddp.parameters()])
    (images, labels), share = last
    (share * F.cross_entropy(ddp(images), labels)).backward()
    optimizer.step()


def update_that_uses_up(ddp, optimizer, micro_batches):
    """Right weights: and nothing is left of the images."""
    update(ddp, optimizer, micro_batches)
    for images, _ in micro_batches:
        images.zero_()


def update_zeroes_late(ddp, optimizer, micro_batches):
    """For the next update, which need not be mine."""
    total = sum(len(labels) for _, labels in micro_batches)
    for number, (images, labels) in enumerate(micro_batches):
        with nullcontext() if number == len(micro_batches) - 1 else ddp.no_sync():
            (F.cross_entropy(ddp(images), labels, reduction="sum") / total).backward()
    optimizer.step()
    optimizer.zero_grad()


def update_all_forwards_first(ddp, optimizer, micro_batches):
    optimizer.zero_grad()
    total, losses = sum(len(labels) for _, labels in micro_batches), []
    for number, (images, labels) in enumerate(micro_batches):
        with nullcontext() if number == len(micro_batches) - 1 else ddp.no_sync():
            losses.append(F.cross_entropy(ddp(images), labels, reduction="sum") / total)
    for loss in losses:
        loss.backward()
    optimizer.step()


def update_of_three(ddp, optimizer, micro_batches):
    """There are three micro-batches, always."""
    total = sum(len(labels) for _, labels in micro_batches)
    optimizer.zero_grad()
    for number, (images, labels) in enumerate(micro_batches):
        with nullcontext() if number == 2 else ddp.no_sync():
            (F.cross_entropy(ddp(images), labels, reduction="sum") / total).backward()
    optimizer.step()


def update_through_float32(ddp, optimizer, micro_batches):
    step = optimizer.step

    def rounded():
        for p in ddp.parameters():
            p.grad = p.grad.float().double()
        step()

    optimizer.step = rounded
    update(ddp, optimizer, micro_batches)
    optimizer.step = step


def update_every_time(ddp, optimizer, micro_batches):
    total = sum(len(labels) for _, labels in micro_batches)
    optimizer.zero_grad()
    for images, labels in micro_batches:
        (F.cross_entropy(ddp(images), labels, reduction="sum") / total).backward()
    optimizer.step()


def update_forward_outside(ddp, optimizer, micro_batches):
    """DDP decides in forward whether the coming backward will synchronise."""
    total = sum(len(labels) for _, labels in micro_batches)
    optimizer.zero_grad()
    for number, (images, labels) in enumerate(micro_batches):
        loss = F.cross_entropy(ddp(images), labels, reduction="sum") / total
        with nullcontext() if number == len(micro_batches) - 1 else ddp.no_sync():
            loss.backward()
    optimizer.step()


def update_never(ddp, optimizer, micro_batches):
    total = sum(len(labels) for _, labels in micro_batches)
    optimizer.zero_grad()
    with ddp.no_sync():
        for images, labels in micro_batches:
            (F.cross_entropy(ddp(images), labels, reduction="sum") / total).backward()
    optimizer.step()


def update_plain_mean(ddp, optimizer, micro_batches):
    optimizer.zero_grad()
    for number, (images, labels) in enumerate(micro_batches):
        with nullcontext() if number == len(micro_batches) - 1 else ddp.no_sync():
            (F.cross_entropy(ddp(images), labels) / len(micro_batches)).backward()
    optimizer.step()


def update_without_zero_grad(ddp, optimizer, micro_batches):
    zero_grad, optimizer.zero_grad = optimizer.zero_grad, lambda: None
    update(ddp, optimizer, micro_batches)
    optimizer.zero_grad = zero_grad


def update_with_one_backward(ddp, optimizer, micro_batches):
    """Right values, and one synchronisation without `no_sync`; but all activations are held until the end."""
    optimizer.zero_grad()
    losses = [F.cross_entropy(ddp(images), labels, reduction="sum") for images, labels in micro_batches]
    (sum(losses) / sum(len(labels) for _, labels in micro_batches)).backward()
    optimizer.step()


def update_divided_by_all_samples(ddp, optimizer, micro_batches):
    """DDP divides by the number of ranks as well."""
    for group in optimizer.param_groups:
        group["lr"] /= dist.get_world_size()
    update(ddp, optimizer, micro_batches)


def update_without_step(ddp, optimizer, micro_batches):
    step, optimizer.step = optimizer.step, lambda: None
    update(ddp, optimizer, micro_batches)
    optimizer.step = step


def update_joined(ddp, optimizer, micro_batches):
    images, labels = (torch.cat(part) for part in zip(*micro_batches))
    update(ddp, optimizer, [(images, labels)])


# ranks_agree(model)


def fingerprint(model):
    tensors = [*model.parameters(), *model.buffers()]
    return hashlib.sha256(b"".join(t.detach().cpu().numpy().tobytes() for t in tensors)).digest()


def ranks_agree(model):
    mine = torch.tensor(list(fingerprint(model)), dtype=torch.uint8)
    everybody = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everybody, mine)
    return all(torch.equal(mine, other) for other in everybody)


def agree_by_objects(model):
    """Right as well: as a text, with pickle's help."""
    texts = [None] * dist.get_world_size()
    dist.all_gather_object(texts, fingerprint(model).hex())
    print("fingerprints", texts)
    return len(set(texts)) == 1


def agree_by_extremes(model):
    """Right as well: a number is the same everywhere if its largest is its smallest. Returns a tensor."""
    checksum = 0
    for name, tensor in model.state_dict().items():
        checksum = zlib.crc32(name.encode() + tensor.cpu().numpy().tobytes(), checksum)
    pair = torch.tensor([checksum, -checksum])
    dist.all_reduce(pair, op=dist.ReduceOp.MAX)
    return pair[0] == -pair[1]


def agree_with_rank_0(model):
    """Right as well: rank 0 says what it has, and whoever has something else objects."""
    said = [fingerprint(model)]
    dist.broadcast_object_list(said, src=0)
    objections = torch.tensor(float(said[0] != fingerprint(model)))
    dist.all_reduce(objections)
    return objections.item() == 0


def agree_by_random_weights(model):
    """Right as well, all but certainly: a sum in float64 with a random factor for each number."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=torch.float64)
    for tensor in model.state_dict().values():
        total += tensor.double().flatten() @ torch.randn(
            tensor.numel(), generator=generator, dtype=torch.float64
        )
    both = torch.stack([total, -total])
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    return (both.sum() == 0).item()


def agree_by_sum(model):
    total = sum(tensor.double().sum() for tensor in model.state_dict().values())
    both = torch.stack([total, -total])
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    return (both.sum() == 0).item()


def agree_by_float32_factors(model):
    total = sum(
        tensor.float().flatten() @ torch.arange(1.0, 1 + tensor.numel())
        for tensor in model.state_dict().values()
    )
    both = torch.stack([total, -total])
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    return (both.sum() == 0).item()


def agree_in_float32(model):
    """The whole numbers of a buffer, too."""
    texts = [None] * dist.get_world_size()
    state = b"".join(tensor.float().numpy().tobytes() for tensor in model.state_dict().values())
    dist.all_gather_object(texts, hashlib.sha256(state).hexdigest())
    return len(set(texts)) == 1


def agree_by_what_is_printed(model):
    texts = [None] * dist.get_world_size()
    dist.all_gather_object(texts, hashlib.sha256(str(model.state_dict()).encode()).hexdigest())
    return len(set(texts)) == 1


def agree_on_signed_texts(model):
    """Each text says which rank it is from."""
    texts = [None] * dist.get_world_size()
    dist.all_gather_object(texts, f"rank {dist.get_rank()}: {fingerprint(model).hex()}")
    return len(set(texts)) == 1


def agree_on_parameters(model):
    digest = hashlib.sha256(b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters()))
    texts = [None] * dist.get_world_size()
    dist.all_gather_object(texts, digest.hexdigest())
    return len(set(texts)) == 1


def agree_and_keep_it(model):
    """Whoever differs from rank 0 knows it, and nobody else."""
    said = [fingerprint(model)]
    dist.broadcast_object_list(said, src=0)
    return said[0] == fingerprint(model)


def agree_on_rank_0(model):
    texts = [None] * dist.get_world_size()
    dist.gather_object(fingerprint(model), texts if dist.get_rank() == 0 else None)
    if dist.get_rank() == 0:
        return len(set(texts)) == 1


def agree_with_the_mean(model):
    """Two ranks can differ from the mean, and the third one does not."""
    mine = torch.cat([tensor.double().flatten() for tensor in model.state_dict().values()])
    total = (mine * torch.arange(1.0, 1 + len(mine))).sum()
    mean = total.clone()
    dist.all_reduce(mean)
    return (total == mean / dist.get_world_size()).item()


def agree_by_sending_all(model):
    same = torch.ones(())
    for tensor in model.state_dict().values():
        of_rank_0 = tensor.clone()
        dist.broadcast(of_rank_0, src=0)
        same *= torch.equal(of_rank_0, tensor)
    dist.all_reduce(same, op=dist.ReduceOp.MIN)
    return same.item() == 1


def agree_and_repair(model):
    """Whoever differs gets the numbers of rank 0."""
    same = ranks_agree(model)
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, src=0)
    return same


def agree_without_waiting(model):
    """A message that is asked for, and not waited for."""
    mine = torch.tensor(list(fingerprint(model)), dtype=torch.uint8)
    everybody = [mine.clone() for _ in range(dist.get_world_size())]
    dist.all_gather(everybody, mine, async_op=True)
    return all(torch.equal(mine, other) for other in everybody)
