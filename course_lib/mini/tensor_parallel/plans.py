"""Cut a whole model. Its `tensor_parallel_plan` says what is done with each part, a dict of name -> word:

    "column"    a Linear that makes this rank's features of all of x: a pair is entered
    "row"       a Linear that sums over all ranks' features: the pair is left
    "heads"     "column" for several layers of one x, as the queries, keys and values of an attention: they
                are entered together. Each rank gets whole heads, of the width that its `head_dim` says
    "vocab"     an Embedding cut by its rows, the tokens; or the CrossEntropyLoss of scores cut like that
    "whole"     on every rank; under sequence parallelism, for this rank's tokens (a LayerNorm, a Dropout, or
                the Embedding of positions)
    "features"  a Dropout of features that are cut
    "parts"     as this part says itself; a ModuleList one by one, a Sequential of Linear layers in pairs

A name may have dots ("mlp.0"), as in torch's parallelize_module. What is not named must treat each element
alone. For a gated MLP, say: {"gate": "column", "up": "column", "down": "row"}.
"""

from functools import partial

from torch import nn

from course_lib.arguments import takes
from course_lib.mini import tensor_parallel as plain  # for its layers, when a model is cut
from course_lib.mini.tensor_parallel import refusals as refuse
from course_lib.mini.tensor_parallel import sequence, slices, vocabulary
from course_lib.mini.tensor_parallel.operators import Group, ReduceScatter, Region, share

__all__ = ["parallelize"]

ELEMENTWISE = nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity


@takes(model=nn.Module)
def parallelize(
    model: nn.Module,
    group: Group = None,
    sequence_parallel: bool = False,
    *,
    reduce_scatter: ReduceScatter | None = None,
) -> nn.Module:
    """Return a copy of `model` in which this rank holds 1/n of every weight matrix; every rank of the group
    must call this, with weights that may differ: all start from those of the group's first rank.

    `model` stays as it is; drop it to free its memory. Names of parameters stay too; biases of row layers,
    norms and positions are whole. After backward every gradient is right: a slice of one process's, or of a
    whole parameter the same on all ranks. (A norm over all, for clipping, is not: a rank sees slices.)

    Args:
        model: one that says by its `tensor_parallel_plan` how it is cut (see above), as those of
            `course_lib.models`; or nn.Sequential(Linear, activation, Linear). Use it with the same data on
            all ranks. Their number must divide heads, hidden width and vocabulary.
        group: the ranks over which to cut; None for all. For data parallelism over the other axis of a mesh,
            wrap the result in mini.ddp.
        sequence_parallel: cut the tokens too, where tensors are not cut by features. A part or a Sequential
            then takes and returns this rank's slice [batch, time / n, dim] of its input (n must divide the
            time); a model that begins with an embedding still takes all tokens.
        reduce_scatter: a function (output, input, group) for sequence_parallel; None for torch's own (on gloo
            it sends twice as much as it need; mini.ring's does not).

    Errors: ValueError where the number of ranks does not divide what must be cut, or a weight is used in two
        places that are cut differently; TypeError for a model that does not say how it is cut.
    """
    region = Region(group, sequence_parallel, reduce_scatter)
    return slices.retie(_cut(slices.as_on_first_rank(model, group), region), model)


def _cut(model: nn.Module, region: Region) -> nn.Module:
    """Put in place of each part what its word makes of it."""
    words = {
        "column": plain.ColumnParallelLinear,
        "row": plain.RowParallelLinear,
        "heads": partial(plain.ColumnParallelLinear, enters=False),
        "vocab": vocabulary.cut,
        "whole": sequence.for_own_tokens,
        "features": sequence.for_own_features,
        "parts": _cut,
    }
    plan = _plan_of(model)
    if heads := [name for name, word in plan.items() if word == "heads"]:
        _enter_together(model, heads, region)
    for name, word in plan.items():
        refuse.other_words(name, word, words)
        model.set_submodule(name, words[word](model.get_submodule(name), region))
    return model


def _enter_together(model: nn.Module, heads: list[str], region: Region) -> None:
    """Apply f once, to what all these layers are given: three would cost three all_reduces backward."""
    for name in heads:
        linear = model.get_submodule(name)
        refuse.other_than_plain("linear", linear, nn.Linear)
        share(linear.out_features // model.head_dim, "heads", region.group)
    model.register_forward_pre_hook(lambda model, inputs: (region.enter(inputs[0]), *inputs[1:]))


def _plan_of(model: nn.Module) -> dict[str, str]:
    """Return the plan of a model, its own, or the one that can be read off a list of layers."""
    if isinstance(model, nn.Sequential):
        return _plan_of_pairs(model)
    if isinstance(model, nn.ModuleList):
        return dict.fromkeys((name for name, _ in _children(model)), "parts")
    plan = refuse.other_models(model).tensor_parallel_plan
    named = {name.partition(".")[0] for name in plan}
    for name, part in model.named_children():
        if name not in named and not isinstance(part, ELEMENTWISE):
            refuse.unnamed(model, name, part)
    return plan


def _plan_of_pairs(layers: nn.Sequential) -> dict[str, str]:
    """The first Linear by columns, the second by rows, and so on."""
    refuse.other_than_plain("layers", layers, nn.Sequential)
    refuse.odd(sum(isinstance(layer, nn.Linear) for layer in layers))
    plan, inside = {}, False
    for name, layer in _children(layers):
        if isinstance(layer, nn.Linear):
            plan[name] = "row" if inside else "column"
            inside = not inside
        elif isinstance(layer, nn.Dropout):
            plan[name] = "features" if inside else "whole"
        elif isinstance(layer, nn.LayerNorm) and not inside:
            plan[name] = "whole"
        elif not isinstance(layer, ELEMENTWISE):
            refuse.other_layers(layer, inside, ELEMENTWISE)
    return plan


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """As named_children(), with an activation that stands there twice in both places."""
    named = module.named_modules(remove_duplicate=False)
    return [(name, child) for name, child in named if name and "." not in name]
