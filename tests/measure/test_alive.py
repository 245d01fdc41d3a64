"""The two instruments of course_lib.measure.alive, against programs whose answer is known."""

import gc

import alive_workers
import pytest
import torch
from torch import nn

from course_lib import run
from course_lib.measure import alive


@pytest.fixture(autouse=True)
def a_small_heap():
    """As in a rank, what was loaded before is no garbage, so that it need not be looked through again and
    again.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


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
    assert (
        held.peak_bytes() == 5 * 4096
        and held.peak_bytes("kept", "after") == 5 * 4096
        and held.peak_bytes("after", "freed") == 4096
    )


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


def test_garbage_and_views_of_what_was_there_before_do_not_count():
    """Who looks at a program's stack, or writes a closure that calls itself, leaves cycles: Python lets go of
    them some time later.
    """
    before = torch.ones(1000)
    with alive.Allocations() as held:
        view = before[10:].reshape(-1)
        cycle = [torch.empty(2000)]
        cycle.append(cycle)
        held.mark("there")
        del cycle
        held.mark("gone")
        again = torch.empty(10)
        held.mark("end")
    assert (held.at("there"), held.at("gone"), held.at("end")) == (8000, 0, 40) and held.peak_bytes(
        "gone", "end"
    ) == 40
    assert len(view) + len(again) == 1000


def test_memory_that_comes_back_is_seen_and_gradients_too():
    with alive.Allocations() as held:
        weight = torch.ones(100, requires_grad=True)
        storage = weight.untyped_storage()
        storage.resize_(0)
        held.mark("freed")
        storage.resize_(400)
        with torch.no_grad():
            weight.fill_(2.0)
        held.mark("back")
        weight.square().sum().backward()
        held.mark("backward")
    assert (held.at("freed"), held.at("back"), held.at("backward")) == (0, 400, 800)


def test_what_gloos_threads_let_go_of_late_does_not_count():
    for held_after in run(alive_workers.late_release, ranks=2).results:
        assert held_after == [0] * 30


def test_watch_knows_a_shard_by_any_name():
    layers = tower()
    moments = alive.watch(layers)
    layers[1].weight.untyped_storage().resize_(0)
    layers[1].bias.data = torch.empty(0)
    layers[1].register_parameter("mine", nn.Parameter(torch.ones(100)))
    layers[0](torch.ones(1, 8))
    assert moments == [("F0", [288, 0, 288])]


def test_watch_sees_what_fully_shard_has_gathered_ahead():
    full, none = 4 * (64 + 8), [0, 0, 0]
    (moments, other) = run(alive_workers.gathered_ahead, False, ranks=2).results
    assert moments == other and [name for name, *_ in moments] == ["F0", "F1", "F2", "B2", "B1", "B0"]
    assert [there for _, there, _ in moments[3:]] == [[0, 0, full], [0, full, 0], [full, 0, 0]]
    assert [waiting for *_, waiting in moments] == [none] * 3 + [[0, full, 0], [full, 0, 0], none]


def test_of_a_unit_that_waits_each_layer_has_its_share():
    moments = run(alive_workers.gathered_ahead, True, ranks=2).results[0]
    assert moments[3] == ("B2", [0, 0, 288], [288, 288, 0])
    assert [there for _, *there in moments[4:]] == [[[288, 288, 0], [0, 0, 0]]] * 2


def test_an_unknown_mark_is_an_error():
    with alive.Allocations() as held:
        held.mark("here")
    for look in (held.at, held.peak_bytes):
        with pytest.raises(ValueError, match="there is no mark 'there'; there are 'here'"):
            look("there")
