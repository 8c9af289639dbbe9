"""Measure one case: build, gate, warm up, time by turns, weigh memory; each failure is a row."""

from dataclasses import asdict, dataclass, replace
from functools import partial

import torch

from bench import gate
from bench.cases import Case
from bench.grown import Grown
from bench.machine import Ceilings, Machine, free_memory, give_freed_memory_back
from bench.memory import first_line, peak_in_fresh_process, peak_on_gpu
from bench.models import alive_shares, prepare
from bench.providers import BASELINE, Provider
from bench.results import FAILED, OK, SKIPPED, WRONG, Row
from bench.runners import Timed
from bench.timing import Clock, Times, interleave, ratios
from fastnca.memory import is_out_of_memory

_STEP_BYTES = 3000
"""Temporaries of one step of the tutorial's class per cell, an estimate on the high side."""

_FREE_SHARE = 0.8


@dataclass(frozen=True)
class Bench:
    """What all cases of a run share.

    Attributes:
        device: where the cases run.
        grown: the pool that states come from.
        machine: its description.
        ceilings: its measured rates.
        clock: of the device.
        seconds: time for the rounds of one case.
        longest: runs that would take the tutorial's class more seconds are left out.
        memory: whether memory is measured.
    """

    device: torch.device
    grown: Grown
    machine: Machine
    ceilings: Ceilings
    clock: Clock
    seconds: float
    longest: float
    memory: bool


def measure_case(
    bench: Bench, case: Case, providers: list[Provider], earlier: dict[str, Times] | None = None
) -> list[Row]:
    """Measure providers by turns in one case.

    Args:
        bench: what all cases share.
        case: what to measure.
        providers: who takes part.
        earlier: times of earlier looks at the case, by provider; those of this one are added.

    Returns:
        A row for each provider, in their order, from the rounds of all looks.
    """
    give_freed_memory_back()
    rows = {
        provider.name: Row(
            *(case.mode, case.size, case.batch, case.steps, case.state),
            provider.name,
            SKIPPED,
            refusal(bench, case, provider) or "",
            copy_gb_per_second=bench.ceilings.copy_bytes / 1e9,
            matrix_gflop_per_second=bench.ceilings.matrix_flop / 1e9,
            **asdict(bench.machine),
        )
        for provider in providers
    }
    able = [provider for provider in providers if not rows[provider.name].reason]
    times = _time(bench, case, able, rows) if able else {}
    if earlier is not None:
        for name, taken in times.items():
            times[name] = earlier[name].join(taken) if name in earlier else taken
        earlier.update(times)
    give_freed_memory_back()  # the fresh processes need it
    for name, taken in times.items():
        rows[name] = _fill(rows[name], case, bench.ceilings, taken, times.get(BASELINE))
        if bench.memory and bench.device.type == "cpu":
            mebibytes, reason = peak_in_fresh_process(case, name, bench.grown)
            rows[name] = replace(rows[name], memory_mib=mebibytes, reason=reason)
    baseline = rows[BASELINE].memory_mib if BASELINE in rows else None
    return [_with_memory_ratio(row, baseline) for row in rows.values()]


def _time(
    bench: Bench, case: Case, providers: list[Provider], rows: dict[str, Row]
) -> dict[str, Times]:
    """Build, gate and time `providers`; note in `rows` what came of each."""
    runs: dict[str, Timed] = {}
    firsts: dict[str, float] = {}
    try:
        model, state = prepare(case, bench.grown)
        state = state.to(bench.device)
        start, mean = alive_shares(case, state, model)
        for provider in providers:
            name = provider.name
            rows[name] = replace(rows[name], alive_start=start, alive_mean=mean)
            try:
                runner = provider.build(model, bench.device)
                wrong = gate.check(runner, case, state, model, provider.tolerance)
                if wrong is not None:
                    rows[name] = replace(rows[name], status=WRONG, reason=wrong)
                    continue
                timed = runner.timed(case, state)
                if bench.memory and bench.device.type == "cuda":
                    mebibytes, firsts[name] = peak_on_gpu(partial(bench.clock.measure, timed))
                    rows[name] = replace(rows[name], memory_mib=mebibytes)
                else:
                    firsts[name] = bench.clock.measure(timed)
                runs[name] = timed
            except Exception as error:
                expected = isinstance(error, NotImplementedError) or is_out_of_memory(error)
                status = SKIPPED if expected else FAILED
                rows[name] = replace(rows[name], status=status, reason=_sentence(error))
        times = interleave(bench.clock, runs, firsts, bench.seconds) if runs else {}
    except Exception as error:
        times = {}
        for provider in providers:
            if rows[provider.name].status not in (WRONG, FAILED):
                reason = rows[provider.name].reason or _sentence(error)
                rows[provider.name] = replace(rows[provider.name], reason=reason)
    for name in times:
        rows[name] = replace(rows[name], status=OK)
    return times


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def refusal(bench: Bench, case: Case, provider: Provider) -> str | None:
    """Say why `provider` is not even tried, or return None."""
    if reason := provider.refusal(bench.device):
        return reason
    kept = provider.kept_bytes * case.cell_steps if case.with_gradient else 0
    needed, free = kept + _STEP_BYTES * case.cells, free_memory(bench.device)
    if needed > _FREE_SHARE * free:
        return f"needs about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
    seconds = 3 * case.flop / bench.ceilings.matrix_flop
    if seconds > bench.longest:
        return f"a dense run takes about {seconds:.0f} s, and --longest is {bench.longest:g} s"
    return None


def _fill(row: Row, case: Case, ceilings: Ceilings, times: Times, baseline: Times | None) -> Row:
    """Put the times and what follows from them into a row."""
    ratio, low, high = ratios(baseline, times) if baseline else (None, None, None)
    seconds = times.median
    return replace(
        row,
        rounds=len(times.rounds),
        first_seconds=times.first,
        seconds=seconds,
        seconds_low=min(times.rounds),
        seconds_high=max(times.rounds),
        cell_steps_per_second=case.cell_steps / seconds,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        matrix_share=case.flop / seconds / ceilings.matrix_flop,
        copy_share=case.least_bytes / seconds / ceilings.copy_bytes,
    )


def _with_memory_ratio(row: Row, baseline: float | None) -> Row:
    if baseline is None or row.memory_mib is None or row.memory_mib <= 0:
        return row
    return replace(row, memory_ratio=baseline / row.memory_mib)
