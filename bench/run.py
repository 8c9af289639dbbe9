"""Measure how fast, how much memory, how close to the limit, and at which sizes not.

    python -m bench run                      every case, about half an hour on two cores
    python -m bench run --quick              a look at everything, less than three minutes
    python -m bench run --claims             training and pictures at the tutorial's size
    python -m bench run --case rollout+backward:64:4:80:grown --provider tutorial,torch

Writes a CSV with a row per case and provider, and figures beside it. With `--reference-csv` it
compares its ratios with earlier ones. The exit status is 1 after a regression, a wrong result or an
error of a provider, 2 after a bad argument.
"""

import argparse
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from bench.cases import CLAIMS, FULL, LARGE, QUICK, Case, schedule
from bench.compare import compare, report
from bench.grown import load_grown
from bench.machine import describe, keep_freed_memory, measure_ceilings
from bench.measure import Bench, measure_case
from bench.providers import BASELINE, PROVIDERS, Provider
from bench.results import FAILED, OK, WRONG, Row, read_csv, write_csv
from bench.table import HEADER, growth_lines, line
from bench.timing import Clock, Times

OUTPUT = Path("runs/bench/results.csv")
SLOW = 5.0
"""Seconds of a run, beyond which a provider is looked at once."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    listed = "\n".join(f"  {p.name:<15} {p.what}" for p in PROVIDERS.values())
    parser = argparse.ArgumentParser(
        prog="python -m bench run",
        description=__doc__,
        epilog=f"providers:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="a look at everything")
    which.add_argument("--claims", action="store_true", help="the tutorial's size only")
    which.add_argument(
        "--case",
        type=_case,
        action="append",
        metavar="MODE:SIZE:BATCH:STEPS:STATE",
        help="one case; may be repeated",
    )
    parser.add_argument("--provider", type=_providers, help="names, with commas between them")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="CUDA if there is a GPU")
    parser.add_argument("--csv", type=Path, default=OUTPUT, help=f"default: {OUTPUT}")
    parser.add_argument("--seconds", type=_positive, help="time for the rounds of a case")
    parser.add_argument(
        "--longest", type=_positive, default=15.0, help="leave out what takes more seconds a run"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--no-figures", action="store_true", help="draw nothing")
    parser.add_argument("--reference-csv", type=Path, help="compare ratios with this file's")
    parser.add_argument(
        "--tolerance", type=_share, default=0.3, help="how far a ratio may fall, as a share"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return the exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    cuda = torch.cuda.is_available()
    if options.device == "cuda" and not cuda:
        parser.error("--device cuda was asked for, and torch finds no CUDA GPU")
    reference: list[Row] = []
    if options.reference_csv is not None:
        try:
            reference = read_csv(options.reference_csv)
        except (OSError, ValueError) as error:
            parser.error(f"--reference-csv: {error}")
    device = torch.device(options.device or ("cuda" if cuda else "cpu"))
    cases = choose_cases(options, device)
    bench = _set_up(options, device)
    refusals = {p.name: p.refusal(device) for p in options.provider or PROVIDERS.values()}
    for name, reason in refusals.items():
        if reason is not None:
            print(f"{name} is skipped in every case: {reason}")
    found: dict[tuple[str, str], Row] = {}
    print(HEADER)
    for times, case, providers in _visit(options, cases, found):
        memory = bench.memory and not times
        for row in measure_case(replace(bench, memory=memory), case, providers, times):
            before = found.get(row.key, row)
            row = replace(
                row,
                memory_mib=before.memory_mib,
                memory_ratio=before.memory_ratio,
                reason=row.reason or before.reason,
            )
            found[row.key] = row
            if refusals[row.provider] is None:
                print(line(row), flush=True)
        write_csv(options.csv, found.values())  # after every case, so that nothing is lost
    rows = list(found.values())
    for text in growth_lines(rows):
        print(text)
    print(f"written: {options.csv}")
    if not options.no_figures:
        _draw(options.csv)
    return _judge(rows, reference, options)


def _visit(
    options: argparse.Namespace, cases: tuple[Case, ...], found: dict[tuple[str, str], Row]
) -> Iterator[tuple[dict[str, Times], Case, list[Provider]]]:
    """Yield every look at every case, the times of its earlier looks, and who takes part.

    Who failed in one look does not come again, nor does who took longer than `SLOW`.
    """
    times: dict[str, dict[str, Times]] = {str(case): {} for case in cases}
    for look, case in schedule(cases):
        providers = choose_providers(options.provider, case)
        if look > 0:
            providers = [p for p in providers if _comes_again(found[str(case), p.name])]
        yield times[str(case)], case, providers


def _comes_again(row: Row) -> bool:
    """Tell whether a provider takes part in another look; the ratios need the baseline."""
    fast = row.seconds is not None and row.seconds < SLOW
    return row.status == OK and (fast or row.provider == BASELINE)


def choose_cases(options: argparse.Namespace, device: torch.device) -> tuple[Case, ...]:
    """Return the cases that were asked for."""
    if options.case:
        return tuple(options.case)
    if options.quick:
        return QUICK
    if options.claims:
        return CLAIMS
    return FULL + LARGE if device.type == "cuda" else FULL


def choose_providers(asked: list[Provider] | None, case: Case) -> list[Provider]:
    """Return who takes part in a case: who was asked for, else all whose turn it is."""
    if asked is not None:
        return asked
    return [p for p in PROVIDERS.values() if case.compiled or not p.compiles]


def _set_up(options: argparse.Namespace, device: torch.device) -> Bench:
    """Prepare what all cases share, and print where they run."""
    tuned = keep_freed_memory()
    grown = load_grown()
    machine, ceilings = describe(device, tuned), measure_ceilings(device)
    print(
        f"{machine.machine}, {machine.threads} threads, {machine.malloc} malloc; torch "
        f"{machine.torch}, Python {machine.python}, fastnca {machine.fastnca} at {machine.commit}\n"
        f"measured ceilings: copy {ceilings.copy_bytes / 1e9:.0f} GB/s, matrix product "
        f"{ceilings.matrix_flop / 1e9:.0f} GFLOP/s"
    )
    seconds = options.seconds or (1.0 if options.quick else 3.0)
    memory = not options.no_memory
    return Bench(device, grown, machine, ceilings, Clock(device), seconds, options.longest, memory)


def _judge(rows: list[Row], reference: list[Row], options: argparse.Namespace) -> int:
    """Print the comparison and what is wrong; return the exit status."""
    wrong = [row for row in rows if row.status in (WRONG, FAILED)]
    for row in wrong:
        print(f"{row.status}: {row.case} {row.provider}: {row.reason}")
    status = 1 if wrong else 0
    if options.reference_csv is not None:
        comparison = compare(rows, reference, options.tolerance)
        print(report(comparison, options.tolerance))
        status = max(status, comparison.exit_code)
    return status


def _draw(path: Path) -> None:
    """Draw the figures beside the CSV, if there is something to draw with."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no figures: matplotlib is not installed")
        return
    from bench.plot import draw

    for figure in draw(path, path.parent):
        print(f"written: {figure}")


def _case(text: str) -> Case:
    try:
        return Case.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _providers(text: str) -> list[Provider]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PROVIDERS]:
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(unknown)}; there are {', '.join(PROVIDERS)}"
        )
    return [PROVIDERS[name] for name in names]


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a share in [0, 1), got {text}")
    return value
