"""What checks count in a finished job: the bytes that each rank sent, how many of them may be the headers of
its messages, and what a textbook algorithm sends.
"""

import pandas as pd

from course_lib import theory
from course_lib.collectives import of_kind
from course_lib.record import Job, sent

__all__ = ["sent_bytes", "header_bytes", "ring_bytes"]

# of one send or receive with gloo; measured: 96 for who sends, 48 for who receives
MESSAGE_HEADER_BYTES = 150
CALL_HEADER_BYTES = 600  # of a collective, for each other rank of its group; measured: at most 576


def sent_bytes(job: Job) -> pd.Series:
    """The most that each rank sent in a step after the warm-up; 0 if there was none.

    The most, and not the median: an answer could spare in one step what it sends in another. On the wire
    where the system counts it (what gloo really sends, whatever the textbook says); elsewhere by the
    algorithms of the traced step.
    """
    if "traced" not in set(job.steps["phase"]):
        return pd.Series(0.0, index=range(job.ranks))
    return sent(job, over="max")


def header_bytes(job: Job) -> pd.Series:
    """How many of `sent_bytes` each rank's messages may need for their headers: for small tensors, most of
    it. An algorithm has none.
    """
    peers, by_rank = job.comm["group_size"] - 1, job.comm["rank"]
    headers = (
        (peers * CALL_HEADER_BYTES)
        .where(~job.comm["op"].isin(of_kind("send", "receive")), MESSAGE_HEADER_BYTES)
        .groupby(by_rank)
        .sum()
    )
    on_the_wire = "wire bytes" not in job.absent
    return headers.reindex(range(job.ranks), fill_value=0).astype(float) * on_the_wire


def ring_bytes(job: Job) -> float:
    """Bytes that a rank sends in one ring all_reduce of the gradients, "P" bytes in what trials return."""
    return theory.collective_bytes("all_reduce", job.results[0]["P"], job.ranks)
