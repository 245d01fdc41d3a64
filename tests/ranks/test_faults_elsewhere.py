"""The rows of the table of faults once more, each for real: over linked hosts, among roles, and in the second
attempt of a job. What test_faults.py, test_linked.py and test_restarts.py have of them is not repeated.

After each test nothing is left: no process, no file, and of linked hosts no network.
"""

import contextlib
import os
import signal
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import faults
import pytest
from test_faults import (
    SOON_S,
    at_the_timeout,
    fails,
    late,
    nothing_left,
    once,
    soon,
    stand,
    without_answer,
)
from test_linked import networks_in_use

from course_lib import RankWarning, hosts, run
from course_lib.ranks import budget, output
from course_lib.ranks.errors import RankInterrupt
from course_lib.ranks.launch import Group

assert nothing_left  # a fixture

KNOWN_AS = {
    "on linked hosts": (" (host 0)", " (host 1)"),
    "among roles": (" (leads)", " (follows)"),
    "in the second attempt": ("", ""),
}


@dataclass(frozen=True)
class Elsewhere:
    """Where a fault happens."""

    where: str
    two_hosts: hosts.Linked | None = None

    def call(self, fault: Callable, ranks: int = 2, **options) -> tuple[Callable | list[Callable], dict]:
        """What `run` takes: a function, or one for each rank, and options."""
        named = {"fault": fault.__name__, "ranks": ranks, **options}
        if self.where == "on linked hosts":
            return fault, {"ranks": ranks, "on": self.two_hosts, **options}
        if self.where == "among roles":
            return [faults.leads] * (ranks // 2) + [faults.follows] * (ranks // 2), named
        return faults.again, {"restarts": 1, **named}

    def words(self, text: str) -> str:
        """What is said here: {a} stands behind ranks of the first half, {b} behind those of the second."""
        first, second = KNOWN_AS[self.where]
        return text.format(a=first, b=second)


@pytest.fixture(params=KNOWN_AS)
def elsewhere(request, nothing_left, monkeypatch):
    """One place after the other. After the test nobody is in a network of its ranks, or holds it open."""
    seen, listen = set(), Group.listen

    def listen_and_look(group, wait_s):
        listen(group, wait_s)
        for state in group.alive:
            with contextlib.suppress(OSError):  # it has just ended, or is not told yet
                seen.add(os.stat(f"/proc/{state.pid}/ns/net").st_ino)

    linked = request.param == "on linked hosts"
    place = Elsewhere(request.param, request.getfixturevalue("two_hosts") if linked else None)
    monkeypatch.setattr(Group, "listen", listen_and_look)
    yield place
    seen.discard(os.stat("/proc/self/ns/net").st_ino)
    assert soon(lambda: not seen & networks_in_use()), "networks were left"


@pytest.mark.parametrize(
    "fault, headline, states",
    [
        pytest.param(
            faults.raises,
            "failed on rank 1{b}.",
            {1: "raised IndexError: list assignment index out of range"},
            id="row 1",
        ),
        pytest.param(faults.is_killed, "failed on rank 1{b}.", {1: "was killed (SIGKILL"}, id="row 2"),
        pytest.param(
            faults.leaves_early,
            "Rank 1{b} has finished without calling all_reduce, in which rank 0{a} waits.",
            {0: "waits in all_reduce of float32[4]", 1: "had finished"},
            id="row 3",
        ),
        pytest.param(
            faults.everyone_sends_first,
            "Each rank waits for another: rank 0{a} in send to rank 1{b} of float32[1000000]; rank 1{b} in"
            " send to rank 0{a}",
            {0: "waits in send to rank 1{b}", 1: "waits in send to rank 0{a}"},
            id="row 4",
        ),
        pytest.param(
            faults.different_collectives,
            "rank 0{a} called broadcast of float32[4]; rank 1{b} called all_gather of float32[4]",
            {},
            id="row 5",
        ),
        pytest.param(
            faults.other_shape,
            "rank 0{a} called all_reduce of float32[9]; rank 1{b} called all_reduce of float32[7]",
            {},
            id="row 6",
        ),
        pytest.param(
            faults.prints_for_ever, "Rank 1{b} has printed more than 5 MB: print less", {}, id="row 12"
        ),
    ],
)
def test_rows_1_to_6_and_12_what_ends_a_job(elsewhere, monkeypatch, fault, headline, states):
    monkeypatch.setattr(output, "MOST_BYTES", 5_000_000)
    fn, options = elsewhere.call(fault)
    error = fails(fn, **options)
    assert elsewhere.words(headline) in error.headline and "The link" not in error.headline
    for rank, state in states.items():
        assert error.reports[rank].state.startswith(elsewhere.words(state))
    assert any("faults.py, line" in report.place for report in error.reports) or fault is faults.is_killed
    assert len(error.attempts) == 2 * (elsewhere.where == "in the second attempt")


def test_row_4_a_rank_never_arrives(elsewhere, monkeypatch):
    fn, options = elsewhere.call(faults.never_arrives)
    error = late(monkeypatch, stand(1), fn, **options)
    assert elsewhere.words("Rank 0{a} waits in all_reduce; rank 1{b} is not there.") in error.headline
    assert "time.sleep(100)" in error.reports[1].line


@pytest.mark.parametrize(
    "fault, ranks, words",
    [
        pytest.param(
            faults.silent_dtype,
            2,
            ["rank 0{a} called broadcast of float32[700]; rank 1{b} called", "No library noticed"],
            id="row 6",
        ),
        pytest.param(
            faults.swapped,
            4,  # the functions of two roles have lines of their own, those of one have not
            ["from different lines: rank 0{a} at faults.py, line ", "all_reduce(a)", "all_reduce(b)"],
            id="row 7",
        ),
    ],
)
def test_rows_6_and_7_what_no_library_notices(elsewhere, fault, ranks, words):
    fn, options = elsewhere.call(fault, ranks)
    with pytest.warns(RankWarning) as heard:
        run(fn, **options)
    told = " ".join(str(warning.message) for warning in heard)
    assert all(elsewhere.words(each) in told for each in words), told


def test_row_8_a_rank_is_stopped(elsewhere, monkeypatch):
    fn, options = elsewhere.call(faults.is_stopped)
    error = late(monkeypatch, without_answer(faults.is_stopped), fn, **options)
    assert error.reports[1].state == "does not respond: its process was stopped (SIGSTOP)"
    assert error.reports[0].state == "waits in all_reduce of float32[4]"


def test_row_9_interrupt(elsewhere, monkeypatch):
    fn, options = elsewhere.call(faults.never_arrives)
    pressed = once(monkeypatch, stand(1), lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(RankInterrupt) as caught:
        run(fn, **options)
    assert time.monotonic() - pressed[0] < SOON_S and " interrupted." in caught.value.headline
    assert caught.value.reports[0].state == "waits in all_reduce of float32[4]"
    assert "time.sleep(100)" in caught.value.reports[1].line


def test_row_11_jobs_at_once(elsewhere):
    fn, options = elsewhere.call(faults.addresses)
    with ThreadPoolExecutor(6) as pool:
        jobs = list(pool.map(lambda _: run(fn, **options), range(6)))
    assert [job.ranks for job in jobs] == [2] * 6


def test_row_13_a_small_machine(elsewhere, monkeypatch):
    small = budget.Machine(cores=2, free_bytes=300 * 2**20, shm_free_bytes=2**30)
    fn, options = elsewhere.call(faults.addresses, 8)
    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match="ranks=8 is more than this machine can hold"),
    ):
        patch.setattr(budget.Machine, "here", lambda: small)
        run(fn, **options)


def test_row_15_the_last_complete_checkpoint_is_found_after_a_kill(elsewhere, tmp_path):
    root = tmp_path / "saved"
    run(faults.saves, root, 9)
    fn, options = elsewhere.call(faults.saves, root=root, step=10, killed=True)
    assert "was killed" in fails(fn, **options).reports[1].state
    assert len(list(root.iterdir())) == 2, "nothing of the second save is there: it was not interrupted"
    assert run(faults.loads, root).results == [(9, [9.0, 9.0])] * 2


def test_row_16_nobody_can_connect(elsewhere):
    """On linked hosts ranks listen in a network of their own, to which no way leads from outside."""
    fn, options = elsewhere.call(faults.addresses)
    inside = set(elsewhere.two_hosts.addresses) if elsewhere.two_hosts else {"127.0.0.1"}
    for listening, peers in run(fn, **options).results:
        assert {*listening, *peers} <= inside


def test_row_17_every_rank_must_make_every_group(elsewhere):
    fn, options = elsewhere.call(faults.groups_of_members_only, 4)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            told = str(fails(fn, **options))
        except pytest.fail.Exception:  # two groups get one name: some hang, some go well by chance
            told = " ".join(str(warning.message) for warning in heard)
    words = (
        "The ranks made different groups: ranks 0 and 1{a} made a group of ranks 0 and 1{a}; ranks 2 and 3{b}"
        " made a group of ranks 2 and 3{b}. Every rank must call new_group for every group"
    )
    assert elsewhere.words(words) in told


def test_row_18_what_never_ends_is_given_up_with_a_warning(elsewhere, monkeypatch):
    fn, options = elsewhere.call(faults.never_ends)
    with pytest.warns(RankWarning, match="had returned, and still worked after timeout=.*is lost"):
        job = at_the_timeout(
            monkeypatch, lambda states: all(state.phase == "finished" for state in states), fn, **options
        )
    assert job.results == ["returned"] * 2


@pytest.mark.parametrize("where", ["on linked hosts", "among roles"])
def test_rows_21_and_22_attempts(nothing_left, request, where):
    """A rank fails once, or in every attempt."""
    on = request.getfixturevalue("two_hosts") if where == "on linked hosts" else None
    functions, known_as = [faults.fails_once, faults.raises], "host 1" if on else "raises"
    fails_once, always = functions if on else [[fn] * 2 for fn in functions]
    job = run(fails_once, restarts=2, on=on)
    assert [bool(attempt.reason) for attempt in job.attempts] == [True, False]
    assert "raised ValueError: boom (faults.py, line " in job.attempts[0].reason
    error = fails(always, restarts=2, on=on)
    assert error.headline == f"raises failed on rank 1 ({known_as}). All 3 attempts failed."
    assert len(error.attempts) == 3
    assert all("raised IndexError" in attempt.reason for attempt in error.attempts)


def test_row_20_a_role_fails_on_a_linked_host(nothing_left, two_hosts):
    error = fails([faults.serves, faults.works], "raises", on=two_hosts)
    assert error.headline == "serves and works failed on rank 0 (serves, host 0)."
    assert error.reports[1].state == (
        "stopped because rank 0 (serves, host 0) failed; it was waiting in recv from rank 0 (serves, host 0)"
        " of float32[3]"
    )


@pytest.mark.parametrize("where", ["among roles", "in the second attempt"])
def test_rows_23_and_24_a_link_and_a_host_are_lost(nothing_left, two_hosts, where):
    place = Elsewhere(where)
    fn, options = place.call(faults.loses_its_link)
    error = fails(fn, on=two_hosts, **options)
    assert "is down: nothing passes between it and host 0. Each rank waits: rank 0" in error.headline
    fn, options = place.call(faults.loses_a_host, 4)
    error = fails(fn, on=two_hosts, **options)
    assert "Host 1 is gone: all its ranks were killed." in error.headline


def test_row_23_a_link_that_is_down_is_still_down_for_the_next_attempt(nothing_left, two_hosts):
    error = fails(faults.loses_its_link, on=two_hosts, restarts=1)
    told = "The link of host 1 (rank 1) is down: nothing passes between it and host 0."
    assert told in error.headline and error.headline.endswith("All 2 attempts failed.")
    assert [told in attempt.reason for attempt in error.attempts] == [True, True]


def test_row_24_a_host_that_has_disappeared_once_is_told(nothing_left, two_hosts):
    job = run(faults.loses_a_host_once, ranks=4, on=two_hosts, restarts=1, min_ranks=2)
    first, second = job.attempts
    assert (first.ranks, second.ranks) == (4, 2)
    assert job.where.startswith("2 ranks, gloo on CPU (1 of 2 linked hosts, 200 Mbit/s; ")
    assert first.reason.startswith("rank 2 (host 1) was killed (SIGKILL")
    assert first.reason.endswith("; rank 3 failed too. Host 1 is gone: all its ranks were killed.")
