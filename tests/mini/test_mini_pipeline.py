"""mini.pipeline: schedules by simulation and by the validator, then on real ranks: gradients, bubble,
activations in flight, bytes, groups.
"""

import pipeline_workers
import pytest
import torch
from torch import nn

from course_lib import RankError, run, theory
from course_lib.mini import pipeline
from course_lib.mini.pipeline import (
    Instruction,
    backward,
    forward,
    gpipe,
    interleaved,
    naive,
    one_f_one_b,
    split,
    validate,
)
from course_lib.mini.pipeline.instructions import source_of, with_stages
from course_lib.models import CNN, MLP, TinyGPT
from course_lib.record import Job, bubble

ON_1 = (naive, gpipe, one_f_one_b)


def simulate(
    schedule, num_stages: int, forward_s: float = 1.0, backward_s: float = 2.0
) -> tuple[float, list[int]]:
    """Bubble and peak in flight per rank, if an instruction starts as soon as its rank is free and what it
    needs is there.
    """
    ends, lists = {}, with_stages(schedule)
    left, free = [list(instructions) for instructions in lists], [0.0] * len(lists)
    while any(left):
        for rank, instructions in enumerate(left):
            while instructions and (source := source_of(instructions[0], num_stages)) in {None, *ends}:
                instruction = instructions.pop(0)
                free[rank] = max(free[rank], ends.get(source, 0.0)) + (
                    forward_s if instruction.op == "forward" else backward_s
                )
                ends[instruction] = free[rank]
    busy = sum(forward_s if instruction.op == "forward" else backward_s for instruction in ends)
    peaks = [
        max(
            sum(1 if i.op == "forward" else -1 for i in instructions[:end])
            for end in range(len(instructions) + 1)
        )
        for instructions in lists
    ]
    return 1 - busy / (len(lists) * max(free)), peaks


# Schedules


def test_schedules_read_as_in_the_papers():
    assert repr(naive(2, 2)) == "[[F0, B0, F1, B1], [F0, B0, F1, B1]]"
    assert repr(gpipe(2, 3)) == "[[F0, F1, F2, B0, B1, B2], [F0, F1, F2, B0, B1, B2]]"
    assert repr(one_f_one_b(2, 3)) == "[[F0, F1, B0, F2, B1, B2], [F0, B0, F1, B1, F2, B2]]"
    assert (
        repr(interleaved(2, 2, 2))
        == "[[F0@0, F1@0, F0@2, F1@2, B0@2, B1@2, B0@0, B1@0], [F0@1, F1@1, F0@3, B0@3, F1@3, B1@3, B0@1,"
        " B1@1]]"
    )


@pytest.mark.parametrize("ranks", range(1, 6))
def test_all_schedules_are_valid_with_the_bubble_and_the_peak_of_theory(ranks):
    for m in range(1, 18):
        for make in ON_1:
            schedule = make(ranks, m)
            validate(schedule, ranks, m)
            idle, peaks = simulate(schedule, ranks)
            assert idle == pytest.approx(
                (ranks - 1) / ranks if make is naive else theory.bubble_fraction(ranks, m)
            )
            name = {gpipe: "gpipe", one_f_one_b: "1f1b"}.get(make)
            assert peaks == [
                theory.microbatches_in_flight(name, stage, ranks, m) if name else 1 for stage in range(ranks)
            ]
        for chunks in (1, 2, 3, 4):
            schedule = interleaved(ranks, m, chunks)
            validate(schedule, ranks * chunks, m)
            idle, peaks = simulate(schedule, ranks * chunks)
            if m >= ranks or chunks == 1:
                assert idle == pytest.approx(theory.bubble_fraction(ranks, m, chunks))
            else:
                assert idle > theory.bubble_fraction(ranks, m, chunks), "too few to fill the pipeline"
            # (1 + (p-1) / (p v)) times the activations of 1F1B; counted here in stages of 1/v the size
            if m % ranks == 0:
                assert peaks[0] == min(ranks * chunks + ranks - 1, m * chunks)


@pytest.mark.parametrize(
    "schedule, message",
    [
        (
            [[forward(0), backward(0)], [forward(0)]],
            (
                "rank 1, end of its list (position 1): B0@1 is missing; stage 1 skips the backward of"
                " micro-batch 0"
            ),
        ),
        ([[forward(0), backward(0)], []], "rank 1, end of its list (position 0): F0@1 is missing"),
        (
            [[forward(0), forward(0), backward(0)], [forward(0), backward(0)]],
            "rank 0, position 1, F0: this repeats position 0",
        ),
        (
            [[forward(0), backward(0), backward(0)], [forward(0), backward(0)]],
            "rank 0, position 2, B0: this repeats position 1",
        ),
        (
            [[forward(0), backward(0)], [backward(0), forward(0)]],
            "rank 1, position 0, B0: a backward before its forward",
        ),
        (
            [[forward(0), backward(0)], [forward(0, 0), backward(0)]],
            "rank 1, position 0, F0@0: stage 0 lives on rank 0",
        ),
        (
            [[forward(0), backward(0)], [forward(0, 2), backward(0)]],
            "rank 1, position 0, F0@2: there is no stage 2; stages are 0 to 1",
        ),
        (
            [[forward(0), backward(0), forward(1)], [forward(0), backward(0)]],
            "rank 0, position 2, F1: there is no micro-batch 1",
        ),
        (
            [[forward(-1), backward(0)], [forward(0), backward(0)]],
            "rank 0, position 0, F-1: there is no micro-batch -1",
        ),
        (
            [[Instruction("send", 0)], [forward(0), backward(0)]],
            "rank 0, position 0, S0: op='send' must be 'forward', 'backward', 'backward_input'",
        ),
        (
            [[forward(0.0), backward(0.0)], [forward(0), backward(0)]],
            "rank 0, position 0, F0.0: there is no micro-batch 0.0; micro-batches are 0 to 0, as whole",
        ),
        (
            [[forward(torch.tensor(0)), backward(0)], [forward(0), backward(0)]],
            "there is no micro-batch tensor(0)",
        ),
        (
            [["F0", backward(0)], [forward(0), backward(0)]],
            "rank 0, position 0, 'F0': it must be an Instruction",
        ),
        ([[forward(0), backward(0)]] * 3, "lists for 3 ranks, and 2 stages"),
        ([], "lists for 0 ranks, and 2 stages"),
    ],
)
def test_the_validator_says_where(schedule, message):
    with pytest.raises(ValueError) as error:
        validate(schedule, 2, 1)
    assert message in str(error.value)


def test_the_validator_explains_a_deadlock():
    crossed = [
        [forward(0), backward(0), forward(1), backward(1)],
        [forward(0), forward(1), backward(0), backward(1)],
    ]
    with pytest.raises(ValueError) as error:
        validate(crossed, 2, 2)
    assert (
        str(error.value)
        == "deadlock: rank 0, position 1, B0 waits for B0@1, which rank 1 has at position 2; "
        "rank 1, position 1, F1 waits for F1@0, which rank 0 has at position 2."
    )
    other = gpipe(3, 4)
    # stage 1 as if it were the last: it wants B0 from stage 2, which wants all forwards first
    other[1] = one_f_one_b(3, 4)[2]
    with pytest.raises(
        ValueError, match="deadlock: .*rank 1, position 1, B0 waits for B0@2, which rank 2 has at position 4"
    ):
        validate(other, 3, 4)


# Cutting a model


def test_split_cuts_anywhere_and_copies_nothing():
    model = TinyGPT(layers=5, dim=16, heads=2, context=8, tied=False).double()
    tokens = torch.randint(256, (2, 8))
    for sizes in (None, (5, 0), (0, 5), (1, 4), (0, 2, 2, 1), (1,) * 5):
        stages = split(model, len(sizes or (0, 0, 0)), sizes)
        assert torch.equal(nn.Sequential(*stages)(tokens), model.logits(tokens))
        owned = [parameter for stage in stages for parameter in stage.parameters()]
        assert len(owned) == len(set(owned)) and set(owned) == set(model.parameters())
    assert [len(stage) for stage in split(model, 3)] == [
        3,
        2,
        3,
    ], "2 blocks and the embedding, 2 blocks, 1 block, norm and head"
    mlp = MLP((4, 8, 8, 2))
    x = torch.randn(3, 2, 2)
    assert torch.equal(nn.Sequential(*split(mlp, 2, (1, 4)))(x), mlp(x)) and torch.equal(
        nn.Sequential(*split(mlp.layers, 5))(x.flatten(1)), mlp(x)
    )


class Own(nn.Module):
    """A model that the library does not know, and that says how it is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(2, 4), nn.Linear(4, 2)
        self.middle = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for layer in self.middle:
            x = layer(x)
        return self.leave(x)

    def stages(self) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
        return [self.enter], list(self.middle), [self.leave]


@pytest.mark.parametrize("sizes", [None, (3, 0), (0, 3), (1, 1, 1)])
def test_split_cuts_a_model_that_says_how(sizes):
    model, x = Own(), torch.randn(5, 2)
    stages = split(model, len(sizes or (0, 0)), sizes)
    assert torch.equal(nn.Sequential(*stages)(x), model(x))
    owned = [parameter for stage in stages for parameter in stage.parameters()]
    assert len(owned) == len(set(owned)) and set(owned) == set(model.parameters())


def shared_blocks() -> TinyGPT:
    model = TinyGPT(layers=3, dim=8, heads=2, tied=False)
    model.blocks[2].attention.q.weight = model.blocks[0].attention.q.weight
    return model


def test_split_lets_a_stage_use_a_module_twice():
    one, act = nn.Linear(4, 4), nn.ReLU()
    assert [len(stage) for stage in split(nn.Sequential(one, act, one, act, nn.Linear(4, 4)), 2, (3, 2))] == [
        3,
        2,
    ]


@pytest.mark.parametrize(
    "model, num_stages, sizes, error, message",
    [
        (TinyGPT(dim=8, heads=2), 2, None, ValueError, "tied=False"),
        (MLP((4, 4)), 3, None, ValueError, "1 layers leave nothing for stage 1 of 3"),
        (MLP((4, 4)), 2, (1, 1), ValueError, r"sizes=\[1, 1\]: it must be 2 numbers that sum to 1"),
        (MLP((4, 4, 4)), 2, (4, -1), ValueError, "sum to 3"),
        (MLP((4, 4, 4)), 2, (3,), ValueError, "2 numbers"),
        (MLP((4, 4, 4)), 0, None, ValueError, "num_stages=0: it must be a whole number from 1 to 4096"),
        (CNN(), 2, None, TypeError, "not CNN"),
        (
            nn.Sequential(*[nn.Linear(4, 4)] * 2),
            2,
            None,
            ValueError,
            "stages 0 and 1 share a weight, 0.weight of stage 1",
        ),
        (
            nn.Sequential(*[nn.BatchNorm1d(4, affine=False)] * 2),
            2,
            None,
            ValueError,
            "share a weight, 0.running_mean of stage 1",
        ),
        (
            shared_blocks(),
            3,
            None,
            ValueError,
            "stages 0 and 2 share a weight, 0.attention.q.weight of stage 2",
        ),
    ],
)
def test_split_refuses(model, num_stages, sizes, error, message):
    with pytest.raises(error, match=message):
        split(model, num_stages, sizes)


# On ranks


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_gradients_equal_one_process(ranks):
    some = {2: (1, 2, 3, 16), 3: (1, 4, 6, 12), 4: (1, 2, 8, 16)}[ranks]
    cases = [
        ("MLP", schedule, m) for schedule in ("gpipe", "one_f_one_b") for m in (1, 2, 3, 4, 6, 8, 12, 16)
    ]
    cases += [("MLP", "interleaved", m, 2) for m in (1, 2, 3, 4, 6, 8, 12, 16)] + [
        ("MLP", "interleaved", m, 3) for m in some[::2]
    ]
    cases += [("MLP", "naive", 4), ("MLP", "contrary", 8)]
    cases += [("TinyGPT", schedule, some[-1]) for schedule in ("gpipe", "one_f_one_b")] + [
        ("TinyGPT", "interleaved", some[-2], 2)
    ]
    # unequal cuts, and two steps
    cases += [("MLP", "one_f_one_b", 4, 1, (1,) * (ranks - 1) + (16 - ranks,), 2)]
    cases += [("TinyGPT", "gpipe", 4, 1, (7, 1), 2)] if ranks == 2 else []
    job = run(pipeline_workers.compare, cases, ranks=ranks, backend="gloo")
    for rank, result in enumerate(job.results):
        for case, (difference, loss, in_flight, missing) in zip(cases, result, strict=True):
            assert difference < 1e-6 and missing == 0, (rank, case)
            assert (loss is None) == (rank < ranks - 1) and (loss or 0) < 1e-6, (rank, case)
            expected = simulate(
                pipeline_workers.by_name(case[1], ranks, *case[2:4]),
                ranks * (case[3] if len(case) > 3 else 1),
            )[1][rank]
            assert in_flight == expected, (rank, case)


@pytest.mark.parametrize("schedule, chunks", [("gpipe", 1), ("one_f_one_b", 1), ("interleaved", 2)])
def test_the_bubble_is_that_of_theory(schedule, chunks):
    left = [1, 4, 8, 16] if chunks == 1 else [4, 8, 16]
    # other work on the machine makes ranks late: then once more, with more time
    for seconds in (0.015, 0.04, 0.1, 0.3, 0.8):
        job = run(
            pipeline_workers.sleep, schedule, left, chunks, seconds, ranks=4, backend="gloo", timeout=600
        )
        found = {
            m: bubble(with_timeline(4, [row for spans in job.results for row in spans[m]])) for m in left
        }
        in_the_ledger = {left[0]: bubble(job)}  # its spans are those of the clock
        left = [
            m
            for m in left
            if abs(found[m] - theory.bubble_fraction(4, m, chunks)) >= 0.04
            or abs(found[m] - in_the_ledger.get(m, found[m])) >= 0.02
        ]
        if not left:
            break
    assert not left, (found, in_the_ledger)


def test_a_rank_begins_to_receive_while_it_computes_also_in_the_first_step():
    job = run(pipeline_workers.first_step, 4, ranks=2, backend="gloo")
    for rank, op in ((0, "B"), (1, "F")):
        timeline = job.timeline[job.timeline["rank"] == rank].sort_values("start_s")
        spans = timeline[timeline["name"].isin([f"{op}1", f"{op}2"])]
        # of micro-batches 2 and 3
        receives = timeline[timeline["name"] == "recv"]["start_s"].tolist()[-2:]
        assert all(begin < start for begin, start in zip(receives, spans["start_s"], strict=True)), (
            "before the micro-batch ahead of it is computed"
        )


def with_timeline(ranks: int, rows: list[dict]) -> Job:
    return Job(
        "job", ranks, "gloo", "cpu", "CPU", 1.0, [None] * ranks, [""] * ranks, records={"timeline": rows}
    )


def test_a_bubble_counts_all_ranks_and_spans_alone():
    rows = [
        (0, "span", 1.0, 2.0),
        (0, "communication", 3.0, 4.0),
        (1, "span", 2.0, 3.0),
        (1, "span", 2.5, 1.0),
        (2, "forward", 0.0, 9.0),
    ]
    timeline = [
        {"rank": rank, "kind": kind, "name": kind, "start_s": start, "seconds": seconds}
        for rank, kind, start, seconds in rows
    ]
    assert bubble(with_timeline(3, timeline)) == pytest.approx(1 - 5 / 12)
    with pytest.raises(ValueError, match="no span in its traced step"):
        bubble(with_timeline(1, []))


def activations(job) -> list[int]:
    return job.memory[job.memory["category"] == "activations"].sort_values("rank")["bytes"].tolist()


def test_activations_in_flight_are_those_of_theory_by_count_and_in_bytes():
    of_one = activations(run(pipeline_workers.train_gpt, "gpipe", 1, ranks=4, backend="gloo"))
    for schedule, name, m in (("gpipe", "gpipe", 8), ("one_f_one_b", "1f1b", 2), ("one_f_one_b", "1f1b", 8)):
        job = run(pipeline_workers.train_gpt, schedule, m, ranks=4, backend="gloo")
        expected = [theory.microbatches_in_flight(name, stage, 4, m) for stage in range(4)]
        assert job.results == expected and activations(job) == [
            count * bytes_ for count, bytes_ in zip(expected, of_one)
        ], (schedule, m)


def test_torchs_pipeline_has_the_same_gradients_and_bytes():
    m, per_microbatch, tensor_bytes = 4, 4, 4 * 16 * 32 * 4  # b s h elements of 4 bytes
    cases = [("gpipe", 1), ("one_f_one_b", 1), ("interleaved", 2)]
    mine, theirs = (
        run(pipeline_workers.train_gpts, cases, m, per_microbatch, kind, ranks=3, backend="gloo")
        for kind in ("mine", "torch")
    )
    for rank in range(3):
        for (schedule, chunks), own, other, sends, their_sends in zip(
            cases,
            mine.results[rank],
            theirs.results[rank],
            sends_of_each(mine, rank),
            sends_of_each(theirs, rank),
            strict=True,
        ):
            assert pipeline_workers.distance(list(zip(own, other, strict=True))) < 1e-5, schedule
            # forward over the boundary behind a stage, backward over the one before it
            last = 3 * chunks - 1
            messages = m * sum((stage < last) + (stage > 0) for stage in range(rank, last + 1, 3))
            assert sends == [tensor_bytes] * messages and sum(their_sends) == sum(sends), schedule
    if "wire bytes" not in mine.absent:
        wire = mine.steps[mine.steps["phase"] == "timed"]["wire_bytes"].sum()
        assert wire == pytest.approx(2 * (2 + 2 + 5) * m * tensor_bytes, rel=0.03)


def sends_of_each(job, rank: int) -> list[list[int]]:
    """The bytes of a rank's sends in the traced step, apart for what ran between barriers."""
    rows = job.comm[(job.comm["rank"] == rank) & job.comm["op"].isin(["send", "barrier"])].sort_values(
        "start_s"
    )
    apart: list[list[int]] = [[]]
    for row in rows.itertuples():
        apart.append([]) if row.op == "barrier" else apart[-1].append(row.payload_bytes)
    return apart[:-1]


@pytest.mark.parametrize("wrapped", [True, False])
def test_two_pipelines_average_their_gradients(wrapped):
    job = run(pipeline_workers.hybrid, wrapped, ranks=4, backend="gloo")
    for rank, (difference, has_loss, param_bytes) in enumerate(job.results):
        assert difference < 1e-6 and has_loss == (rank >= 2)
        sums = job.comm[(job.comm["rank"] == rank) & (job.comm["op"] == "all_reduce")]
        assert sums["payload_bytes"].sum() == param_bytes, "once per step, not once per micro-batch"
        assert set(sums["group"]) == {"0,1" if rank < 2 else "2,3"}
        assert set(job.comm[(job.comm["rank"] == rank) & (job.comm["op"] == "send")]["group"]) == {
            "0,2" if rank % 2 == 0 else "1,3"
        }


def test_a_first_stage_may_be_frozen():
    first, *others = run(pipeline_workers.frozen, ranks=3, backend="gloo").results
    assert first is True and max(others) < 1e-6


def test_a_stage_may_write_into_what_it_gets():
    """Cut before each layer in turn, among them some with inplace=True."""
    assert max(max(told) for told in run(pipeline_workers.in_place, ranks=2, backend="gloo").results) < 1e-6
    assert run(pipeline_workers.in_place, ranks=1, backend="gloo").results == [
        pytest.approx([0] * 5, abs=1e-12)
    ]


@pytest.mark.parametrize(
    "schedule, chunks", [("gpipe", 1), ("one_f_one_b", 1), ("interleaved", 2), ("contrary", 1)]
)
def test_without_gradients_a_step_evaluates(schedule, chunks):
    for rank, (losses, gradients, in_flight) in enumerate(
        run(pipeline_workers.evaluate, schedule, chunks, ranks=3, backend="gloo").results
    ):
        assert gradients == pytest.approx([0, 0], abs=1e-6) and in_flight == 0
        assert losses == ([pytest.approx(0, abs=1e-6)] * 4 if rank == 2 else [None] * 4)


def test_another_pipeline_of_the_same_stages_takes_another_shape():
    for difference, losses in run(pipeline_workers.other_shapes, ranks=2, backend="gloo").results:
        assert difference < 1e-6 and (losses is None or max(losses) < 1e-6)


@pytest.mark.parametrize(
    "what, message",
    [
        ("lists", "the schedule has lists for 3 ranks, and the group has 2"),
        ("stages", "stage 2 skips the forward of micro-batch 0"),
        ("batch", "a number of samples that is a multiple of 5 micro-batches, not 48"),
        ("inputs", "rank 0 needs inputs, for stage 0"),
        ("shape", "batches must keep their shape, so make another Pipeline of the same stages for this one"),
        ("tuple", "stage 0, on rank 0, returned a tuple: a stage takes one tensor and returns one"),
        ("nothing", "stage 0, on rank 0, returned a NoneType: a stage takes one tensor and returns one"),
        ("losses", "loss_fn returned of the shape [24]: it must be one number"),
        ("item", "loss_fn returned a float: it must be one number"),
        ("detached", "stage 1 has no gradient for its input"),
        ("words", "rank 0, position 0, 'F0': it must be an Instruction"),
        ("uncalled", "it must be a Sequence, of one list of instructions per rank"),
        (
            "whole numbers",
            "F0@0 has made torch.int64 of 1 dimensions: from stage to stage, torch.float32, torch.float64",
        ),
        ("dimensions", "F0@0 has made torch.float64 of 9 dimensions"),
    ],
)
def test_mistakes_are_named(what, message):
    with pytest.raises(RankError) as error:
        run(pipeline_workers.refused, what, ranks=2, backend="gloo", timeout=60)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: naive(n, 1),
        lambda n: gpipe(1, n),
        lambda n: one_f_one_b(n, 1),
        lambda n: interleaved(1, 1, n),
    ],
)
@pytest.mark.parametrize("junk", [0, -1, 1.5, None, "2"])
def test_sizes_of_schedules_are_whole_numbers(make, junk):
    with pytest.raises(ValueError, match="it must be a whole number of at least 1"):
        make(junk)


def test_it_offers_the_schedules_too():
    assert all(hasattr(pipeline, name) for name in pipeline.__all__)
