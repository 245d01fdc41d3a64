"""Answers to the exercises of "fully_shard in practice", right and wrong. They stand here, and not in a test
file, so that a rank need not import pytest.
"""

from itertools import combinations

import torch
import torch.distributed as dist


def stub(*arguments):
    raise NotImplementedError


# Units for a budget


def units(layer_bytes, budget_bytes):
    """All plans, those with few units first."""
    number = len(layer_bytes)
    for cuts in range(number):
        for places in combinations(range(1, number), cuts):
            edges = [0, *places, number]
            plan = [list(range(a, b)) for a, b in zip(edges, edges[1:])]
            held = [sum(layer_bytes[layer] for layer in unit) for unit in plan]
            if max(a + b for a, b in zip([0, *held], held)) <= budget_bytes:
                return plan


def units_by_table(layer_bytes, budget_bytes):
    """Right as well: the shortest plan that ends with each unit, by what stood before."""
    best = {(0, 0): []}  # (begin, end) of the last unit: a shortest plan that ends with it
    number = len(layer_bytes)
    for end in range(1, number + 1):
        for begin in range(end):
            own = sum(layer_bytes[begin:end])
            plans = [
                plan
                for (first, last), plan in best.items()
                if last == begin
                and (last == 0) == (plan == [])
                and sum(layer_bytes[first:last]) + own <= budget_bytes
            ]
            if plans:
                best[begin, end] = [*min(plans, key=len), tuple(range(begin, end))]
    return tuple(min((plan for (_, last), plan in best.items() if last == number), key=len))


def units_one_each(layer_bytes, budget_bytes):
    return [[layer] for layer in range(len(layer_bytes))]


def units_one_for_all(layer_bytes, budget_bytes):
    return [list(range(len(layer_bytes)))]


def units_that_fit_alone(layer_bytes, budget_bytes):
    """Forgets that two are there at once."""
    plan, held = [[]], 0
    for layer, size in enumerate(layer_bytes):
        if held + size > budget_bytes:
            plan, held = [*plan, []], 0
        plan[-1].append(layer)
        held += size
    return plan


def units_of_half(layer_bytes, budget_bytes):
    """Each unit at most half of the budget, if it can be."""
    return units_that_fit_alone(layer_bytes, budget_bytes / 2)


def units_by_size(layer_bytes, budget_bytes):
    plan = units(layer_bytes, budget_bytes)
    return plan[::-1]


def units_without_the_last(layer_bytes, budget_bytes):
    return [[layer] for layer in range(len(layer_bytes) - 1)]


# Values that are made in shards


def init(make_model, shard):
    with torch.device("meta"):
        model, plain = make_model(), make_model()
    shard(model)
    model.to_empty(device="cpu")
    rank, n = dist.get_rank(), dist.get_world_size()
    for mine, theirs in zip(model.modules(), plain.modules()):
        if hasattr(theirs, "reset_parameters"):
            theirs.to_empty(device="cpu", recurse=False)
            theirs.reset_parameters()
            with torch.no_grad():
                for shards, whole in zip(mine.parameters(recurse=False), theirs.parameters(recurse=False)):
                    shards.to_local().copy_(whole.chunk(n)[rank])
            theirs.to("meta")
    return model


def init_by_state_dict(make_model, shard):
    """Right as well: torch puts each whole module into its shards."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    with torch.device("meta"):
        model, plain = make_model(), make_model()
    shard(model)
    model.to_empty(device="cpu")
    for mine, theirs in zip(model.modules(), plain.modules()):
        if hasattr(theirs, "reset_parameters"):
            theirs.to_empty(device="cpu", recurse=False)
            theirs.reset_parameters()
            set_model_state_dict(mine, theirs.state_dict(), options=StateDictOptions(full_state_dict=True))
            theirs.to("meta")
    return model


def init_whole(make_model, shard):
    return shard(make_model())


def init_whole_on_rank_0(make_model, shard):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    with torch.device("meta"):
        model = make_model()
    shard(model)
    model.to_empty(device="cpu")
    whole = make_model().state_dict() if dist.get_rank() == 0 else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, whole, options=options)
    return model


def init_in_shards(make_model, shard):
    """Each rank draws for its shard: the same numbers on all, and those of no other process."""
    import warnings

    with torch.device("meta"):
        model = make_model()
    shard(model)
    model.to_empty(device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return model


def init_on_meta_alone(make_model, shard):
    with torch.device("meta"):
        return shard(make_model())


def init_unsharded(make_model, shard):
    with torch.device("meta"):
        shard(make_model())
    return make_model()


def init_nothing(make_model, shard):
    return None


def init_other_seed(make_model, shard):
    torch.manual_seed(dist.get_rank())
    return init(make_model, shard)


# Micro-batches that do not communicate


def _keep(model, keep):
    model.set_requires_gradient_sync(not keep)
    model.set_reshard_after_backward(not keep)


def accumulate(model, micro_batches):
    model.set_reshard_after_forward(False)
    for number, batch in enumerate(micro_batches, start=1):
        _keep(model, number < len(micro_batches))
        (model(batch) / len(micro_batches)).backward()


def accumulate_and_set_back(model, micro_batches):
    """Right as well."""
    accumulate(model, micro_batches)
    model.set_reshard_after_forward(True)


def accumulate_late_forward(model, micro_batches):
    """Right as well: the last forward may reshard only if somebody gathers again."""
    *before, last = micro_batches
    model.set_reshard_after_forward(False)
    _keep(model, True)
    for batch in before:
        (model(batch) / len(micro_batches)).backward()
    _keep(model, False)
    (model(last) / len(micro_batches)).backward()


def accumulate_plainly(model, micro_batches):
    for batch in micro_batches:
        (model(batch) / len(micro_batches)).backward()


def accumulate_without_sync(model, micro_batches):
    """Gathers in each forward and backward."""
    for number, batch in enumerate(micro_batches, start=1):
        model.set_requires_gradient_sync(number == len(micro_batches))
        (model(batch) / len(micro_batches)).backward()


def accumulate_gathers_in_forward(model, micro_batches):
    for number, batch in enumerate(micro_batches, start=1):
        _keep(model, number < len(micro_batches))
        (model(batch) / len(micro_batches)).backward()


def accumulate_never_reduced(model, micro_batches):
    for batch in micro_batches:
        _keep(model, True)
        (model(batch) / len(micro_batches)).backward()


def accumulate_never_resharded(model, micro_batches):
    model.set_reshard_after_forward(False)
    model.set_reshard_after_backward(False)
    for number, batch in enumerate(micro_batches, start=1):
        model.set_requires_gradient_sync(number == len(micro_batches))
        (model(batch) / len(micro_batches)).backward()


def accumulate_summed(model, micro_batches):
    model.set_reshard_after_forward(False)
    for number, batch in enumerate(micro_batches, start=1):
        _keep(model, number < len(micro_batches))
        model(batch).backward()


def accumulate_the_last(model, micro_batches):
    model(micro_batches[-1]).backward()
