"""The two instruments of course_lib.alive, against programs whose answer is known."""
import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from course_lib import alive


def tower(depth=3):
    return [nn.Linear(8, 8) for _ in range(depth)]


def test_watch_notes_every_forward_and_backward_and_what_is_there():
    layers = tower()
    full = 4 * (64 + 8)
    moments, x = alive.watch(layers), torch.ones(2, 8)
    for layer in layers:
        x = layer(x)
    x.sum().backward()
    assert [name for name, _ in moments] == ["F0", "F1", "F2", "B2", "B1", "B0"]
    assert all(held == [full] * 3 for _, held in moments)


def test_watch_sees_what_is_freed_and_does_not_take_a_shard_for_a_layer():
    layers = tower()
    layers[1].weight.untyped_storage().resize_(0)
    layers[1].bias.data = torch.empty(0)
    layers[2].register_parameter("shard_0", nn.Parameter(torch.ones(100)))
    moments = alive.watch(layers)
    layers[0](torch.ones(1, 8))
    assert moments == [("F0", [288, 0, 288])]


def test_watch_changes_neither_outputs_nor_gradients():
    layers = tower(1)
    x = torch.randn(4, 8)
    expected = torch.autograd.grad(layers[0](x).square().sum(), layers[0].weight)[0]
    alive.watch(layers)
    found = torch.autograd.grad(layers[0](x).square().sum(), layers[0].weight)[0]
    assert torch.equal(found, expected)


def test_allocations_are_counted_to_the_byte():
    with alive.Allocations() as held:
        kept = torch.empty(1024)
        held.mark("kept")
        gone = torch.empty(4096)
        del gone
        held.mark("after")
        storage = kept.untyped_storage()
        storage.resize_(0)
        held.mark("freed")
    assert (held.at("kept"), held.at("after"), held.at("freed")) == (4096, 4096, 0)
    assert held.peak_bytes() == 5 * 4096 and held.peak_bytes("kept", "after") == 5 * 4096 and held.peak_bytes("after", "freed") == 4096


def test_allocations_see_what_autograd_holds():
    """An empty tensor in `p.data` hides a weight from the program, and not from this instrument."""
    with alive.Allocations() as held:
        layer = nn.Linear(64, 64, bias=False)
        output = layer(torch.ones(1, 64, requires_grad=True))
        layer.weight.data = torch.empty(0)
        held.mark("hidden")
        layer = None
        del output
        held.mark("let go")
    assert held.at("hidden") >= 64 * 64 * 4 > held.at("let go")


def test_an_unknown_mark_is_an_error():
    with alive.Allocations() as held:
        held.mark("here")
    for look in (held.at, held.peak_bytes):
        with pytest.raises(ValueError, match="there is no mark 'there'; there are 'here'"):
            look("there")


def test_draw_has_one_bar_per_layer_that_is_alive():
    moments = [("F0", [8, 0]), ("F1", [8, 8]), ("B1", [0, 8])]
    axes = alive.draw({"one": moments, "two": moments}, "1 rank")
    upper, lower = axes[:, 0]
    assert axes.shape == (2, 2) and list(upper.lines[0].get_ydata()) == [8, 16, 8]
    alive_bars = [bar for bar in lower.patches if bar.get_facecolor()[:3] == pytest.approx(plt.matplotlib.colors.to_rgb("#0072B2"))]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in lower.lines] == [([0], [0]), ([1, 2], [1, 1])], "a dot where a layer works"
    assert len(alive_bars) == 4 and [label.get_text() for label in lower.get_xticklabels()] == ["F0", "F1", "B1"]
    plt.close("all")
