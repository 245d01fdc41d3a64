"""Programs beside the kernel that open linked hosts: one tries whether they can be made, one holds them for
as long as the kernel wants, and one takes a program into a host.

Each is started as `python -c` with `command`: they need the standard library alone, and start in a moment.
"""

import json
import os
import select
import signal
import sys
from pathlib import Path

from course_lib.ranks import network

__all__ = ["command", "main"]

_ROOT = str(Path(__file__).resolve().parents[2])
LOOK_EVERY_S = 0.5  # how often a holder looks whether the kernel lives


def command(duty: str, *words: str) -> list[str]:
    """The words that start one: ("try", plan), ("hold", plan) or ("enter", holder, place, program, ...).

    plan: the arguments of `network.build`, as JSON. holder: the process that holds the hosts; place: its
    descriptors of one host's namespaces, with commas.
    """
    code = f"import sys; sys.path.insert(0, {_ROOT!r}); from course_lib.ranks.holder import main; main()"
    return [sys.executable, "-P", "-S", "-c", code, duty, *words]


def main() -> None:
    """Do the duty that the command line names, and tell what came of it in one line of JSON."""
    duty, *words = sys.argv[1:]
    if duty == "enter":
        _enter(words[0], words[1].split(","), words[2:])
    told: dict[str, object] = {"failed": "", "absent": "", "places": [], "inodes": []}
    try:
        places, told["absent"] = network.build(**json.loads(words[0]))
        told |= {"places": places, "inodes": [os.fstat(place[0]).st_ino for place in places]}
    except network.NetworkError as error:
        told["failed"] = str(error)
    print(json.dumps(told), flush=True)
    if duty == "hold" and not told["failed"]:
        _hold(told["inodes"])


def _hold(inodes) -> None:
    """Wait until the kernel closes its end, or is gone; then end all that runs in the hosts. With this
    process the hosts go.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the Interrupt button is the kernel's business
    kernel = os.getppid()
    while os.getppid() == kernel and not select.select([0], [], [], LOOK_EVERY_S)[0]:
        pass
    network.end_all_within(set(inodes))


def _enter(holder: str, namespaces: list[str], program: list[str]) -> None:
    """Become a program within a host, whose namespaces are descriptors of `holder`."""
    try:
        user, *inside = (
            os.open(f"/proc/{holder}/{name}", os.O_RDONLY)
            for name in ("ns/user", *(f"fd/{namespace}" for namespace in namespaces))
        )
        network.enter(inside, user)
        os.execvp(program[0], program)
    except OSError as error:
        sys.exit(f"{program[0]} cannot be started in a linked host: {error.strerror}")
