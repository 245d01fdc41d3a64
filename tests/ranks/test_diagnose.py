"""What is concluded from what ranks tell: pure functions, no processes."""

from course_lib.ranks import errors
from course_lib.ranks.diagnose import (
    STILL_S,
    cut_off,
    deadlock,
    disagreement,
    hosts_gone,
    never_joined,
    standstill,
    suspicious_sites,
)
from course_lib.ranks.launch import STILL_CPU_S, RankState, _nothing_moved
from course_lib.ranks.where import RECORDED


def call(seq, op="all_reduce", size=(4,), dtype="float32", done=True, name="0", group="0,1", site=None):
    return {
        "op": op,
        "sizes": [list(size)],
        "dtypes": [dtype],
        "group": group,
        "name": name,
        "seq": seq,
        "done": done,
        "site": site,
    }


def states(*calls, finished=()):
    return [
        RankState(rank, phase="finished" if rank in finished else "running", collectives=list(own))
        for rank, own in enumerate(calls)
    ]


def test_slow_is_not_stuck():
    # rank 1 may still come
    assert deadlock(states([call(1), call(2, done=False)], [call(1)])) is None
    # a large tensor under way
    assert deadlock(states([call(1, done=False)], [call(1, done=False)])) is None
    # rank 1 has done its part
    assert deadlock(states([call(1, done=False)], [call(1)], finished=[1])) is None


def linked(*links: str):
    """Two ranks on each host, whose links are in these states; "" for ranks that have not told."""
    return [
        RankState(rank, host=rank // 2, where={"link": {"state": state}} if state else {})
        for rank, state in enumerate(state for state in links for _ in range(2))
    ]


def test_of_a_cable_the_end_that_is_off_is_at_fault():
    assert cut_off(linked("up", "up")) is None and cut_off(states([call(1)], [call(1)])) is None
    assert cut_off(linked("up", "cut"), switched_off=True) is None
    assert cut_off(linked("cut", "down"), switched_off=True) == cut_off(linked("cut", "down"))
    assert cut_off(linked("cut", "down")) == (
        "The link of host 1 (ranks 2 and 3) is down: nothing passes between it and host 0."
    )
    # behind a switch nobody else sees it
    assert cut_off(linked("up", "up", "down")) == (
        "The link of host 2 (ranks 4 and 5) is down: nothing passes between it and host 0 and host 1."
    )
    # those at the other end do not answer
    assert cut_off(linked("cut", "")).startswith("The link of host 0 (ranks 0 and 1) is down")
    assert cut_off(linked("down", "down")).endswith(
        "(ranks 2 and 3) is down: nothing passes between the hosts."
    )


def test_a_host_is_gone_when_all_its_ranks_were_killed():
    four = linked("up", "up")
    for state in four[2:]:
        state.status = -9
    assert hosts_gone(four, {2, 3}) == "Host 1 is gone: all its ranks were killed."
    assert hosts_gone(four, {2}) == hosts_gone(four, {0, 2, 3}) == hosts_gone(four, set()) == ""
    four[3].status = 1
    assert hosts_gone(four, {2, 3}) == ""
    assert hosts_gone(states([call(1)], [call(1)]), {1}) == ""


def test_left_early():
    told = deadlock(states([call(1), call(2, done=False)], [call(1)], finished=[1]))
    assert told.startswith("Rank 1 has finished without calling all_reduce, in which rank 0 waits.")


def test_left_early_needs_a_member_and_a_record():
    other_group = call(1, done=False, name="7", group="0,2")
    # rank 1 is no member
    assert deadlock(states([other_group], [call(1)], [], finished=[1])) is None
    full = [call(n) for n in range(RECORDED)]
    # its record does not reach back
    assert deadlock(states([call(1, done=False, name="7")], full, finished=[1])) is None


def test_groups_of_the_same_ranks_are_kept_apart():
    one = [call(1, name="0"), call(1, "broadcast", name="5")]
    assert disagreement(states(one, one)) is None


def test_disagreement():
    assert "rank 0 called all_reduce of float32[4]; rank 1 called all_reduce of float32[5]" in disagreement(
        states([call(1)], [call(1, size=(5,))])
    )
    assert "different collectives" in disagreement(states([call(1)], [call(1, "broadcast")]))
    assert disagreement(states([call(1)], [call(1, size=(5,))]), pending_only=True) is None
    # sizes may differ
    assert disagreement(states([call(1, "gather")], [call(1, "gather", size=(9,))])) is None
    # the same elements
    assert disagreement(states([call(1, size=(2, 3))], [call(1, size=(6,))])) is None


def test_groups_of_one_name():
    told = deadlock(states([call(1, name="1", group="0,1")], [call(1, name="1", group="1,2")], []))
    assert (
        told
        == "The ranks made different groups: rank 0 made a group of ranks 0 and 1; rank 1 made a group of"
        " ranks 1 and 2. Every rank must call new_group for every group, also for one of which it is no"
        " member, with the same ranks, in the same order."
    )
    gone = call(1, name="1", group="group 1")  # destroyed by one rank already
    assert deadlock(states([call(1, name="1", group="0,1")], [gone])) is None
    own = call(1, name="8c1f"), call(1, name="8c1f", group="2,3")  # such names are made of the members
    assert deadlock(states([own[0]], [own[1]])) is None
    waiting = states([], [])
    for state, members in zip(waiting, ("0,1", "1,0")):
        state.where = {"groups": {"1": members}}
    assert "rank 1 made a group of ranks 0 and 1" in deadlock(waiting)
    making = [still(rank, "new_group", tensor="") for rank in range(2)]
    assert standstill(making) is None  # slow is not stuck
    assert standstill([making[0], still(1, "all_reduce")]).endswith(errors.diagnose.NEW_GROUP)


def test_sites():
    here, there = ("cell.py", 3, "f"), ("cell.py", 5, "f")
    assert suspicious_sites(states([call(1, site=here)], [call(1, site=here)])) is None
    assert "line 3" in suspicious_sites(states([call(1, site=here)], [call(1, site=there)]))
    # often meant so
    assert (
        suspicious_sites(states([call(1, "broadcast", site=here)], [call(1, "broadcast", site=there)]))
        is None
    )


def test_roles_stand_behind_the_ranks():
    roles = ["Serve", "work", "work"]

    def of(calls, finished=()):
        found = states(*calls, finished=finished)
        for state in found:
            state.roles = roles
        return found

    left = of([[call(1, done=False, group="0,1,2")], [], [call(1, done=False, group="0,1,2")]], finished=(1,))
    assert deadlock(left).startswith(
        "Rank 1 (work) has finished without calling all_reduce, in which ranks 0 (Serve) and 2 (work) wait."
    )
    differ = of([[call(1, done=False)], [call(1, size=(7,), done=False)]])
    assert "rank 0 (Serve) called all_reduce of float32[4]; rank 1 (work) called" in deadlock(differ)
    waiting = [still(0, "recv", peer=1), still(1, "recv", peer=0)]
    for state in waiting:
        state.roles = roles
    assert "rank 0 (Serve) in recv from rank 1 (work) of float32[3]" in standstill(waiting)
    assert errors._who_waits(waiting) == "" and errors._who_waits([waiting[0], *of([[], []])[1:]]) == (
        "Rank 0 (Serve) waits in recv from rank 1 (work); rank 1 (work) is not there."
    )


def test_hosts_stand_behind_the_roles():
    waiting = [still(0, "recv", peer=1), still(1, "recv", peer=0)]
    for state in waiting:
        state.hosts = [0, 1]
    assert "rank 0 (host 0) in recv from rank 1 (host 1) of float32[3]" in standstill(waiting)
    for state in waiting:
        state.roles = ["serve", "work"]
    assert waiting[1].name == "rank 1 (work, host 1)"
    assert "rank 0 (serve, host 0) in recv from rank 1 (work, host 1)" in standstill(waiting)


def test_another_line_is_suspicious_within_a_role_only():
    """A role is a function, with lines of its own."""
    sites = [("cell.py", line, "f") for line in (3, 5, 5)]
    found = states(*([call(1, site=site, group="0,1,2")] for site in sites))
    assert "rank 0 at" in suspicious_sites(found)
    for roles, suspicious in ((["serve", "work", "work"], False), (["work", "work", "serve"], True)):
        for state in found:
            state.roles = roles
        assert bool(suspicious_sites(found)) is suspicious


def test_who_waits_in_what():
    waiting = {
        rank: RankState(
            rank,
            phase="running",
            where={"frames": [], "call": {"op": op, "tensor": "", "peer": None}, "collectives": []},
        )
        for rank, op in ((0, "all_reduce"), (2, "all_reduce"), (3, "new_group"))
    }
    told = errors._who_waits([waiting[0], RankState(1, phase="finished"), waiting[2], waiting[3]])
    assert told == "Ranks 0 and 2 wait in all_reduce; rank 3 waits in new_group; rank 1 is not there."


def still(rank, op, peer=None, tensor="float32[3]", seconds=STILL_S, pending=()):
    where = {
        "frames": [],
        "call": {"op": op, "tensor": tensor, "peer": peer},
        "collectives": [],
        "free": False,
    }
    return RankState(rank, phase="running", where=where, still_s=seconds, collectives=list(pending))


def test_ranks_that_wait_for_each_other():
    told = standstill([still(0, "send", 1), still(1, "send", 0)])
    assert (
        told
        == "Each rank waits for another: rank 0 in send to rank 1 of float32[3]; rank 1 in send to rank 0 of"
        " float32[3]. A send may wait until its receiver is there: let one side receive first, or use"
        " isend."
    )
    assert standstill([still(0, "recv", 1), still(1, "recv", 0)]).endswith("Nobody sends.")
    assert (
        standstill([still(0, "recv", 1), RankState(1, phase="finished")])
        == "Each rank that is left waits for another: rank 0 in recv from rank 1 of float32[3], which has"
        " finished. A recv needs a send, and a collective needs every rank of its group."
    )
    one, other = [call(1, done=False, name="1", group="0,1")], [call(1, done=False, name="2", group="0,1")]
    assert standstill([still(0, "all_reduce", pending=one), still(1, "wait", pending=other)]).endswith(
        "in the same order by all ranks that share them."
    )


def test_not_long_enough_or_not_all():
    assert standstill([still(0, "send", 1), still(1, "send", 0, seconds=STILL_S - 0.1)]) is None
    # it has not told where it is
    assert standstill([still(0, "send", 1), RankState(1, phase="running")]) is None
    assert standstill([RankState(0, phase="finished")]) is None


def test_what_counts_as_moving():
    blocked = {
        "frames": [("f.py", 3, "f")],
        "call": {"op": "recv"},
        "collectives": [],
        "blocked": True,
        "written_bytes": 10,
        "cpu_s": 1.0,
        "threads": {7: (True, 20), 8: (True, 300)},
    }
    assert _nothing_moved(blocked, blocked | {"cpu_s": 1.001})
    assert _nothing_moved(blocked, blocked | {"threads": {7: (True, 20), 8: (False, 302)}})
    for change in (
        {"cpu_s": 1.001 + STILL_CPU_S},
        {"written_bytes": 11},
        {"frames": [("f.py", 4, "f")]},
        {"blocked": False},
        {"written_bytes": None},
        {"collectives": [call(1)]},
        {"threads": {7: (False, 20), 8: (True, 400)}},  # awake, and no core is free
        {"threads": {7: (True, 20), 8: (False, 301)}},
        {"threads": {7: (True, 20), 8: (True, 400), 9: (False, 0)}},  # it has begun
    ):
        assert not _nothing_moved(blocked, blocked | change)
    assert not _nothing_moved(None, blocked) and not _nothing_moved(
        blocked | {"written_bytes": None}, blocked | {"written_bytes": None}
    )


def test_a_collective_that_nobody_waited_for():
    told = never_joined(states([call(1), call(2, done=False)], [call(1)], finished=[0, 1]))
    assert (
        told
        == "Rank 0 called all_reduce of float32[4] and did not wait for it; rank 1 never called it. It was"
        " never carried out."
    )
    # all have called it: it will be done
    assert never_joined(states([call(1, done=False)], [call(1, done=False)], finished=[0, 1])) is None
    assert (
        never_joined(
            states(
                [call(1, done=False, name="7", group="0,2")],
                [call(1)],
                [call(1, name="7", group="0,2")],
                finished=[0, 1, 2],
            )
        )
        is None
    )
