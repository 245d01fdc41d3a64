"""Pipeline parallelism: a model cut into stages, one after the other, each on a rank of its own;
micro-batches pass through them. Three ideas, apart from each other:

    split      (stages.py) the model as a list of stages: only activations travel, and their gradients back
    schedule   (schedules.py) data: for each rank a list: F0, forward of micro-batch 0; B0, its backward; ...
    Pipeline   (here) executes this rank's list: receive, compute, send; any list that `validate` accepts

Per boundary, micro-batch and direction, one tensor travels, [micro-batch, time, dim] say; post.py carries it.
Beside: weights.py, a backward in two parts; instructions.py and validator.py, what schedules are made of, and
which are wrong; on_paper.py, when what would run; refusals.py.
Sources: Huang et al. 2019, "GPipe", 2; Narayanan et al. 2021, 2.2; Qi et al. 2023, "Zero bubble", 2.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib import measure
from course_lib.arguments import fits, function, process_group, takes
from course_lib.mini.pipeline import refusals as refuse
from course_lib.mini.pipeline import schedules
from course_lib.mini.pipeline.instructions import Instruction, Schedule, with_stages
from course_lib.mini.pipeline.post import Arrived, Post
from course_lib.mini.pipeline.schedules import *  # noqa: F403
from course_lib.mini.pipeline.stages import micro_batches, split, synced
from course_lib.mini.pipeline.weights import accumulate, waiting_weights

__all__ = ["split", "Pipeline", *schedules.__all__]


class Pipeline(nn.Module):
    """This rank's stages of a pipeline, and `step`; every rank of the group makes one, and calls the same.

    Args:
        stages: this rank's stage, which takes one tensor and returns one; or, if it has several, their list:
            rank, rank + p, ... One in mini.ddp, over ranks with the same stage, averages once in a step.
        schedule: one list of instructions per rank of the group, the same on every rank.
        loss_fn: (output of the last stage, targets) -> mean loss over the samples.
        process_group: the ranks of the pipeline, stage 0 on its first; None for all.
    Attributes: num_microbatches, of the schedule; peak_in_flight, the most micro-batches (counted once per
        stage) that this rank had between forward and the end of backward, in the last step.
    Errors: ValueError if `validate` refuses the schedule, or what `step` gets and the stages make do not fit.
    """

    @takes(stages=refuse.other_stages, loss_fn=function, process_group=process_group)
    @fits(refuse.other_schedules)
    def __init__(
        self,
        stages: nn.Module | Sequence[nn.Module],
        schedule: Schedule,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages if isinstance(stages, (list, tuple, nn.ModuleList)) else [stages])
        self.schedule, self.loss_fn, self.peak_in_flight = schedule, loss_fn, 0
        self._rank, self._size = dist.get_rank(process_group), dist.get_world_size(process_group)
        self._last = self._size * len(self.stages) - 1
        self.num_microbatches = 1 + max(one.microbatch for instructions in schedule for one in instructions)
        own = with_stages(schedule)[self._rank]
        self._names = dict(zip(own, map(repr, schedule[self._rank])))
        self._final = {instruction.stage: instruction for instruction in own}  # the last one of each stage
        self._in_parts = any(instruction.op == "backward_weight" for instruction in own)
        device = next(self.parameters(), torch.empty(0)).device
        arguments = schedule, self._rank, self._last + 1, process_group, device
        self._posts = {training: Post(*arguments, training) for training in (True, False)}

    def step(self, inputs: Tensor | None = None, targets: Tensor | None = None) -> Tensor | None:
        """Add to every `.grad` the gradient of the mean loss over a batch; under torch.no_grad(), on all
        ranks, only evaluate. Batches must keep their shape from step to step (those for evaluation may have
        another one): for others, make a second Pipeline of the same stages.

        Args:
            inputs: [batch, ...], a multiple of the number of micro-batches; on the rank of the first stage.
            targets: [batch, ...], on the rank of the last stage.

        Returns: the mean loss over the batch, detached, on the rank of the last stage; None on others.
        """
        m, self.peak_in_flight, self._losses = self.num_microbatches, 0, []
        self._inputs = micro_batches("inputs", inputs, m, stage=0, ranks=self._size, rank=self._rank)
        self._targets = micro_batches("targets", targets, m, self._last, self._size, self._rank)
        self._in_flight = {}  # (micro-batch, stage) -> input, output with the graph behind it
        self._waiting = {}  # the same -> what the gradients of its weights wait for
        self._post = self._posts[torch.is_grad_enabled()]
        for instruction in self._post.step():
            (self._forward if instruction.op == "forward" else self._backward)(instruction)
        return torch.stack(self._losses).sum() if self._losses else None

    def _forward(self, instruction: Instruction) -> None:
        k, stage, training = instruction.microbatch, instruction.stage, torch.is_grad_enabled()
        # a clone: memory of its own, to be freed with it
        x = self._post.receive(instruction).requires_grad_(training) if stage else self._inputs[k].clone()
        module, waiting = self.stages[stage // self._size], [] if self._in_parts else None
        with measure.span(self._names[instruction]), waiting_weights(module, waiting):
            y = module(Arrived.apply(x) if stage else x)
            if stage == self._last:  # m gradients of these losses sum to that of the mean
                y = refuse.other_losses(self.loss_fn(y, self._targets[k])) / self.num_microbatches
                self._losses.append(y.detach())
        if training:
            self._in_flight[k, stage], self._waiting[k, stage] = (x, y), waiting
        self.peak_in_flight = max(self.peak_in_flight, len(self._waiting))
        if stage < self._last:
            self._post.send(refuse.other_outputs(y, stage, self._rank).detach(), instruction)  # no graph

    def _backward(self, instruction: Instruction) -> None:
        k, stage, op = instruction.microbatch, instruction.stage, instruction.op
        first, second = op != "backward_weight", op != "backward_input"
        grad = self._post.receive(instruction) if first and stage < self._last else None  # d loss / d y
        x, y = self._in_flight.pop((k, stage)) if first else (None, None)  # they go when this function ends
        waiting = self._waiting.pop((k, stage)) if second else None
        last = instruction == self._final[stage]
        with measure.span(self._names[instruction]), synced(self.stages[stage // self._size], last):
            if first and y.requires_grad:  # not so if all of the first stage is frozen
                torch.autograd.backward(y, grad)
            if waiting:
                accumulate(waiting)
        if first and stage:
            self._post.send(refuse.no_gradient(x.grad, stage), instruction)
