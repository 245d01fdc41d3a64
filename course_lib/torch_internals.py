"""Every private place of torch that this library uses, each behind one function: the file to read when torch
has a new release.

A place counts as private if torch's documentation does not promise it, whether or not its name begins with an
underscore. Each function says what it gives, and ends with two words:

    Seen: the releases in whose sources it stands under this name; in 2.13 it was seen at work.
    Gone: what is to be had where a release has moved it. Something public in its place; or nothing, and then
          what was to be measured is absent, with the error as the reason, and what cannot run says so.

One kind of place stands elsewhere: the operators of c10d, and where among their arguments the tensors are.
They are private too, and part of the row of each collective in `collectives.py`, which says the two words.

Nothing happens on import.
"""

import contextlib
import functools
import importlib
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from types import FrameType, ModuleType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

# There is no public place for these; torch's "Extending PyTorch" imports the mode from here, too.
# Seen: 2.11 to 2.14. Gone: an ImportError that names it, before anything has begun.
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = [
    "TorchDispatchMode",
    "tree_leaves",
    "tree_map_only",
    "GLOO_RUNS",
    "GLOO_LISTENS",
    "RECORDER_LENGTH",
    "GLOO",
    "AUTOGRAD",
    "OPTIMIZER",
    "COMPUTES",
    "COLLECTIVE",
    "FOREACH",
    "UNSCALE",
    "watch_collectives",
    "process_group_in",
    "asked_by_ddp",
    "is_profiling",
    "of_all_threads",
    "Recorded",
    "recorded_events",
    "wrap_backward",
    "when_backward_ends",
    "saved_hooks",
    "push_saved_hooks",
    "pop_saved_hooks",
    "version_of",
    "hooks_after_gradient",
    "hooks_around_forward",
    "calls_step_hooks",
    "held_by_module",
    "places_of_tensors",
    "gathered_and_waiting_bytes",
    "without_subclass",
    "is_wrapper",
    "wrapped_by",
    "sparse_parts",
    "storage_number",
    "hold_weakly",
    "bytes_if_alive",
    "let_go",
    "pipeline_order",
    "uses_nccl",
    "homes_of_messages",
    "default_store",
    "flight_records",
    "ranks_of_group",
    "group_names",
    "group_timeouts",
    "is_of_distributed",
    "is_of_join",
    "waits_inside",
    "tensors_and_peer",
    "group_in_the_making",
    "preload",
    "greet_other_ranks_only",
]


def _needed_by(who: str) -> Callable[[Callable], Callable]:
    """Where the place behind a function is gone, its caller is told in a RuntimeError who cannot run."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def or_say(*args):
            try:
                return function(*args)
            except AttributeError as error:
                raise RuntimeError(
                    f"{who} cannot run on torch {torch.__version__}: {error}. Take a release that"
                    " pyproject.toml names."
                ) from error

        return or_say

    return decorate


# Names of threads in which gloo carries out calls, and receives; and the variable that says how many calls
# torch's Flight Recorder keeps. Seen: 2.11 to 2.14. Gone: memory that a thread of gloo lets go of late counts
# as held, a late rank of a check comes at its deadline, a hang is explained without the calls before it.
GLOO_RUNS = "gloo_runloop"  # a part of the name
GLOO_LISTENS = "gloo_tcp_loop"  # in 2.11 it has no name, and who looks for stillness finds it a little later
RECORDER_LENGTH = "TORCH_FR_BUFFER_SIZE"


# Collectives


def watch_collectives(told: Mapping[str, Callable[[tuple], None]]) -> Callable[[], None]:
    """Call `told[operator](arguments)` before each call of that operator of c10d, until what is returned is
    called.

    All collectives pass there, whoever asks: torch's dispatcher calls one operator for each,
    `c10d::allreduce_` and so on. Each gets a kernel at the dispatcher's last stop before the backend's own,
    which every call reaches, also from inside a DTensor operation. An operator that this version has not is
    left out.

    No public way sees what C++ asks for. Seen: 2.11 to 2.14. Gone: the ledger's "collectives" are absent, and
    `measure.calls.listen` raises the AttributeError.
    """
    library = torch.library.Library("c10d", "IMPL")
    try:
        below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)
        for name, tell in told.items():
            if packet := getattr(torch.ops.c10d, name, None):
                kernel = _telling_kernel(packet.default, below, tell)
                library.impl(name, kernel, "BackendSelect", with_keyset=True)
    except BaseException:
        library._destroy()
        raise
    return library._destroy


def _telling_kernel(operator, below, tell: Callable[[tuple], None]) -> Callable:
    def kernel(keyset, *args):
        tell(args)
        return operator.redispatch(keyset & below, *args)

    return kernel


def process_group_in(arguments: tuple) -> dist.ProcessGroup:
    """The process group among the arguments of an operator of c10d. No public way.

    Seen: 2.11 to 2.14. Gone: as for `watch_collectives`.
    """
    boxed = next(argument for argument in arguments if isinstance(argument, torch.ScriptObject))
    return dist.ProcessGroup.unbox(boxed)


def asked_by_ddp() -> bool:
    """Within `told` of `watch_collectives`: whether torch's DDP asks for this collective in a backward, from
    C++ or by a communication hook.

    It looks at what autograd's engine has called: our kernel itself, or a hook that was given a bucket. No
    public way.

    Seen: 2.11 to 2.14. Gone: False, and DDP's calls may seem to end later than they do.
    """
    run_backward = getattr(torch.autograd.graph, "_engine_run_backward", None)
    if run_backward is None:
        return False
    engine, frame, above = run_backward.__code__, sys._getframe(), None
    while frame is not None and frame.f_code is not engine:
        frame, above = frame.f_back, frame
    if frame is None:
        return False
    code = above.f_code
    return (
        (code.co_name == "kernel" and code.co_filename == __file__)
        or "bucket" in code.co_varnames[: code.co_argcount]
        and isinstance(above.f_locals["bucket"], dist.GradBucket)
    )


# What torch.profiler records

# Beginnings of names. Seen: 2.11 to 2.14. Gone: collectives have no times, or the timeline lacks that kind.
GLOO = "gloo:"  # of what gloo runs
AUTOGRAD = "autograd::engine"  # of backward, on a thread of autograd
OPTIMIZER = "Optimizer."  # of what an optimizer does
COMPUTES = "aten::"  # of an operator that computes
COLLECTIVE = "c10d::"  # of a collective


def is_profiling() -> bool:
    """Whether a profiler runs in this process. No public way.

    Seen: 2.11 to 2.14. Gone: False, and who brings a profiler of their own finds the timeline absent.
    """
    return getattr(torch.autograd.profiler, "_is_profiler_enabled", False)


def of_all_threads():
    """For torch.profiler.profile(experimental_config=...): record threads that were there before it began,
    too.

    Seen: 2.11 to 2.14. Gone: None, the public default, which records this thread alone.
    """
    try:
        return torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    except (AttributeError, TypeError):
        return None


class Recorded(NamedTuple):
    """One event of a profiler's record.

    Attributes:
        start_ns, duration_ns: on the profiler's own clock.
        numel: elements of its first tensor; told of what gloo runs, where it is known.
        nested: it lies within the events of its thread that it began in; not so what runs on a GPU, or what
            ends on another thread.
    """

    name: str
    start_ns: int
    duration_ns: int
    thread: int
    numel: int | None
    nested: bool


def recorded_events(profiler: torch.profiler.profile) -> list[Recorded]:
    """The raw record of a profiler that has ended. The public `events()` gives other objects, and takes seven
    times as long: it adds up much that is not looked at here.

    Seen: 2.11 to 2.14. Gone: "timeline", "collectives" and their times are absent.
    """
    results = profiler.profiler.kineto_results
    return [_recorded(event) for event in results.events()] if results else []


def _recorded(event) -> Recorded:
    shapes = event.shapes() if event.name().startswith(GLOO) else ()
    return Recorded(
        event.name(),
        event.start_ns(),
        event.duration_ns(),
        event.start_thread_id(),
        torch.Size(shapes[0]).numel() if shapes else None,
        not event.is_async() and event.device_type() == torch.autograd.DeviceType.CPU,
    )


# Autograd


def wrap_backward(wrap: Callable[[Callable], Callable]) -> Callable[[], None]:
    """Put `wrap(torch.autograd.backward)` in its place, until what is returned is called.

    That Tensor.backward looks it up there is torch's own business. No public way.

    Seen: 2.11 to 2.14. Gone: `wrap` is never called, and backward is what autograd's own events show of it.
    """
    own = torch.autograd.backward
    torch.autograd.backward = wrapped = wrap(own)

    def detach() -> None:
        if torch.autograd.backward is wrapped:  # else the learner has put another one there
            torch.autograd.backward = own

    return detach


@_needed_by("A mini.ddp or mini.zero that averages at the end of backward")
def when_backward_ends(call: Callable[[], None]) -> None:
    """Within a backward: `call()` when it ends. torch's own DDP and fully_shard do so. No public way.

    Seen: 2.11 to 2.14. Gone: a RuntimeError.
    """
    torch.autograd.Variable._execution_engine.queue_callback(call)


def saved_hooks(tracing: bool = False) -> tuple[Callable, Callable] | None:
    """The innermost pair of hooks on what autograd saves for backward, as (pack, unpack), or None.

    `tracing`: also while a graph is traced, where torch lets them rest. No public way.

    Seen: 2.11 to 2.14. Gone: "activations" are absent; mini.zero ends with the AttributeError where it asks.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(tracing)


def push_saved_hooks(pack: Callable, unpack: Callable) -> None:
    """Enter a pair of hooks on what autograd saves. In public: torch.autograd.graph.saved_tensors_hooks, as
    long as nobody has changed what it does.

    Seen: 2.11 to 2.14. Gone: "activations" are absent.
    """
    torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)


def pop_saved_hooks() -> None:
    """Leave the innermost pair. Seen: 2.11 to 2.14. Gone: "activations" are absent."""
    torch._C._autograd._pop_saved_tensors_default_hooks()


@_needed_by("mini.ddp and mini.zero, which look for changes in place,")
def version_of(tensor: Tensor) -> int:
    """How often a tensor's memory was written to in place, as autograd counts it. No public way.

    Seen: 2.11 to 2.14. Gone: a RuntimeError.
    """
    return tensor._version


@_needed_by("mini.ddp and mini.zero, which look for hooks of others,")
def hooks_after_gradient(parameter: nn.Parameter) -> list[Callable]:
    """Hooks from register_post_accumulate_grad_hook that are there. No public way.

    Seen: 2.11 to 2.14. Gone: a RuntimeError.
    """
    return list((parameter._post_accumulate_grad_hooks or {}).values())


def hooks_around_forward(module: nn.Module) -> int:
    """How many hooks stand before and behind a module's forward. No public way.

    Seen: 2.11 to 2.14. Gone: 0, and a check does not see hooks that an answer leaves.
    """
    return len(getattr(module, "_forward_pre_hooks", ())) + len(getattr(module, "_forward_hooks", ()))


def calls_step_hooks(step) -> bool:
    """Whether a step method of an optimizer's class is one that torch has put its hooks around. No public
    way.

    Seen: 2.11 to 2.14. Gone: False, and the ledger puts its own around it.
    """
    return getattr(step, "hooked", False)


def held_by_module(module: nn.Module) -> dict[str, object]:
    """All that a module holds, by name: parameters, buffers and modules, and what else was set on it. No
    public way gives all.

    Seen: 2.11 to 2.14. Gone: parameters, buffers and modules come in dicts, like all else that was set on it.
    """
    held = {}
    for name, value in vars(module).items():
        held |= value if name in ("_parameters", "_buffers", "_modules") else {name: value}
    return held


def places_of_tensors(modules: Iterable[nn.Module]) -> list[dict[str, Tensor | None]]:
    """The dicts in which modules and all below them keep parameters and buffers: whatever is put in the place
    of one is found there. In public: parameters() and buffers(), which take many times as long for each look.

    Seen: 2.11 to 2.14. Gone: "activations" are absent.
    """
    parts = [part for module in modules for part in module.modules()]
    return [vars(part)[kind] for part in parts for kind in ("_parameters", "_buffers")]


def gathered_and_waiting_bytes(module: nn.Module) -> int:
    """Bytes that fully_shard has gathered for a module, or is gathering, ahead of its time: they lie in a
    buffer, and the module's parameters are still shards. Of a unit of several modules, the module's share; 0
    for a module that is no unit. No public way.

    Seen: 2.11 to 2.14. Gone: 0, and a layer that waits in a buffer is not seen.
    """
    found = 0.0
    with contextlib.suppress(AttributeError):
        state = module._get_fsdp_state()
        groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]  # the latter in 2.11
        for group in filter(None, groups):
            if (waiting := group._all_gather_result) is not None:
                own, together = (
                    sum(p.numel() for one in modules for p in one.parameters())
                    for modules in ([module], group.modules)
                )
                found += waiting.all_gather_output.nbytes * own / together
    return round(found)


# Tensors

# Names of operators: the beginning of those for many tensors at once, which torch.nn.utils.clip_grad_norm_
# and clip_grad_value_ call; and GradScaler's own. Seen: 2.11 to 2.14. Gone: clipping or scaling gradients of
# mini.zero is refused, with the name of what was called.
FOREACH = "_foreach_"
UNSCALE = "_amp_foreach_non_finite_check_and_unscale_"


def without_subclass():
    """A context in which a Tensor subclass's __torch_function__ is not asked. Documented in "Extending
    PyTorch", under this name and no other. Seen: 2.11 to 2.14. Gone: mini.zero ends with the AttributeError.
    """
    return torch._C.DisableTorchFunctionSubclass()


def is_wrapper(kind: type) -> bool:
    """Whether tensors of this class hold other tensors, and no memory of their own: DTensor, say.

    Seen: 2.11 to 2.14. Gone: False, and a wrapper counts with what its own storage says.
    """
    return hasattr(kind, "__tensor_flatten__")


def wrapped_by(tensor: Tensor) -> list | None:
    """What a wrapper holds; None for a tensor that is none. Seen: 2.11 to 2.14. Gone: None."""
    if not is_wrapper(type(tensor)):
        return None
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


def sparse_parts(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and values of a torch.sparse_coo tensor, as they are. The public indices() and values() want
    one that is coalesced.

    Seen: 2.11 to 2.14. Gone: what holds such a tensor is absent, "model states" or "collectives".
    """
    return tensor._indices(), tensor._values()


# Storages that are followed and not kept: by number, which is free for another one after `let_go`. In public
# there is torch.multiprocessing.reductions.StorageWeakRef, which does not tell of the bytes.
_of_allocations = _needed_by("measure.alive.Allocations")


@_of_allocations
def storage_number(storage: torch.UntypedStorage) -> int:
    """The number of a storage, while it exists. Seen: 2.11 to 2.14. Gone: a RuntimeError."""
    return storage._cdata


@_of_allocations
def hold_weakly(storage: torch.UntypedStorage) -> int:
    """Its number, which is not used again until `let_go`. Seen: 2.11 to 2.14. Gone: a RuntimeError."""
    return storage._weak_ref()


@_of_allocations
def bytes_if_alive(numbers: Iterable[int]) -> list[int | None]:
    """Bytes of storages that are held weakly, each; None if it has ended. In one call: this is asked after
    each operation.

    Seen: 2.11 to 2.14. Gone: a RuntimeError.
    """
    storages = map(torch.UntypedStorage._new_with_weak_ptr, numbers)
    return [None if storage is None else storage.nbytes() for storage in storages]


@_of_allocations
def let_go(number: int) -> None:
    """Once for each `hold_weakly`. Seen: 2.11 to 2.14. Gone: a RuntimeError."""
    torch.UntypedStorage._free_weak_ref(number)


# Pipelines


@_needed_by("A drawing of torch's own schedule of a pipeline")
def pipeline_order(schedule) -> list[list[tuple[str, int, int]]]:
    """What a schedule of torch.distributed.pipelining with several stages per rank lets each rank do, in its
    order: (torch's letter, F, B, I or W; micro-batch; stage).

    In public there is only the worker that runs it. Seen: 2.11 to 2.13. Gone: a RuntimeError.
    """
    order = schedule.pipeline_order
    return [
        [
            (one.computation_type.value, one.microbatch_index, one.stage_index)
            for one in order[rank]
            if one is not None
        ]
        for rank in sorted(order)
    ]


# Process groups


def homes_of_messages() -> list[ModuleType]:
    """The modules in which `isend` and its like are looked up: the public one, and the one where P2POp and
    batch_isend_irecv stand. Who puts others in their place does so in each.

    Seen: 2.11 to 2.14. Gone: the public one alone, and a batch is carried out by torch's own.
    """
    return [dist, *filter(None, [getattr(dist, "distributed_c10d", None)])]


def uses_nccl(group: dist.ProcessGroup | None = None) -> bool:
    """Whether a group's GPU tensors travel by NCCL.

    Seen: 2.11 to 2.14. Gone: by the public get_backend, which knows of one backend only.
    """
    backends = getattr(dist, "get_backend_config", dist.get_backend)
    return "nccl" in str(backends(group))


@_needed_by("A check that lets ranks come late")
def default_store() -> dist.Store:
    """The store through which all ranks have met. In public there is none, but what one makes oneself.

    Seen: 2.11 to 2.14. Gone: a RuntimeError.
    """
    return dist.distributed_c10d._get_default_store()


_DTYPES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}


def flight_records() -> list[dict]:
    """The last collectives of this process, oldest first, from torch's Flight Recorder; sends and receives
    are not among them.

    Each with op (as the backend calls it), sizes, dtypes (as torch spells them), group (its name), seq (the
    collective's number in the group), done, and frames, innermost first: (filename, line number, function).

    Seen: 2.11 to 2.14. Gone: [], as where its contents are others, and what ranks wait in is known by their
    stacks alone.
    """
    try:
        dump = torch._C._distributed_c10d._dump_fr_trace(True, True, False)
        return [_flight_record(entry) for entry in pickle.loads(dump)["entries"] if not entry["is_p2p"]]
    except (AttributeError, RuntimeError, TypeError, KeyError):
        return []


def _flight_record(entry: dict) -> dict:
    return {
        "op": entry["profiling_name"].split(":")[-1],
        "sizes": [list(size) for size in entry["input_sizes"]],
        "dtypes": [_DTYPES.get(dtype, dtype) for dtype in entry["input_dtypes"]],
        "group": entry["process_group"][0],
        "seq": entry["collective_seq_id"],
        "done": bool(entry["retired"]),
        "frames": [(frame["filename"], frame["line"], frame["name"]) for frame in entry.get("frames", [])],
    }


def ranks_of_group(name: str) -> list[int] | None:
    """Ranks of a group that this process is a member of, by the group's name; None if they are not known.

    Seen: 2.11 to 2.14. Gone: None, and a group is told by its name.
    """
    try:
        return dist.get_process_group_ranks(torch._C._distributed_c10d._resolve_process_group(name))
    except (AttributeError, RuntimeError, ValueError, KeyError, TypeError):
        return None


def group_names() -> list[str]:
    """Names of all groups that this process is a member of. Seen: 2.11 to 2.14. Gone: []."""
    try:
        return list(dist.distributed_c10d._world.pg_names.values())
    except (AttributeError, RuntimeError):
        return []


def group_timeouts() -> list[timedelta]:
    """After how long a collective on the CPU gives up, of each group with more than one rank, oldest first.

    Seen: 2.11 to 2.14. Gone: [], and no rank is said to be blocked before the job's own timeout.
    """
    try:
        return [
            group._get_backend(torch.device("cpu")).options._timeout
            for group in dist.distributed_c10d._world.pg_map
            if group.size() > 1
        ]
    except (AttributeError, RuntimeError):
        return []


# The stack of a rank that waits: files, functions and variables of torch. Where they have other names, the
# lines of a stack are told as they are, without the call, the tensor or the group that a rank waits for.

_DISTRIBUTED, _JOIN = "distributed_c10d.py", "algorithms/join.py"
_WAIT_INSIDE = ("torch/distributed/", "torch/autograd/graph.py", "torch/_ops.py")
_TENSORS = (
    "tensor",
    "input",
    "input_tensor",
    "input_list",
    "input_tensor_list",
    "tensor_list",
    "scatter_list",
    "output",
)
_PEERS = ("dst", "src")


def is_of_distributed(filename: str) -> bool:
    """Whether a file is the one that has torch.distributed.all_reduce and its like.

    Seen: 2.11 to 2.14. Gone: False, and no call is found in a stack.
    """
    return filename.endswith(_DISTRIBUTED)


def is_of_join(filename: str) -> bool:
    """Whether a file is torch's own for `Join`: there it calls collectives for a rank out of inputs.

    Seen: 2.11 to 2.14. Gone: False, and what it calls may be told as called from another line.
    """
    return filename.endswith(_JOIN)


def waits_inside(filename: str) -> bool:
    """Whether a file is one in which torch waits for a collective, in C++.

    Seen: 2.11 to 2.14. Gone: False, and a rank that waits there counts as one that works.
    """
    return any(part in filename for part in _WAIT_INSIDE)


def tensors_and_peer(
    frame: FrameType,
) -> tuple[Tensor | list[Tensor] | tuple[Tensor, ...] | None, int | None]:
    """What a function of torch.distributed was given, by the names of its variables: the tensor, or a list of
    them, and the rank that it sends to or receives from. None for what is not there.

    Seen: 2.11 to 2.14. Gone: None.
    """
    values = frame.f_locals
    tensors = next((values[name] for name in _TENSORS if _is_tensors(values.get(name))), None)
    peer = next((values[name] for name in _PEERS if isinstance(values.get(name), int)), None)
    return tensors, peer


def _is_tensors(value) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], Tensor)
    )


def group_in_the_making(frame: FrameType) -> tuple[str, list[int]] | None:
    """Name and ranks of the group that a frame is making, in torch.distributed.new_group; None if none.

    Seen: 2.11 to 2.14. Gone: None.
    """
    values = frame.f_locals if frame.f_code.co_name == "_new_group_with_tag" else {}
    name, ranks = values.get("group_name"), values.get("ranks")
    return (name, ranks) if name and ranks else None


# Imports


def preload() -> None:
    """Import what torch itself imports late: with the first optimizer, for a second, in each rank.

    Seen: 2.11 to 2.14. Gone: nothing is imported, and that second is each rank's own.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("torch._dynamo")


def greet_other_ranks_only() -> None:
    """Let a stage of a pipeline greet no neighbour on its own rank, as torch 2.11 does: gloo has no messages
    to oneself, so `ScheduleZBVZeroBubble`, where two neighbours are on the last rank, could not begin.

    Seen: 2.11 to 2.13, which needs it no more: it greets other ranks only. Gone: as torch does it.
    """
    if torch.__version__ >= "2.13":
        return
    try:
        stage = importlib.import_module("torch.distributed.pipelining.stage")
        greetings = stage._PipelineStageBase._get_init_p2p_neighbors_ops
    except (ImportError, AttributeError):
        return

    def to_others(self) -> list[dist.P2POp]:
        return [op for op in greetings(self) if op.group_peer != self.group_rank]

    stage._PipelineStageBase._get_init_p2p_neighbors_ops = to_others
