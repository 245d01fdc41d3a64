"""A model read off an nn.Module: parameters, products and what each layer keeps, from two forwards."""

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from course_lib.arguments import instance
from course_lib.plan.facts import Layer, Model

__all__ = ["describe"]


def describe(module: nn.Module, inputs: Tensor, name: str = "", batch: int = 0) -> Model:
    """Read a model off a module, by two forwards; its buffers and the random numbers stay as they were.

    A layer is a module with parameters of its own; what is computed and kept after it, by modules without any
    (ReLU, attention), counts as its own. A parameter that two layers share counts once; one whose module is
    never called (used by the module around it, or by nobody) belongs to the layer around it, or makes a layer
    that computes nothing. Which layers tensor parallelism cuts, the module says by its
    `tensor_parallel_plan`, as mini.tensor_parallel reads it.

    Args:
        inputs: what the module takes, with a few samples along dim 0.
        batch: samples of a step; as many as there are inputs, unless given.
    """
    instance("module", module, nn.Module)
    instance("inputs", inputs, Tensor)
    instance("name", name, str)
    if not inputs.dim() or not len(inputs):
        raise ValueError("inputs: it must have samples along dim 0.")
    samples, rows, kept, running = len(inputs), {}, {}, []
    owned = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    given: dict = {}  # the input of each layer
    before_it = {path: buffer.clone() for path, buffer in module.named_buffers()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if running and storage.data_ptr() not in owned | kept.keys():  # kept alive, so that none repeats
            kept[storage.data_ptr()] = running[-1], running[-1] not in rows, storage.nbytes(), storage
        return tensor

    def before(layer: nn.Module, arguments: tuple) -> None:
        running.append(names[layer])
        given.setdefault(names[layer], arguments[0] if arguments else None)

    def after(layer: nn.Module, arguments: tuple, output) -> None:
        rows[names[layer]] = output.nbytes if isinstance(output, Tensor) else 0

    names = {its: path for path, its in module.named_modules() if any(True for _ in its.parameters(False))}
    hooks = [
        h for its in names for h in (its.register_forward_pre_hook(before), its.register_forward_hook(after))
    ]
    try:
        with (
            torch.random.fork_rng(devices=[]),
            FlopCounterMode(display=False),
            torch.autograd.graph.saved_tensors_hooks(keep, _as_is),
        ):
            module(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    # attention and recurrent layers as plain products: the counter does not know the CPU's own
    onednn, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            module(inputs)
    finally:
        torch.backends.mkldnn.enabled = onednn
        with torch.no_grad():
            for path, buffer in module.named_buffers():
                buffer.copy_(before_it[path])  # running means, say
    counts = counter.get_flop_counts()
    by_path = {path: sum(its.values()) for path, its in counts.items()}
    root, words, seen = type(module).__name__, dict(_cuts(module)), set()
    around = {path: _around(path, given) for path in names.values()}
    members: dict = {path: [path] for path in given}  # whose parameters a layer has
    for path in names.values():
        if path not in given:
            members.setdefault(around[path] or path, []).append(path)
    layers = []
    for path, paths in members.items():
        owns = [p for its in paths for p in module.get_submodule(its).parameters(False)]
        shapes = [p for p in dict.fromkeys(owns) if id(p) not in seen]
        seen |= {id(p) for p in shapes}
        word, input = words.get(path, ""), given.get(path)
        flop = sum(  # a layer's count has those of the layers within it
            by_path.get(f"{root}.{its}" if its else root, 0) * (1 if its == path else -1)
            for its in given
            if its == path or around[its] == path
        )
        inside, behind = (
            sum(size for owner, within, size, _ in kept.values() if (owner, within) == (path, where))
            for where in (True, False)
        )
        in_bytes = input.nbytes if isinstance(input, Tensor) else 0
        cut = {"column": "column", "heads": "column", "enters": "column", "row": "row"}.get(word, "")
        enters = word in ("column", "enters") and isinstance(input, Tensor) and input.requires_grad
        layers.append(
            {
                "name": path or root,
                "shapes": tuple(tuple(p.shape) for p in shapes),
                "products": flop / 2 / samples,
                "kept_bytes": ({"column": inside, "row": behind}.get(cut, inside + behind)) / samples,
                "kept_cut_bytes": {"column": behind, "row": inside}.get(cut, 0) / samples,
                "out_bytes": rows.get(path, 0) / samples,
                "cut": cut,
                "tp_bytes": (rows.get(path, 0) * (word == "row") + in_bytes * enters) / samples,
                "tp_calls": (word == "row") + enters,
                "heads": _heads(module, path) if word in ("heads", "enters") else 0,
            }
        )
    layers = tuple(_with_the_rest(layers, by_path.get("Global", 0) / 2 / samples))
    return Model(name or root, layers, batch or samples, inputs.nbytes / samples)


def _with_the_rest(layers: list[dict], products: float) -> Iterator[Layer]:
    """What is computed outside of layers, attention, say, is shared out evenly: among those that tensor
    parallelism cuts, if it cuts any.
    """
    missing = products - sum(layer["products"] for layer in layers)
    sharing = sum(bool(layer["cut"]) for layer in layers) or len(layers)
    for layer in layers:
        share = max(missing, 0) / sharing * (bool(layer["cut"]) or sharing == len(layers))
        yield Layer(**layer | {"products": layer["products"] + share})


def _heads(module: nn.Module, path: str) -> int:
    """How many heads the queries, keys or values have that this layer makes."""
    width = getattr(module.get_submodule(path.rpartition(".")[0]), "head_dim", 0)
    return module.get_submodule(path).out_features // width if width else 0


def _around(path: str, given: Collection[str]) -> str | None:
    """The nearest layer, of those that were called, within which a module lies; None if there is none."""
    while path:
        path = path.rpartition(".")[0]
        if path in given:
            return path
    return None


def _as_is(tensor):
    return tensor


def _cuts(module: nn.Module, path: str = "") -> Iterator[tuple[str, str]]:
    """What tensor parallelism does with which part: as mini.tensor_parallel deals them out."""
    plan = getattr(module, "tensor_parallel_plan", {})
    if isinstance(module, nn.Sequential):
        linear = [name for name, its in module.named_children() if isinstance(its, nn.Linear)]
        plan = {name: ("column", "row")[i % 2] for i, name in enumerate(linear)}
    elif isinstance(module, nn.ModuleList):
        plan = dict.fromkeys((name for name, _ in module.named_children()), "parts")
    entered = False
    for name, word in plan.items():
        at = f"{path}.{name}" if path else name
        if word == "parts":
            yield from _cuts(module.get_submodule(name), at)
        elif word == "heads" and not entered:  # queries, keys and values enter together
            entered = True
            yield at, "enters"
        else:
            yield at, word
