"""mini.tensor_parallel on real ranks: equal to one process and to torch's parallelize_module; calls, bytes,
memory; dropout; groups.
"""

import functools
import sys

import pytest
import tensor_parallel_workers as workers
import torch

from course_lib import held, run, sent, theory

BATCH, TIME, DIM, HEADS = 8, 192, 48, 12  # of the measured steps
ACTIVATION = 4 * BATCH * TIME * DIM  # bytes of [batch, time, dim]
on_all_ranks = pytest.mark.parametrize("ranks", [2, 3, 4])
needs_counters = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux counts what one process sends"
)


@functools.cache
def against_one_process(ranks: int) -> list[dict]:
    return run(workers.against_one_process, ranks=ranks).results


@functools.cache
def measured(kind: str, name: str, ranks: int):
    return run(workers.step_of, kind, name, ranks=ranks, backend="gloo")


def ops_in_order(job, rank: int = 0, least_bytes: int = 0) -> list[str]:
    """The collectives of one step, in order; the small ones may be left out."""
    rows = job.comm[(job.comm["rank"] == rank) & (job.comm["payload_bytes"] >= least_bytes)]
    return rows.sort_values("start_s")["op"].tolist()


# Values


@on_all_ranks
def test_outputs_and_gradients_equal_one_process(ranks):
    for told in against_one_process(ranks):
        for name in workers.MODELS:
            for cut in (False, True):
                values = told[f"{name}, sequence_parallel={cut}"]
                assert {"weights", "given model", "output", "gradients"} < set(values)
                assert all(value < 1e-6 for value in values.values()), (name, cut, values)
        assert all(value < 1e-6 for value in told["block, from the ring"].values())


@on_all_ranks
def test_trained_weights_equal_one_process(ranks):
    assert all(value < 1e-6 for told in against_one_process(ranks) for value in told["trained"].values())


@on_all_ranks
def test_the_loss_needs_no_gathered_logits(ranks):
    assert all(value < 1e-6 for told in against_one_process(ranks) for value in told["losses"].values())


@on_all_ranks
def test_layers_and_operators(ranks):
    assert [told["layers"] for told in against_one_process(ranks)] == [[]] * ranks


@pytest.mark.parametrize("ranks", [1, 3])
def test_products_in_pieces_equal_one_process(ranks):
    job = run(workers.products_in_pieces, ranks=ranks, backend="gloo")
    assert all(value < 1e-12 for told in job.results for value in told.values())
    x_bytes = 8 * workers.BATCH * workers.TIME * workers.DIM
    twice = 2 * theory.collective_bytes(
        "all_gather", x_bytes, ranks
    )  # the tokens that are gathered, and the sums
    assert (
        sent(job, layer="payload", ops=["send"]).tolist()
        == [twice] * ranks
        == sent(job, layer="payload").tolist()
    )


def test_meshes_and_groups():
    """Data x tensor trains to the weights of one process over the whole batch; tensor parallelism in any
    groups.
    """
    job = run(workers.on_a_mesh, ranks=4, backend="gloo")
    assert max(max(told) for told in job.results) < 1e-6
    assert set(job.comm["group_size"]) == {2}


def test_what_cannot_be_cut_is_refused():
    told = run(workers.refusals, ranks=4).results
    heads, hidden, odd, norm, conv, vocabulary, tokens, *others, _, _, _, _ = told[0]
    assert heads == "ValueError: 6 heads cannot be dealt out evenly to 4 ranks."
    assert hidden == "ValueError: 90 features cannot be dealt out evenly to 4 ranks."
    assert odd.startswith("ValueError: an odd number of Linear layers")
    assert norm.startswith("TypeError: cannot cut a LayerNorm between the two Linear layers of a pair")
    assert conv.startswith("TypeError: cannot cut a Conv2d: it must be a model that says by its `tensor_par")
    assert vocabulary == "ValueError: 50 tokens of the vocabulary cannot be dealt out evenly to 4 ranks."
    assert tokens == "ValueError: 9 tokens cannot be dealt out evenly to 4 ranks."
    assert all("Error" in found for rank in told for found in rank[-4:]), (
        "no token outside of the vocabulary, on any rank"
    )
    layer, weight, norm, linear, attention, sequential, padded, parametrized, clipped, twice = others
    assert (
        layer
        == "ValueError: 0.weight and 2.weight are one weight, and the cut would make several of it: untie"
        " them." == weight
    )
    assert norm.startswith("ValueError: attention_norm.weight and mlp_norm.weight are one weight")
    assert (
        linear
        == "TypeError: linear is a Scaled, and the cut would leave a plain Linear of it: take a plain one."
    )
    assert (
        "attention is an OwnAttention" in attention
        and "layers is a Residual" in sequential
        and "linear is a ParametrizedLinear" in parametrized
    )
    assert (
        "an Embedding with padding_idx" in padded
        and "with max_norm" in clipped
        and "linear=ColumnParallelLinear(weight [2, 8], one of 4): it must be a Linear." in twice
    )


def test_a_plan_names_all_parts_by_words_that_are_known_and_is_that_of_the_class_itself():
    unnamed, misspelt, inherited, smooth, tied_alike = run(workers.other_plans, ranks=2).results[0]
    assert unnamed == (
        "TypeError: cannot cut a LayerNorm that Unnamed has as norm, and its `tensor_parallel_plan` does not"
        " name."
    )
    assert misspelt.startswith(
        "ValueError: tensor_parallel_plan: up is 'columns', and must be one of 'column'"
    )
    assert inherited.startswith("TypeError: tinygpt is an Inherited, and its plan is that of a plain TinyGPT")
    assert smooth.startswith("TypeError: loss is CrossEntropyLoss(), and the cut would leave a plain")
    assert tied_alike == "one slice: True"


def test_all_ranks_start_from_the_first_ones_weights_under_the_models_names():
    for told in run(workers.other_starts, ranks=2, backend="gloo").results:
        assert told == {"names": True, "weights": 0.0}


# Calls, bytes, memory


@on_all_ranks
def test_one_all_reduce_forward_and_one_backward_for_an_mlp(ranks):
    job = measured("tp", "pair", ranks)
    for rank in range(ranks):
        assert ops_in_order(job, rank) == ["all_reduce"] * 2
        timeline = job.timeline[job.timeline["rank"] == rank]
        backward = timeline[timeline["kind"] == "backward"]["start_s"].min()
        starts = sorted(job.comm[job.comm["rank"] == rank]["start_s"])
        assert starts[0] < backward < starts[1]
    rows = job.comm[job.comm["rank"] == 0]
    assert rows["algorithm_bytes"].sum() == pytest.approx(
        theory.tensor_parallel_bytes(BATCH, TIME, DIM, ranks) / 2
    )


@needs_counters
@pytest.mark.parametrize(
    "kind, ranks", [("tp", 2), ("tp", 3), ("tp", 4), ("sp", 2), ("sp", 3), ("sp", 4), ("sp, ring", 4)]
)
def test_bytes_of_a_block(kind, ranks):
    job, expected = measured(kind, "block", ranks), theory.tensor_parallel_bytes(BATCH, TIME, DIM, ranks)
    for rank in range(ranks):
        rows = job.comm[(job.comm["rank"] == rank) & (job.comm["op"] != "recv")]
        assert rows["algorithm_bytes"].sum() / expected == pytest.approx(1, abs=0.02)
    if kind == "tp":
        assert ops_in_order(job) == ["all_reduce"] * 4
    elif kind == "sp":
        assert ops_in_order(job, least_bytes=ACTIVATION) == ["all_gather", "reduce_scatter"] * 4, (
            "two pairs forward, two backward"
        )
        expected = sum(
            4 * theory.gloo_bytes(op, ACTIVATION, ranks) for op in ("all_gather", "reduce_scatter")
        )
    of_steps = [sent(job, [step]) / expected for step in sorted(set(job.steps["step"])) if step >= 2]
    assert of_steps and all((abs(times - 1) < 0.02).all() for times in of_steps), of_steps


@pytest.mark.parametrize(
    "kind, name, ranks",
    [
        ("tp", "pair", 2),
        ("tp", "pair", 3),
        ("tp", "pair", 4),
        ("tp", "block", 2),
        ("tp", "block", 3),
        ("tp", "block", 4),
        ("tp", "GPT", 2),
        ("tp", "GPT", 3),
        ("tp", "GPT", 4),
        ("sp", "block", 4),
    ],
)
def test_every_rank_holds_its_share_to_the_byte(kind, name, ranks):
    job = measured(kind, name, ranks)
    told = job.results[0]
    share = (told["params"] - told["whole on every rank"]) / ranks + told["whole on every rank"]
    wanted = {"params": share, "grads": share, "optimizer_states": theory.adam_state_bytes(told["shapes"])}
    assert held(job)[list(wanted)].to_dict("records") == [wanted] * ranks


@on_all_ranks
def test_calls_and_bytes_of_a_whole_model(ranks):
    """Two layers of two pairs, the embedding (forward) and the head (backward); and three numbers per token
    for the loss.
    """
    rows = measured("tp", "GPT", ranks).comm
    rows = rows[rows["rank"] == 0]
    token = 4 * BATCH * TIME
    assert sorted(rows["payload_bytes"]) == [token, 2 * token] + [ACTIVATION] * (2 * 4 + 2)
    assert set(rows["op"]) == {"all_reduce"}
    expected = 2.5 * theory.tensor_parallel_bytes(BATCH, TIME, DIM, ranks) + theory.collective_bytes(
        "all_reduce", 3 * token, ranks
    )
    assert rows["algorithm_bytes"].sum() == pytest.approx(expected)


@on_all_ranks
def test_activations_of_a_block(ranks):
    """To the byte, in units of batch x time x dim elements.

    Whole: inputs and outputs of the two norms, and the output for the test's loss. Cut by features: q, k, v
        and what attention makes of them (4), its sums of exponentials, the hidden layer before and after GELU
        (8). Norms keep two numbers per token each. Sequence parallelism cuts all but the two gathered inputs
        of the pairs.
    """
    features, tokens = 12 + HEADS / DIM, 3 + 4 / DIM
    cut = held(measured("tp", "block", ranks))["activations"]
    assert [count / ACTIVATION for count in cut] == pytest.approx([2 + tokens + features / ranks] * ranks)
    also_tokens = held(measured("sp", "block", ranks))["activations"]
    assert [count / ACTIVATION for count in also_tokens] == pytest.approx(
        [2 + (tokens + features) / ranks] * ranks
    )


# As torch does it


@pytest.mark.parametrize(
    "kind, theirs, name",
    [("tp", "DTensor", "pair"), ("tp", "DTensor", "block"), ("sp", "DTensor, sp", "block")],
)
def test_parallelize_module_gives_the_same_values_and_bytes(kind, theirs, name):
    own, other = measured(kind, name, 4), measured(theirs, name, 4)
    for a, b in zip(own.results, other.results):
        assert a["shapes"] == b["shapes"]
        torch.testing.assert_close([a["output"], a["input gradient"]], [b["output"], b["input gradient"]])
    assert held(own)[["params", "activations"]].equals(held(other)[["params", "activations"]])
    assert ops_in_order(own, least_bytes=ACTIVATION) == ops_in_order(other, least_bytes=ACTIVATION)
    totals = [job.comm.groupby("rank")["algorithm_bytes"].sum() for job in (own, other)]
    assert (totals[0] / totals[1]).tolist() == pytest.approx([1] * 4, abs=0.01)


# Dropout


def test_dropout_differs_where_activations_do():
    for told in run(workers.dropout, ranks=2).results:
        assert told["nn.Dropout, one seed: the same masks"] and told["twice"] and told["evaluation"]
        assert all(0.45 < share < 0.55 for share in told["kept"]) and 0.2 < told["kept together"] < 0.3, (
            "independent masks"
        )
        assert told["mean"] == pytest.approx(1, abs=0.05)
        assert told["common generator in step"], "what is whole on every rank still gets one mask"
        assert told["outputs equal, one seed"] and told["one process, one seed"] < 1e-6
        assert not told["outputs equal, other seeds"], "nn.Dropout behind the row layer: ranks drift apart"
