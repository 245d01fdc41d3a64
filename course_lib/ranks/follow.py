"""Follow the ranks of a job to their end, or to what ends it: a failure, a standstill, its time."""

import time
from collections.abc import Callable

from course_lib.ranks import diagnose, output, threads
from course_lib.ranks.launch import Group
from course_lib.roles import begun, ranks_in_words

__all__ = ["PATIENCE", "to_their_end", "let_finish", "starved"]

GRACE_S = 0.3  # after a first failure: the true cause may be the second to be heard
ASK_AFTER_S, ASK_AT_MOST_EVERY_S = 0.4, 5.0  # how often ranks without progress are asked where they are
PATIENCE = 4  # times its timeout: how long a job's ranks may wait for free cores beside it


def to_their_end(group: Group, left: Callable[[], float], show) -> dict | None:
    """Listen until every rank has finished (None), or the job has to be stopped (why, as `explain` takes it),
    because no time is `left`, say.

    Ranks that show no progress are asked where they are, now and then; a job that can never go on is not left
    to its deadline.
    """
    asked_at, pause, suspicion, seen = time.monotonic(), ASK_AFTER_S, None, None
    while True:
        group.listen(min(0.1, left()))
        show()
        if group.failed:
            return {}
        if all(state.phase == "finished" for state in group.states):
            return None
        if group.disturbed:
            group.ask_and_wait()
            return {"outside": group.why()}
        if flood := _flood(group):
            group.ask_and_wait()
            return {"stuck": flood}
        if any(
            state.phase == "failed" or (state.status is not None and state.phase != "finished")
            for state in group.states
        ):
            end = time.monotonic() + GRACE_S
            while group.unfinished and time.monotonic() < end:
                group.listen(0.05)
            group.ask_and_wait()
            return {"outside": why} if (why := group.why()) else {}
        now = time.monotonic()
        if left() <= 0:
            group.ask_and_wait()
            return {"timed_out": True}
        leaving = any(state.phase == "finished" for state in group.states)
        blocked = all(state.phase == "finished" or state.where.get("blocked") for state in group.states)
        if now - asked_at >= (ASK_AFTER_S if leaving or suspicion or blocked else pause):
            finding = diagnose.deadlock(group.states) or diagnose.standstill(group.states)
            if finding and finding == suspicion:  # twice the same: no message was merely on its way
                return {"stuck": finding}
            suspicion = finding
            progress = [state.step for state in group.states]
            if leaving or finding or progress == seen:
                group.ask()
            asked_at, seen, pause = now, progress, min(pause * 1.5, ASK_AT_MOST_EVERY_S)


def let_finish(group: Group, left: Callable[[], float], show) -> tuple[list, str]:
    """All ranks have returned: let them finish their threads and end, as Python does.

    Returns those that have not ended at the deadline, or when one has printed too much, and what there is to
    say of the latter.
    """
    flood = ""
    group.let_go()
    while group.alive and (seconds := left()) > 0 and not flood:
        group.listen(min(0.1, seconds))
        show()
        flood = _flood(group)
    if unfinished := group.alive:
        group.dump(unfinished)
        group.kill()
    return unfinished, flood


def _flood(group: Group) -> str:
    """Which ranks that still run have printed more than the disk should hold, in a sentence; "" if none."""
    flooding = [state.rank for state in group.alive if output.too_long(group.output_of(state.rank))]
    if not flooding:
        return ""
    who = begun(ranks_in_words(flooding, group.states[0].known_as))
    return (
        f"{who} {'has' if len(flooding) == 1 else 'have'} printed more than"
        f" {output.MOST_BYTES / 1e6:g} MB: print less, or not in every step."
    )


def starved(states, timeout: float) -> float:
    """For how many seconds ranks have waited for a core, one after the other at worst; 0 for a job that has
    computed for all its time: it is slow by itself.
    """
    found = [threads.computed_and_waited(state.pid) for state in states if state.pid and state.status is None]
    if sum(computed for computed, _ in found) >= timeout:
        return 0.0
    return min(sum(waited for _, waited in found), PATIENCE * timeout)
