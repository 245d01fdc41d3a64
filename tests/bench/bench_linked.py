"""How long collectives take between linked hosts, beside what their bytes ask of the link.

    python tests/bench/bench_linked.py [repeats]

1. An all_reduce of 10 MB between two hosts, one rank on each, at several rates: seconds against bytes on the
   link over its rate. At 200 Mbit/s the bytes must be those of the ring within 2%, and the seconds what these
   ask for within 10%, or the exit code is 1.
2. Four ranks on two hosts: one all_reduce over all, against one inside each host, one between the hosts, and
   a broadcast inside; and against the form in which each rank takes a part across. On the link these have two
   thirds of the bytes; how much faster are they? The factor must be that of the formula within 15%, or the
   exit code is 1.
3. What linked hosts add to the start of a job, and what the first try of a notebook takes.

Quote ratios. Runs are interleaved; of each kind the fastest step stands for the link (a busy machine only
adds), the median for a usual step.
"""

import statistics
import sys
import time
from pathlib import Path

from course_lib import Job, hosts, run, theory

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "ranks")]
import linked_workers  # noqa: E402

NUMEL = 2_500_000  # of float32: 10 MB
STEPS = 6
WITHIN = 0.15  # of the factor of the formula
MBIT, SECONDS_WITHIN, BYTES_WITHIN = 200, 0.10, 0.02  # what is demanded of one link, and at which rate


def seconds(job: Job) -> list[float]:
    """Of each timed step, its slowest rank's."""
    return job.steps.dropna(subset="seconds").groupby("step")["seconds"].max().tolist()


def link_bytes(job: Job) -> float:
    """What the busiest host sent in the traced step."""
    return job.links[job.links["phase"] == "traced"]["sent_bytes"].max()


def against_its_rate(repeats: int) -> bool:
    """Whether seconds and bytes are as they should be at the rate at which that is demanded."""
    good = True
    print("all_reduce of 10 MB, one rank on each of two hosts")
    print(f"{'Mbit/s':>7} {'MB on the link':>15} {'asked for':>10} {'fastest':>9} {'ratio':>6} {'median':>7}")
    for mbit in (50, MBIT, 800):
        on, found, sent = hosts.Linked(2, mbit=mbit), [], 0.0
        for _ in range(repeats):
            job = run(linked_workers.reduces, NUMEL, STEPS, ranks=2, on=on)
            found, sent = found + seconds(job), link_bytes(job)
        asked = sent * 8 / (mbit * 1e6)
        best, usual = min(found), statistics.median(found)
        print(
            f"{mbit:7} {sent / 1e6:15.3f} {asked:8.3f} s {best:7.3f} s"
            f" {best / asked:6.3f} {usual / asked:7.3f}",
            flush=True,
        )
        if mbit == MBIT:
            ring = theory.host_bytes(4 * NUMEL, 2, 1)
            good = abs(best / asked - 1) <= SECONDS_WITHIN and abs(sent / ring - 1) <= BYTES_WITHIN
    print(f"at {MBIT} Mbit/s seconds within {SECONDS_WITHIN:.0%}, bytes within {BYTES_WITHIN:.0%}: {good}")
    return good


def by_host_first(repeats: int) -> bool:
    """Whether both forms are faster by the factor of the formula."""
    on, times, sent = hosts.Linked(2, mbit=50), {}, {}
    kinds = {"over all": linked_workers.reduces, "by host first": linked_workers.reduces_by_host}
    kinds["by parts"] = linked_workers.reduces_by_parts
    for _ in range(repeats):
        for name, fn in kinds.items():
            job = run(fn, NUMEL, STEPS, ranks=4, on=on)
            times[name] = times.get(name, []) + seconds(job)
            sent[name] = link_bytes(job)
    print("\nall_reduce of 10 MB, two ranks on each of two hosts, 50 Mbit/s")
    for name in kinds:
        print(
            f"{name:14} {sent[name] / 1e6:7.3f} MB on the link, {min(times[name]):.3f} s at best,"
            f" {statistics.median(times[name]):.3f} s in the median"
        )
    predicted, good = theory.host_bytes(1, 2, 2) / theory.host_bytes(1, 2, 2, hosts_first=True), True
    flat, *nested = kinds
    for name in nested:
        at_best = min(times[flat]) / min(times[name])
        print(
            f"{name}: faster by {at_best:.3f} at best,"
            f" {statistics.median(times[flat]) / statistics.median(times[name]):.3f} in the median; by bytes"
            f" {sent[flat] / sent[name]:.3f}, by formula {predicted:.3f}"
        )
        good &= abs(at_best / predicted - 1) <= WITHIN
    print(f"within {WITHIN:.0%} of the formula: {good}")
    return good


def starts(repeats: int) -> None:
    begin = time.perf_counter()
    hosts.Linked(2).missing()
    first_s, spent = (
        time.perf_counter() - begin,
        {"this machine": [], "2 linked hosts": [], "3 linked hosts": []},
    )
    for _ in range(3 * repeats):
        for name, on in zip(spent, (None, hosts.Linked(2), hosts.Linked(3))):
            begin = time.perf_counter()
            run(len, "x", ranks=6, on=on)
            spent[name].append(time.perf_counter() - begin)
    print(f"\nthe first look whether hosts can be linked: {first_s:.2f} s\nsix ranks that do nothing")
    for name, found in spent.items():
        print(f"{name:15} {min(found):.3f} s at best, {statistics.median(found):.3f} s in the median")


if __name__ == "__main__":
    if reason := hosts.Linked(2).missing():
        sys.exit(reason)
    hosts._tried.cache_clear()
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    run(len, "x")
    starts(times)
    rate_holds = against_its_rate(times)
    sys.exit(0 if by_host_first(times) and rate_holds else 1)
