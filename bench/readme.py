"""Write the README's tables and pictures from the committed results.

    python -m bench.readme            rewrites the part between the markers, and the pictures
    python -m bench.readme --check    only tells whether they agree; exit status 1 if not

A test does what `--check` does.
"""

import argparse
import sys
from pathlib import Path

from bench import sections
from bench.gpu.results import PREFIX
from bench.gpu.results import Row as GpuRow
from bench.machine import ROOT
from bench.plot import digest, draw, drawn_from
from bench.quality import Result
from bench.results import Row, read_csv

README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
KERNELS = ROOT / "kernels" / "README.md"
BEGIN, END = "<!-- bench.readme begins -->\n", "<!-- bench.readme ends -->\n"
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
    """Return the generated part of the README.

    Args:
        tables: the rows of each results file.
        quality: results of `bench.quality`.
        gpus: the rows of each file of `bench.gpu.results`.
        kernels: text of the kernels' README.
    """
    parts = []
    for path, rows in tables.items():
        parts += [
            sections.where(rows, str(path.relative_to(ROOT))),
            sections.speed(rows),
            sections.memory(rows),
        ]
        parts += [_pictures(path), sections.powers_of_growth(rows), sections.without_gain(rows)]
    parts.append(sections.time_to_quality(quality))
    parts += [sections.gpu(rows, str(path.relative_to(ROOT))) for path, rows in gpus.items()]
    if not gpus:
        parts.append(_NO_GPU)
    parts.append(sections.compiled_kernels(kernels))
    return "\n\n".join(part for part in parts if part) + "\n"


_NO_GPU = """\
On an H200 a training iteration takes 2.8 ms at batch 8, 25 times less than the tutorial's class
(70 ms), and 12.6 ms at batch 64, 8 times less. These were single measurements of kernels that have
passed their tests there since; see [docs/gpu.md](docs/gpu.md)."""


def updated(text: str, generated: str) -> str:
    """Return the README's `text` with another generated part.

    Raises:
        ValueError: the markers are missing.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README.md must have one {BEGIN.strip()} and one {END.strip()}")
    head, rest = text.split(BEGIN)
    return head + BEGIN + "\n" + generated + "\n" + END + rest.split(END)[1]


def disagreements() -> list[str]:
    """Return what in the README and its pictures does not follow from the committed results."""
    found = []
    text = README.read_text()
    if text != updated(text, _from_files()):
        found.append("README.md is not what the results give")
    for path in results_files():
        for picture in _picture_files(path).values():
            if not picture.exists():
                found.append(f"{picture.name} is missing")
            elif drawn_from(picture) != digest(path):
                found.append(f"{picture.name} was drawn from other results")
    return found


def results_files() -> list[Path]:
    """Return the committed results of `bench.run`, one file per machine."""
    paths = sorted(RESULTS.glob("*.csv"))
    others = "-quality", "-recipes", "-rules", "-textures"
    return [p for p in paths if not p.stem.endswith(others) and not p.stem.startswith(PREFIX)]


def _from_files() -> str:
    """Render what is committed."""
    tables = {path: read_csv(path) for path in results_files()}
    quality = [
        run for path in sorted(RESULTS.glob("*-quality.csv")) for run in read_csv(path, Result)
    ]
    gpus = {path: read_csv(path, GpuRow) for path in sorted(RESULTS.glob(f"{PREFIX}*.csv"))}
    return render(tables, quality, gpus, KERNELS.read_text())


def write_text() -> None:
    """Write the README's generated part; the pictures stay as they are."""
    README.write_text(updated(README.read_text(), _from_files()))
    print("written: README.md")


def _picture_files(path: Path) -> dict[str, Path]:
    return {name: path.with_name(f"{path.stem}-{name}.png") for name in PICTURES}


def _pictures(path: Path) -> str:
    return "\n\n".join(
        f"![{PICTURES[name]}]({picture.relative_to(ROOT)})"
        for name, picture in _picture_files(path).items()
    )


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        found = disagreements()
        print("\n".join(found) or "README.md and its pictures agree with the results")
        return 1 if found else 0
    for path in results_files():
        for picture in draw(path, path.parent):
            print(f"written: {picture.relative_to(ROOT)}")
    write_text()
    return 0


if __name__ == "__main__":
    sys.exit(main())
