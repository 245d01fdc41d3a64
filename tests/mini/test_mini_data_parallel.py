"""mini.data_parallel: replicas in threads against the plain module, and the star's load on its root."""

import sys
import threading

import mini_workers
import pytest
import torch
from mini_workers import SMALL_NUMEL
from torch import nn
from torch.nn import functional as F

from course_lib import run
from course_lib.mini.data_parallel import DataParallel, gather, parallel_apply, replicate, scatter
from course_lib.models import CNN, TinyGPT

needs_counters = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux counts what one process sends"
)


class Spy(nn.Module):
    """Notes by which thread, with which weight in memory, and on how many samples it is called."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(3, 2), Notes()

    def forward(self, x, factor=1):
        self.seen.append((threading.get_ident(), self.linear.weight.data_ptr(), len(x)))
        return self.linear(x) * factor


class Notes(list):
    """A list that all replicas share."""

    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 12])
def test_outputs_and_gradients_are_the_modules_own(num_replicas, batch_size):
    torch.manual_seed(0)
    module = CNN(4).double()
    module.head.bias.requires_grad_(False)
    images, labels = torch.randn(batch_size, 1, 8, 8, dtype=torch.float64), torch.arange(batch_size) % 10
    parallel = DataParallel(module, num_replicas)
    outputs, gradients = [], []
    for net in (module, parallel):
        out = net(images)
        F.cross_entropy(out, labels).backward()
        outputs.append(out)
        gradients.append([p.grad for p in module.parameters() if p.requires_grad])
        module.zero_grad()
    assert (
        outputs[0].shape == outputs[1].shape and mini_workers.difference([outputs[1]], [outputs[0]]) < 1e-12
    )
    assert mini_workers.difference(gradients[1], gradients[0]) < 1e-12


def test_losses_come_back_one_per_replica_and_tied_weights_stay_tied():
    torch.manual_seed(0)
    module = TinyGPT(context=8, dim=16, heads=2).double()
    tokens = torch.randint(0, 256, (6, 9))
    losses = DataParallel(module, 3)(tokens)
    assert losses.shape == (3,)
    losses.mean().backward()
    in_threads = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    module(tokens).backward()
    assert mini_workers.difference(in_threads, [p.grad for p in module.parameters()]) < 1e-12


def test_replicas_are_copies_and_run_in_threads_of_their_own():
    spy = Spy()
    replicas = replicate(spy, 3)
    assert replicas[0] is spy and len({replica.linear.weight.data_ptr() for replica in replicas}) == 3
    barrier = threading.Barrier(3, timeout=240)  # passes only if three replicas run at the same time

    class Meets(nn.Module):
        def forward(self, x):
            barrier.wait()
            return x

    assert len(parallel_apply([Meets(), Meets(), Meets()], [(torch.ones(1),)] * 3)) == 3
    DataParallel(spy, 3)(torch.ones(7, 3), 2)
    assert sorted(length for _, _, length in spy.seen) == [1, 3, 3], "pieces of torch.chunk"
    assert threading.get_ident() not in {ident for ident, _, _ in spy.seen}


def test_gradient_mode_errors_and_buffers():
    module = CNN(4, batch_norm=True)
    parallel = DataParallel(module, 2)
    with torch.no_grad():
        assert not parallel(torch.randn(4, 1, 8, 8)).requires_grad
        assert not parallel_apply([nn.Linear(1, 1)], [(torch.ones(1),)])[0].requires_grad, (
            "each thread has a gradient switch of its own"
        )
    assert module.features[1].num_batches_tracked == 1, (
        "the root is one of the replicas, so its buffers live on"
    )
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        DataParallel(nn.Linear(3, 3), 2)(torch.ones(4, 5))
    with pytest.raises(ValueError, match="num_replicas=0"):
        DataParallel(module, 0)


def test_scatter_cuts_tensors_and_repeats_the_rest():
    x = torch.arange(10)
    pieces = scatter((x, "same", 3), 4)
    assert [piece[0].tolist() for piece in pieces] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert all(piece[1:] == ("same", 3) for piece in pieces)
    assert scatter((torch.ones(2, 1),), 4)[1][0].shape == (1, 1) and len(scatter((torch.ones(2, 1),), 4)) == 2
    # not: three pieces, and the tenth sample is lost
    with pytest.raises(ValueError, match="3 and 10 samples"):
        scatter((x, torch.arange(3)), 4)
    assert gather([torch.ones(2, 3), torch.zeros(1, 3)]).shape == (3, 3) and gather(
        [torch.tensor(1.0)]
    ).shape == (1,)


def test_replicas_compute_in_the_modes_of_the_caller():
    """autocast, gradient mode, inference mode and the default device are each thread's own."""
    module = nn.Linear(4, 4)
    x = torch.randn(4, 4)

    class Modes(nn.Module):
        def forward(self, x):
            told = [
                torch.is_grad_enabled(),
                torch.is_inference_mode_enabled(),
                torch.is_autocast_enabled("cpu"),
                torch.get_default_device().type == "meta",
            ]
            return torch.tensor([told] * len(x), device="cpu")

    with torch.autocast("cpu", torch.bfloat16):
        found, expected = DataParallel(module, 2)(x), module(x)
        assert found.dtype == torch.bfloat16 and torch.equal(found, expected)
        found.float().sum().backward()
        assert module.weight.grad.dtype == torch.float32
        with torch.autocast("cpu", enabled=False):
            assert DataParallel(module, 2)(x).dtype == torch.float32
    for mode, wanted in (
        (torch.no_grad(), [False, False, False, False]),
        (torch.inference_mode(), [False, True, False, False]),
        (torch.autocast("cpu"), [True, False, True, False]),
        (torch.device("meta"), [True, False, False, True]),
    ):
        with mode:
            assert DataParallel(Modes(), 2)(x).tolist() == [wanted] * 4, mode
    assert DataParallel(Modes(), 2)(x).tolist() == [[True, False, False, False]] * 4


def test_scalars_go_to_all_and_hidden_tensors_are_refused():
    x, factor = torch.arange(4.0), torch.tensor(3.0)
    assert [piece[1] for piece in scatter((x, factor), 2)] == [factor] * 2
    assert scatter((x, [1, "two"], {"three": None}), 2)[0][1:] == ([1, "two"], {"three": None})
    for hidden in ([x], (1, x), {"mask": x}, {"deep": [[x]]}):
        with pytest.raises(TypeError, match="inside a list, tuple or dict would go to every replica uncut"):
            DataParallel(Spy(), 2)(x, hidden)
    with pytest.raises(TypeError, match="unexpected keyword argument 'factor'"):
        DataParallel(Spy(), 2)(x, factor=2)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_star_sums_at_any_root(ranks):
    assert run(mini_workers.star_values, ranks=ranks).results == [[]] * ranks


def test_the_star_sums_views():
    for *sums, column, every_other in run(mini_workers.star_views, ranks=3).results:
        assert sums == [[6.0]] * 3 + [[]] + [[6.0]]
        assert column == every_other == [0.0, 6.0], "what lies between stays"


@needs_counters
@pytest.mark.parametrize("ranks, root", [(2, 0), (3, 2), (4, 0)])
def test_the_root_moves_n_minus_1_times_as_much_as_the_others(ranks, root):
    job = run(mini_workers.star_bytes, root, ranks=ranks, backend="gloo")
    one = 4 * SMALL_NUMEL
    sends = job.comm[job.comm["op"] == "send"].groupby("rank")["payload_bytes"].sum()
    receives = job.comm[job.comm["op"] == "recv"].groupby("rank")["payload_bytes"].sum()
    expected = [(ranks - 1) * one if rank == root else one for rank in range(ranks)]
    assert sends.tolist() == receives.tolist() == expected
    wire = job.steps[job.steps["step"] == 2].sort_values("rank")["wire_bytes"]
    assert wire.tolist() == [pytest.approx(value, rel=0.02) for value in expected]
