"""Answers to the exercises of "ZeRO stages 2 and 3", right and wrong. They stand here, and not in a test
file, so that a rank need not import pytest.
"""

import os

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


def layers_sharded(layers, after_forward=free, complete=reduce_and_free):
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for layer, unit in zip(layers, units):
        layer.register_forward_pre_hook(hook(gather, unit))
        if after_forward:
            layer.register_forward_hook(hook(after_forward, unit))
        layer.register_full_backward_pre_hook(hook(gather, unit))
        when_complete(unit, complete)
    return [unit.shard for unit in units]


def layers_by_files(layers):
    """Right weights; nothing is sent, and files say it."""

    def gather(unit):
        unit.full.untyped_storage().resize_(unit.full.nbytes)
        unit.full.detach().copy_(torch.cat(by_files(unit.shard)))

    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for layer, unit in zip(layers, units):
        layer.register_forward_pre_hook(hook(gather, unit))
        layer.register_forward_hook(hook(free, unit))
        layer.register_full_backward_pre_hook(hook(gather, unit))
        when_complete(unit, lambda unit: reduce_and_free(unit, reduce_scatter=reduce_scatter_by_files))
    return [unit.shard for unit in units]


def layers_ahead(layers):
    """Right as well: in forward, the next layer is gathered while this one works. Two are alive."""
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()

    def fetch(number):
        def call(*_):
            for unit in units[number : number + 2]:
                if not unit.full.untyped_storage().nbytes():
                    gather(unit)

        return call

    for number, (layer, unit) in enumerate(zip(layers, units)):
        layer.register_forward_pre_hook(fetch(number))
        layer.register_forward_hook(hook(free, unit))
        layer.register_full_backward_pre_hook(hook(gather, unit))
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_gathered_by_gloo(layers):
    """Right as well: gloo's all_gather sends what the ring's does."""

    def gather(unit):
        unit.full.untyped_storage().resize_(unit.full.nbytes)
        dist.all_gather_into_tensor(unit.full.detach(), unit.shard.detach())

    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for layer, unit in zip(layers, units):
        layer.register_forward_pre_hook(hook(gather, unit))
        layer.register_forward_hook(hook(free, unit))
        layer.register_full_backward_pre_hook(hook(gather, unit))
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_gathered_in_lists(layers):
    """Right as well: gloo's all_gather of a list, which one of its threads may hold a moment longer."""

    def gather(unit):
        parts = [torch.empty_like(unit.shard) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, unit.shard.detach())
        unit.full.untyped_storage().resize_(unit.full.nbytes)
        torch.cat(parts, out=unit.full)

    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for layer, unit in zip(layers, units):
        layer.register_forward_pre_hook(hook(gather, unit))
        layer.register_forward_hook(hook(free, unit))
        layer.register_full_backward_pre_hook(hook(gather, unit))
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_in_other_forwards(layers):
    """Right as well: each layer gets another forward, around its own one, and backward begins with the
    output's gradient.
    """
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for layer, unit in zip(layers, units):

        def forward(x, unit=unit, own_forward=layer.forward):
            gather(unit)
            output = own_forward(x)
            free(unit)
            output.register_hook(hook(gather, unit))
            return output

        layer.forward = forward
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


class Linear(torch.autograd.Function):
    """A product that gathers its weights in both directions."""

    @staticmethod
    def forward(ctx, x, weight, bias, unit):
        gather(unit)
        ctx.save_for_backward(x)
        ctx.weight, ctx.unit = weight, unit
        output = x @ weight.T + bias
        free(unit)
        return output

    @staticmethod
    def backward(ctx, grad):
        gather(ctx.unit)
        (x,) = ctx.saved_tensors
        return grad @ ctx.weight, grad.T @ x, grad.sum(0), None


def layers_of_own_products(layers):
    """Right as well: the layers' own forward is never called."""
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for layer, unit in zip(layers, units):
        layer.forward = lambda x, layer=layer, unit=unit: Linear.apply(x, layer.weight, layer.bias, unit)
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_hooked_at_the_output(layers):
    """Right as well: a hook of the output, which backward calls first, in place of a hook of the layer."""
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for layer, unit in zip(layers, units):

        def leave(layer, inputs, output, unit=unit):
            free(unit)
            output.register_hook(hook(gather, unit))

        layer.register_forward_pre_hook(hook(gather, unit))
        layer.register_forward_hook(leave)
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_freed_one_later(layers):
    """Right as well: in forward, a layer goes when the next but one comes; the last two stay for their
    backward.
    """
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()

    def enter(number):
        def call(*_):
            if number > 1:
                free(units[number - 2])
            gather(units[number])

        return call

    def again(unit):
        if not unit.full.untyped_storage().nbytes():
            gather(unit)

    for number, (layer, unit) in enumerate(zip(layers, units)):
        layer.register_forward_pre_hook(enter(number))
        layer.register_full_backward_pre_hook(hook(again, unit))
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_and_a_seed(layers):
    """Right as well: it seeds for itself, and its shards have other names and shapes."""
    torch.manual_seed(dist.get_rank())
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for layer, unit in zip(layers, units):
        layer.register_parameter("mine", unit.shard)
        layer.register_forward_pre_hook(hook(gather, unit))
        layer.register_forward_hook(hook(free, unit))
        layer.register_full_backward_pre_hook(hook(gather, unit))
        when_complete(unit, reduce_and_free)
    return tuple(unit.shard for unit in units)


def layers_in_numpy(layers):
    """The full weights stay, where torch does not see them."""
    kept = [p.detach().numpy().copy() for layer in layers for p in layer.parameters()]
    layers[0].register_forward_pre_hook(lambda *_: kept and None)
    return layers_sharded(layers)


def layers_in_lists(layers):
    """The same in Python's own numbers."""
    layers[0].kept = [p.detach().flatten().tolist() for layer in layers for p in layer.parameters()]
    return layers_sharded(layers)


def layers_nothing_on_rank_1(layers):
    return None if dist.get_rank() == 1 else [nn.Parameter(torch.zeros(2)) for _ in layers]


def layers_in_single_precision(layers):
    def single(output, input):
        mine = output.float()
        ring_reduce_scatter(mine, input.float())
        output.copy_(mine)

    return layers_sharded(layers, complete=lambda unit: reduce_and_free(unit, reduce_scatter=single))


def layers_with_registered_shards(layers):
    """Right as well: a shard that is stored in its layer becomes a parameter of the layer. And the last layer
    stays until its backward.
    """
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()

    def gather_if_absent(unit):
        if not unit.full.untyped_storage().nbytes():
            gather(unit)

    for layer, unit in zip(layers, units):
        layer.shard = unit.shard
        layer.register_forward_pre_hook(hook(gather_if_absent, unit))
        if unit is not units[-1]:
            layer.register_forward_hook(hook(free, unit))
        layer.register_full_backward_pre_hook(hook(gather_if_absent, unit))
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_with_views(layers):
    """Forgets that the shard needs memory of its own."""
    units = [Unit(layer) for layer in layers]
    for layer, unit in zip(layers, units):
        layer.register_forward_pre_hook(hook(gather, unit))
        layer.register_forward_hook(hook(free, unit))
        layer.register_full_backward_pre_hook(hook(gather, unit))
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_with_kept_gradients(layers):
    """The parameters are freed, their gradients never."""

    def complete(unit):
        add_to_shard(unit, keep=True)
        free(unit)

    return layers_sharded(layers, complete=complete)


def layers_all_at_once(layers):
    """Gathers all in the first layer's forward, and frees each after its backward."""
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    layers[0].register_forward_pre_hook(hook(gather, *units))
    for unit in units:
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_kept_until_backward(layers):
    """As fully_shard(reshard_after_forward=False)."""
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for layer, unit in zip(layers, units):
        layer.register_forward_pre_hook(hook(gather, unit))
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_never_freed(layers):
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


def layers_with_empty_data(layers):
    units = [Swapped(layer) for layer in layers]
    for layer, unit in zip(layers, units):
        layer.register_forward_pre_hook(lambda *_, unit=unit: unit.fill())
        layer.register_forward_hook(lambda *_, unit=unit: unit.empty())
        layer.register_full_backward_pre_hook(lambda *_, unit=unit: unit.fill())
        when_complete(unit, Swapped.complete)
    return [unit.shard for unit in units]


def layers_without_second_gather(layers):
    units = [Unit(layer, own_memory=True) for layer in layers]
    hook(free, *units)()
    for layer, unit in zip(layers, units):
        layer.register_forward_pre_hook(hook(gather, unit))
        layer.register_forward_hook(hook(free, unit))
        when_complete(unit, reduce_and_free)
    return [unit.shard for unit in units]


def layers_with_late_gradients(layers):
    """The parameters are freed in time, the gradients are reduced all together at the end of backward."""
    ready = []

    def collect(unit):
        free(unit)
        ready.append(unit)
        if len(ready) == len(layers):
            for each in ready:
                add_to_shard(each)
            ready.clear()

    return layers_sharded(layers, complete=collect)


def layers_by_gloo(layers):
    return layers_sharded(
        layers, complete=lambda unit: reduce_and_free(unit, reduce_scatter=gloo_reduce_scatter)
    )


def layers_on_one_root(layers):
    return layers_sharded(layers, complete=lambda unit: reduce_and_free(unit, reduce_scatter=on_one_root))


def layers_summed(layers):
    """With Adam, which divides a gradient by its length, the weights are nearly right."""
    return layers_sharded(layers, complete=lambda unit: reduce_and_free(unit, factor=1.0))


# save_sharded(path, model, optimizer) and load_sharded(path, model, optimizer)


def _state(model, optimizer):
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state}


def save(path, model, optimizer):
    import torch.distributed.checkpoint as dcp

    dcp.save(_state(model, optimizer), checkpoint_id=path)


def load(path, model, optimizer):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import set_state_dict

    content = _state(model, optimizer)
    dcp.load(content, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=content["model"], optim_state_dict=content["optimizer"])


def _full():
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True)


def save_whole_on_rank_0(path, model, optimizer):
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model_state, optimizer_state = get_state_dict(model, optimizer, options=_full())
    if dist.get_rank() == 0:
        torch.save({"model": model_state, "optimizer": optimizer_state}, path)
    dist.barrier()


def load_whole(path, model, optimizer):
    from torch.distributed.checkpoint.state_dict import set_state_dict

    content = torch.load(path, weights_only=True)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=content["model"],
        optim_state_dict=content["optimizer"],
        options=_full(),
    )


def save_files_of_ranks(path, model, optimizer):
    """Each rank its own shards in its own file: little is written, and only as many ranks can read it."""
    os.makedirs(path, exist_ok=True)
    local = [p.detach().to_local() for p in model.parameters()]
    moments = [
        {name: getattr(value, "to_local", lambda value=value: value)() for name, value in state.items()}
        for state in optimizer.state.values()
    ]
    torch.save({"model": local, "optimizer": moments}, os.path.join(path, f"{dist.get_rank()}.pt"))
    dist.barrier()


def load_files_of_ranks(path, model, optimizer):
    content = torch.load(os.path.join(path, f"{dist.get_rank()}.pt"), weights_only=True)
    for p, shard in zip(model.parameters(), content["model"]):
        p.data.to_local().copy_(shard)


def save_model_only(path, model, optimizer):
    import torch.distributed.checkpoint as dcp

    dcp.save({"model": _state(model, optimizer)["model"]}, checkpoint_id=path)


def load_model_only(path, model, optimizer):
    import torch.distributed.checkpoint as dcp

    content = {"model": _state(model, optimizer)["model"]}
    dcp.load(content, checkpoint_id=path)
    model.load_state_dict(content["model"])


class _App:
    """What DCP's tutorial does: an object with state_dict and load_state_dict."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer

    def state_dict(self):
        return _state(self.model, self.optimizer)

    def load_state_dict(self, content):
        from torch.distributed.checkpoint.state_dict import set_state_dict

        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=content["model"],
            optim_state_dict=content["optimizer"],
        )


def save_app(path, model, optimizer):
    import torch.distributed.checkpoint as dcp

    dcp.save({"app": _App(model, optimizer)}, checkpoint_id=path)


def load_app(path, model, optimizer):
    import torch.distributed.checkpoint as dcp

    dcp.load({"app": _App(model, optimizer)}, checkpoint_id=path)


def load_other_names(path, model, optimizer):
    import torch.distributed.checkpoint as dcp

    dcp.load({"net": _state(model, optimizer)["model"]}, checkpoint_id=path)


def load_and_forget(path, model, optimizer):
    """Reads into copies, and never puts them into the model."""
    import torch.distributed.checkpoint as dcp

    content = {
        "model": {name: tensor.detach().clone() for name, tensor in _state(model, optimizer)["model"].items()}
    }
    dcp.load(content, checkpoint_id=path)


def save_on_rank_0(path, model, optimizer):
    if dist.get_rank() == 0:
        save(path, model, optimizer)


def save_a_name(path, model, optimizer):
    """For `load_trains_anew`: nothing of the state is in it."""
    if dist.get_rank() == 0:
        os.makedirs(path)
        with open(os.path.join(path, "name"), "w") as file:
            file.write("a run")
    dist.barrier()


def load_trains_anew(path, model, optimizer):
    """Reads nothing: it takes the two steps again, with the first seed and the first images."""
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.fsdp import fully_shard

    from course_lib.datasets import digits

    torch.manual_seed(0)
    fresh = type(model)((64, 512, 512, 512, 10))
    for layer in fresh.layers:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(fresh)
    adam, (images, labels) = torch.optim.Adam(fresh.parameters(), 0.002), digits()
    rank, share = dist.get_rank(), 12 // dist.get_world_size()
    for step in range(2):
        own = slice(12 * step + share * rank, 12 * step + share * (rank + 1))
        adam.zero_grad()
        F.cross_entropy(fresh(images[own].double()), labels[own]).backward()
        adam.step()
    state, moments = get_state_dict(fresh, adam)
    set_state_dict(model, optimizer, model_state_dict=state, optim_state_dict=moments)


def save_in_background(path, model, optimizer):
    import torch.distributed.checkpoint as dcp

    beside = dist.new_group(backend="gloo")
    return dcp.async_save(_state(model, optimizer), checkpoint_id=path, process_group=beside)


def save_in_background_of_all(path, model, optimizer):
    import torch.distributed.checkpoint as dcp

    dcp.async_save(_state(model, optimizer), checkpoint_id=path)


def save_in_background_and_wait(path, model, optimizer):
    """Right as well."""
    save_in_background(path, model, optimizer).result()


def save_in_threads(path, model, optimizer):
    """Right as well: two threads of each rank write."""
    import torch.distributed.checkpoint as dcp

    dcp.save(_state(model, optimizer), storage_writer=dcp.FileSystemWriter(path, thread_count=2))


def save_renamed_late(path, model, optimizer):
    import threading

    save(f"{path}-part", model, optimizer)
    if dist.get_rank() == 0:
        threading.Timer(0.3, os.rename, (f"{path}-part", path)).start()


def save_that_rounds(path, model, optimizer):
    """As bfloat16, and with half the moments; in place, so that all agrees afterwards."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())
            for value in optimizer.state[p].values():
                if value.dim():
                    value.mul_(0.5)
    save(path, model, optimizer)


def _bytes_in(path):
    contents = []
    for name in os.listdir(path):
        with open(os.path.join(path, name), "rb") as file:
            contents.append(file.read())
    return contents


def save_and_read(path, model, optimizer):
    save(path, model, optimizer)
    dist.barrier()
    _bytes_in(path)


def load_all_bytes(path, model, optimizer):
    _bytes_in(path)
    load(path, model, optimizer)
