"""Mistakes after which a job ends as if all were well: what there is to say of them."""

from course_lib.ranks import diagnose, places
from course_lib.ranks.errors import ended_in_words, error_in_words, frames_of_dump
from course_lib.ranks.launch import RankState
from course_lib.roles import begun, ranks_in_words

__all__ = ["mistakes"]


def mistakes(states: list[RankState], unfinished: list[RankState], flood: str, timeout: float) -> list[str]:
    """Sentences on what no error has told: work that was not done when the ranks had returned, a thread that
    has died, last collectives that don't match.

    Args:
        unfinished: ranks that had returned, and still worked when they were stopped.
        flood: why, if a rank printed too much.
        timeout: else after how many seconds.
    """
    told = []
    if unfinished:
        frames = [
            places.learners_frame(frames_of_dump(state.stack, all_threads=True)) for state in unfinished
        ]
        where = "; ".join(dict.fromkeys(places.place_in_words(frame) for frame in frames if frame))
        who = begun(ranks_in_words([state.rank for state in unfinished], states[0].known_as))
        when = "when the job was stopped" if flood else f"after timeout={timeout:g} s"
        told.append(
            f"{who} had returned, and still worked {when}"
            + f" ({where})" * bool(where)
            + "."
            + f" {flood}" * bool(flood)
            + " What was not done is lost."
        )
    for state in states:
        if state.status:
            told.append(
                f"{begun(state.name)} {ended_in_words(state)}: it still worked after its function had"
                " returned. What was not done is lost."
            )
    silent = diagnose.disagreement(states)
    suspicious = (
        f"{silent} No library noticed: don't trust the values."
        if silent
        else diagnose.never_joined(states) or diagnose.suspicious_sites(states) or _ended_threads(states)
    )
    return told + [suspicious] * bool(suspicious)


def _ended_threads(states: list[RankState]) -> str:
    """A sentence on the last rank that lost a thread; "" if none has."""
    for state in reversed(states):
        if state.thread_error:
            frame = places.learners_frame(state.thread_error["frames"])
            return (
                f"A thread of {state.name} raised {error_in_words(state.thread_error)}"
                + (f" ({places.place_in_words(frame)})" if frame else "")
                + ", and ended; the rank went on without it."
            )
    return ""
