"""Which layers' full parameters are alive when, and what a step really allocates.

The ledger of `measure.step` looks at one moment, right after `optimizer.step()`. A rank runs out of memory at the worst moment, which may be
another one. Here are two instruments that look at all of them, whoever shards (a notebook, mini.zero, fully_shard):

    watch(layers)    in every forward and backward of a layer: which layers have all their parameters on this rank?
    Allocations()    every allocation and every release of a block of code, as the allocator itself reports them

Neither is meant for steps that are timed.
"""
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

from course_lib import memory
from course_lib.arguments import instance, listed

__all__ = ["watch", "Allocations", "draw"]

Moment = tuple[str, list[int]]          # "F0", "B7": the layer that works; and for each layer, the bytes of parameters that are there in full


def watch(layers: Iterable[nn.Module]) -> list[Moment]:
    """Note from now on, whenever one of `layers` works, which layers have their full parameters on this rank.

    Args:
        layers: modules that take and return one tensor; each should work once in a forward.

    Returns:
        A list that grows: ("F2", [bytes of layer 0, ...]) in the forward of layer 2, and ("B2", [...]) as its backward begins.
    """
    instance("layers", layers, Iterable, "of modules")
    layers, moments = listed("layers", list(layers), "modules", lambda layer: isinstance(layer, nn.Module)), []

    def note(name: str) -> None:
        moments.append((name, [_full_bytes(layer) for layer in layers]))

    for number, layer in enumerate(layers):
        def forward(*inputs, number=number, own_forward=layer.forward):
            output = own_forward(*inputs)
            note(f"F{number}")
            return _Mark.apply(output, lambda: note(f"B{number}"))
        layer.forward = forward         # inside of all hooks: what they gather is there, what they free is not yet gone
    return moments


class _Mark(torch.autograd.Function):
    """Does nothing but call `note` when backward comes by."""

    @staticmethod
    def forward(ctx, output: Tensor, note) -> Tensor:
        ctx.note = note
        return output.view_as(output)

    @staticmethod
    def backward(ctx, grad: Tensor):
        ctx.note()
        return grad, None


def _full_bytes(layer: nn.Module) -> int:
    """Bytes of the layer's parameters that are on this rank as a whole, and not as a shard (fully_shard's, mini.zero's) or as an empty shell."""
    whole = [p for name, p in layer.named_parameters() if not name.rpartition(".")[2].startswith("shard")]
    return sum(p.numel() * p.element_size() for p in whole if memory.storage_bytes([p]) >= p.numel() * p.element_size())


def _are_moments(rows) -> bool:
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, tuple) and len(row) == 2 and isinstance(row[1], list) for row in rows)


class Allocations:
    """Follow all memory that a `with` block allocates and releases: `with Allocations() as held: ...`.

    What was allocated before does not count, and its release neither: put all that matters inside. Not inside `measure.step`: both use the profiler.
    What another thread releases (gloo's threads, at times) is noticed when its memory is given out again. So what torch's collectives hold can look
    larger than it is, and never smaller.
    """

    def __enter__(self) -> "Allocations":
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._profile.__exit__(*error)
        device, rows, nodes = torch.get_default_device().type, [], self._profile.profiler.kineto_results.experimental_event_tree()
        while nodes:
            node = nodes.pop()
            nodes += node.children
            if node.typed[0] == _EventType.Allocation and node.typed[1].device.type == device:
                rows.append((node.start_time_ns, node.typed[1].alloc_size, node.typed[1].ptr))
            elif node.name.startswith(_MARK):
                rows.append((node.start_time_ns, 0, node.name.removeprefix(_MARK)))
        live, blocks, self.events = 0, {}, []
        for _, count, what in sorted(rows, key=lambda row: row[0]):
            if count:                             # a block that is given out again was released before: by a thread that the profiler does not see
                live += max(count, 0) - blocks.pop(what, 0)
                blocks |= {what: count} if count > 0 else {}
            self.events.append((live, "" if count else what))
        del self._profile

    def mark(self, name: str) -> None:
        """Name this moment."""
        with record_function(_MARK + name):
            pass

    def at(self, mark: str) -> int:
        """Bytes held when `mark` was set (the first time)."""
        return self.events[self._place(mark)][0]

    def peak_bytes(self, begin: str = "", end: str = "") -> int:
        """The most bytes held at any moment between two marks (from the start, and to the end, if they are not given)."""
        first = self._place(begin) if begin else 0
        last = self._place(end) + 1 if end else len(self.events)
        return max((live for live, _ in self.events[first:last]), default=0)

    def _place(self, mark: str) -> int:
        names = [name for _, name in self.events]
        if mark not in names:
            raise ValueError(f"there is no mark {mark!r}; there are {', '.join(map(repr, filter(None, names))) or 'none'}.")
        return names.index(mark)


_MARK = "course_lib.alive: "


def draw(moments: Mapping[str, Sequence[Moment]], where: str, figsize: tuple[float, float] = (10, 4.6)):
    """Draw for each entry which layers were alive when (a dot: the one that works), and above it the bytes of all that were.

    Args:
        moments: title -> what `watch` noted in one forward and backward.
        where: on what it was measured, as `job.where` says it.

    Returns:
        The Axes, an array [2, entries]: bytes above, layers below.
    """
    import matplotlib.pyplot as plt

    from course_lib import plots, styles

    listed("moments", list(instance("moments", moments, Mapping, "of title -> moments").values()), "lists of moments, as watch notes them", _are_moments)
    instance("where", where, str)
    if len(listed("figsize", figsize, "width and height in inches", lambda side: isinstance(side, (int, float)) and 0 < side < 100)) != 2:
        raise ValueError(f"figsize={figsize!r}: it must be width and height in inches.")

    figure, axes = plt.subplots(2, len(moments), figsize=figsize, layout="constrained", sharex="col", sharey="row", squeeze=False, height_ratios=(1, 1.3))
    figure.get_layout_engine().set(w_pad=0.08)
    top = max(sum(alive) for rows in moments.values() for _, alive in rows)
    scale, unit = styles.unit_for(top)
    for (upper, lower), (title, rows) in zip(axes.T, moments.items()):
        names, x = [name for name, _ in rows], range(len(rows))
        plots.panel(title, where, upper, ylabel=f"full parameters ({unit})")
        live = [sum(alive) for _, alive in rows]
        upper.step(x, live, where="mid", **{**plots.MEASURED, "marker": "", "color": plots.COLORS["params"]})
        upper.fill_between(x, live, step="mid", color=plots.COLORS["params"], alpha=0.15, linewidth=0)
        upper.set_ylim(0, top * 1.1)
        styles.ticks_in_units(upper.yaxis, scale)
        plots.panel("", "", lower, xlabel="which layer works: F forward, B backward", ylabel="layer", grid="x")
        for number in range(len(rows[0][1])):
            lower.bar(x, 0.84, 0.9, bottom=number - 0.42, color=styles.FAINT)
            alive = [moment for moment in x if rows[moment][1][number]]
            lower.bar(alive, 0.84, 0.9, bottom=number - 0.42, color=plots.COLORS["params"])
            working = [moment for moment in x if int(names[moment][1:]) == number]
            lower.plot(working, [number] * len(working), linestyle="", marker="o", markersize=4.5, color=styles.PAPER, markeredgecolor=styles.INK)
        lower.set_xticks(list(x), names, fontsize=styles.SMALL if len(rows) <= 16 else 6)
        lower.set_yticks(range(len(rows[0][1])))
        lower.set_ylim(len(rows[0][1]) - 0.5, -0.5)
        lower.grid(False)
    return axes
