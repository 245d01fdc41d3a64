"""A call of torch.distributed in the notebook's own process, which is no rank: one sentence on what is meant.

torch ends it with "please make sure to call init_process_group", and that would mislead here.
"""

import ast
import sys
import traceback

from course_lib.frontend import ipython_shell

__all__ = ["explain_outside", "advice"]

# torch's words where there is no process group, and where it looks for the variables that torchrun sets
_TORCHS_WORDS = ("Default process group has not been initialized", "environment variable RANK expected")
_RUNNERS = ("run", "sweep")


def explain_outside() -> None:
    """From now on a cell that ends in such an error gets the sentence below it. Without IPython it does
    nothing, and it may be called often.
    """
    if shell := ipython_shell():
        shell.events.register("post_run_cell", _after_cell)  # once, however often


def _after_cell(result) -> None:
    error = getattr(result, "error_in_exec", None)
    if error is not None and (told := advice(error, getattr(result.info, "raw_cell", "") or "")):
        print(told, file=sys.stderr)


def advice(error: BaseException, cell: str) -> str:
    """The sentence; "" for any other error. `cell`: the source that ended in it."""
    if not isinstance(error, (ValueError, RuntimeError)) or not any(
        words in str(error) for words in _TORCHS_WORDS
    ):
        return ""
    called = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    if found := _called_too_early(cell, called):
        runner, name, meant = found
        return (
            f"{runner} never began: {name}(...) was called here in the notebook, which is no rank. Give"
            f" {runner} the function itself, without its brackets: {meant}"
        )
    return (
        "This ran in the notebook itself, which is no rank: only what `run` starts has a process group. Put"
        " the call into a function, and give the function to run: run(train, ranks=2)"
    )


def _called_too_early(cell: str, called: set[str]) -> tuple[str, str, str] | None:
    """Of `run(train(3), ranks=2)`: "run", "train", and what is meant: "run(train, 3, ranks=2)"; if train is
    among the functions that were `called` when it failed.
    """
    try:
        tree = ast.parse(cell)
    except SyntaxError:  # a cell with magics
        return None
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and (runner := _name(node.func)) in _RUNNERS
            and node.args
            and isinstance(inner := node.args[0], ast.Call)
            and _name(inner.func) in called
        ):
            meant = ast.Call(
                node.func,
                [inner.func, *inner.args, *node.args[1:]],
                [*inner.keywords, *node.keywords],
            )
            return runner, ast.unparse(inner.func), ast.unparse(meant)
    return None


def _name(function: ast.expr) -> str:
    """The last part of a function's name; "" of what has none."""
    return getattr(function, "id", "") or getattr(function, "attr", "")
