"""What travels between a notebook and its ranks: the call on its way out, results on their way home.

cloudpickle sends by value what a cell has defined, and by name what can be imported. This file adds what it
leaves open: modules of a class of their own, what functools makes (caches, single dispatch), torch's newest
dtypes, and a `__main__` in the rank that holds what has travelled, so that a rank can pickle by name.
"""

import builtins
import functools
import importlib
import io
import operator
import pickle
import sys
import types
import typing
import weakref
from importlib.machinery import ModuleSpec

import cloudpickle.cloudpickle as cloudpickle
import torch

from course_lib.ranks.unsendable import belongs_to_notebook, culprit
from course_lib.roles import functions_of, roles_of

__all__ = ["pack_call", "open_call", "pack_result"]

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_WITHOUT_STORAGE_CLASS = {
    getattr(torch, name) for name in dir(torch) if name.startswith(("float8_", "float4_"))
} | {
    # torch pickles these, and then cannot open the pickle
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.complex32,
}
# of every function that functools.singledispatch has made: each keeps weak references, which no pickle takes
_DISPATCHING = functools.singledispatch(lambda value: value).__code__  # type: ignore[attr-defined]
# in a rank: class -> cloudpickle's number for it
_classes_that_came: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()
# environment variable of a rank: the file from which its spawned children get the same names
CALL_FILE = "COURSE_LIB_CALL"


def pack_call(fn, args: tuple, kwargs: dict, label: str) -> bytes:
    """A pickle of a call, for `open_call`: `fn` may be a list with a function for each rank. A TypeError
    names the variable that cannot be sent.
    """
    stream = io.BytesIO()
    pickler = _CallPickler(stream)
    try:
        pickler.dump(((fn, args, kwargs), pickler.named))  # in this order: the first part fills the second
        return stream.getvalue()
    except Exception:
        name, value, why = culprit(
            [
                *zip(roles_of(fn) or [label], functions_of(fn)),
                *((f"argument {n}", part) for n, part in enumerate(args, 1)),
                *kwargs.items(),
            ],
            _CallPickler,
        )
    if belongs_to_notebook(value):
        raise TypeError(
            f"{label} cannot be sent to the ranks: {name} belongs to the notebook, as do exit, quit, display,"
            " and lines with ! or %; a rank has none of them."
        )
    raise TypeError(
        f"{label} cannot be sent to the ranks: {name} is a {type(value).__name__}, which cannot be copied to"
        f" another process ({why}). Make it inside the function."
    )


def open_call(call: bytes) -> tuple:
    """In a rank: function, args and kwargs.

    `__main__` is then a module that holds every name of the notebook that came with them, as it would under
    torchrun: what pickles by name (torch.save of a whole model, all_gather_object, a pool's map) finds
    classes and functions there.
    """
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    # what multiprocessing gives to a child that it does not fork
    main.__spec__ = ModuleSpec("course_lib.ranks.main_of_children", None)
    try:
        parts, named = pickle.loads(call)
    except Exception as error:
        raise TypeError(
            "The function, its arguments, or something that they use cannot be opened in a rank "
            f"({type(error).__name__}: {error})."
        ) from error
    vars(main).update(named)
    _classes_that_came.update(cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS)
    return parts


def pack_result(result, rank: int) -> bytes:
    """A pickle of what a rank returns. A TypeError names the part that cannot be sent."""
    stream = io.BytesIO()
    try:
        _ResultPickler(stream).dump(result)
        return stream.getvalue()
    except Exception:
        name, _, why = culprit([("result", result)], _ResultPickler)
    raise TypeError(
        f"rank {rank} returned a {type(result).__name__} that cannot be sent back to the notebook"
        f" ({f'{name}: ' if name != 'result' else ''}{why}). Return numbers, text, lists, dicts or plain"
        " tensors."
    )


class _Pickler(cloudpickle.Pickler):
    def __init__(self, stream):
        super().__init__(stream, protocol=5)

    def reducer_override(self, value):
        if (
            type(value) is torch.Tensor
            and value.dtype in _WITHOUT_STORAGE_CLASS
            and value.layout is torch.strided
        ):
            return _from_bits, (value.detach().view(_BITS[value.itemsize]), value.dtype, value.requires_grad)
        if isinstance(value, types.ModuleType) and (
            type(value) is not types.ModuleType or value.__name__ not in sys.modules
        ):
            return _module_by_name(value)
        if isinstance(value, types.FunctionType) and value.__code__ is _DISPATCHING:
            if not cloudpickle._should_pickle_by_reference(value):
                return _dispatching, (dict(value.registry),)
        if isinstance(value, (type, types.FunctionType)):
            if value.__module__ == "IPython.core.interactiveshell" and value.__name__ == "_modified_open":
                # IPython's `open` would import IPython in every rank
                return getattr, (builtins, "open")
            return super().reducer_override(value)
        if type(value) in self.dispatch_table:
            return NotImplemented
        if type(value) is functools.cached_property:  # until Python 3.12 it has a lock
            return _cached_property, (value.func, value.attrname)
        reduced = value.__reduce_ex__(5)
        return _by_value(value) if isinstance(reduced, str) and not _importable(value, reduced) else reduced


class _CallPickler(_Pickler):
    """Functions of the notebook share one namespace in the rank, that of its `__main__`. named: what of
    `__main__` has travelled under its own name.
    """

    def __init__(self, stream):
        super().__init__(stream)
        self._main = vars(sys.modules["__main__"])
        self.globals_ref[id(self._main)] = _MainNamespace()
        self.named = {"__file__": self._main["__file__"]} if "__file__" in self._main else {}

    def reducer_override(self, value):
        if belongs_to_notebook(value):
            raise pickle.PicklingError("it belongs to the notebook")
        if (
            isinstance(value, (type, types.FunctionType, functools._lru_cache_wrapper))
            and value.__module__ == "__main__"
        ):
            if self._main.get(value.__qualname__) is value:
                self.named[value.__qualname__] = value
        return super().reducer_override(value)


class _ResultPickler(_Pickler):
    """Tensors go home to the CPU: the kernel must not open the ranks' GPUs to read a result.

    Classes that came from the notebook go home as a number: by value they would replace the methods of the
    notebook's own, and so cut them off from its variables.
    """

    def reducer_override(self, value):
        if isinstance(value, type) and value in _classes_that_came:
            return _class_at_home, (_classes_that_came[value],)
        if isinstance(value, torch.Tensor) and value.is_cuda:
            value = value.detach().cpu()
        return super().reducer_override(value)


class _MainNamespace:
    """Stands for the globals of the notebook's functions; opened in a rank, it is its `__main__`'s."""

    def __reduce__(self):
        return _main_namespace, ()


def _main_namespace() -> dict:
    return vars(sys.modules["__main__"])


def _class_at_home(number: str) -> type:
    return cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID[number]


def _from_bits(bits: torch.Tensor, dtype: torch.dtype, requires_grad: bool) -> torch.Tensor:
    return bits.view(dtype).requires_grad_(requires_grad)


def _module_by_name(module: types.ModuleType):
    """A module of a subclass of ModuleType, such as torch.classes, torch.backends.cudnn and torch.ops.aten,
    or one that cannot be imported, such as that of torch's C++ functions: the name says it all.
    """
    parent, attributes = module.__name__, []
    # torch.ops.aten is no module that can be imported, and an attribute of one
    while parent and parent not in sys.modules:
        parent, _, last = parent.rpartition(".")
        attributes.insert(0, last)
    if parent and not attributes and sys.modules[parent] is module:
        return importlib.import_module, (parent,)
    if parent and attributes and _reached(sys.modules[parent], ".".join(attributes)) is module:
        return operator.attrgetter(".".join(attributes)), (sys.modules[parent],)
    return NotImplemented


def _reached(holder, name: str):
    """What stands at the end of a dotted name; None if nothing does."""
    try:
        return operator.attrgetter(name)(holder)
    except AttributeError:
        return None


def _importable(value, name: str) -> bool:
    """Whether another process finds this object by its module and name."""
    module = getattr(value, "__module__", None)
    if module == "__main__":
        return False
    return module is None or _reached(sys.modules.get(module), name) is value


def _by_value(value):
    """What pickle knows by name only, from a cell, where the name says nothing to a rank."""
    if isinstance(value, functools._lru_cache_wrapper):
        return _cached, (value.__wrapped__, value.cache_parameters())
    if isinstance(value, typing.NewType):
        return typing.NewType, (value.__name__, value.__supertype__)
    raise pickle.PicklingError(
        f"pickle knows a {type(value).__name__} by its name only, and the name is of the notebook"
    )


def _cached(function, parameters: dict):
    return functools.lru_cache(**parameters)(function)


def _cached_property(function, name: str | None) -> functools.cached_property:
    made = functools.cached_property(function)
    if name is not None:
        made.__set_name__(object, name)  # its class is made without a word to it
    return made


def _dispatching(registry: dict):
    made = functools.singledispatch(registry.pop(object))
    for kind, function in registry.items():
        made.register(kind, function)
    return made
