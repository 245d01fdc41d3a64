"""What the ranks of a pipeline send each other. Sends never wait; only `receive` does, and a step's end.

Between two ranks, messages come in the order in which they are sent. A rank may need them in another: those
that come before the one that it waits for are put into a box. The order is known beforehand, for every rank
has the whole schedule; shapes are not, so before the first message into a stage goes a header with its shape.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from course_lib import torch_internals
from course_lib.mini.pipeline.instructions import (
    Instruction,
    Schedule,
    as_sent,
    heir_of,
    source_of,
    with_stages,
)

__all__ = ["Post", "Arrived"]

# of activations; a header names one by its number
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HEADER = 10  # numbers in a header: dtype, how many dimensions, and up to eight sizes


class Post:
    """All messages of this rank in a step; in training, or without the backwards."""

    def __init__(
        self,
        schedule: Schedule,
        rank: int,
        num_stages: int,
        group: dist.ProcessGroup | None,
        device: torch.device,
        training: bool,
    ) -> None:
        lists = [
            [instruction for instruction in instructions if training or instruction.op == "forward"]
            for instructions in with_stages(schedule)
        ]
        self._own, self._rank, self._size = lists[rank], rank, len(lists)
        self._num_stages, self._device = num_stages, device
        self._nccl = device.type == "cuda" and torch_internals.uses_nccl(group)
        self._position = {
            as_sent(instruction): index
            for instructions in lists
            for index, instruction in enumerate(instructions)
        }
        heirs = [[heir_of(instruction, num_stages) for instruction in instructions] for instructions in lists]
        # what each sends to this rank
        self._order = [
            [heir for heir in theirs if heir and heir.stage % self._size == rank] for theirs in heirs
        ]
        self._shapes: dict[int, tuple[torch.Size, torch.dtype]] = {}  # stage -> what goes into it
        # NCCL runs the messages between two ranks of a group one after the other, both ways: two that cross
        # would wait for each other for ever. So there each sender has a group of its own.
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        self._groups = [
            dist.new_group(ranks, use_local_synchronization=True) if self._nccl else group for _ in ranks
        ]

    def step(self) -> Iterator[Instruction]:
        """One step: what this rank has to do, in its order; then wait until all that it sent has arrived.

        While the caller works at one instruction, what the next one needs is already on its way.
        """
        self._coming = [deque(order) for order in self._order]
        # for which instruction -> what came, or is on its way
        self._box: dict[Instruction, tuple[Tensor, dist.Work | None]] = {}
        self._sent: dict[int, deque[tuple[int, dist.Work]]] = defaultdict(deque)
        for instruction, following in zip(self._own, [*self._own[1:], None]):
            if following:
                self._expect(following)
            yield instruction
        for queue in self._sent.values():
            for _, work in queue:
                work.wait()

    def send(self, result: Tensor, done: Instruction) -> None:
        """Send the result of an instruction to the rank that needs it."""
        heir = heir_of(done, self._num_stages)
        peer = heir.stage % self._size
        if peer == self._rank:
            self._box[heir] = result, None
            return
        into = max(done.stage, heir.stage)  # a gradient has the shape of what went into that stage
        if into not in self._shapes:
            self._send_header(result, done, peer, self._position[heir])
            self._shapes[into] = result.shape, result.dtype
        if (result.shape, result.dtype) != self._shapes[into]:
            raise ValueError(
                f"{done} has made {list(result.shape)}, {result.dtype}, and the first time it was"
                f" {list(self._shapes[into][0])}, {self._shapes[into][1]}: batches must keep their shape, so"
                " make another Pipeline of the same stages for this one."
            )
        self._isend(result, peer, self._position[heir])

    def receive(self, wanted: Instruction) -> Tensor:
        """Wait for what an instruction needs, and return it."""
        wanted, source = as_sent(wanted), source_of(wanted, self._num_stages)
        peer = source.stage % self._size
        self._begin(wanted, peer, wait=True)
        tensor, work = self._box.pop(wanted)
        if work is not None:
            work.wait()
            # The peer had done `source` when it sent this. What it needed for that, and before, has arrived
            # there: let go of it.
            while self._sent[peer] and self._sent[peer][0][0] <= self._position[source]:
                self._sent[peer].popleft()[1].wait()
        return tensor.to(self._device)

    def _expect(self, wanted: Instruction) -> None:
        """Begin to receive what an instruction needs; not if a header comes first."""
        if source := source_of(wanted, self._num_stages):
            self._begin(as_sent(wanted), source.stage % self._size, wait=False)

    def _begin(self, wanted: Instruction, peer: int, wait: bool) -> None:
        """Begin to receive the peer's messages, up to the one that is wanted, or without `wait` up to a
        header; from this rank itself, none come.
        """
        while peer != self._rank and wanted not in self._box:
            coming = self._coming[peer][0]
            into = coming.stage + (coming.op == "backward")
            if into not in self._shapes:
                if not wait:
                    return
                header = self._empty((HEADER,), torch.int64)
                dist.irecv(header, group=self._groups[peer], group_src=peer).wait()
                dtype, dims, *sizes = header.tolist()
                self._shapes[into] = torch.Size(sizes[:dims]), DTYPES[dtype]
            buffer = self._empty(*self._shapes[into])
            work = dist.irecv(buffer, group=self._groups[peer], group_src=peer)
            self._box[self._coming[peer].popleft()] = buffer, work

    def _send_header(self, result: Tensor, done: Instruction, peer: int, position: int) -> None:
        if result.dtype not in DTYPES or result.dim() > HEADER - 2:
            raise ValueError(
                f"{done} has made {result.dtype} of {result.dim()} dimensions: from stage to stage,"
                f" {', '.join(map(str, DTYPES))} may travel, of at most {HEADER - 2}."
            )
        header = [DTYPES.index(result.dtype), result.dim(), *result.shape]
        header += [0] * (HEADER - len(header))
        self._isend(torch.tensor(header, device=self._device), peer, position)

    def _isend(self, tensor: Tensor, peer: int, position: int) -> None:
        # gloo sends from the CPU's memory only
        tensor = tensor.contiguous() if self._nccl else tensor.cpu().contiguous()
        work = dist.isend(tensor, group=self._groups[self._rank], group_dst=peer)
        self._sent[peer].append((position, work))

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._device if self._nccl else "cpu")


class Arrived(torch.autograd.Function):
    """What a stage gets is its own to write into, as a layer with inplace=True does: not a leaf, and its
    gradient goes to the leaf, which keeps it.
    """

    @staticmethod
    def forward(ctx, x):
        return x.detach()

    @staticmethod
    def backward(ctx, grad):
        return grad
