"""What torch's Flight Recorder keeps of a rank's last collectives, in words."""

from course_lib import torch_internals
from course_lib.arguments import whole

__all__ = ["last_calls"]


def last_calls(count: int = 1) -> list[str]:
    """The last collectives that this rank has called, the newest last: "all_reduce number 3", by the number
    that a collective has in its group. Empty in a process without a recorder.
    """
    whole("count", count)
    return [f"{record['op']} number {record['seq']}" for record in torch_internals.flight_records()[-count:]]
