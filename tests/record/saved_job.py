"""A job with every table filled, made without ranks. No torch here: `test_without_torch` uses it."""

from course_lib.record import Job

RANKS, STEPS = 2, 5


def job(absent: dict | None = None, results: list | None = None) -> Job:
    """Two ranks, five steps; numbers that are easy to work out by hand."""
    phases = ["warm-up", "traced", *["timed"] * (STEPS - 2)]
    steps = [
        {
            "rank": rank,
            "step": step,
            "phase": phases[step],
            "seconds": 0.1 * step + 0.01 * rank if step > 1 else None,
            "samples": 8,
            "wire_bytes": None if absent else 100 * step + rank,
        }
        for rank in range(RANKS)
        for step in range(STEPS)
    ]
    comm = [
        {
            "rank": rank,
            "op": op,
            "dtype": "float32",
            "payload_bytes": 64,
            "algorithm_bytes": 64.0,
            "group_size": 2,
            "group": "0,1",
            "start_s": 0.1,
            "seconds": 0.2,
        }
        for rank, ops in enumerate((["all_reduce", "barrier", "all_reduce"], ["broadcast"]))
        for op in ops
    ]
    memory = [
        {"rank": rank, "category": category, "bytes": count + rank}
        for rank in range(RANKS)
        for category, count in (("params", 40), ("grads", 20), ("activations", 7), ("peak", 90))
    ]
    timeline = [
        {"rank": rank, "kind": kind, "name": name, "start_s": start_s, "seconds": 0.1}
        for rank in range(RANKS)
        for kind, name, start_s in (
            ("forward", "forward", 0.0),
            ("span", "F0", 0.1 + 0.1 * rank),
            ("communication", "all_reduce", 0.15),
        )
    ]
    records = {
        "steps": steps,
        "comm": comm,
        "memory": memory,
        "timeline": timeline,
        "seconds": [1.0, 2.0],
    }
    return Job(
        label="saved",
        ranks=RANKS,
        backend="gloo",
        device="cpu",
        hardware="2 cores",
        seconds=1.0,
        results=results or [[1.0, 2.0], [1.0, 2.0]],
        output=["", ""],
        absent=absent or {},
        records=records,
    )
