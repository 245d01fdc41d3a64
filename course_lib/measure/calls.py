"""Note every collective, send and receive that this process asks for, whoever asks: DDP's reducer in C++,
fully_shard, DTensor, a hand-written send.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from course_lib import torch_internals
from course_lib.collectives import COLLECTIVES, Collective

__all__ = ["listen", "attach", "without_notes"]


@contextlib.contextmanager
def listen(before: Callable[[dict], None] | None = None) -> Iterator[list[dict]]:
    """Note each collective, send and receive that is called within a `with` block, by whichever thread of
    this process: `with listen() as calls: ...`.

    The ledger looks at the traced step alone; this looks wherever it is put, but not inside of a traced step.

    Args:
        before: is called with each entry before that collective goes on, and may let it wait.

    Returns:
        A list that grows, one dict for each call: op, dtype, payload_bytes (the full tensor), algorithm_bytes
        (what this rank sends, by the textbook), group_size, group (its ranks, "0,1"), start_s; and seconds,
        None, for only the ledger times calls.
    """
    calls: list[dict] = []

    def note(call: dict) -> None:
        calls.append(told := without_notes(call))
        if before is not None:
            before(told)  # not calls[-1]: another thread may have called meanwhile

    detach = attach(note)
    try:
        yield calls
    finally:
        detach()


def attach(
    note: Callable[[dict], None], failed: Callable[[str, Exception], None] | None = None
) -> Callable[[], None]:
    """Call `note` with each call before it goes on, until what is returned is called.

    The dict has notes for `events.give_times`, too; their names begin with an underscore.
    `failed`: gets the collective's name and the error if a call cannot be looked into, and the call goes on.
    """

    def teller(row: Collective, operator: str) -> Callable[[tuple], None]:
        def tell(arguments: tuple) -> None:
            try:
                call = _look_at(row, operator, arguments)
            except Exception as error:
                if failed is None:
                    raise
                failed(row.name, error)
                return
            note(call)

        return tell

    return torch_internals.watch_collectives(
        {operator: teller(row, operator) for row in COLLECTIVES.values() for operator in row.operators}
    )


def without_notes(call: dict) -> dict:
    """What is reported of a call."""
    return {name: value for name, value in call.items() if name[0] != "_"}


def _look_at(row: Collective, operator: str, arguments: tuple) -> dict:
    """One call. What the row says is the full tensor may be one rank's part of it."""
    group = torch_internals.process_group_in(arguments)
    size, full = group.size(), row.operators[operator]
    given = () if full is None else arguments[full]
    tensors = list(_flatten(given))
    sparse = any(tensor.layout is torch.sparse_coo for tensor in tensors)
    payload_bytes = sum(map(_bytes, tensors)) * (size if row.part_of_full else 1)
    parts = arguments[row.parts[operator]] if operator in row.parts else ()
    if parts:
        sent_bytes = payload_bytes - _part_bytes(parts, group.rank(), payload_bytes)
    else:
        sent_bytes = payload_bytes * row.sent(size)
    return {
        "op": row.name,
        "dtype": str(tensors[0].dtype).removeprefix("torch.") if tensors else "",
        "payload_bytes": payload_bytes,
        # of a sparse sum nobody knows the size beforehand
        "algorithm_bytes": None if sparse else float(sent_bytes),
        "group_size": size,
        "group": ",".join(map(str, dist.get_process_group_ranks(group))),
        "start_s": time.perf_counter(),
        "seconds": None,
        "_to": arguments[2] if row.kind == "send" else None,  # by its rank in the group
        "_work": torch_internals.GLOO + row.gloo,
        "_runs": size if row.gloo != row.name and _is_list_of_lists(given) else 1,
        "_numels": (
            {tensor.numel() for argument in arguments for tensor in _flatten(argument)}
            | ({None} if row.recorded_bare else set())
        ),
        "_for_ddp": torch_internals.asked_by_ddp(),
    }


def _part_bytes(parts: list, rank: int, payload_bytes: int) -> int:
    """Bytes of one rank's part, as `Collective.parts` tells of them."""
    if isinstance(parts[rank], torch.Tensor):
        return _bytes(parts[rank])
    return payload_bytes * parts[rank] // max(sum(parts), 1)


def _bytes(tensor: torch.Tensor) -> int:
    if tensor.layout is torch.sparse_coo:
        return sum(part.nbytes for part in torch_internals.sparse_parts(tensor))
    return tensor.nbytes


def _is_list_of_lists(value) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], (list, tuple))


def _flatten(value) -> Iterator[torch.Tensor]:
    """The tensors in an operator's argument: a tensor, a list, or a list of lists."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _flatten(inner)
