"""mini.pipeline, where a backward is done in two parts: what it computes and keeps; schedules on paper;
and on real ranks: gradients, bubble, memory.
"""

import pipeline_parts_workers as workers
import pytest
import torch
from test_mini_pipeline import with_timeline
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from course_lib import RankError, run, theory
from course_lib.mini import pipeline
from course_lib.mini.pipeline import backward, backward_input, backward_weight, forward, on_paper, validate
from course_lib.mini.pipeline.weights import accumulate, waiting_weights
from course_lib.models import TinyGPT
from course_lib.record import bubble

# A backward in two parts


class Tied(nn.Module):
    """Two uses of one layer, a weight that no layer of its own uses, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.alone = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return (self.norm(self.twice(self.twice(x).tanh())) @ self.alone) @ self.twice.weight


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(3, 5, 3), nn.ReLU(inplace=True), nn.BatchNorm1d(5), nn.Conv1d(5, 2, 2)
        )
        self.layers[0].bias.requires_grad_(False)
        self.layers[3].weight.requires_grad_(False)

    def forward(self, x):
        return self.layers(x.view(-1, 3, 8)).flatten(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.bilinear = nn.LSTM(6, 4, batch_first=True), nn.Bilinear(4, 4, 3)

    def forward(self, x):
        y, _ = self.cell(x.view(-1, 2, 6))
        return self.bilinear(y, y)


MODULES = {
    "tied": (Tied, (5, 6)),
    "convolved": (Convolved, (4, 24)),
    "recurrent": (Recurrent, (4, 12)),
    "attention": (lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True), (3, 4, 6)),
    "blocks": (lambda: nn.Sequential(*TinyGPT(layers=2, dim=8, heads=2, context=4).blocks), (3, 4, 8)),
    "first": (lambda: pipeline.split(TinyGPT(layers=2, dim=8, heads=2, context=4, tied=False), 2)[0], None),
}


def made(name):
    torch.manual_seed(0)
    make, shape = MODULES[name]
    stage = make().double()
    x = torch.randint(256, (2, 4)) if shape is None else torch.randn(shape, dtype=torch.float64)
    return stage, x.requires_grad_(shape is not None)


@pytest.mark.parametrize("name", MODULES)
def test_both_parts_give_the_gradients_of_the_whole(name):
    stage, x = made(name)
    grad = torch.randn_like(stage(x))
    stage(x).backward(grad)
    wanted = [p.grad for p in stage.parameters()], x.grad
    for _ in range(2):  # a second pass finds the stage as it was
        stage, x = made(name)
        waiting = []
        with waiting_weights(stage, waiting):
            y = stage(x)
        y.backward(grad)
        assert x.grad is None if wanted[1] is None else torch.allclose(x.grad, wanted[1], rtol=1e-12)
        accumulate(waiting)
        assert waiting == [] and not any("forward" in vars(module) for module in stage.modules())
        for p, q in zip(stage.parameters(), wanted[0], strict=True):
            assert (p.grad is None) == (q is None) and (q is None or torch.allclose(p.grad, q, rtol=1e-12))


def products(run_it) -> int:
    with FlopCounterMode(display=False) as counter:
        run_it()
    return counter.get_total_flops()


def test_nothing_is_computed_twice_and_no_matrix_has_its_gradient_early():
    stage, x = made("blocks")
    grad, waiting = torch.randn_like(x), []
    whole = stage(x)
    both = products(lambda: whole.backward(grad))
    stage.zero_grad()
    with waiting_weights(stage, waiting):
        y = stage(x)
    first = products(lambda: y.backward(grad))
    matrices = [p for p in stage.parameters() if p.dim() > 1]
    assert [p.grad for p in matrices] == [None] * len(matrices)
    second = products(lambda: accumulate(waiting))
    assert first + second == both and min(first, second) > 0.4 * both


def test_what_waits_is_the_inputs_of_layers_and_the_gradients_of_their_outputs():
    stage = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8), nn.Softmax(-1))
    x, waiting = torch.randn(16, 8, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(Seen, lambda seen: seen.tensor):
        with waiting_weights(stage, waiting):
            y = stage(x)
        assert sum(Seen.bytes()) > 16 * (8 + 64 + 64 + 8) * 4  # GELU's and softmax's, too
        y.sum().backward()
        del y
        weights = sum(p.nbytes for p in stage.parameters() if p.dim() > 1)
        inputs, grads = 16 * (8 + 64) * 4, [grad for _, grad, _ in waiting]
        assert sum(Seen.bytes()) <= inputs + weights and sum(grad.nbytes for grad in grads) == inputs
        accumulate(waiting)
        assert sum(Seen.bytes()) == 0


class Seen:
    """A tensor that autograd keeps."""

    alive: dict[int, int] = {}

    def __init__(self, tensor):
        self.tensor = tensor.detach()
        Seen.alive[id(self)] = tensor.nbytes

    def __del__(self):
        Seen.alive.pop(id(self), None)

    @classmethod
    def bytes(cls):
        return list(cls.alive.values())


# Schedules


def test_schedules_read_as_in_the_paper():
    assert repr(pipeline.zb_h1(2, 3)) == (
        "[[F0, F1, I0, W0, F2, I1, W1, I2, W2], [F0, I0, F1, I1, W0, F2, I2, W1, W2]]"
    )
    assert repr(pipeline.zb_h2(2, 3)[0]) == "[F0, F1, F2, I0, W0, I1, W1, I2, W2]"


def most(instructions, begin: str, end: str) -> int:
    letters = "".join(repr(one)[0] for one in instructions)
    return max(letters[:upto].count(begin) - letters[:upto].count(end) for upto in range(len(letters) + 1))


@pytest.mark.parametrize("p", range(1, 7))
def test_on_paper_the_step_and_what_is_in_flight_are_those_of_theory(p):
    for m in range(1, 2 * p + 4):
        for kind, make in (("zb_h1", pipeline.zb_h1), ("zb_h2", pipeline.zb_h2)):
            validate(make(p, m), p, m)
            found = on_paper.blocks(kind, p, m)
            if m >= (p if kind == "zb_h1" else 2 * p - 1):
                assert max(block.end for block in found) == 3 * m + p - 1, "F, I and W of one length"
                assert on_paper.idle_share(found) == pytest.approx(theory.zero_bubble_fraction(p, m))
        deep = [most(instructions, "F", "W") for instructions in pipeline.zb_h1(p, m)]
        assert deep == [theory.microbatches_in_flight("zb_h1", stage, p, m) for stage in range(p)]
        assert deep == on_paper.in_flight(on_paper.blocks("zb_h1", p, m))
        late = [most(instructions, "I", "W") for instructions in pipeline.zb_h1(p, m)]
        assert late == [min(stage + 1, m) for stage in range(p)]
        assert most(pipeline.zb_h2(p, m)[0], "F", "W") == min(2 * p - 1, m)
        last = [block for block in on_paper.blocks("zb_h2", p, m) if block.rank == p - 1]
        if m >= 2 * p - 1:
            assert last[-1].end - last[0].begin == 3 * m, "a rank of H2 is never idle between its ends"


def test_on_paper_other_lengths_follow_the_formula():
    for lengths in ((1, 1.2, 0.8), (1, 1, 0.5), (1, 1.5, 1), (1, 2, 1)):
        costs = dict(zip(("forward", "backward_input", "backward_weight"), lengths))
        found = on_paper.blocks("zb_h1", 4, 8, costs=costs)
        assert on_paper.idle_share(found) == pytest.approx(theory.zero_bubble_fraction(4, 8, *lengths))


@pytest.mark.parametrize("p", (1, 2, 4))
def test_on_paper_older_schedules_have_their_bubble_too(p):
    for m in (p, 3 * p):
        for kind in ("gpipe", "1f1b"):
            share = on_paper.idle_share(on_paper.blocks(kind, p, m))
            assert share == pytest.approx(theory.bubble_fraction(p, m))
            most_kept = on_paper.in_flight(on_paper.blocks(kind, p, m))
            assert most_kept == [theory.microbatches_in_flight(kind, stage, p, m) for stage in range(p)]
        found = on_paper.blocks("interleaved", p, m, chunks=2)
        assert on_paper.idle_share(found) == pytest.approx(theory.bubble_fraction(p, m, 2))
        of_ranks = [on_paper.idle_share(found, rank) for rank in range(p)]
        assert sum(of_ranks) / p == pytest.approx(on_paper.idle_share(found))
        for rank, instructions in enumerate(pipeline.interleaved(p, m, 2)):
            deep = theory.microbatches_in_flight("interleaved", rank, p, m, num_chunks=2)
            assert most(instructions, "F", "B") == deep == on_paper.in_flight(found)[rank]
        begun = {(block.stage, block.microbatch, block.op): block.begin for block in found}
        ended = {(block.stage, block.microbatch, block.op): block.end for block in found}
        assert all(
            begun[stage, k, "forward"] >= ended[stage - 1, k, "forward"] for stage, k, _ in begun if stage
        )


def test_on_paper_a_deadlock_and_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"ranks \[0, 1\] cannot come to the end"):
        on_paper.play([[forward(0), backward(0), forward(1)], [forward(0), forward(1), backward(0)]])
    with pytest.raises(ValueError, match="kind='zbv'"):
        on_paper.blocks("zbv", 4, 8)
    with pytest.raises(ValueError, match="chunks=2"):
        on_paper.blocks("zb_h1", 4, 8, chunks=2)


@pytest.mark.parametrize(
    "first, message",
    [
        (
            [forward(0), backward_weight(0)],
            "position 1, W0: the second part of a backward before its first, I0",
        ),
        (
            [forward(0), backward_input(0)],
            "W0@0 is missing; stage 0 skips the backward_weight of micro-batch 0",
        ),
        (
            [forward(0), backward_input(0), backward_weight(0), backward(0)],
            "position 3, B0: this repeats a part of position 1, I0@0",
        ),
        ([forward(0), backward(0), backward_input(0)], "I0: this repeats a part of position 1, B0@0"),
        ([backward_input(0), forward(0)], "position 0, I0: a backward before its forward, F0"),
        (
            [forward(0), backward_input(0), backward_weight(0), backward_weight(0)],
            "position 3, W0: this repeats position 2",
        ),
    ],
)
def test_the_validator_knows_the_parts(first, message):
    with pytest.raises(ValueError) as error:
        validate([first, [forward(0), backward(0)]], 2, 1)
    assert message in str(error.value)


def test_the_validator_names_the_part_that_is_waited_for():
    crossed = [
        [forward(0), backward_input(0), backward_weight(0), forward(1), backward(1)],
        [forward(0), forward(1), backward_input(0), backward(1), backward_weight(0)],
    ]
    with pytest.raises(ValueError, match="position 1, I0 waits for I0@1, which rank 1 has at position 2"):
        validate(crossed, 2, 2)


# On ranks


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_gradients_equal_one_process(ranks):
    cases = [("MLP", schedule, m) for schedule in ("zb_h1", "zb_h2", "some") for m in (1, 3, 8)]
    cases += [("TinyGPT", "zb_h1", 4), ("MLP", "rounds", 6, 2), ("MLP", "zb_h1", 4, 1, None, 2)]
    job = run(workers.compare, cases, ranks=ranks, backend="gloo")
    for rank, result in enumerate(job.results):
        for case, (difference, loss, in_flight, missing) in zip(cases, result, strict=True):
            assert difference < 1e-12 and missing == 0, (rank, case)
            assert (loss is None) == (rank < ranks - 1) and (loss or 0) < 1e-12, (rank, case)
            if case[1] in ("zb_h1", "zb_h2"):
                mine = workers.by_name(*case[1:2], ranks, case[2])[rank]
                assert in_flight == most(mine, "F", "W"), (rank, case)


def test_the_bubble_is_that_of_theory():
    left = [4, 8]
    # other work on the machine makes ranks late: then once more, with more time
    for seconds in (0.015, 0.04, 0.1, 0.3, 0.8):
        job = run(workers.sleep, "zb_h1", left, 1, seconds, ranks=4, backend="gloo", timeout=600)
        found = {
            m: bubble(with_timeline(4, [row for spans in job.results for row in spans[m]])) for m in left
        }
        left = [m for m in left if abs(found[m] - theory.zero_bubble_fraction(4, m)) >= 0.04]
        if not left:
            break
    assert not left, found


def test_zero_bubble_holds_less_than_gpipe_and_the_last_rank_more_than_under_1f1b():
    of = {
        name: run(workers.held, name, 8, ranks=3, backend="gloo").results
        for name in ("gpipe", "one_f_one_b", "zb_h1")
    }
    assert all(parts < whole for parts, whole in zip(of["zb_h1"], of["gpipe"]))
    assert of["zb_h1"][-1] > 1.2 * of["one_f_one_b"][-1]


@pytest.mark.parametrize(
    "what, message",
    [
        ("ddp", "averages when its backward ends"),
        ("tuple", "a layer with a matrix for a weight returned a tuple"),
    ],
)
def test_mistakes_are_named(what, message):
    with pytest.raises(RankError) as error:
        run(workers.refused, what, ranks=2, backend="gloo", timeout=60)
    assert message in str(error.value)
