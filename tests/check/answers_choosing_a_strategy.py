"""Answers to the exercises of "Choosing a strategy": right in several styles, wrong, wasteful."""

import statistics

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def stub(*arguments):
    raise NotImplementedError


def counts(network, x):
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept, products = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    def count(layer, inputs, output):
        products.append(layer.in_features * layer.out_features)

    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in linear]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x)
    for handle in handles:
        handle.remove()
    return {
        "params": sum(p.numel() for p in network.parameters()),
        "products": sum(products),
        "kept_bytes": sum(storage.nbytes() for storage in kept.values()) / len(x),
    }


def counts_by_torch(network, x):
    """FlopCounterMode for the products, and the tensors themselves, kept alive, for the bytes."""
    seen = []
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
            network(x)
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in seen}
    return {
        "params": sum({id(p): p.numel() for p in network.parameters()}.values()),
        "products": counter.get_total_flops() / 2 / len(x),
        "kept_bytes": sum(size for key, size in storages.items() if key not in own) / len(x),
    }


def counts_layers_once(network, x):
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    return counts(network, x) | {"products": sum(its.in_features * its.out_features for its in linear)}


def counts_tied_twice(network, x):
    return counts(network, x) | {
        "params": sum(p.numel() for module in network.modules() for p in module.parameters(recurse=False))
    }


def counts_weights_as_kept(network, x):
    found = counts(network, x)
    weights = sum(p.nbytes for p in network.parameters() if p.dim() == 2)
    return found | {"kept_bytes": found["kept_bytes"] + weights / len(x)}


def counts_of_all_samples(network, x):
    found = counts(network, x)
    return found | {"kept_bytes": found["kept_bytes"] * len(x)}


def counts_leaves_hooks(network, x):
    for layer in network.modules():
        layer.register_forward_hook(lambda *_: None)
    return counts(network, x)


def counts_with_backward(network, x):
    found = counts(network, x)
    network(x).sum().backward()
    return found


def counts_in_two_forwards(network, x):
    network(x)
    return counts(network, x)


def _ring(op, n):
    """Messages of a ring, and bytes sent over bytes of the tensor."""
    times = 2 if op == "all_reduce" else 1
    return times * (n - 1), times * (n - 1) / n


def link(op, group_size, measured):
    best = {}
    for size, seconds in measured:
        best[size] = min(seconds, best.get(size, seconds))
    (small, t0), *_, (large, t1) = sorted(best.items())
    messages, factor = _ring(op, group_size)
    per_byte = (t1 - t0) / (large - small)
    return (t0 - per_byte * small) / messages, per_byte / factor


def link_by_medians(op, group_size, measured):
    """The lowest quarter of each size, and the median of all slopes between them (Theil and Sen)."""
    sizes = sorted({size for size, _ in measured})
    low = {}
    for size in sizes:
        times = sorted(seconds for its, seconds in measured if its == size)
        low[size] = times[0]
    slope = statistics.median(
        (low[b] - low[a]) / (b - a) for i, a in enumerate(sizes) for b in sizes[i + 1 :] if b > 2**18
    )
    messages, factor = _ring(op, group_size)
    return torch.tensor([min(low[s] - slope * s for s in sizes[:2]) / messages, slope / factor])


def link_by_least_squares(op, group_size, measured):
    n = len(measured)
    mx, my = (sum(values) / n for values in zip(*measured))
    slope = sum((x - mx) * (y - my) for x, y in measured) / sum((x - mx) ** 2 for x, _ in measured)
    messages, factor = _ring(op, group_size)
    return (my - slope * mx) / messages, slope / factor


def link_by_means(op, group_size, measured):
    sizes = sorted({size for size, _ in measured})
    mean = {s: statistics.mean(t for its, t in measured if its == s) for s in sizes}
    slope = (mean[sizes[-1]] - mean[sizes[0]]) / (sizes[-1] - sizes[0])
    messages, factor = _ring(op, group_size)
    return (mean[sizes[0]] - slope * sizes[0]) / messages, slope / factor


def link_of_the_whole_call(op, group_size, measured):
    alpha, beta = link(op, group_size, measured)
    return alpha * _ring(op, group_size)[0], beta


def link_per_byte_of_the_tensor(op, group_size, measured):
    alpha, beta = link(op, group_size, measured)
    return alpha, beta * _ring(op, group_size)[1]


def link_of_all_reduce_alone(op, group_size, measured):
    return link("all_reduce", group_size, measured)


def link_as_text(op, group_size, measured):
    return "fast"


def axis_bytes(widths, batch, dp, tp):
    layers = list(zip(widths, widths[1:]))
    held = sum((a * b + b) / tp if i % 2 == 0 else a * b / tp + b for i, (a, b) in enumerate(layers))
    outputs = sum(b for _, b in layers[1::2])  # of row layers, forward
    inputs = sum(a for a, _ in layers[2::2])  # of column layers but the first, backward
    return {
        "dp": 2 * (dp - 1) / dp * 4 * held,
        "tp": 2 * (tp - 1) / tp * 4 * batch / dp * (outputs + inputs),
    }


def axis_bytes_by_theory(widths, batch, dp, tp):
    from course_lib import theory

    numel = values = 0
    for i, (fed, made) in enumerate(zip(widths, widths[1:])):
        column = i % 2 == 0
        numel += fed * made // tp + (made // tp if column else made)
        values += (fed if i else 0) if column else made
    reduced = {"dp": (4 * numel, dp), "tp": (4 * values * (batch // dp), tp)}
    return {axis: theory.collective_bytes("all_reduce", *its) for axis, its in reduced.items()}


def axis_bytes_of_the_whole_batch(widths, batch, dp, tp):
    found = axis_bytes(widths, batch, dp, tp)
    return found | {"tp": found["tp"] * dp}


def axis_bytes_forward_alone(widths, batch, dp, tp):
    return axis_bytes(widths, batch, dp, tp) | {"tp": 2 * (tp - 1) / tp * 4 * batch / dp * sum(widths[2::2])}


def axis_bytes_with_the_input(widths, batch, dp, tp):
    more = 2 * (tp - 1) / tp * 4 * batch / dp * widths[0]
    found = axis_bytes(widths, batch, dp, tp)
    return found | {"tp": found["tp"] + more}


def axis_bytes_of_all_parameters(widths, batch, dp, tp):
    return axis_bytes(widths, batch, dp, tp) | {"dp": axis_bytes(widths, batch, dp, 1)["dp"]}


def axis_bytes_as_payload(widths, batch, dp, tp):
    found = axis_bytes(widths, batch, dp, tp)
    return {axis: found[axis] / (2 * (n - 1) / n or 1) for axis, n in (("dp", dp), ("tp", tp))}


def axis_bytes_as_a_sum(widths, batch, dp, tp):
    return sum(axis_bytes(widths, batch, dp, tp).values())
