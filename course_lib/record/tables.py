"""The tables of a job's ledger: the columns of each, their dtypes, the categories of memory. What they mean
stands at `Job`.

A rank writes rows without `rank`, which is added (but for links, which are of a host) when the rows of all
ranks come together. A new column, or a new table, is entered here, at `Job`, and where the rank writes it, in
`measure/`: steps in `ledger.py`, comm in `calls.py`, links in `link.py`, memory in `memory.py`, the timeline
in `tracing.py`.
"""

__all__ = ["COLUMNS", "CATEGORIES"]

COLUMNS: dict[str, dict[str, str]] = {
    "steps": {
        "rank": "int64",
        "step": "int64",
        "phase": "object",
        "seconds": "float64",
        "samples": "Int64",
        "wire_bytes": "Int64",
    },
    "comm": {
        "rank": "int64",
        "op": "object",
        "dtype": "object",
        "payload_bytes": "int64",
        "algorithm_bytes": "float64",
        "group_size": "int64",
        "group": "object",
        "start_s": "float64",
        "seconds": "float64",
    },
    "links": {"host": "int64", "step": "int64", "phase": "object", "sent_bytes": "int64"},
    "memory": {"rank": "int64", "category": "object", "bytes": "int64"},
    "timeline": {
        "rank": "int64",
        "kind": "object",
        "name": "object",
        "start_s": "float64",
        "seconds": "float64",
    },
}

# of bytes in "memory", in the order of tables and figures: what has a closed form comes first; beside them
# stands "peak", which is none of them
CATEGORIES = ("params", "grads", "optimizer_states", "buffers", "activations", "other")
