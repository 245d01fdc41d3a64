"""The pieces of a timeline by the axis of a mesh along which they went."""

from collections.abc import Mapping, Sequence

import pandas as pd

from course_lib.record import Job

__all__ = ["called_by_axis"]


def called_by_axis(
    job: Job, rows: pd.DataFrame, groups: Mapping[str, Sequence[Sequence[int]]]
) -> pd.DataFrame:
    """Return the rows of a timeline, in which each collective within a group of an axis is called by that
    axis, in the column `what`.

    Args:
        groups: axis -> its groups, each a list of ranks in their order.
    """
    axis_of = {",".join(map(str, ranks)): axis for axis, members in groups.items() for ranks in members}
    along = {
        (call.rank, call.op, call.start_s): axis_of[call.group]
        for call in job.comm.itertuples()
        if call.group in axis_of
    }
    pieces = zip(rows["rank"], rows["name"], rows["start_s"], rows["kind"], rows["what"])
    return rows.assign(
        what=[
            along.get((rank, name, start_s), what) if kind == "communication" else what
            for rank, name, start_s, kind, what in pieces
        ]
    )
