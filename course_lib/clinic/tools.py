"""What the standard tools tell of a rank: its last collectives (torch's Flight Recorder), and where its main
thread is right now (py-spy).
"""

import json
import subprocess
import sysconfig
from pathlib import Path

from course_lib import torch_internals
from course_lib.arguments import whole

__all__ = ["last_calls", "stack_of"]


def last_calls(count: int = 1) -> list[str]:
    """The last collectives that this rank has called, the newest last: "all_reduce number 3", by the number
    that a collective has in its group. Empty in a process without a recorder.
    """
    whole("count", count)
    return [f"{record['op']} number {record['seq']}" for record in torch_internals.flight_records()[-count:]]


def stack_of(pid: int) -> list[str]:
    """The calls in which the main thread of a process is, each as "recv (distributed_c10d.py:2799)", the
    innermost first. The process stands still while py-spy reads, for some milliseconds, and runs on.

    Where py-spy may not look, one line says so in its own words: macOS lets root look; Linux, as it often is
    set up, root and the process that has started the other.

    Source: github.com/benfred/py-spy, its command "dump".
    """
    program = Path(sysconfig.get_path("scripts")) / "py-spy"
    command = [program, "dump", "--json", "--pid", str(whole("pid", pid))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"py-spy did not run: {error}"]
    if done.returncode:
        return [f"py-spy cannot look: {' '.join(done.stderr.partition('Stack backtrace')[0].split())}"]
    main = max(json.loads(done.stdout), key=lambda thread: thread["thread_name"] == "MainThread")
    return [f"{frame['name']} ({Path(frame['filename']).name}:{frame['line']})" for frame in main["frames"]]
