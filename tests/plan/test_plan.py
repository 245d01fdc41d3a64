"""The cost model: states, peaks and bytes of plans that ran; the order of plans; files; published rows. Times
are never compared: tests/bench/bench_plan.py prints them.
"""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import nn

from course_lib import plan
from course_lib.demo.strategies import STRATEGIES, mlp
from course_lib.models import TinyGPT
from course_lib.plan.__main__ import main
from course_lib.plan.moments import states_of
from course_lib.record import held, sent

MODEL = plan.describe(mlp(), torch.rand(8, 1, 8, 8), "digits", 480)
LINK = plan.Link(64, 1e-4, 1e-9)
MACHINE = plan.Machine("two cores", 2, {1: 2e10, 2: 2e10, 4: 1e10}, 1e9, (LINK,), gloo=True)
FITTING = [its for its in plan.here((2, 4)) if its.way != "one process"]


DEALT = ("DDP", "ZeroRedundancyOptimizer", "mini ZeRO-1", "mini ZeRO-3", "fully_shard", "data x pipeline")


@pytest.mark.parametrize("its", [its for its in FITTING if its.ranks == 4 and its.way in DEALT], ids=str)
def test_states_to_the_byte_and_bytes_sent_of_a_training_that_ran(its):
    job = plan.run_plan(its, epochs=1)
    real = held(job)
    for rank in range(its.ranks):
        states = states_of(its, MODEL, rank)
        assert states == {name: real[name][rank] for name in states}
    modelled = sum(plan.cost(its, MODEL, MACHINE).sent.values())
    assert sent(job).mean() == pytest.approx(modelled, rel=0.035)


@pytest.mark.parametrize("its", FITTING, ids=str)
def test_bytes_are_those_that_the_demo_expects(its):
    (strategy,) = [known for known in STRATEGIES if known.name == its.way]
    modelled = sum(plan.cost(its, MODEL, MACHINE).sent.values())
    assert modelled == pytest.approx(mean(strategy.sent(its.ranks, True)), rel=1e-9)


@pytest.mark.parametrize(
    "its",
    [
        plan.Plan("one process"),
        plan.Plan("DDP", dp=2),
        plan.Plan("mini ZeRO-3", dp=2),
        plan.Plan("tensor parallel", tp=2),
    ],
    ids=str,
)
def test_the_worst_moment_is_the_measured_one_to_a_tenth(its):
    modelled = plan.cost(its, MODEL, MACHINE).peak_bytes
    assert max(plan.peak(its)) == pytest.approx(modelled, rel=0.1)


def test_a_model_is_read_off_a_module():
    gpt = TinyGPT()
    found = plan.describe(gpt, torch.randint(256, (2, 65)))
    assert found.numel == sum(p.numel() for p in gpt.parameters()), "a tied weight counts once"
    by_name = {layer.name: layer for layer in found.layers}
    attention = 2 * 2 * 64 * 64 * 64  # in two blocks, scores and values: tokens x tokens x width
    rest = sum(layer.products for layer in found.layers) - attention
    assert rest == pytest.approx(64 * (2 * 12 * 64**2 + 256 * 64), rel=0.02)
    assert by_name["blocks.0.mlp.0"].cut == "column" and by_name["blocks.0.attention.out"].cut == "row"
    assert sum(layer.tp_calls for layer in found.layers if "blocks.0" in layer.name) == 4
    assert all(not module._forward_hooks for module in gpt.modules())


class OfParts(nn.Module):
    """A parameter of its own around two layers, and one layer that is never called."""

    def __init__(self):
        super().__init__()
        self.place, self.unused = nn.Parameter(torch.zeros(16)), nn.Linear(4, 4)
        self.into, self.out_of = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return self.out_of(self.into(x + self.place))


class Listed(nn.Module):
    """Only parameters in a list, which no module calls."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.rand(8, 8)) for _ in range(3))

    def forward(self, x):
        for weight in self.weights:
            x = x @ weight
        return x


@pytest.mark.parametrize(
    "module, inputs, products",
    [
        (OfParts(), torch.rand(4, 16), 2 * 16 * 32),
        (Listed(), torch.rand(4, 8), 3 * 8 * 8),
        (
            nn.TransformerEncoderLayer(64, 4, 128, batch_first=True),
            torch.rand(2, 16, 64),
            16 * (4 * 64 * 64 + 2 * 64 * 128) + 2 * 16 * 16 * 64,
        ),
        (nn.LSTM(32, 64, batch_first=True), torch.rand(2, 16, 32), 16 * 4 * 64 * (32 + 64)),
        (nn.Conv2d(3, 8, 3, padding=1), torch.rand(2, 3, 4, 4), 16 * 8 * 27),
    ],
    ids=lambda its: type(its).__name__ if isinstance(its, nn.Module) else "",
)
def test_each_parameter_and_product_of_any_module_counts_once(module, inputs, products):
    found = plan.describe(module, inputs)
    assert found.numel == sum(p.numel() for p in module.parameters())
    assert found.products == pytest.approx(products)
    assert torch.backends.mkldnn.enabled


def test_a_module_that_was_read_is_as_it_was():
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout())
    was = {name: its.clone() for name, its in net.state_dict().items()}
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    plan.describe(net, torch.ones(4, 8))
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(its, was[name]) for name, its in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_tensor_parallelism_speeds_up_only_what_it_cuts():
    convolution, images = nn.Conv2d(3, 8, 3), torch.rand(4, 3, 4, 4)
    net = nn.Sequential(convolution, nn.Flatten(), nn.Linear(32, 4))
    one, two = (plan.Plan("ZeRO-1", tp=tp) for tp in (1, 2))
    quick = replace(MACHINE, cores=8)
    found = plan.describe(net, images)
    seconds = [plan.cost(its, found, quick).seconds["compute"] for its in (one, two)]
    shares = [its.products / (2 if its.cut else 1) for its in found.layers]
    assert seconds[1] / seconds[0] == pytest.approx(sum(shares) / found.products)
    whole = plan.describe(convolution, images)
    with pytest.raises(ValueError, match="cuts none of the layers"):
        plan.cost(two, whole, quick)
    assert {its.plan.tp for its in plan.ranked(whole, quick, plan.layouts(4, whole))} == {1}


@pytest.mark.parametrize("heads, possible", [(12, {1, 2, 4}), (18, {1, 2}), (64, {1, 2, 4, 8})])
def test_tensor_parallelism_deals_out_whole_heads(heads, possible):
    gpt = plan.transformer(12, 64 * heads, 256, 64, heads=heads)
    assert {its.tp for its in plan.layouts(64, gpt)} == possible
    for tp in (1, 2, 4, 8):
        its = plan.Plan("ZeRO-1", dp=64 // tp, tp=tp)
        assert len(plan.ranked(gpt, plan.A100, [its])) == (tp in possible)
        if tp not in possible:
            with pytest.raises(ValueError, match=f"the {heads} heads of block cannot .* to tp={tp}"):
                plan.cost(its, gpt, plan.A100)


def test_heads_are_read_off_a_module():
    found = plan.describe(TinyGPT(heads=2), torch.randint(256, (8, 65)))
    heads = {layer.name: layer.heads for layer in found.layers}
    assert [heads[f"blocks.0.attention.{name}"] for name in "qkv"] == [2, 2, 2]
    assert heads["blocks.0.attention.out"] == heads["blocks.0.mlp.0"] == 0
    assert plan.cost(plan.Plan("tensor parallel", tp=2), found, MACHINE).step_s > 0
    with pytest.raises(ValueError, match=r"the 2 heads of blocks\.0\.attention\.q cannot"):
        plan.cost(plan.Plan("tensor parallel", tp=4), found, MACHINE)


@pytest.mark.parametrize("way, times", [("DDP", 1), ("ZeRO-1", 1), ("ZeRO-3", 4)])
def test_what_is_cut_travels_for_each_micro_batch_anew(way, times):
    gpt = plan.transformer(2, 256, 128, 64)
    one, four = (plan.cost(plan.Plan(way, dp=8, microbatches=m), gpt, plan.A100) for m in (1, 4))
    assert four.sent["dp"] == pytest.approx(times * one.sent["dp"])
    started = replace(plan.A100, links=(plan.Link(64, 1.0, 0.0),), overlap=0.0)
    one, four = (plan.cost(plan.Plan(way, dp=8, microbatches=m), gpt, started) for m in (1, 4))
    assert four.seconds["dp"] == pytest.approx(times * one.seconds["dp"])


def test_more_ranks_than_cores_compute_no_faster():
    two, four = (plan.cost(plan.Plan("DDP", dp=n), MODEL, MACHINE).seconds["compute"] for n in (2, 4))
    assert four == pytest.approx(two)


def test_what_takes_longest_is_last_and_what_does_not_fit_behind_it():
    slow = replace(MACHINE, software_s={"fully_shard": {2: 1.0, 4: 1.0}})
    found = plan.ranked(MODEL, slow, plan.here())
    assert [its.cost.step_s for its in found] == sorted(its.cost.step_s for its in found)
    assert {its.plan.way for its in found[-2:]} == {"fully_shard"}
    assert "software" in found[-1].reason and found[0].times == 1
    small = replace(slow, memory_bytes=4e6)
    found = plan.ranked(MODEL, small, plan.here())
    fits = [its.cost.fits for its in found]
    assert fits == sorted(fits, reverse=True) and 0 < sum(fits) < len(fits)
    assert "does not fit" in found[-1].reason


def test_ways_whose_software_was_not_measured_do_not_win_by_that():
    some = replace(MACHINE, software_s={"DDP": {2: 0.02}, "one process": {1: 0.01}})
    assert {its.plan.way for its in plan.ranked(MODEL, some)} == {"DDP", "one process"}
    found = plan.ranked(MODEL, some, plan.here((1, 2)))
    for its in found:
        known = its.plan.way in some.software_s
        assert known != its.reason.endswith("its software was not measured")
    assert "not measured" not in plan.table(plan.ranked(MODEL, MACHINE))


@pytest.mark.parametrize(
    "best, other, reason",
    [
        (plan.Plan("ZeRO-1", dp=2), plan.Plan("ZeRO-1", dp=2, recompute=True), "computed again"),
        (plan.Plan("ZeRO-1", dp=2), plan.Plan("ZeRO-1"), "fewer ranks compute"),
        (plan.Plan("ZeRO-1", dp=2), plan.Plan("ZeRO-1", dp=4), "share 2 cores"),
    ],
    ids=str,
)
def test_a_longer_compute_has_its_own_reason(best, other, reason):
    slow = replace(MACHINE, products_per_s={2: 2e8, 4: 0.9e8}, links=(plan.Link(64, 0.0, 0.0),))
    first, last = plan.ranked(MODEL, slow, [other, best])
    assert first.plan == best and reason in last.reason and "compute +" in last.reason


def test_published_rows_are_within_a_fifth():
    rows = [row for row in plan.published_rows() if not row.given]
    assert len(rows) > 50 and max(abs(row.error) for row in rows) < 0.2
    assert {row.table for row in rows} == {
        "Megatron, table 1",
        "Megatron, table 2",
        "Llama 3, table 4",
        "ZeRO, table 1",
    }


@pytest.mark.parametrize("ending", ["json", "yaml", "toml"])
def test_the_calculator_reads_each_kind_of_file(tmp_path, ending, capsys):
    model = {"transformer": {"layers": 4, "hidden": 256, "sequence": 128, "batch": 16}}
    text = {
        "json": json.dumps(model),
        "yaml": "transformer: {layers: 4, hidden: 256, sequence: 128, batch: 16}",
        "toml": "[transformer]\nlayers = 4\nhidden = 256\nsequence = 128\nbatch = 16",
    }
    (tmp_path / f"model.{ending}").write_text(text[ending])
    (tmp_path / "machine.json").write_text(json.dumps(asdict(plan.A100)))
    arguments = [str(tmp_path / f"model.{ending}"), str(tmp_path / "machine.json"), "--ranks", "4"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "batch 16" in printed and "A100" in printed and "ZeRO-1" in printed


@pytest.mark.parametrize(
    "text, reason",
    [
        ("{", "cannot be read"),
        ("[1]", "holds no table"),
        ('{"layers": 3}', "needs"),
        ('{"x": 1}', "has"),
        ('{"name": 7, "layers": [1], "batch": 1}', "name=7: it must be a str."),
        ('{"transformer": {"width": 7}}', "unexpected keyword argument 'width'."),
    ],
)
def test_a_wrong_file_is_told_in_one_sentence(tmp_path, text, reason, capsys):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "model.json"), "machine.json"])
    assert reason in capsys.readouterr().err.splitlines()[-1]


def test_the_calculator_reads_4e9_as_a_number_and_wants_a_plan_to_show(tmp_path, capsys):
    (tmp_path / "model.yaml").write_text("transformer: {layers: 4, hidden: 64, sequence: 32, batch: 16}")
    link = "links: [{span: 8, alpha_s: 1e-5, beta_s: 1.5E-9}]"
    machine = f"name: mine\ncores: 2\nproducts_per_s: {{1: 1e10}}\nmemory_bytes: 4e+9\n{link}\n"
    (tmp_path / "machine.yaml").write_text(machine)
    found = plan.read(tmp_path / "machine.yaml", "machine")
    assert (found.memory_bytes, found.products_per_s, found.links[0].beta_s) == (4e9, {1: 1e10}, 1.5e-9)
    files = [str(tmp_path / "model.yaml"), str(tmp_path / "machine.yaml")]
    with pytest.raises(SystemExit):
        main([*files, "--best", "0"])
    assert "--best 0: it must be" in capsys.readouterr().err.splitlines()[-1]


def test_costs_and_rankings_load_no_torch():
    code = (
        "import sys; from course_lib import plan;"
        "plan.ranked(plan.transformer(2, 64, 32, 8), plan.A100, [plan.Plan('ZeRO-3', dp=8)]);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_models_and_machines_survive_a_file(tmp_path):
    for kind, its in (("model", MODEL), ("machine", MACHINE)):
        (tmp_path / "its.json").write_text(json.dumps(asdict(its)))
        assert plan.read(tmp_path / "its.json", kind) == its


@pytest.mark.parametrize("way, calls", [("DDP", 2), ("mini DDP", 1)])
def test_gradients_travel_in_as_many_buckets_as_the_way_makes(way, calls):
    its = plan.Plan(way, dp=2)
    started = replace(MACHINE, links=(plan.Link(64, 1.0, 0.0),))  # a step of a ring takes a second
    assert plan.cost(its, MODEL, started).seconds["dp"] == 2 * calls
    called = plan.run_plan(its).comm.query("rank == 0 and payload_bytes > 1000").op.value_counts()
    assert called.get("all_reduce", 0) == calls or called.get("send", 0) == 2 * calls


def test_the_script_measures_one_process_as_well(tmp_path):
    script = Path(__file__).resolve().parents[2] / "notebooks" / "scripts" / "choosing_a_strategy.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = subprocess.run([*torchrun, script], cwd=tmp_path, capture_output=True, text=True)
    assert "1 ranks: " in done.stdout and "no link" in done.stdout, done.stderr
    assert plan.read(tmp_path / "machine.json", "machine").links == ()


def test_a_machine_of_one_rank_needs_no_link():
    alone = replace(MACHINE, links=())
    assert plan.cost(plan.Plan("one process"), MODEL, alone).step_s > 0
    with pytest.raises(ValueError, match="no link joins 2 neighbouring ranks"):
        plan.cost(plan.Plan("DDP", dp=2), MODEL, alone)
