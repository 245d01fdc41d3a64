"""Answers to the exercises of "ZeRO stages 2 and 3", right and wrong. They stand here, and not in a test
file, so that a rank need not import pytest.
"""

import torch
import torch.distributed as dist
from by_files import by_files
from torch import nn
from torch.nn import functional as F


def stub(*arguments):
    raise NotImplementedError


class Unit:
    """The parameters of one layer in one flat tensor of n equal chunks, of which this rank owns one; as in
    the chapter.
    """

    def __init__(self, layer, own_memory=False):
        n, rank = dist.get_world_size(), dist.get_rank()
        self.params = list(layer.parameters())
        sizes = [p.numel() for p in self.params]
        padding = -sum(sizes) % n
        self.full = torch.cat([p.detach().flatten() for p in self.params] + [torch.zeros(padding)])
        for p, view in zip(self.params, self.full.split(sizes + [padding])):
            p.data = view.view_as(p)
        mine = self.full.chunk(n)[rank]
        self.shard = nn.Parameter(mine.clone() if own_memory else mine)


def gather(unit):
    from course_lib.mini import ring

    unit.full.untyped_storage().resize_(unit.full.nbytes)
    ring.all_gather(unit.full, unit.shard.detach())


def free(unit):
    unit.full.untyped_storage().resize_(0)


def ring_reduce_scatter(output, input):
    from course_lib.mini import ring

    ring.reduce_scatter(output, input)


def gloo_reduce_scatter(output, input):
    dist.reduce_scatter_tensor(output, input)


def by_all_reduce(output, input):
    dist.all_reduce(input)
    output.copy_(input.chunk(dist.get_world_size())[dist.get_rank()])


def on_one_root(output, input):
    dist.reduce(input, dst=0)
    chunks = [chunk.clone() for chunk in input.chunk(dist.get_world_size())] if dist.get_rank() == 0 else None
    dist.scatter(output, chunks, src=0)


def add_to_shard(unit, reduce_scatter=ring_reduce_scatter, factor=None, add=True, keep=False):
    grads = torch.cat([p.grad.flatten() for p in unit.params])
    for p in unit.params:
        if not keep:
            p.grad = None
    grads = F.pad(grads, (0, unit.full.numel() - grads.numel()))
    mine = torch.empty_like(unit.shard)
    reduce_scatter(mine, grads)
    mine *= 1 / dist.get_world_size() if factor is None else factor
    unit.shard.grad = mine if unit.shard.grad is None or not add else unit.shard.grad + mine


def when_complete(unit, function):
    arrived = []

    def count(p):
        arrived.append(p)
        if len(arrived) == len(unit.params):
            arrived.clear()
            function(unit)

    for p in unit.params:
        p.register_post_accumulate_grad_hook(count)


def hook(function, *units):
    def call(*_):
        for unit in units:
            function(unit)

    return call


# shard_gradients(layers)


def gradients(layers, **how):
    units = [Unit(layer) for layer in layers]
    for unit in units:
        when_complete(unit, lambda unit: add_to_shard(unit, **how))
    return [unit.shard for unit in units]


def gradients_own_memory(layers):
    """Right as well: shards with memory of their own."""
    units = [Unit(layer, own_memory=True) for layer in layers]
    for unit in units:
        when_complete(unit, add_to_shard)
    return [unit.shard for unit in units]


def gradients_by_gloo(layers):
    return gradients(layers, reduce_scatter=gloo_reduce_scatter)


def gradients_by_all_reduce(layers):
    return gradients(layers, reduce_scatter=by_all_reduce)


def reduce_scatter_by_files(output, input):
    n, rank = dist.get_world_size(), dist.get_rank()
    output.copy_(sum(part.chunk(n)[rank] for part in by_files(input)))


def gradients_by_files(layers):
    """Right gradients; nothing is sent, and files say it."""
    return gradients(layers, reduce_scatter=reduce_scatter_by_files)


def gradients_on_one_root(layers):
    return gradients(layers, reduce_scatter=on_one_root)


def gradients_summed(layers):
    return gradients(layers, factor=1.0)


def gradients_overwritten(layers):
    return gradients(layers, add=False)


def gradients_of_this_rank(layers):
    def keep_own(output, input):
        output.copy_(input.chunk(dist.get_world_size())[dist.get_rank()])

    return gradients(layers, reduce_scatter=keep_own, factor=1.0)


def gradients_kept(layers):
    """The chunk is taken out of a full gradient that stays: it must be zeroed, or it would count twice, and
    nothing is saved.
    """
    units = [Unit(layer) for layer in layers]

    def reduce(unit):
        add_to_shard(unit, keep=True)
        for p in unit.params:
            p.grad.zero_()

    for unit in units:
        when_complete(unit, reduce)
    return [unit.shard for unit in units]


def gradients_late(layers):
    """Waits for all gradients: each is freed, but when the last has come."""
    units, ready = [Unit(layer) for layer in layers], []

    def collect(unit):
        ready.append(unit)
        if len(ready) == len(units):
            for each in ready:
                add_to_shard(each)
            ready.clear()

    for unit in units:
        when_complete(unit, collect)
    return [unit.shard for unit in units]


def gradients_without_padding(layers):
    """The last ranks have shorter shards."""
    rank, n = dist.get_rank(), dist.get_world_size()
    return [
        nn.Parameter(
            torch.cat([p.detach().flatten() for p in layer.parameters()]).tensor_split(n)[rank].clone()
        )
        for layer in layers
    ]


def nothing(*arguments):
    """No return."""


def gradients_of_parameters(layers):
    return [p for layer in layers for p in layer.parameters()]


class Other:
    """What the units' shards are, made by another rule."""

    def __init__(self, make):
        self.make = make

    def __call__(self, layers):
        units = [Unit(layer, own_memory=True) for layer in layers]
        for unit in units:
            unit.shard = self.make(unit)
            when_complete(unit, add_to_shard)
        return [unit.shard for unit in units]


def gradients_with_tensors_for_shards(layers):
    """Plain tensors, which no optimizer learns."""
    return Other(lambda unit: unit.shard.detach())(layers)


def gradients_with_frozen_shards(layers):
    return Other(lambda unit: unit.shard.requires_grad_(False))(layers)


def gradients_with_empty_shards(layers):
    return Other(lambda unit: nn.Parameter(torch.zeros_like(unit.shard)))(layers)


def gradients_with_first_chunks(layers):
    return Other(lambda unit: nn.Parameter(unit.full.chunk(dist.get_world_size())[0].clone()))(layers)


def gradients_in_single_precision(layers):
    def single(output, input):
        mine = output.float()
        ring_reduce_scatter(mine, input.float())
        output.copy_(mine)

    return gradients(layers, reduce_scatter=single)


def gradients_in_numpy(layers):
    """The full gradients of all layers stay, where torch does not see them."""
    units, kept = [Unit(layer) for layer in layers], []

    def reduce(unit):
        kept.append([p.grad.numpy().copy() for p in unit.params])
        add_to_shard(unit)

    for unit in units:
        when_complete(unit, reduce)
    return [unit.shard for unit in units]


def gradients_of_rank_0_only(layers):
    return gradients(layers) if dist.get_rank() == 0 else None


# shard_layers(layers)


def reduce_and_free(unit, **how):
    add_to_shard(unit, **how)
    free(unit)


def layers_sharded(layers, room, gather=gather, complete=reduce_and_free, first=False):
    """The last `room` layers stay from their forward to their backward."""
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for layer, unit in zip(layers, units):
        stays = unit in (units[:room] if first else units[-room:])
        layer.register_forward_pre_hook(hook(gather, unit))
        if not stays:
            layer.register_forward_hook(hook(free, unit))
            layer.register_full_backward_pre_hook(hook(gather, unit))
        when_complete(unit, complete)
    return [unit.shard for unit in units]


def gather_if_absent(unit):
    if not unit.full.untyped_storage().nbytes():
        gather(unit)


def layers_by_files(layers, room):
    """Right weights; nothing is sent, and files say it."""

    def gather(unit):
        unit.full.untyped_storage().resize_(unit.full.nbytes)
        unit.full.detach().copy_(torch.cat(by_files(unit.shard)))

    return layers_sharded(
        layers, room, gather, lambda unit: reduce_and_free(unit, reduce_scatter=reduce_scatter_by_files)
    )


def layers_ahead(layers, room):
    """Right as well: in forward, the next layer is gathered while this one works. Two are alive."""
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for number, (layer, unit) in enumerate(zip(layers, units)):
        layer.register_forward_pre_hook(hook(gather_if_absent, *units[number : number + 2]))
        if unit not in units[-room:]:
            layer.register_forward_hook(hook(free, unit))
        layer.register_full_backward_pre_hook(hook(gather_if_absent, unit))
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_gathered_by_gloo(layers, room):
    """Right as well: gloo's all_gather sends what the ring's does."""

    def gather(unit):
        unit.full.untyped_storage().resize_(unit.full.nbytes)
        dist.all_gather_into_tensor(unit.full.detach(), unit.shard.detach())

    return layers_sharded(layers, room, gather)


def layers_gathered_in_lists(layers, room):
    """Right as well: gloo's all_gather of a list, which one of its threads may hold a moment longer."""

    def gather(unit):
        parts = [torch.empty_like(unit.shard) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, unit.shard.detach())
        unit.full.untyped_storage().resize_(unit.full.nbytes)
        torch.cat(parts, out=unit.full)

    return layers_sharded(layers, room, gather)


def layers_in_other_forwards(layers, room):
    """Right as well: each layer gets another forward, around its own one, and backward begins with the
    output's gradient.
    """
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for layer, unit in zip(layers, units):

        def forward(x, unit=unit, own_forward=layer.forward):
            gather(unit)
            output = own_forward(x)
            if unit not in units[-room:]:
                free(unit)
                output.register_hook(hook(gather, unit))
            return output

        layer.forward = forward
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


class Linear(torch.autograd.Function):
    """A product that gathers its weights in both directions."""

    @staticmethod
    def forward(ctx, x, weight, bias, unit, stays):
        gather(unit)
        ctx.save_for_backward(x)
        ctx.weight, ctx.unit = weight, unit
        output = x @ weight.T + bias
        if not stays:
            free(unit)
        return output

    @staticmethod
    def backward(ctx, grad):
        gather_if_absent(ctx.unit)
        (x,) = ctx.saved_tensors
        return grad @ ctx.weight, grad.T @ x, grad.sum(0), None, None


def layers_of_own_products(layers, room):
    """Right as well: the layers' own forward is never called."""
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for layer, unit in zip(layers, units):
        layer.forward = lambda x, layer=layer, unit=unit: Linear.apply(
            x, layer.weight, layer.bias, unit, unit in units[-room:]
        )
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_hooked_at_the_output(layers, room):
    """Right as well: a hook of the output, which backward calls first, in place of a hook of the layer."""
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for layer, unit in zip(layers, units):

        def leave(layer, inputs, output, unit=unit):
            if unit not in units[-room:]:
                free(unit)
            output.register_hook(hook(gather_if_absent, unit))

        layer.register_forward_pre_hook(hook(gather, unit))
        layer.register_forward_hook(leave)
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_freed_later(layers, room):
    """Right as well: in forward, a layer goes when there is no more room; the last ones stay for their
    backward.
    """
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()

    def enter(number):
        def call(*_):
            if number >= room:
                free(units[number - room])
            gather(units[number])

        return call

    for number, (layer, unit) in enumerate(zip(layers, units)):
        layer.register_forward_pre_hook(enter(number))
        layer.register_full_backward_pre_hook(hook(gather_if_absent, unit))
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_and_a_seed(layers, room):
    """Right as well: it seeds for itself, and stores shards in their layers, as parameters."""
    torch.manual_seed(dist.get_rank())
    shards = layers_sharded(layers, room)
    for layer, shard in zip(layers, shards):
        layer.register_parameter("mine", shard)
    return tuple(shards)


def layers_plain(layers, room):
    """Leaves the room empty: each layer is gathered twice."""
    return layers_sharded(layers, 1)


def layers_first_stay(layers, room):
    """Those stay that backward needs last."""
    return layers_sharded(layers, room, first=True)


def layers_in_numpy(layers, room):
    """The full weights stay, where torch does not see them."""
    kept = [p.detach().numpy().copy() for layer in layers for p in layer.parameters()]
    layers[0].register_forward_pre_hook(lambda *_: kept and None)
    return layers_sharded(layers, room)


def layers_in_lists(layers, room):
    """The same in Python's own numbers."""
    layers[0].kept = [p.detach().flatten().tolist() for layer in layers for p in layer.parameters()]
    return layers_sharded(layers, room)


def layers_nothing_on_rank_1(layers, room):
    return None if dist.get_rank() == 1 else [nn.Parameter(torch.zeros(2)) for _ in layers]


def layers_in_single_precision(layers, room):
    def single(output, input):
        mine = output.float()
        ring_reduce_scatter(mine, input.float())
        output.copy_(mine)

    return layers_sharded(layers, room, complete=lambda unit: reduce_and_free(unit, reduce_scatter=single))


def layers_with_views(layers, room):
    """Forgets that the shard needs memory of its own."""
    units = [Unit(layer) for layer in layers]
    for layer, unit in zip(layers, units):
        layer.register_forward_pre_hook(hook(gather, unit))
        layer.register_forward_hook(hook(free, unit))
        layer.register_full_backward_pre_hook(hook(gather, unit))
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_with_kept_gradients(layers, room):
    """The parameters are freed, their gradients never."""

    def complete(unit):
        add_to_shard(unit, keep=True)
        free(unit)

    return layers_sharded(layers, room, complete=complete)


def layers_all_at_once(layers, room):
    """Gathers all in the first layer's forward, and frees each after its backward."""
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    layers[0].register_forward_pre_hook(hook(gather, *units))
    for unit in units:
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_kept_until_backward(layers, room):
    """As fully_shard(reshard_after_forward=False)."""
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for layer, unit in zip(layers, units):
        layer.register_forward_pre_hook(hook(gather, unit))
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_never_freed(layers, room):
    """Stage 2: shards are views, and all parameters stay."""
    units = [Unit(layer) for layer in layers]
    for layer, unit in zip(layers, units):
        layer.register_forward_pre_hook(hook(gather, unit))
        when_complete(unit, add_to_shard)
    return [unit.shard for unit in units]


class Swapped(Unit):
    """Gathers into fresh memory and frees by an empty `p.data`."""

    def __init__(self, layer):
        super().__init__(layer, own_memory=True)
        self.shapes, self.numel = [p.shape for p in self.params], self.full.numel()
        self.empty()

    def fill(self):
        from course_lib.mini import ring

        full, sizes = torch.empty(self.numel), [shape.numel() for shape in self.shapes]
        ring.all_gather(full, self.shard.detach())
        for p, part, shape in zip(self.params, full.split([*sizes, self.numel - sum(sizes)]), self.shapes):
            p.data = part.view(shape)

    def empty(self):
        self.full = torch.empty(0)
        for p in self.params:
            p.data = torch.empty(0)

    def complete(self):
        self.full = torch.empty(self.numel)
        add_to_shard(self)
        self.empty()


def layers_with_empty_data(layers, room):
    units = [Swapped(layer) for layer in layers]
    for layer, unit in zip(layers, units):
        layer.register_forward_pre_hook(lambda *_, unit=unit: unit.fill())
        layer.register_forward_hook(lambda *_, unit=unit: unit.empty())
        layer.register_full_backward_pre_hook(lambda *_, unit=unit: unit.fill())
        when_complete(unit, Swapped.complete)
    return [unit.shard for unit in units]


def layers_without_second_gather(layers, room):
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for layer, unit in zip(layers, units):
        layer.register_forward_pre_hook(hook(gather, unit))
        layer.register_forward_hook(hook(free, unit))
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_with_late_gradients(layers, room):
    """The parameters are freed in time, the gradients are reduced all together at the end of backward."""
    ready = []

    def collect(unit):
        free(unit)
        ready.append(unit)
        if len(ready) == len(layers):
            for each in ready:
                add_to_shard(each)
            ready.clear()

    return layers_sharded(layers, room, complete=collect)


def layers_by_gloo(layers, room):
    return layers_sharded(
        layers, room, complete=lambda unit: reduce_and_free(unit, reduce_scatter=gloo_reduce_scatter)
    )


def layers_on_one_root(layers, room):
    return layers_sharded(
        layers, room, complete=lambda unit: reduce_and_free(unit, reduce_scatter=on_one_root)
    )


def layers_summed(layers, room):
    """With Adam, which divides a gradient by its length, the weights are nearly right."""
    return layers_sharded(layers, room, complete=lambda unit: reduce_and_free(unit, factor=1.0))


# choose_units(model, ranks, budget)


def numel_of(*modules, recurse=True):
    return sum(p.numel() for module in modules for p in module.parameters(recurse=recurse))


def units(model, ranks, budget, of_unit=lambda ranks: 2 + 2 / ranks):
    own = max(numel_of(module, recurse=False) for module in model.modules())
    largest = {0: numel_of(model), 1: max(own, *map(numel_of, model.blocks)), 2: own}
    for level, numel in largest.items():
        peak = 16 * numel_of(model) / ranks + 4 * of_unit(ranks) * numel
        if peak <= budget:
            break
    return [[model], list(model.blocks), []][level], peak


def units_in_a_tuple(model, ranks, budget):
    """Right as well: with torch's own numbers."""
    chosen, peak = units(model, ranks, budget)
    return tuple(chosen), int(torch.tensor(peak).round())


def units_as_a_list(model, ranks, budget):
    return [*units(model, ranks, budget)]


def units_by_states_alone(model, ranks, budget):
    """Forgets that a unit must be there in full."""
    return units(model, ranks, budget, lambda ranks: 0)


def units_without_chunks(model, ranks, budget):
    """Forgets the chunks in which sums travel."""
    return units(model, ranks, budget, lambda ranks: 2)


def units_always_small(model, ranks, budget):
    return [], units(model, ranks, 0)[1]


def units_always_large(model, ranks, budget):
    return [model], units(model, ranks, 1e12)[1]


def units_without_peak(model, ranks, budget):
    return units(model, ranks, budget)[0]


def units_of_other_modules(model, ranks, budget):
    return [model.head], units(model, ranks, budget)[1]
