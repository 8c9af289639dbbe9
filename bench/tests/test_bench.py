"""The benchmarks: the gate, rows in place of crashes, results as CSV, comparisons."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from bench import gate, measure, pages, run
from bench.cases import CLAIMS, FULL, LARGE, QUICK, Case, schedule
from bench.compare import compare, report
from bench.grown import Grown
from bench.machine import Ceilings, Machine
from bench.measure import Bench, measure_case
from bench.memory import peak_in_fresh_process
from bench.models import Model, make_state
from bench.providers import PROVIDERS, Provider, TutorialCA
from bench.results import FAILED, OK, SKIPPED, WRONG, Row, read_csv, write_csv
from bench.runners import TorchRunner
from bench.timing import Clock, Times, interleave, ratios
from fastnca import NeuralCA, reference

CPU = torch.device("cpu")
MACHINE = Machine("test", "cpu", 1, "default", "3", "2", "", "", "0", "none")
MODES = [
    Case("step", 48, 2, 1, "grown"),
    Case("step+backward", 48, 2, 1, "fresh"),
    Case("rollout", 24, 2, 6, "grown"),
    Case("rollout+backward", 24, 2, 6, "grown"),
    Case("training", 24, 2, 6, "fresh"),
    Case("inference", 24, 2, 6, "full"),
]


@pytest.fixture(scope="module")
def pool():
    """Weights that change a state, and states that are alive in part and everywhere."""
    torch.manual_seed(3)
    model = NeuralCA()
    torch.nn.init.normal_(model.update_net[2].weight, 0, 0.05)
    states = torch.rand(8, 16, 32, 32)
    states[:, 3] *= 0.3 * (torch.rand(8, 32, 32) < 0.4)  # so that cells die
    for place in range(6):
        states[place, :, :, 4 * place :] = 0
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    return Grown(weights, states)


@pytest.fixture
def bench(pool):
    return Bench(CPU, pool, MACHINE, Ceilings(1e10, 1e11), Clock(CPU), 0.0, 15.0, memory=False)


def gate_of(model, case, pool, masks="seeded"):
    """Ask the gate about a module with the pool's weights."""
    model.load_state_dict(pool.weights)
    state = make_state(case.state, case.size, case.batch, pool)
    runner = TorchRunner(model, masks, masks)
    return gate.check(runner, case, state, Model(pool.weights), PROVIDERS["torch"].tolerance)


class NoLastTest(reference.NeuralCA):
    """Leaves the alive test after the update out."""

    def _step(self, state, mask):
        delta = self.update_net(self.perception(state))
        return (state + delta * mask) * self.get_alive_mask(state)


class WrongGradient(reference.NeuralCA):
    """Right states, and a gradient that is 1 % too large."""

    def _step(self, state, mask):
        end = super()._step(state, mask)
        return end + 0.01 * (end - end.detach())


class OtherRate(reference.NeuralCA):
    """Right steps, with a third of the cells updated."""

    def forward(self, state, update_rate=0.5):
        return super().forward(state, 2 / 3 * update_rate)


class ScaledLikeDropout(reference.NeuralCA):
    """Divides what is updated by the update rate in training mode, as dropout does."""

    def forward(self, state, update_rate=0.5):
        if not self.training:
            return super().forward(state)
        mask = torch.rand_like(state[:, :1]) < update_rate
        return self._step(state, mask.float() / update_rate)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("case", MODES, ids=str)
@pytest.mark.parametrize("name", ["tutorial", "cpp", "cpp-steps", "torch", "torch-steps"])
def test_gate_lets_right_providers_pass(name, case, pool):
    provider = PROVIDERS[name]
    state = make_state(case.state, case.size, case.batch, pool)
    runner = provider.build(Model(pool.weights), CPU)
    assert gate.check(runner, case, state, Model(pool.weights), provider.tolerance) is None


@pytest.mark.parametrize("case", MODES[2:], ids=str)
def test_gate_catches_a_wrong_step(case, pool):
    if case.state == "fresh":
        case = replace(case, state="grown")
    assert "cells differ" in gate_of(NoLastTest(), case, pool)


@pytest.mark.skipif(torch.cuda.is_available(), reason="bench.run itself does this on CUDA")
@pytest.mark.parametrize("mode", ["step+backward", "rollout+backward"])
def test_gate_lets_fused_kernels_pass_in_the_interpreter(mode, pool):
    provider = PROVIDERS["triton-fp16"]
    case = Case(mode, 16, 1, 1 if mode.startswith("step") else 2, "grown")
    state = make_state(case.state, case.size, case.batch, pool)
    runner = provider.build(Model(pool.weights), CPU)
    assert gate.check(runner, case, state, Model(pool.weights), provider.tolerance) is None
    exact = PROVIDERS["torch"].tolerance
    assert gate.check(runner, case, state, Model(pool.weights), exact) is not None


def test_gate_catches_a_wrong_gradient(pool):
    assert "gradient of update_net" in gate_of(WrongGradient(), MODES[3], pool)
    assert gate_of(WrongGradient(), MODES[2], pool) is None  # without gradient it is right


def test_gate_of_own_masks(pool):
    case = Case("rollout+backward", 32, 2, 6, "grown")
    assert gate_of(TutorialCA(), case, pool, "own") is None
    assert "not half of them" in gate_of(OwnSteps(OtherRate), case, pool, "own")
    assert "cells differ" in gate_of(OwnSteps(ScaledLikeDropout), case, pool, "own")


def OwnSteps(kind):  # noqa: N802 - makes a class
    """Let the reference's `run_steps` draw its masks with `forward`."""

    class Steps(kind):
        def run_steps(self, state, steps, update_rate=0.5, *, seed=None):
            return super().run_steps(state, steps, update_rate)

    return Steps()


@pytest.mark.parametrize("case", [*MODES[:4], MODES[5]], ids=str)
def test_gate_lets_cax_pass(case, pool, bench):
    if reason := PROVIDERS["cax"].refusal(CPU):
        pytest.skip(reason)
    row = measure_case(bench, case, [PROVIDERS["cax"]])[0]
    assert (row.status, row.reason) == (OK, "")


def test_a_wrong_provider_gives_a_row_that_says_so(bench, monkeypatch):
    def build(model, device):
        module = NoLastTest()
        module.load_state_dict(model.weights)
        return TorchRunner(module, "seeded", "seeded")

    bad = Provider("bad", "wrong", build, lambda device: None)
    rows = measure_case(bench, MODES[2], [PROVIDERS["tutorial"], bad, PROVIDERS["torch"]])
    assert [row.status for row in rows] == [OK, WRONG, OK]
    assert rows[1].seconds is None
    assert "cells differ" in rows[1].reason
    assert rows[2].ratio > 0
    assert rows[2].ratio_low <= rows[2].ratio_high
    assert 0 < rows[2].alive_start < 1
    monkeypatch.setattr(run, "measure_case", lambda *_: rows)
    options = run.build_parser().parse_args([])
    assert run._judge(rows, [], options) == 1
    assert run._judge([rows[0], rows[2]], [], options) == 0


def test_what_cannot_run_is_a_skipped_row_with_its_reason(bench, monkeypatch):
    names = ["tutorial", "triton-fp16", "compile-graphs", "torch"]
    providers = [PROVIDERS[name] for name in names]
    rows = measure_case(bench, MODES[2], providers)
    assert [row.status for row in rows] == [OK, SKIPPED, SKIPPED, OK]
    assert "needs" in rows[2].reason or "need" in rows[1].reason
    monkeypatch.setattr(measure, "free_memory", lambda device: 2**20)
    rows = measure_case(bench, Case("rollout+backward", 1024, 4, 96, "fresh"), providers)
    assert all(row.status == SKIPPED for row in rows)
    assert "GiB are free" in rows[0].reason


def test_too_long_and_too_large_cases_are_skipped(bench):
    case = Case("rollout+backward", 64, 4, 80, "fresh")
    slow = replace(bench, ceilings=Ceilings(1e10, 1e6))
    assert "--longest is 15" in measure.refusal(slow, case, PROVIDERS["torch"])
    assert measure.refusal(bench, case, PROVIDERS["torch"]) is None
    huge = Case("rollout+backward", 1024, 1024, 96, "fresh")
    assert "GiB are free" in measure.refusal(bench, huge, PROVIDERS["tutorial"])


def test_an_error_of_a_provider_fails_the_run(bench):
    def build(model, device):
        raise TypeError("takes keyword arguments only")

    bad = Provider("bad", "fails", build, lambda _: None)
    rows = measure_case(bench, MODES[2], [PROVIDERS["tutorial"], bad, PROVIDERS["torch"]])
    assert [row.status for row in rows] == [OK, FAILED, OK]
    assert rows[1].reason == "TypeError: takes keyword arguments only"
    assert run._judge(rows, [], run.build_parser().parse_args([])) == 1


def test_memory_that_runs_out_is_a_skipped_row(bench):
    def build(model, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore lines")

    rows = measure_case(
        bench, MODES[2], [Provider("bad", "fails", build, lambda _: None), PROVIDERS["torch"]]
    )
    assert rows[0].status == SKIPPED
    assert rows[0].reason == "OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB"
    assert rows[1].status == OK
    assert rows[1].ratio is None  # the tutorial did not take part


def saved_for_backward(case, pool):
    """Bytes that autograd keeps of the tutorial class's rollout, counted by storage."""
    model = TutorialCA(16, 128)
    model.load_state_dict(pool.weights)
    kept = {}

    def count(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    states = [make_state(case.state, case.size, case.batch, pool)]
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        for _ in range(case.steps):
            states.append(model(states[-1]))
    return sum(kept.values())


@pytest.mark.long
def test_memory_of_a_fresh_process(pool):
    case = Case("rollout+backward", 48, 2, 12, "fresh")
    if sys.platform != "linux":
        pytest.skip("a CPU's memory is measured on Linux")
    eager, reason = peak_in_fresh_process(case, "tutorial", pool)
    assert reason == ""
    kept = saved_for_backward(case, pool) / 2**20
    assert kept < eager < 2 * kept
    none, reason = peak_in_fresh_process(case, "nobody", pool)
    assert none is None
    assert reason.startswith("memory: ")


def test_rounds_are_interleaved_and_the_order_rotates():
    called = []

    class FakeClock:
        def measure(self, timed):
            called.append(timed)
            return 2.0 if timed == "slow" else 1.0

    times = interleave(FakeClock(), {"a": "slow", "b": "fast"}, {"a": 9.0, "b": 9.0}, 0.0)
    assert called == ["slow", "fast", "fast", "slow", "slow", "fast"]
    assert ratios(times["a"], times["b"]) == (2.0, 2.0, 2.0)
    assert ratios(Times(0, [1.0, 4.0, 2.0]), Times(0, [1.0, 1.0, 2.0])) == (2.0, 1.0, 4.0)


def rows_of(**ratios_of):
    """Make rows of the torch provider at one grid size per keyword, `s64=2.0`."""
    first = ("rollout", 0, 4, 8, "grown", "torch", OK)
    return [
        replace(Row(*first), size=int(name[1:]), ratio=value, seconds=0.1)
        for name, value in ratios_of.items()
    ]


def test_csv_round_trip(tmp_path):
    rows = [
        *rows_of(s64=2.5, s16=0.123456),
        Row("step", 16, 1, 1, "fresh", "cax", SKIPPED, 'not installed: "jax", cax'),
    ]
    write_csv(tmp_path / "folder" / "rows.csv", rows)
    assert read_csv(tmp_path / "folder" / "rows.csv") == rows
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="does not have the columns"):
        read_csv(tmp_path / "other.csv")


def test_comparison_finds_regressions_of_ratios():
    before = rows_of(s64=4.0, s128=2.0)
    same = compare(rows_of(s64=3.3, s128=9.0), before, 0.2)
    assert (same.compared, same.regressions, same.exit_code) == (2, [], 0)
    worse = compare(rows_of(s64=3.1, s128=2.0), before, 0.2)
    assert len(worse.regressions) == 1
    assert "ratio 3.10, was 4.00" in worse.regressions[0]
    assert worse.exit_code == 1
    slower_clock = [replace(row, seconds=5.0) for row in before]
    assert compare(slower_clock, before, 0.0).exit_code == 0
    heavier = [replace(row, memory_ratio=5.0) for row in before]
    lighter = [replace(row, memory_ratio=50.0) for row in before]
    assert compare(heavier, lighter, 0.2).exit_code == 1
    assert compare(lighter, heavier, 0.2).exit_code == 0


def test_comparison_of_wrong_missing_and_foreign_results():
    before = rows_of(s64=4.0, s128=2.0)
    wrong = [replace(before[0], status=WRONG, ratio=None, reason="off"), before[1]]
    assert compare(wrong, before, 0.2).exit_code == 1
    skipped = [replace(before[0], status=SKIPPED, ratio=None, reason="no room"), before[1]]
    found = compare(skipped, before, 0.2)
    assert found.exit_code == 0
    assert "no room" in found.missing[0]
    assert compare(rows_of(s32=4.0), before, 0.2).exit_code == 1  # nothing in common
    with pytest.raises(ValueError, match="tolerance"):
        compare(before, before, 1.0)


def scaled(row, factor):
    """The same row, `factor` times as fast."""
    names = ("ratio", "ratio_low", "ratio_high")
    found = {name: getattr(row, name) for name in names}
    return replace(row, **{name: value and value * factor for name, value in found.items()})


def test_ratios_whose_spreads_overlap_are_no_regression():
    before = [replace(row, ratio_low=1.6, ratio_high=4.5) for row in rows_of(s64=4.0)]
    now = [replace(row, ratio_low=1.0, ratio_high=1.7) for row in rows_of(s64=1.5)]
    found = compare(now, before, 0.2)
    assert (found.ratios, found.agree, found.exit_code) == (1, 1, 0)
    assert "1 of 1 ratios agree" in report(found, 0.2)
    found = compare([replace(row, ratio_high=1.5) for row in now], before, 0.2)
    assert (found.ratios, found.agree, found.exit_code) == (1, 0, 1)


def test_cases_are_looked_at_again_after_all_others():
    once, twice = Case("rollout", 24, 1, 4, "grown"), Case("rollout", 24, 1, 5, "grown", looks=2)
    assert list(schedule([twice, once])) == [(0, twice), (0, once), (1, twice)]


def test_looks_are_one_result(tmp_path, bench, monkeypatch, capsys):
    case = Case("rollout", 24, 1, 4, "grown", looks=3)
    monkeypatch.setattr(run, "_set_up", lambda options, device: bench)
    monkeypatch.setattr(run, "CLAIMS", (case,))
    done = ["--claims", "--provider", "tutorial,torch,triton-ieee", "--device", "cpu"]
    assert run.main([*done, "--no-figures", "--csv", str(tmp_path / "a.csv")]) == 0
    tutorial, torch_row, skipped = read_csv(tmp_path / "a.csv")
    assert skipped.status == SKIPPED
    for row in (tutorial, torch_row):
        assert row.status == OK
        assert row.rounds == 9
        assert row.seconds_low <= row.seconds <= row.seconds_high


@pytest.mark.parametrize(
    ("provider", "status", "seconds", "again"),
    [
        ("torch", OK, 0.1, True),
        ("torch", OK, run.SLOW, False),
        ("tutorial", OK, 2 * run.SLOW, True),
        ("torch", FAILED, None, False),
        ("tutorial", WRONG, None, False),
    ],
)
def test_who_is_looked_at_again(provider, status, seconds, again):
    row = Row("rollout", 24, 1, 4, "grown", provider, status, seconds=seconds)
    assert run._comes_again(row) is again


def test_command_line_compares_and_writes(tmp_path, bench, monkeypatch, capsys):
    monkeypatch.setattr(run, "_set_up", lambda options, device: bench)
    case = ["--case", "rollout:24:1:4:grown", "--provider", "tutorial,torch,triton-ieee"]
    case += ["--device", "cpu", "--no-figures", "--csv", str(tmp_path / "now.csv")]
    assert run.main(case) == 0
    rows = read_csv(tmp_path / "now.csv")
    assert [row.status for row in rows] == [OK, OK, SKIPPED]
    assert "triton-ieee is skipped in every case" in capsys.readouterr().out
    rows = [replace(row, ratio=2.0, ratio_low=1.9, ratio_high=2.1) for row in rows]
    fast, slow = ([scaled(row, factor) for row in rows] for factor in (100, 0.01))
    write_csv(tmp_path / "fast.csv", fast)
    write_csv(tmp_path / "slow.csv", slow)
    reference_of = ["--tolerance", "0.5", "--reference-csv"]
    measured = {row.provider: row for row in rows}  # what a busy machine measures varies widely

    def measure_again(bench, case, providers, *_):
        return [measured[provider.name] for provider in providers]

    monkeypatch.setattr(run, "measure_case", measure_again)
    assert run.main([*case, *reference_of, str(tmp_path / "fast.csv")]) == 1
    assert "regression beyond 50%" in capsys.readouterr().out
    assert run.main([*case, *reference_of, str(tmp_path / "slow.csv")]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--case", "rollout:64:4:80"],
        ["--case", "jump:64:4:80:grown"],
        ["--case", "step:64:4:80:grown"],
        ["--case", "rollout:0:4:80:grown"],
        ["--provider", "tutorial,nobody"],
        ["--reference-csv", "no-such-file.csv"],
        ["--tolerance", "1.5"],
        ["--seconds", "0"],
        ["--quick", "--claims"],
    ],
    ids=" ".join,
)
def test_bad_arguments_are_a_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(arguments)
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("python -m bench run: error: ")


def test_short_lists_are_part_of_the_full_one():
    full = {str(case) for case in FULL}
    assert {str(case) for case in (*QUICK, *CLAIMS)} <= full
    assert len(full) == len(FULL)
    assert {case.mode for case in FULL} >= {"step", "training", "inference", "rollout"}
    everything = FULL + LARGE
    for field, least, most in (("size", 16, 1024), ("batch", 1, 1024), ("steps", 1, 96)):
        values = {getattr(case, field) for case in everything}
        assert min(values) == least
        assert max(values) >= most


@pytest.mark.long
def test_benchmarks_run_only_when_asked_for():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q"]
    done = subprocess.run(
        [*command, "bench", "--benchmark-only"],
        cwd=pages.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "bench/test_micro.py::test_rollout_with_gradient" in done.stdout
