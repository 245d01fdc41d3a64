"""The from-scratch implementations against torch's own and against one process: values, bytes, calls."""
import mini_ranks
import pytest
import torch

from course_lib import run, theory


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_ring_is_right(ranks):
    assert run(mini_ranks.ring_values, ranks=ranks).results == [[]] * ranks


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("op", ["all_reduce", "reduce_scatter", "all_gather"])
def test_the_ring_sends_no_more_than_it_must(op, ranks):
    job = run(mini_ranks.ring_bytes, op, 300_001, ranks=ranks)
    if job.steps["wire_bytes"].isna().all():
        pytest.skip(job.absent["wire bytes"])
    expected = theory.collective_bytes(op, 300_001 * ranks * 4, ranks)
    sent = job.steps[job.steps["phase"] == "timed"]["wire_bytes"]
    assert (abs(sent / expected - 1) < 0.02).all()
    assert set(job.comm["op"]) == {"send", "recv"}        # its own, and not torch's collective


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_stars_root_carries_all(ranks):
    job = run(mini_ranks.star, 300_001, ranks=ranks)
    assert job.results == [ranks * (ranks + 1) / 2] * ranks
    sent = job.comm[job.comm["op"] == "send"].groupby("rank")["payload_bytes"].sum()
    assert list(sent) == [(ranks - 1) * 300_001 * 4] + [300_001 * 4] * (ranks - 1)


@pytest.mark.parametrize("name", ["MLP", "CNN", "TinyGPT"])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ddp_equals_torchs_and_one_process(name, ranks):
    for worst in run(mini_ranks.parity, name, ranks=ranks).results:
        assert max(worst.values()) < 1e-6


def test_ddp_in_single_precision():
    for worst in run(mini_ranks.parity, "CNN", torch.float32, ranks=2).results:
        assert max(worst.values()) < 1e-3


def test_ddp_with_uneven_slices_equals_torchs():
    """13 samples on 3 ranks: the mean of the ranks' means, as torch's DDP takes it."""
    for worst in run(mini_ranks.parity, "CNN", ranks=3, batch_size=13).results:
        assert worst["torch"] < 1e-6 < worst["alone"]


@pytest.mark.parametrize("num_microbatches", [1, 3])
def test_ddp_synchronises_once_per_update(num_microbatches):
    job = run(mini_ranks.accumulate, num_microbatches, ranks=3)
    reduces = job.comm[(job.comm["rank"] == 1) & (job.comm["op"] == "all_reduce")]
    assert len(reduces) == 1 and reduces["payload_bytes"].sum() == job.results[0][0]


def test_small_buckets_are_many_calls():
    job = run(mini_ranks.accumulate, 1, bucket_cap_mb=0.001, ranks=2)
    reduces = job.comm[(job.comm["rank"] == 0) & (job.comm["op"] == "all_reduce")]
    assert 1 < len(reduces) <= job.results[0][1] and reduces["payload_bytes"].sum() == job.results[0][0]


def test_threads_give_the_same_gradients():
    assert max(run(mini_ranks.threads, ranks=1).results[0]) < 1e-9
