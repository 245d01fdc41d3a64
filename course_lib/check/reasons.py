"""What several checks read from a job or an error: bytes that a rank sent, and the hint to a number that was rounded. Loads nothing, for ranks use it too."""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from course_lib.job import Job

__all__ = ["sent_bytes", "rounding"]

MESSAGE_HEADER_BYTES = 150          # of one send or receive with gloo; measured: 96 for who sends, 48 for who receives
CALL_HEADER_BYTES = 600             # of a collective, for each other rank of its group; measured: at most 576


def sent_bytes(job: Job) -> tuple[float, float]:
    """The most that one rank sent in a step after the warm-up, and how much of it may be the headers of its messages: for small tensors, most of it.

    On the wire where the system counts it (what gloo really sends, whatever the textbook says); elsewhere by the algorithms of the traced step.
    """
    calls = job.comm.groupby("rank")
    if "wire bytes" in job.absent:
        return float(calls["algorithm_bytes"].sum().max()) if len(job.comm) else 0.0, 0.0
    each = (job.comm["group_size"] - 1) * CALL_HEADER_BYTES
    headers = each.where(~job.comm["op"].isin(["send", "recv"]), MESSAGE_HEADER_BYTES).groupby(job.comm["rank"]).sum().reindex(range(job.ranks), fill_value=0)
    wire = job.steps[job.steps["phase"] != "warm-up"].groupby("rank")["wire_bytes"].max()
    if wire.empty:                        # the job ended early
        return 0.0, 0.0
    most = (wire - headers).astype(float).idxmax()
    return float(wire[most]), float(headers[most])


def rounding(error: float) -> str:
    """What a relative error says of the way that numbers took, in a test in float64: " It is ...", or "" for an error that tells nothing."""
    if 1e-9 <= error < 1e-6:
        return " An error of this size is the rounding of float32: the numbers here are float64, and must stay so all the way."
    if 1e-5 <= error < 2e-2:
        return " An error of this size may be the rounding of float16 or bfloat16: does something change the dtype on the way?"
    return ""
