"""From the records of single ranks to those of their job."""

from collections.abc import Sequence

from course_lib.ranks.launch import RankState
from course_lib.record.tables import COLUMNS

__all__ = ["gather"]


def gather(
    states: Sequence[RankState], absent: dict[str, str], one_clock: bool = True
) -> tuple[dict[str, str], dict[str, list]]:
    """Absent layers (those that are given, and more), and one ledger: rows with their rank, times counted
    from the first rank's traced step. Of a rank that has failed it has what was told until then.

    one_clock: all ranks ran on one machine; else their times are compared by the time of day.
    """
    ahead_s = {state.rank: 0.0 if one_clock else state.records["clock_s"] for state in states}
    begins = [
        state.records["traced_at"] + ahead_s[state.rank]
        for state in states
        if state.records.get("traced_at") is not None
    ]
    zero = min(begins, default=0.0)
    records: dict[str, list] = {name: [] for name in COLUMNS}
    counted: set[int | None] = set()  # hosts whose link a rank has counted
    for state in states:
        absent |= state.records.get("absent", {})
        links = [] if state.host in counted else state.records.get("links", [])
        if links:
            counted.add(state.host)
        for name, rows in records.items():
            for row in links if name == "links" else state.records.get(name, ()):
                row = {"rank": state.rank, **row} if "rank" in COLUMNS[name] else dict(row)
                if "start_s" in row:
                    row["start_s"] += ahead_s[state.rank] - zero
                rows.append(row)
    for name in ("seconds", "threads"):  # of the function, one for each rank that has ended well
        records[name] = [state.records[name] for state in states if name in state.records]
    return absent, records
