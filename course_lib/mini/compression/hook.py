"""The same for torch's DDP: a hook that averages a bucket, parameter by parameter."""

import torch
import torch.distributed as dist

from course_lib.arguments import takes
from course_lib.mini.compression import refusals as refuse

__all__ = ["ddp_hook"]


@takes(state=refuse.no_feedback, bucket=dist.GradBucket)
def ddp_hook(state, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """`model.register_comm_hook(ErrorFeedback(method), ddp_hook)`: gradients are averaged by the method.

    What is unsaid is kept by parameter, and not by bucket: after its first backward DDP puts other parameters
    into a bucket. It waits for its messages, so that nothing is hidden behind backward.

    Args:
        state: an ErrorFeedback.
        bucket: DDP's.

    Returns:
        A future, done, of the bucket's flat tensor.
    """
    for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
        gradient.copy_(state.average(parameter, gradient))
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done
