"""Answers to the exercises of "Checkpoints and restarts", right and wrong. They stand here, and not in a test
file, so that a rank need not import pytest.
"""

import hashlib
import math
import queue
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist


def stub(*arguments):
    raise NotImplementedError


# A saver that training does not wait for


class Saver:
    def __init__(self, write):
        self.write, self.pool, self.pending = write, ThreadPoolExecutor(1), None

    def wait(self):
        if self.pending:
            pending, self.pending = self.pending, None
            pending.result()

    def copied(self, state):
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    def save(self, step, state):
        self.wait()
        self.pending = self.pool.submit(self.write, step, self.copied(state))

    def close(self):
        self.wait()
        self.pool.shutdown()


class SaverWithBuffer:
    """Right as well: the copy's memory is used again, and a thread is made for each write."""

    def __init__(self, write):
        self.write, self.buffer, self.thread, self.error = write, None, None, None

    def save(self, step, state):
        self.close()
        if self.buffer is None:
            self.buffer = {name: torch.empty_like(tensor) for name, tensor in state.items()}
        for name, tensor in state.items():
            self.buffer[name].copy_(tensor)
        self.thread = threading.Thread(target=self.run, args=(step,))
        self.thread.start()

    def run(self, step):
        try:
            self.write(step, self.buffer)
        except BaseException as error:
            self.error = error

    def close(self):
        if self.thread:
            self.thread.join()
        if self.error:
            error, self.error = self.error, None
            raise error


class SaverWithQueue:
    """Right as well: one thread for all, and a queue without room."""

    def __init__(self, write):
        self.write, self.errors, self.queue = write, [], queue.Queue()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            step, state = self.queue.get()
            try:
                self.write(step, state)
            except Exception as error:
                self.errors.append(error)
            del state
            self.queue.task_done()

    def close(self):
        self.queue.join()
        if self.errors:
            raise self.errors.pop()

    def save(self, step, state):
        self.close()
        self.queue.put((step, {name: tensor.clone() for name, tensor in state.items()}))


class SaverThatWaits(Saver):
    def save(self, step, state):
        super().save(step, state)
        self.wait()


class SaverWithoutCopy(Saver):
    def copied(self, state):
        return dict(state)


class SaverWithDetach(Saver):
    def copied(self, state):
        return {name: tensor.detach() for name, tensor in state.items()}


class SaverTwoCopies(Saver):
    """Copies before it waits."""

    def save(self, step, state):
        copy = self.copied(state)
        self.wait()
        self.pending = self.pool.submit(self.write, step, copy)


class SaverKeepsCopy(SaverWithBuffer):
    """Waits, but keeps the copy that is written while it makes the next one."""

    def save(self, step, state):
        self.close()
        self.buffer = {name: tensor.clone() for name, tensor in state.items()}
        self.thread = threading.Thread(target=self.run, args=(step,))
        self.thread.start()


class SaverCopiesLate(Saver):
    """The thread makes the copy, when training has gone on."""

    def copied(self, state):
        return state

    def save(self, step, state):
        self.wait()
        self.pending = self.pool.submit(lambda: self.write(step, super(SaverCopiesLate, self).copied(state)))


class SaverThatQueues(Saver):
    """Never waits: the states that are not yet written pile up."""

    def __init__(self, write):
        super().__init__(write)
        self.all = []

    def save(self, step, state):
        self.all.append(self.pool.submit(self.write, step, self.copied(state)))

    def close(self):
        for one in self.all:
            one.result()


class SaverManyThreads(SaverThatQueues):
    def __init__(self, write):
        super().__init__(write)
        self.pool = ThreadPoolExecutor(8)


class SaverLeaves(Saver):
    def close(self):
        pass


class SaverDrops(Saver):
    """Leaves out a save that comes too early."""

    def save(self, step, state):
        if self.pending is None or self.pending.done():
            self.pending = self.pool.submit(self.write, step, self.copied(state))

    def close(self):
        self.pending.result()


class SaverSilent(SaverWithBuffer):
    def run(self, step):
        try:
            self.write(step, self.buffer)
        except OSError as error:
            print(error)


class SaverTellsAtTheEnd(SaverWithBuffer):
    """`close` tells of an error, `save` does not."""

    def save(self, step, state):
        if self.thread:
            self.thread.join()
        self.error = None
        super().save(step, state)


class SaverForgetsTheLast(SaverWithBuffer):
    """`save` tells of an error, `close` does not."""

    def close(self):
        if self.thread:
            self.thread.join()

    def save(self, step, state):
        self.close()
        super().close()
        super().save(step, state)


# How many steps between two saves


def steps(step_s, blocked_s, write_s, restart_s, mtbf_s):
    least = max(1, math.ceil(write_s / step_s))
    best = math.sqrt(2 * blocked_s * mtbf_s) / step_s
    both = max(least, math.floor(best)), max(least, math.ceil(best))
    return min(both, key=lambda k: blocked_s / (k * step_s) + k * step_s / 2 / mtbf_s)


def steps_by_search(step_s, blocked_s, write_s, restart_s, mtbf_s):
    """Right as well: all numbers, one after the other."""
    best, least = None, math.inf
    for k in range(1, 100_000):
        if k * step_s < write_s:
            continue
        lost = blocked_s / (k * step_s) + (k * step_s / 2 + write_s + restart_s) / mtbf_s
        if lost > least:
            break
        best, least = k, lost
    return best


def steps_of_write(step_s, blocked_s, write_s, restart_s, mtbf_s):
    """Counts the write as if training waited for it."""
    return max(1, math.ceil(write_s / step_s), round(math.sqrt(2 * write_s * mtbf_s) / step_s))


def steps_too_early(step_s, blocked_s, write_s, restart_s, mtbf_s):
    return max(1, round(math.sqrt(2 * blocked_s * mtbf_s) / step_s))


def steps_rounded_down(step_s, blocked_s, write_s, restart_s, mtbf_s):
    return max(1, math.ceil(write_s / step_s), math.floor(math.sqrt(2 * blocked_s * mtbf_s) / step_s))


def steps_float(step_s, blocked_s, write_s, restart_s, mtbf_s):
    return math.sqrt(2 * blocked_s * mtbf_s) / step_s


def steps_none(step_s, blocked_s, write_s, restart_s, mtbf_s):
    """0, where a step takes longer than the best interval."""
    return max(int(write_s / step_s), int(math.sqrt(2 * blocked_s * mtbf_s) / step_s))


def steps_each(step_s, blocked_s, write_s, restart_s, mtbf_s):
    return max(1, math.ceil(write_s / step_s))


def steps_with_restart(step_s, blocked_s, write_s, restart_s, mtbf_s):
    best = math.sqrt(2 * (blocked_s + restart_s) * mtbf_s) / step_s
    return max(1, math.ceil(write_s / step_s), round(best))


# Which replica is odd


def tensors_of(model):
    return [t.detach() for t in (*model.parameters(), *model.buffers())]


def by_majority(told):
    usual = max(told, key=told.count)
    return [rank for rank, its in enumerate(told) if its != usual]


def odd(model):
    sha = hashlib.sha256()
    for tensor in tensors_of(model):
        sha.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    told = [None] * dist.get_world_size()
    dist.all_gather_object(told, sha.hexdigest())
    return by_majority(told)


def odd_by_numbers(model):
    """Right as well: a polynomial of the bytes, without hashlib, and a tensor that travels."""
    total = torch.zeros((), dtype=torch.int64)
    for tensor in tensors_of(model):
        values = tensor.reshape(-1).view(torch.uint8).long()
        places = torch.arange(1, len(values) + 1)
        mixed = (values + 1) * (places * 6364136223846793005 + 1442695040888963407)
        total = total * 31 + (mixed ^ (mixed >> 29)).sum()
    every = [torch.zeros((), dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(every, total)
    return tuple(by_majority([one.item() for one in every]))


def odd_by_crc(model):
    """Right as well: names and bytes of the state dict."""
    told = [0] * dist.get_world_size()
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    crc = 0
    for name, tensor in sorted(state.items()):
        crc = zlib.crc32(bytes(tensor.detach().reshape(-1).view(torch.uint8).tolist()), crc)
    dist.all_gather_object(told, crc)
    return by_majority(told)


def odd_by_sum(model):
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64, 1: torch.uint8}
    total = sum(t.reshape(-1).view(bits[t.element_size()]).sum().item() for t in tensors_of(model))
    told = [None] * dist.get_world_size()
    dist.all_gather_object(told, total)
    return by_majority(told)


def odd_without_buffers(model):
    sha = hashlib.sha256()
    for p in model.parameters():
        sha.update(p.detach().flatten().view(torch.uint8).numpy().tobytes())
    told = [None] * dist.get_world_size()
    dist.all_gather_object(told, sha.hexdigest())
    return by_majority(told)


def odd_by_values(model):
    """As numbers: 0.0 and -0.0 are alike, and NaN is like nothing."""
    told = [None] * dist.get_world_size()
    dist.all_gather_object(told, hash(tuple(t.double().sum().item() for t in tensors_of(model))))
    return by_majority(told)


def odd_in_double(model):
    """Every number as a float64, bit by bit: of large whole numbers the last digits are lost."""
    sha = hashlib.sha256(b"".join(t.double().numpy().tobytes() for t in tensors_of(model)))
    told = [None] * dist.get_world_size()
    dist.all_gather_object(told, sha.hexdigest())
    return by_majority(told)


def odd_gathered(model):
    """Right ranks, and all weights travel."""
    own = b"".join(t.flatten().view(torch.uint8).numpy().tobytes() for t in tensors_of(model))
    told = [None] * dist.get_world_size()
    dist.all_gather_object(told, own)
    return by_majority(told)


def odd_against_rank_0(model):
    """Takes rank 0 for right."""
    sha = hashlib.sha256()
    for tensor in tensors_of(model):
        sha.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    told = [None] * dist.get_world_size()
    dist.all_gather_object(told, sha.hexdigest())
    return [rank for rank, its in enumerate(told) if its != told[0]]


def odd_on_rank_0(model):
    found = odd(model)
    return found if dist.get_rank() == 0 else []


def odd_mends(model):
    """Finds them, and changes the model."""
    found = odd(model)
    with torch.no_grad():
        for p in model.parameters():
            if p.dtype == torch.float32:
                p.mul_(2)
    return found
