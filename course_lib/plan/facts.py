"""Models, machines and plans as plain data. No torch here."""

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from course_lib.arguments import instance, listed, number, one_of, whole

__all__ = ["Layer", "Model", "Link", "Machine", "Plan"]

BYTES = {"fp32": (4, 4, 8), "mixed": (2, 2, 12)}  # of a parameter, its gradient, its optimizer states


@dataclass(frozen=True)
class Layer:
    """One layer. Everything but its parameters is per sample.

    Attributes:
        name: as its module is called.
        shapes: of its parameters.
        products: multiplications of a forward (a product and its sum are two FLOP).
        kept_bytes: what it keeps for backward.
        out_bytes: what it hands on.
        cut: by tensor parallelism: "" not at all; "column", all parameters; "row", but for its bias.
        kept_cut_bytes: the part of kept_bytes that tensor parallelism divides.
        tp_bytes: tensors that its all_reduces of tensor parallelism add up, forward and backward.
        tp_calls: how many of them.
        heads: tensor parallelism deals out whole ones of so many, so that tp divides it; 0: it has none.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    products: float
    kept_bytes: float
    out_bytes: float
    cut: str = ""
    kept_cut_bytes: float = 0.0
    tp_bytes: float = 0.0
    tp_calls: int = 0
    heads: int = 0

    def __post_init__(self):
        instance("name", self.name, str)
        listed("shapes", [self.shapes], "shapes, a list of lists", lambda s: isinstance(s, list | tuple))
        for shape in self.shapes:
            listed("a shape", shape, "whole numbers above 0", lambda size: type(size) is int and size > 0)
        for name in ("products", "kept_bytes", "out_bytes", "kept_cut_bytes", "tp_bytes"):
            number(name, getattr(self, name))
        one_of("cut", self.cut, ("", "column", "row"))
        whole("tp_calls", self.tp_calls, least=0)
        whole("heads", self.heads, least=0)
        object.__setattr__(self, "shapes", tuple(map(tuple, self.shapes)))

    @functools.cached_property
    def numel(self) -> int:
        return sum(map(math.prod, self.shapes))

    def pieces(self, tp: int) -> list[tuple[int, ...]]:
        """The shapes of one rank's part."""
        return list(_pieces(self.shapes, self.cut, tp))

    def cut_numel(self, tp: int) -> int:
        """Parameters of one rank's part."""
        return _cut_numel(self.shapes, self.cut, tp)


@dataclass(frozen=True)
class Model:
    """A network and its batch.

    Attributes:
        batch: samples of all ranks together in a step.
        input_bytes, label_bytes: of one sample.
        precision: "fp32", or "mixed", which computes and sends with 2 bytes.
    """

    name: str
    layers: tuple[Layer, ...]
    batch: int
    input_bytes: float = 0.0
    label_bytes: float = 8.0
    precision: str = "fp32"

    def __post_init__(self):
        instance("name", self.name, str)
        layers = listed("layers", self.layers, "layers", lambda its: isinstance(its, Layer | Mapping))
        object.__setattr__(self, "layers", tuple(made(Layer, its) for its in layers))
        whole("batch", self.batch)
        number("input_bytes", self.input_bytes)
        number("label_bytes", self.label_bytes)
        one_of("precision", self.precision, BYTES)

    @functools.cached_property
    def numels(self) -> tuple[int, ...]:
        """Parameters of each layer."""
        return tuple(layer.numel for layer in self.layers)

    @property
    def numel(self) -> int:
        return sum(self.numels)

    @property
    def products(self) -> float:
        """Of one sample's forward."""
        return sum(layer.products for layer in self.layers)


@dataclass(frozen=True)
class Link:
    """How quickly messages travel: a message takes alpha_s and beta_s for each byte.

    Attributes:
        span: it joins so many neighbouring ranks.
        op: for this collective alone, as torch spells it; "": for all.
        ranks, group: measured in groups of so many, while so many ranks were at work; 0: for any.
    """

    span: int
    alpha_s: float
    beta_s: float
    op: str = ""
    ranks: int = 0
    group: int = 0

    def __post_init__(self):
        whole("span", self.span)
        number("alpha_s", self.alpha_s)
        number("beta_s", self.beta_s)
        instance("op", self.op, str)
        whole("ranks", self.ranks, least=0)
        whole("group", self.group, least=0)


@dataclass(frozen=True)
class Machine:
    """What was measured of a machine, or what its papers say.

    Attributes:
        cores: ranks that compute at full speed at once.
        products_per_s: of one rank, by the number of ranks that are busy; 0: any number.
        memory_bytes: that a rank may use.
        links: the fast ones first where several fit.
        numel_s: seconds per parameter of each pass through a layer, however few samples pass.
        update_s: seconds per parameter of the optimizer's step, by the number of busy ranks.
        software_s: by way and number of ranks, what a step takes with next to nothing to compute or send.
        touched_bytes_per_s: by what works element by element, of memory; 0: within products_per_s.
        overlap: the part of backward under which messages of dp can hide: 0 where cores must carry them.
        gloo: gloo's reduce_scatter sends twice what it need.
    """

    name: str
    cores: int
    products_per_s: Mapping[int, float]
    memory_bytes: float
    links: tuple[Link, ...]
    numel_s: Mapping[int, float] = field(default_factory=dict)
    update_s: Mapping[int, float] = field(default_factory=dict)
    software_s: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    touched_bytes_per_s: float = 0.0
    overlap: float = 0.0
    gloo: bool = False

    def __post_init__(self):
        instance("name", self.name, str)
        whole("cores", self.cores)
        number("memory_bytes", self.memory_bytes)
        if number("overlap", self.overlap) > 1:
            raise ValueError(f"overlap={self.overlap!r}: it must be a number from 0 to 1.")
        number("touched_bytes_per_s", self.touched_bytes_per_s)
        instance("gloo", self.gloo, bool)
        if self.links not in ((), []):  # a rank alone has none
            listed("links", self.links, "links", lambda its: isinstance(its, Link | Mapping))
        object.__setattr__(self, "links", tuple(made(Link, its) for its in self.links))
        for name in ("products_per_s", "numel_s", "update_s"):
            object.__setattr__(self, name, _by_ranks(name, getattr(self, name)))
        instance("software_s", self.software_s, Mapping)
        software = {way: _by_ranks(way, its, least=-math.inf) for way, its in self.software_s.items()}
        object.__setattr__(self, "software_s", software)
        if not self.products_per_s or min(self.products_per_s.values()) <= 0:
            raise ValueError(f"products_per_s={self.products_per_s}: it must have numbers above 0.")

    def at(self, what: str, busy: int) -> float:
        """products_per_s, numel_s or update_s with so many ranks busy; 0 if there is none."""
        known = getattr(self, what)
        return known[min(known, key=lambda ranks: abs(ranks - busy))] if known else 0.0

    def link(self, op: str, span: int, group: int, ranks: int) -> Link:
        """The link for a collective of a group whose ranks lie within `span` neighbours."""
        its = [link for link in self.links if link.op in ("", op) and link.span >= span]
        if not its:
            raise ValueError(f"{self.name}: no link joins {span} neighbouring ranks for {op!r}.")
        return min(
            its, key=lambda link: (not link.op, abs(link.ranks - ranks), abs(link.group - group), link.span)
        )


@dataclass(frozen=True)
class Plan:
    """A way to train, on a mesh: dp x pp x tp ranks, where neighbours along tp are neighbouring ranks.

    Attributes:
        way: a name in WAYS.
        shards: over so many of its dp ranks model states are cut; 0: over all, where the way cuts any.
        microbatches: of each pipeline; without one, so many gradients are added up before the update.
        chunks: stages of each rank of a pipeline (interleaved).
        recompute: each forward is computed again in backward.
    """

    way: str
    dp: int = 1
    tp: int = 1
    pp: int = 1
    shards: int = 0
    microbatches: int = 1
    chunks: int = 1
    recompute: bool = False

    def __post_init__(self):
        from course_lib.plan.ways import WAYS  # here: they are made of no facts, but stand below

        one_of("way", self.way, tuple(WAYS))
        for name in ("dp", "tp", "pp", "microbatches", "chunks"):
            whole(name, getattr(self, name))
        whole("shards", self.shards, least=0)
        instance("recompute", self.recompute, bool)
        if self.shards and self.dp % self.shards:
            raise ValueError(f"shards={self.shards}: it must divide dp={self.dp}.")

    @property
    def ranks(self) -> int:
        return self.dp * self.tp * self.pp

    def __str__(self) -> str:
        return f"{self.way} on {self.ranks} rank{'s' * (self.ranks > 1)}"


@functools.lru_cache  # a ranking asks for the same few thousands of times
def _pieces(shapes: tuple[tuple[int, ...], ...], cut: str, tp: int) -> tuple[tuple[int, ...], ...]:
    goes = [bool(cut) and (cut == "column" or len(shape) > 1) for shape in shapes]
    return tuple((-(-math.prod(s) // tp),) if its and tp > 1 else s for s, its in zip(shapes, goes))


@functools.lru_cache
def _cut_numel(shapes: tuple[tuple[int, ...], ...], cut: str, tp: int) -> int:
    return sum(map(math.prod, _pieces(shapes, cut, tp)))


def alike(layers: Sequence[Layer]) -> list[tuple[Layer, int]]:
    """Layers without those that are like another one, and how often each is there: most are alike."""
    return [(layers[at], times) for at, times in counted(tuple(map(id, layers)))]


@functools.lru_cache  # a ranking asks for the same few thousands of times
def counted(keys: tuple) -> tuple[tuple[int, int], ...]:
    """Of each key, where it first stands, and how often."""
    return tuple((keys.index(key), times) for key, times in Counter(keys).items())


def made(kind: type, value: Any):
    """An object of a kind, or the dict of one. Errors: ValueError for other fields, or too few."""
    if isinstance(value, kind):
        return value
    names = {its.name for its in fields(kind)}
    if not isinstance(value, Mapping) or set(value) - names:
        odd = sorted(map(str, set(value) - names)) if isinstance(value, Mapping) else [repr(value)[:40]]
        raise ValueError(f"{', '.join(odd)}: a {kind.__name__} has {', '.join(sorted(names))}.")
    needed = {its.name for its in fields(kind) if its.default is its.default_factory}  # both are MISSING
    if lacking := sorted(needed - set(value)):
        raise ValueError(f"a {kind.__name__} needs {', '.join(lacking)}.")
    return kind(**value)


def _by_ranks(name: str, value: Any, least: float = 0.0) -> dict[int, float]:
    """Numbers by numbers of ranks; keys may be text, as in a file of JSON. A number alone: for any."""
    if isinstance(value, int | float):
        value = {0: value}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}={value!r}: it must be a number, or numbers by how many ranks are busy.")
    for ranks, its in value.items():
        if not str(ranks).isdecimal() or isinstance(its, bool) or not isinstance(its, int | float):
            raise ValueError(f"{name}: {ranks!r}: {its!r} is no number for a number of ranks.")
        if not least <= its < math.inf:
            raise ValueError(f"{name}: {its!r} is no number of at least {least:g}.")
    return {int(ranks): float(its) for ranks, its in value.items()}
