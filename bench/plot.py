"""Draw the figures of a results file: speed-up, scaling, memory.

Each picture carries the SHA-256 of the CSV it was drawn from.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from bench.cases import CLAIMS
from bench.markdown import times
from bench.providers import BASELINE, PROVIDERS
from bench.results import OK, Row, read_csv
from bench.table import SWEEPS, amount, growth, sweep

COLORS = {
    "tutorial": "#4d4d4d",
    "compile": "#b07aa1",
    "compile-graphs": "#d4a6c8",
    "cpp": "#17806d",
    "cpp-steps": "#7fc7b8",
    "torch": "#1f77b4",
    "torch-steps": "#8ab8de",
    "triton-fp16": "#d62728",
    "triton-bf16": "#ff9896",
    "triton-ieee": "#ff7f0e",
    "cax": "#2ca02c",
}
MARKERS = dict(zip(PROVIDERS, "os^DvP*Xhd<", strict=False))
MARK = "results-sha256"
_DPI = 130
_AXES = {
    "cells": "cells (batch 1, 8 steps)",
    "batch": "batch (64x64 cells, 8 steps)",
    "steps": "steps (batch 4, 64x64 cells)",
}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def drawn_from(picture: Path) -> str:
    """Return the SHA-256 of the CSV that `picture` was drawn from; empty if it does not say."""
    with Image.open(picture) as image:
        return str(image.info.get(MARK, ""))


def draw(path: Path, folder: Path) -> list[Path]:
    """Draw the figures of results file `path` into `folder`; return those that have data."""
    rows = read_csv(path)
    drawers: dict[str, Callable[[list[Row]], Figure | None]] = {
        "speedup": draw_speedup,
        "scaling": draw_scaling,
        "memory": draw_memory,
    }
    written = []
    for name, drawer in drawers.items():
        figure = drawer(rows)
        if figure is not None:
            target = folder / f"{path.stem}-{name}.png"
            figure.savefig(target, dpi=_DPI, metadata={MARK: digest(path)})
            plt.close(figure)
            written.append(target)
    return written


def draw_speedup(rows: list[Row]) -> Figure | None:
    """Draw the ratio of every provider in the claims as bars with their spread, by mode."""
    claims = {str(case): case for case in CLAIMS}
    shown = [r for r in rows if r.case in claims and r.provider != BASELINE and r.ratio]
    if not shown:
        return None
    names = [name for name in PROVIDERS if any(row.provider == name for row in shown)]
    modes = [
        m for m in dict.fromkeys(case.mode for case in CLAIMS) if any(r.mode == m for r in shown)
    ]
    height = 1.7 + 0.16 * 3 * len(names)
    figure, panels = plt.subplots(
        1, len(modes), figsize=(12, height), layout="constrained", squeeze=False
    )
    for axes, mode in zip(panels[0], modes, strict=True):
        _draw_bars(axes, [row for row in shown if row.mode == mode], names)
        axes.set_title(mode.replace("+", " + "), fontsize=10)
    for name in names:
        panels[0][0].barh(0, 0, color=COLORS[name], label=PROVIDERS[name].what)
    how = "times as fast as the tutorial's class; 64x64 cells, batch 4, 80 steps"
    figure.suptitle(f"{how}; lines: lowest to highest round\n{heading(rows)}", fontsize=9)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=3)
    return figure


def _draw_bars(axes: Axes, rows: list[Row], names: list[str]) -> None:
    """Draw a group of bars for each state of one mode."""
    states = list(dict.fromkeys(row.state for row in rows))
    highest = max(row.ratio_high or 0 for row in rows)
    thickness = 0.84 / len(names)
    for row in rows:
        ratio, low, high = row.ratio or 0, row.ratio_low or 0, row.ratio_high or 0
        place = names.index(row.provider) - (len(names) - 1) / 2
        y = states.index(row.state) + place * thickness
        spread = [[max(ratio - low, 0)], [max(high - ratio, 0)]]
        axes.barh(y, ratio, thickness * 0.92, color=COLORS[row.provider])
        axes.errorbar(ratio, y, xerr=spread, color="black", capsize=2, lw=0.8)
        axes.text(max(ratio, high) + 0.02 * highest, y, times(ratio), va="center", fontsize=8)
    axes.axvline(1, color=COLORS[BASELINE], lw=1, ls="--")
    axes.set_yticks(range(len(states)), states, fontsize=9)
    axes.margins(y=0.02)
    axes.invert_yaxis()
    axes.set_xlim(0, highest * 1.12)
    axes.grid(axis="x", lw=0.3)
    axes.set_axisbelow(True)


def draw_scaling(rows: list[Row]) -> Figure | None:
    """Draw how the time of a rollout with gradient grows with cells, batch and steps."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 4.3), layout="constrained", sharey=True)
    drawn = False
    for axes, what in zip(panels, SWEEPS, strict=True):
        field, fixed = SWEEPS[what]
        for name in PROVIDERS:
            mode = "rollout+backward"
            chosen = sweep(rows, field, name, mode=mode, state="grown", **fixed)
            if len(chosen) > 1:
                drawn = True
                _draw_line(axes, chosen, what, name)
        axes.set_xscale("log", base=2)
        if what != "cells":
            _label_values(axes)
        axes.set_xlabel(_AXES[what])
        axes.set_yscale("log")
        axes.grid(which="major", lw=0.3)
        if axes.lines:
            axes.legend(fontsize=7, frameon=False, title=f"time ~ {what}^p", title_fontsize=7)
    panels[0].set_ylabel("rollout + backward, milliseconds")
    figure.suptitle(f"grown states; {heading(rows)}", fontsize=9)
    if not drawn:
        plt.close(figure)
        return None
    return figure


def _label_values(axes: Axes) -> None:
    """Put a tick at every x value of the lines, as a plain number."""
    values = sorted({float(x) for drawn in axes.lines for x in np.asarray(drawn.get_xdata())})
    apart = [x for x, after in zip(values, [*values[1:], 1e9], strict=False) if after > 1.3 * x]
    axes.set_xticks(apart, [f"{x:g}" for x in apart])
    axes.minorticks_off()


def _draw_line(axes: Axes, chosen: list[Row], what: str, name: str) -> None:
    """Draw one provider's times of a sweep with the spread of the rounds."""
    x = [amount(row, what) for row in chosen]
    middle = [1e3 * (row.seconds or 0) for row in chosen]
    low = [1e3 * (row.seconds_low or 0) for row in chosen]
    high = [1e3 * (row.seconds_high or 0) for row in chosen]
    power = growth(chosen, what)
    label = name if power is None else f"{name}, p = {power:.2f}"
    axes.plot(x, middle, color=COLORS[name], marker=MARKERS[name], ms=4, lw=1.3, label=label)
    axes.fill_between(x, low, high, color=COLORS[name], alpha=0.15, lw=0)


def draw_memory(rows: list[Row]) -> Figure | None:
    """Draw the extra peak memory: against steps, and in the cases of the claims."""
    field, fixed = SWEEPS["steps"]
    claims = {str(case): case for case in CLAIMS}
    weighed = [row for row in rows if row.status == OK and row.memory_mib]
    cases = [case for key, case in claims.items() if any(row.case == key for row in weighed)]
    names = [name for name in PROVIDERS if any(row.provider == name for row in weighed)]
    if not cases:
        return None
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 4.6), layout="constrained", width_ratios=(1, 2.4)
    )
    for name in names:
        chosen = sweep(weighed, field, name, mode="rollout+backward", state="grown", **fixed)
        if len(chosen) > 1:
            x = [row.steps for row in chosen]
            y = [row.memory_mib for row in chosen]
            left.plot(x, y, color=COLORS[name], marker=MARKERS[name], ms=4, lw=1.3)
    left.set_xlabel(_AXES["steps"])
    left.set_ylabel("extra peak memory of rollout + backward, MiB")
    left.set_xscale("log")
    left.set_yscale("log")
    _label_values(left)
    left.set_title("grown states", fontsize=9)
    left.grid(lw=0.3)
    thickness = 0.8 / len(names)
    for number, name in enumerate(names):
        places, values = [], []
        for place, case in enumerate(cases):
            for row in weighed:
                if row.key == (str(case), name) and row.memory_mib:
                    places.append(place + (number - (len(names) - 1) / 2) * thickness)
                    values.append(row.memory_mib)
        bars = right.bar(places, values, thickness * 0.92, color=COLORS[name], label=name)
        right.bar_label(
            bars, [f"{value:.0f}" for value in values], fontsize=6, rotation=90, padding=2
        )
    labels = [case.mode.replace("+", " +\n") + "\n" + case.state for case in cases]
    right.set_xticks(range(len(cases)), labels, fontsize=7)
    right.set_yscale("log")
    right.set_ylabel("extra peak memory, MiB")
    right.set_title("64x64 cells, batch 4, 80 steps", fontsize=9)
    right.grid(axis="y", lw=0.3)
    right.set_axisbelow(True)
    right.margins(y=0.12)
    figure.legend(loc="outside lower center", ncols=len(names), fontsize=8, frameon=False)
    figure.suptitle(heading(rows), fontsize=9)
    return figure


def heading(rows: list[Row]) -> str:
    """Say where the rows were measured."""
    row = rows[0]
    return f"{row.machine}, threads: {row.threads}; torch {row.torch}, commit {row.commit}"
