"""A page that is opened again while a job runs: the kernel's answers to the little that it asks at first.

Such a page asks what kernel this is, which widgets there are, and how they look: all at once, and if it has
heard nothing after four seconds, each by itself. It asks the main thread, which is busy in `run`: without an
answer it shows "Loading widget..." until the job is over. So these few questions are answered by the thread
that takes in all messages and hands them on. All others are handed on as ever, and wait for the main thread.

(Seen in ipykernel 7.4 with JupyterLab 4.6 and ipywidgets 8.1. A kernel that is not made like this one answers
when the job is over.)
"""

import inspect
from typing import Any

from course_lib.frontend import ipython_shell

__all__ = ["begin", "end", "tell_busy"]

_REQUESTS = ("kernel_info_request", "comm_info_request")
_COMMS = ("comm_open", "comm_msg", "comm_close")
_STATES = "jupyter.widget.control"  # the target of who asks for the states of all widgets
_STATE = "request_state"  # what one widget is asked for its own
_asking: list[Any] = []  # one of each `begin` that has had no `end`


def begin(job: Any) -> None:
    """Answer from now on."""
    _asking.append(job)
    _listen()


def end(job: Any) -> None:
    """Stop it, if no other job goes on."""
    if job in _asking:
        _asking.remove(job)
        _listen()


def tell_busy() -> None:
    """Say once more that the kernel is busy. JupyterLab's light goes by the last status that it has heard,
    and each answer ends with "idle", also those of the thread that hears the buttons.
    """
    if _asking and (tell := getattr(getattr(ipython_shell(), "kernel", None), "_publish_status", None)):
        tell("busy", "shell")


def _listen() -> None:
    """Let the thread that takes in messages do what fits now."""
    kernel = getattr(ipython_shell(), "kernel", None)
    thread, stream = (getattr(kernel, name, None) for name in ("shell_channel_thread", "shell_stream"))
    hand_on = getattr(kernel, "shell_channel_thread_main", None)
    if thread is None or stream is None or hand_on is None:
        return

    async def answer_or_hand_on(frames: list) -> None:
        if not await _answered(kernel, stream, frames):
            await hand_on(frames)

    thread.io_loop.add_callback(stream.on_recv, answer_or_hand_on if _asking else hand_on, copy=False)


async def _answered(kernel: Any, stream: Any, frames: list) -> bool:
    """Answer a message if it is one of the few. What cannot be answered here is the main thread's, too."""
    try:
        idents, parts = kernel.session.feed_identities(frames, copy=False)
        message = kernel.session.deserialize(parts, content=False, copy=False)  # it may be read once more
        kind = message["header"]["msg_type"]
        if kind not in (*_REQUESTS, *_COMMS):
            return False
        content = message["content"] = kernel.session.unpack(message["content"])
        comm = kernel.comm_manager.comms.get(content.get("comm_id"))
        target = content.get("target_name") if comm is None else comm.target_name
        if kind in _COMMS and target != _STATES and content.get("data", {}).get("method") != _STATE:
            return False
        kernel._publish_status("busy", "shell", parent=message)
        if kind == "comm_msg":  # `handle_msg` would also show the figures of the cell, which are half done
            kernel._shell_parent.set(message)  # of this task alone: the page looks for what it has asked
            comm._msg_callback(message)
        else:
            answer = kernel.shell_handlers[kind](stream, idents, message)
            if inspect.isawaitable(answer):
                await answer
        kernel._publish_status("idle", "shell", parent=message)  # without it, it is no answer to JupyterLab
        return True
    except Exception:
        return False
