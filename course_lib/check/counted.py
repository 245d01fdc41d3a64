"""What checks count in a finished job: bytes that ranks sent, and what the headers of their messages may add; and what a small error looks like."""
import pandas as pd

from course_lib.job import Job

__all__ = ["sent_bytes", "header_bytes", "rounding"]

HEADER_BYTES = 250                  # more than gloo sends along with one message: its size, and a word back that the other side is ready


def sent_bytes(job: Job) -> pd.Series:
    """Bytes that each rank sent in the traced step: by the system's count, or where it has none, by the calls."""
    wire = job.steps[job.steps["phase"] == "traced"].set_index("rank")["wire_bytes"]
    by_calls = job.comm.groupby("rank")["algorithm_bytes"].sum().reindex(range(job.ranks), fill_value=0)
    return (wire if wire.notna().all() else by_calls).astype(float)


def header_bytes(job: Job) -> float:
    """What the headers of the rank with most messages may add: whoever sends in small pieces sends no more of anything else."""
    calls = job.comm[job.comm["op"] != "recv"]
    messages = calls["op"].map(lambda op: 1 if op == "send" else 4 * job.ranks)       # gloo cuts what a ring carries in pieces
    return HEADER_BYTES * float(messages.groupby(calls["rank"]).sum().max() if len(calls) else 0)


def rounding(error: float) -> str:
    """A hint where a relative error in float64 is as small as rounding to fewer digits makes it; else nothing."""
    return (" It is nearly right: is something rounded to float32 on its way (a message, a sum, a `torch.zeros` without a dtype)?" if 1e-12 < error < 2e-6 else
            " Is something rounded to 16 bits on its way?" if 2e-6 <= error < 2e-3 else "")
