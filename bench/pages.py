"""Write the tables and pictures of README.md and docs/performance.md from the committed results.

    python -m bench pages            rewrites the parts between the markers, and the pictures
    python -m bench pages --check    only tells whether they agree; exit status 1 if not

A test does what `--check` does.
"""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from bench import sections
from bench.gpu.results import PREFIX
from bench.gpu.results import Row as GpuRow
from bench.machine import ROOT
from bench.plot import digest, draw, drawn_from
from bench.quality.table import time_to_quality
from bench.quality.time_to_quality import Result
from bench.results import Row, read_csv

README = ROOT / "README.md"
PERFORMANCE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results"
KERNELS = ROOT / "kernels" / "README.md"
BEGIN, END = "<!-- generated part begins -->\n", "<!-- generated part ends -->\n"
PICTURES = {
    "speedup": "Speed-up of each provider over the tutorial's class",
    "scaling": "Time against cells, batch and steps",
    "memory": "Extra peak memory against steps, and by case",
}


def render(
    tables: dict[Path, list[Row]],
    quality: list[Result],
    gpus: dict[Path, list[GpuRow]],
    kernels: str,
) -> str:
    """Return the generated part of docs/performance.md.

    Args:
        tables: the rows of each results file.
        quality: results of `python -m bench quality`.
        gpus: the rows of each file of `python -m bench gpu-results`.
        kernels: text of the kernels' README.
    """
    parts = []
    for path, rows in tables.items():
        parts += [
            sections.where(rows, str(path.relative_to(ROOT))),
            sections.speed(rows),
            sections.memory(rows),
            sections.textures(rows),
        ]
        parts += [_picture(path, name, PERFORMANCE.parent) for name in PICTURES]
        parts += [sections.powers_of_growth(rows), sections.without_gain(rows)]
    parts.append(time_to_quality(quality))
    parts += [sections.gpu(rows, str(path.relative_to(ROOT))) for path, rows in gpus.items()]
    if not gpus:
        parts.append(_NO_GPU)
    parts.append(sections.compiled_kernels(kernels))
    return "\n\n".join(part for part in parts if part) + "\n"


_NO_GPU = """\
On an H200 a training iteration takes 2.8 ms at batch 8, 25 times less than the tutorial's class
(70 ms), and 12.6 ms at batch 64, 8 times less. These were single measurements of kernels that have
passed their tests there since; see [GPU](gpu.md)."""


def updated(path: Path, generated: str) -> str:
    """Return the text of a page with another generated part.

    Raises:
        ValueError: the markers are missing.
    """
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path.name} must have one {BEGIN.strip()} and one {END.strip()}")
    head, rest = text.split(BEGIN)
    return head + BEGIN + "\n" + generated + "\n" + END + rest.split(END)[1]


def disagreements() -> list[str]:
    """Return what in the pages and pictures does not follow from the committed results."""
    found = []
    for path, generated in _from_files().items():
        if path.read_text() != updated(path, generated):
            found.append(f"{path.name} is not what the results give")
    opening = " ".join(README.read_text().split("\n## ")[0].split())
    for path in results_files():
        if (claim := sections.headline(read_csv(path))) not in opening:
            found.append(f"README.md does not open with: {claim}")
        for picture in _picture_files(path).values():
            if not picture.exists():
                found.append(f"{picture.name} is missing")
            elif drawn_from(picture) != digest(path):
                found.append(f"{picture.name} was drawn from other results")
    return found


def results_files() -> list[Path]:
    """Return the committed results of `python -m bench run`, one file per machine."""
    paths = sorted(RESULTS.glob("*.csv"))
    others = "-quality", "-recipes", "-textures"
    return [p for p in paths if not p.stem.endswith(others) and not p.stem.startswith(PREFIX)]


def refuse_modified(rows: Iterable[Row | Result | GpuRow]) -> None:
    """Refuse to publish what cannot be measured again.

    Raises:
        ValueError: a row comes from a tree with uncommitted changes, or from no known commit.
    """
    for commit in {row.commit for row in rows}:
        if commit.endswith("+") or commit in ("", "unknown"):
            raise ValueError(
                f"results of commit {commit or 'unknown'!r} are not published: measure a clean "
                "checkout, without uncommitted changes"
            )


def _from_files() -> dict[Path, str]:
    """Render what is committed: the generated part of each page."""
    tables = {path: read_csv(path) for path in results_files()}
    quality = [
        run for path in sorted(RESULTS.glob("*-quality.csv")) for run in read_csv(path, Result)
    ]
    gpus = {path: read_csv(path, GpuRow) for path in sorted(RESULTS.glob(f"{PREFIX}*.csv"))}
    for rows in (*tables.values(), quality, *gpus.values()):
        refuse_modified(rows)
    short = [
        f"{sections.short(rows)}\n\n{_picture(path, 'speedup', ROOT)}"
        for path, rows in tables.items()
    ]
    return {
        README: "\n\n".join(short) + "\n",
        PERFORMANCE: render(tables, quality, gpus, KERNELS.read_text()),
    }


def write_text() -> None:
    """Write the generated parts; the pictures stay as they are."""
    for path, generated in _from_files().items():
        path.write_text(updated(path, generated))
        print(f"written: {path.name}")


def _picture_files(path: Path) -> dict[str, Path]:
    return {name: path.with_name(f"{path.stem}-{name}.png") for name in PICTURES}


def _picture(path: Path, name: str, folder: Path) -> str:
    """Return the link to a picture from a page in `folder`."""
    return f"![{PICTURES[name]}]({os.path.relpath(_picture_files(path)[name], folder)})"


def main(arguments: list[str] | None = None) -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(
        prog="python -m bench pages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true")
    if parser.parse_args(arguments).check:
        found = disagreements()
        print("\n".join(found) or "pages and pictures agree with the results")
        return 1 if found else 0
    _from_files()  # refuses before anything is written
    for path in results_files():
        for picture in draw(path, path.parent):
            print(f"written: {picture.relative_to(ROOT)}")
    write_text()
    return 0
