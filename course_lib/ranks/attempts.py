"""Attempts: whether a job that has failed starts again, on how many ranks, and what is told of it.

The rules are torchrun's, for one host:

- A failure of one rank ends all, and all start again: torch's process groups cannot replace a member. So does
  a job that cannot go on because its ranks wait for each other.
- There are at most `restarts` restarts, counted over the whole job, whatever failed.
- A rank that raised, ended or crashed comes back. With `min_ranks`, one that was killed from outside
  (SIGKILL, SIGTERM) does not: it stands for a machine that is lost, and the others go on without it while
  there are `min_ranks` of them (torchrun: --nnodes=MIN:MAX). Without `min_ranks` it comes back as well.
- A job whose `timeout` is over, and one that is interrupted, does not start again.
"""

import signal
import time

from course_lib.ranks.errors import RankError, RankInterrupt
from course_lib.ranks.gathering import gather
from course_lib.ranks.launch import RankState
from course_lib.ranks.options import Options
from course_lib.record.attempts import Attempt
from course_lib.roles import ranks_in_words

__all__ = ["Attempts"]

FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)
REASON_LIMIT = 300  # characters


class Attempts:
    """The attempts of one job, from the first on."""

    def __init__(self, options: Options):
        self.past: list[Attempt] = []
        self._restarts, self._min_ranks = options.restarts, options.min_ranks
        self._begin, self._why_no_more = time.monotonic(), ""

    def doing(self) -> str:
        """ "attempt 2 of 3, " while that one runs; "" in the first."""
        return f"attempt {len(self.past) + 1} of {1 + self._restarts}, " if self.past else ""

    def keep(self, states: list[RankState], output: list[str], reason: str = "") -> None:
        """Keep what there is to say of the attempt that is over now."""
        now = time.monotonic()
        # a role may measure nothing; else a rank that has told of no step has done none
        told = [state.step for state in states if state.step is not None or not state.roles]
        done = [0 if step is None else step + 1 for step in told]
        begun_at = [state.begun_at for state in states if state.begun_at is not None]
        self.past.append(
            Attempt(
                len(self.past) + 1,
                len(states),
                reason,
                now - self._begin,
                min(done, default=0),
                min(begun_at) if begun_at else None,
                output,
                gather(states, {})[1],
            )
        )
        self._begin = now

    def who_comes_back(
        self,
        error: RankError,
        states: list[RankState],
        output: list[str],
        timed_out: bool = False,
        supervised: bool = True,
    ) -> list[int]:
        """Keep an attempt that has failed.

        Args:
            error: why.
            timed_out: whether the job's time is over.
            supervised: whether the process is still there that starts ranks.

        Returns:
            The ranks that take part in the next attempt, by their numbers in this one; none if there is no
            next one.
        """
        self.keep(states, output, _reason(error))
        left = [
            state.rank
            for state in states
            if self._min_ranks is None
            or state.status not in FROM_OUTSIDE
            or state.phase in ("finished", "failed")
        ]
        if timed_out:
            self._why_no_more = "; the timeout is for all attempts together"
        elif not supervised:
            self._why_no_more = "; the process that starts ranks was ended, too"
        elif self._min_ranks is not None and len(left) < self._min_ranks:
            self._why_no_more = f"; ranks that are left: {len(left)}, and min_ranks={self._min_ranks}"
        elif len(self.past) <= self._restarts:
            return left
        return []

    def tell(self, error: RankError | RankInterrupt) -> RankError | RankInterrupt:
        """The error of the last attempt, and beside it what became of each."""
        if not self._restarts:
            return error
        failed, allowed = len(self.past), 1 + self._restarts
        if isinstance(error, RankInterrupt):
            words = f"It was attempt {failed + 1} of {allowed}."
        elif failed == allowed and not self._why_no_more:
            words = f"All {allowed} attempts failed."
        else:
            words = f"It was attempt {failed} of {allowed}{self._why_no_more}."
        return error.after(words, tuple(self.past))


def _reason(error: RankError) -> str:
    """Why a job failed, in one line."""
    causes = [report for report in error.reports if report.cause]
    if causes:
        first, *others = causes
        known_as = ", ".join(filter(None, (first.role, "" if first.host is None else f"host {first.host}")))
        told = f"rank {first.rank}" + f" ({known_as})" * bool(known_as) + f" {first.state}"
        told += f" ({first.place})" * bool(first.place)
        if others:
            told += f"; {ranks_in_words(report.rank for report in others)} failed too"
        # what follows the first sentence: that a host is gone, say
        _, _, more = error.headline.removeprefix(f"{error.label} failed on ").partition(". ")
        told += f". {more}" * bool(more)
    else:
        told = error.headline.removeprefix(f"{error.label} ")
    told = " ".join(told.split())
    return told if len(told) <= REASON_LIMIT else f"{told[: REASON_LIMIT - 3]}..."
