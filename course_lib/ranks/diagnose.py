"""Work out why a job is stuck, from what its ranks have told. Pure functions: states in, sentences out."""

import signal
from collections import defaultdict
from math import prod

from course_lib import torch_internals
from course_lib.collectives import COLLECTIVES, by_function
from course_lib.ranks import places
from course_lib.ranks.launch import RankState
from course_lib.ranks.where import RECORDED
from course_lib.roles import begun, ranks_in_words

__all__ = [
    "deadlock",
    "standstill",
    "disagreement",
    "suspicious_sites",
    "never_joined",
    "cut_off",
    "hosts_gone",
    "waits_in_words",
]

# how long all ranks must be blocked without a byte sent, before they are said to wait for each other
STILL_S = 1.5

NEW_GROUP = (
    "Every rank must call new_group for every group, also for one of which it is no member, with the same"
    " ranks, in the same order."
)


def deadlock(states: list[RankState]) -> str | None:
    """A sentence if these ranks can never go on, or None if they may."""
    return _groups_differ(states) or _left_early(states) or disagreement(states, pending_only=True)


def standstill(states: list[RankState]) -> str | None:
    """A sentence if every rank that is left is blocked, and nothing has moved for a while: they wait for each
    other, or for one that has finished.
    """
    left = [state for state in states if state.phase != "finished"]
    if not left or any(state.phase != "running" or state.still_s < STILL_S for state in left):
        return None
    finished = {state.rank for state in states if state.phase == "finished"}
    if not finished and all(state.where["call"]["op"] == "new_group" for state in left):
        # they make one group (`_groups_differ` has looked), on a slow machine
        return None
    told, ops, groups, roles = [], set(), set(), states[0].known_as
    for state in left:
        call, pending = state.where["call"], under_way(state)
        ops.add(call["op"])
        groups |= {c["name"] for c in pending}
        over = (
            [int(rank) for rank in pending[0]["group"].split(",")] if pending and call["peer"] is None else []
        )
        told.append(
            f"{state.name} in {waits_in_words(state)}"
            + (f", over {ranks_in_words(over, roles)}" if over and len(over) < len(states) else "")
            + (", which has finished" if call["peer"] in finished else "")
        )
    if lost := cut_off(states):
        return f"{lost} Each rank waits: {'; '.join(told)}."
    if all(_is("send", op) for op in ops):
        hint = "A send may wait until its receiver is there: let one side receive first, or use isend."
    elif all(_is("receive", op) for op in ops) and not finished:
        hint = "Nobody sends."
    elif "new_group" in ops:
        hint = NEW_GROUP
    elif len(groups) > 1:
        hint = "Collectives of several groups must be called in the same order by all ranks that share them."
    else:
        hint = "A recv needs a send, and a collective needs every rank of its group."
    return (
        f"{'Each rank waits' if not finished else 'Each rank that is left waits'} for another:"
        f" {'; '.join(told)}. {hint}"
    )


def cut_off(states: list[RankState], switched_off: bool = False) -> str | None:
    """A sentence on linked hosts that nothing reaches any more, or None.

    switched_off: what the end that is off says counts alone. The other end's word comes late: in its first
    second a new link may seem to lead nowhere.
    """
    told: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    hosts = {state.host for state in states if state.host is not None}
    for state in states:
        link = (state.error or {}).get("link") or state.where.get("link")
        if state.host is not None and link:
            told[link["state"]][state.host].append(state.rank)
    # of a cable, both ends tell; the one that is off is at fault
    lost = told.get("down") or (None if switched_off else told.get("cut"))
    if not lost:
        return None
    names = " and ".join(f"host {host} ({ranks_in_words(ranks)})" for host, ranks in sorted(lost.items()))
    others = " and ".join(f"host {host}" for host in sorted(hosts - set(lost)))
    return f"The link of {names} is down: nothing passes" + (
        f" between {'it' if len(lost) == 1 else 'them'} and {others}." if others else " between the hosts."
    )


def hosts_gone(states: list[RankState], causes: set[int]) -> str:
    """A sentence if linked hosts have disappeared: all their ranks were killed, and no other rank is a cause;
    "" if not.
    """
    gone = {
        state.host: [other.rank for other in states if other.host == state.host]
        for state in states
        if state.host is not None and state.rank in causes
    }
    if not gone or {rank for ranks in gone.values() for rank in ranks} != causes:
        return ""
    if any(state.status != -signal.SIGKILL for state in states if state.rank in causes):
        return ""
    return " ".join(
        f"Host {host} is gone: {'all its ranks were' if len(ranks) > 1 else 'its rank was'} killed."
        for host, ranks in sorted(gone.items())
    )


def disagreement(states: list[RankState], pending_only: bool = False) -> str | None:
    """A sentence on the first collective about which the ranks of its group disagree: another operation, size
    or dtype.

    `pending_only`: only collectives in which some rank still waits.
    """
    if differ := _groups_differ(states):
        return differ
    for _, by_rank in _matched(states):
        if pending_only and all(call["done"] for call in by_rank.values()):
            continue
        if len({_shape_of_call(call) for call in by_rank.values()}) > 1:
            told = defaultdict(list)
            for rank, call in by_rank.items():
                told[call_in_words(call)].append(rank)
            sides = "; ".join(
                f"{ranks_in_words(ranks, states[0].known_as)} called {call}" for call, ranks in told.items()
            )
            kind = (
                "different collectives"
                if len({call["op"] for call in by_rank.values()}) > 1
                else "the same collective with different tensors"
            )
            return (
                f"The ranks called {kind}: {sides}. Ranks of a group must call the same collectives, in the"
                " same order, with the same shape and dtype."
            )
    return None


def _groups_differ(states: list[RankState]) -> str | None:
    """A sentence if a group of one name has other members on another rank: torch numbers groups as they are
    made, and mixes the messages of these two.
    """
    made: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for state in states:
        known = {call["name"]: call["group"] for call in state.collectives} | (
            (state.where or {}).get("groups") or {}
        )
        for name, members in known.items():
            # other names are made of the members; of a group that is gone they are not known
            if name.isdigit() and members[:1].isdigit():
                made[name][members].append(state.rank)
    for sides in made.values():
        if len(sides) > 1:
            roles = states[0].known_as
            told = "; ".join(
                f"{ranks_in_words(ranks, roles)} made a group of"
                f" {ranks_in_words(map(int, members.split(',')), roles)}"
                for members, ranks in sides.items()
            )
            return f"The ranks made different groups: {told}. {NEW_GROUP}"
    return None


def suspicious_sites(states: list[RankState]) -> str | None:
    """A sentence on the first reduction that ranks called from different lines: perhaps the sum of different
    things.

    Tensors of one shape can be swapped without an error; only the place of the call gives it away.
    """
    for _, by_rank in _matched(states):
        sites = {rank: tuple(call["site"][:2]) for rank, call in by_rank.items() if call["site"]}
        lines = defaultdict(set)  # of each role: a function has lines of its own
        for rank, site in sites.items():
            lines[states[0].roles[rank] if states[0].roles else ""].add(site)
        if (
            _is("sum", next(iter(by_rank.values()))["op"])
            and len(sites) == len(by_rank)
            and any(len(different) > 1 for different in lines.values())
        ):
            told = defaultdict(list)
            for rank, call in by_rank.items():
                place = places.place_in_words(tuple(call["site"]))
                told[f"{place} ({places.line_of(call['site'])})"].append(rank)
            where = "; ".join(
                f"{ranks_in_words(ranks, states[0].known_as)} at {place}" for place, ranks in told.items()
            )
            return (
                f"The ranks called the same {call_in_words(next(iter(by_rank.values())))} from different"
                f" lines: {where}. If these are different tensors, the result mixes them."
            )
    return None


def _matched(states: list[RankState]) -> list[tuple[tuple, dict[int, dict]]]:
    """Calls that belong together, in order: ((number, name of the group), rank -> call)."""
    calls: dict[tuple, dict[int, dict]] = defaultdict(dict)
    for state in states:
        for call in state.collectives:
            calls[call["seq"], call["name"]][state.rank] = call
    return sorted(calls.items(), key=lambda item: item[0])


def _left_early(states: list[RankState]) -> str | None:
    """A rank has finished, and others wait in a collective that it never called."""
    finished = [state for state in states if state.phase == "finished"]
    for state in states:
        for call in state.collectives if state.phase != "finished" else []:
            gone = [
                other.rank
                for other in finished
                if not call["done"]
                and str(other.rank) in call["group"].split(",")
                and not _has_called(other, call)
            ]
            if gone:
                waiting = [
                    s.rank
                    for s in states
                    if any(
                        c["name"] == call["name"] and c["seq"] == call["seq"] and not c["done"]
                        for c in s.collectives
                    )
                ]
                left, those = (ranks_in_words(ranks, state.known_as) for ranks in (gone, waiting))
                return (
                    f"{begun(left)} {'has' if len(gone) == 1 else 'have'} finished"
                    f" without calling {_op_of(state, call)}, in which {those}"
                    f" wait{'s' if len(waiting) == 1 else ''}. A collective needs every rank of its group."
                )
    return None


def never_joined(states: list[RankState]) -> str | None:
    """A sentence on a collective that a finished rank has called without waiting for it, and that another
    never called.
    """
    for state in states:
        for call in state.collectives:
            without = [
                other.rank
                for other in states
                if not call["done"]
                and str(other.rank) in call["group"].split(",")
                and not _has_called(other, call)
            ]
            if without:
                others = ranks_in_words(without, state.known_as)
                return (
                    f"{begun(state.name)} called {call_in_words(call)} and did not wait for it;"
                    f" {others} never called it. It was never carried out."
                )
    return None


def _has_called(state: RankState, call: dict) -> bool:
    """Whether a rank has called a collective of its group, as far as its record reaches back."""
    numbers = [c["seq"] for c in state.collectives if c["name"] == call["name"]]
    return max(numbers) >= call["seq"] if numbers else len(state.collectives) >= RECORDED


def waits_in_words(state: RankState) -> str:
    """What a rank waits in, or waited in when it failed: "all_reduce of float32[3]"; empty if in nothing."""
    pending = under_way(state)
    call = state.where.get("call") if state.where else None
    if state.error:  # the wait has ended in an error, such as a broken connection
        op = next(
            (
                name
                for filename, _, name in reversed(state.error["frames"])
                if torch_internals.is_of_distributed(filename)
            ),
            "",
        )
        if state.collectives and state.collectives[-1]["op"] == op:
            return call_in_words(state.collectives[-1])
        return op
    if call:
        if call["peer"] is not None:
            what = f" of {call['tensor']}" if call["tensor"] else ""
            peer = ranks_in_words([call["peer"]], state.known_as)
            return f"{call['op']} {'to' if _is('send', call['op']) else 'from'} {peer}{what}"
        if _is("meeting", call["op"]):
            return call["op"]
        if call["op"] == "wait":
            return call_in_words(pending[0]) if pending else "wait() of a message"
        return call["op"] + (f" of {call['tensor']}" if call["tensor"] else "")
    return call_in_words(pending[0]) if pending and not (state.where and state.where.get("free")) else ""


def under_way(state: RankState) -> list[dict]:
    """Collectives that a rank has called and that are not done."""
    return [call for call in state.collectives if not call["done"]]


def call_in_words(call: dict) -> str:
    """One collective of the Flight Recorder: "all_reduce of float32[3]"."""
    if _is("meeting", call["op"]) or not call["sizes"]:
        return call["op"]
    return f"{call['op']} of {call['dtypes'][0]}{call['sizes'][0]}"


def _op_of(state: RankState, call: dict) -> str:
    """The name of a pending collective as the learner called it, if the rank stands in that call, else the
    backend's name.
    """
    own = state.where.get("call") if state.where else None
    pending = under_way(state)
    return own["op"] if own and own["op"] != "wait" and pending and pending[-1] is call else call["op"]


def _is(kind: str, op: str) -> bool:
    """Whether a call is of a collective of this kind: by its own name, or a function's of torch.distributed.
    The backend may have another name for it, of no kind.
    """
    row = COLLECTIVES.get(op) or by_function(op)
    return row is not None and row.kind == kind


def _shape_of_call(call: dict) -> tuple:
    """What must be equal on all ranks of a group."""
    row = COLLECTIVES.get(call["op"])
    if (row is not None and row.sizes_may_differ) or not call["sizes"]:
        return (call["op"],)
    return call["op"], call["dtypes"][0], sum(prod(size) for size in call["sizes"])
