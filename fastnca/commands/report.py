"""`fastnca report`: measure a run and show it as one HTML page."""

import csv
import io
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastnca import __version__
from fastnca.commands.config_file import read_options
from fastnca.commands.result import loss_label, texture_grids
from fastnca.commands.sections import (
    growth_section,
    regeneration_section,
    stability_section,
    texture_sections,
)
from fastnca.commands.target import make_target
from fastnca.distributed import shard_bounds
from fastnca.module import NeuralCA
from fastnca.pictures import choose_rows, encode_mosaic, plot_loss
from fastnca.pictures.render import seed_of, trained_size, visible
from fastnca.report import (
    Picture,
    Section,
    measure_recovery,
    measure_stability,
    measure_texture,
    write_page,
)
from fastnca.report.measure import advance
from fastnca.states import get_visible_state
from fastnca.storage.atomic import write_atomically
from fastnca.storage.bundle import FileFormatError, read_field, read_size
from fastnca.storage.checkpoints import MANIFEST, newest_intact
from fastnca.storage.tensors import read_rows
from fastnca.storage.training_state import shard_name

_MAX_COUNT = 2**53
_OWN_STEPS = 200
_NEEDED = {
    "target": str,
    "size": int | list,
    "target_padding": int | None,
    "update_rate": int | float,
}
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def report(arguments: Namespace) -> int:
    """Measure a run and write the page."""
    run: Path = arguments.run_directory
    trained = (run / "run.toml").is_file() or not (run / "config.json").is_file()
    options = _read_options(run) if trained else {}
    out: Path = arguments.out or run / "report.html"
    if not out.parent.is_dir() or out.is_dir():
        raise ValueError(f"{out}: no file can be written there")
    model = NeuralCA.load(_model_path(run), backend=arguments.backend)
    options = options or _describe(model)
    texture, size = options.get("loss") == "texture", options["size"]
    if trained:
        where = options.get("target_size") or size, options.get("target_padding")
        target = make_target(options["target"], *where, "cpu", texture)
        target = target.to(next(model.parameters()).dtype)
    else:
        target = _own_picture(model, size, options["update_rate"])
    print(f"measuring {max(arguments.steps)} steps of {arguments.runs} rollouts ...", flush=True)
    measured = {"runs": arguments.runs, "update_rate": options["update_rate"]}
    if texture:
        seeds = texture_grids(model, target)
        quality = measure_texture(model, seeds, target, arguments.steps, **measured)
        sections = texture_sections(model, seed_of(model, size), target, quality, arguments.runs)
    else:
        seed_state = seed_of(model, size)
        stability = measure_stability(model, seed_state, target, arguments.steps, **measured)
        recovery = measure_recovery(model, seed_state, target, **measured)
        sections = [
            growth_section(model, seed_state, target),
            regeneration_section(model, recovery, arguments.runs),
            stability_section(stability, arguments.runs),
        ]
    if trained:
        label = loss_label(str(options.get("loss", "rgba")))
        *shown, last = sections
        sections = [_loss_section(run, label), *shown, _pool_section(run, model), last]
    page = write_page(f"fastnca: {run.resolve().name}", list(_facts(model, options)), sections)
    write_atomically(out, page.encode())
    print(out)
    return 0


def _read_options(run: Path) -> dict[str, Any]:
    """Read the options that `fastnca train` saved; "size" is `(height, width)`.

    Raises:
        FileFormatError: the file is damaged or incomplete.
        FileNotFoundError: it is missing.
    """
    path = run / "run.toml"
    if not path.is_file():
        raise FileNotFoundError(f"{run}: no run of fastnca train here (run.toml is missing)")
    options = read_options(path)
    if wrong := [name for name, kind in _NEEDED.items() if not isinstance(options.get(name), kind)]:
        raise FileFormatError(path, f"options are missing or of a wrong type: {', '.join(wrong)}")
    try:
        return {**options, "size": read_size(options)}
    except ValueError as error:
        raise FileFormatError(path, str(error)) from error


def _describe(model: NeuralCA) -> dict[str, Any]:
    """Return what a run's options would say of a model that has no run, such as an imported one."""
    facts = model.metadata
    return {
        "target": f"its own picture after {_OWN_STEPS} steps",
        "size": trained_size(model),
        "update_rate": float(facts.get("update_rate", 0.5)),
        "loss": "texture" if facts.get("visible") == "texture" else "rgba",
    }


def _own_picture(model: NeuralCA, size: tuple[int, int], update_rate: float) -> Tensor:
    """Return what a model shows after `_OWN_STEPS` steps, `[1, 4, H, W]`."""
    state = advance(model, seed_of(model, size), 0, _OWN_STEPS, update_rate)
    return get_visible_state(visible(model, state))


def _model_path(run: Path) -> Path:
    """Return where the model is: in the run, or in its newest checkpoint if it goes on."""
    return run if (run / "config.json").is_file() else newest_intact(run)[0]


def _facts(model: NeuralCA, options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what stands at the top of the page."""
    height, width = options["size"]
    yield "target", f"{options['target']}, {height}x{width} cells"
    widths = " and ".join(map(str, model.rule.hidden)) or "no"
    yield "model", f"{model.num_channels} channels, {widths} hidden units"
    if set(model.rule.changed) - {"hidden"}:
        yield "rule", str(model.rule)
    if "iterations" in model.metadata:
        yield "weights", f"those that grew best, after iteration {model.metadata['iterations']}"
    for name in ("imported_from", "imported_format", "layout", "license"):
        if name in model.metadata:
            yield name.replace("_", " "), str(model.metadata[name])
    for name in ("preset", "pool_size", "batch_size", "learning_rate", "seed"):
        if name in options:
            yield name.replace("_", " "), str(options[name])
    yield "written by", f"fastnca {__version__}, torch {torch.__version__}"


def _loss_section(run: Path, label: str) -> Section:
    path = run / "metrics.csv"
    if not path.is_file():
        return Section("Loss", "The run has no metrics.csv.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
        losses = [float(row["loss"]) for row in rows]
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise FileFormatError(path, f"not the metrics of a run ({error})") from error
    if not losses:
        return Section("Loss", "No iteration is done.")
    skipped = sum(row.get("skipped") == "1" for row in rows)
    figure = plot_loss(losses, title="", label=label)
    figure.set_size_inches(6.4, 4.0)  # letters can be read on a small screen
    drawing = io.BytesIO()
    figure.savefig(drawing, format="png", dpi=140)
    text = f"{len(losses):,} iterations, {skipped} of them skipped for numbers that are not finite."
    return Section("Loss", text, [Picture(drawing.getvalue(), "loss of every iteration", True)])


def _pool_section(run: Path, model: NeuralCA) -> Section:
    """Show states of the pool in the newest intact checkpoint."""
    try:
        path, header, _ = newest_intact(run)
    except (FileNotFoundError, FileFormatError) as error:
        return Section(
            "Pool", f"The pool is in the checkpoints, and there is none to read: {error}."
        )
    try:
        config, iteration = dict(header["config"]), read_field(header, "iteration", 0, _MAX_COUNT)
        total = read_field(config, "pool_size", 1, _MAX_COUNT) if config["use_pool"] else 0
        processes = read_field(header, "processes", 1, total) if total else 1
        dtype = torch.float16 if config["half_pool"] else _DTYPES[header["dtype"]]
        channels = read_field(header, "num_channels", 1, 1024)
        state = torch.empty(1, channels, *read_size(header), dtype=dtype)
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(path / MANIFEST, f"a field is wrong ({error})") from error
    if not total:
        return Section("Pool", "The run has none: every rollout began at the seed.")
    shown = []
    for row in choose_rows(total).tolist():
        rank = ((row + 1) * processes - 1) // total  # the inverse of `shard_bounds`
        file = path / shard_name(rank, processes)
        read_rows(file, "pool", row - shard_bounds(total, rank, processes)[0], state)
        shown.append(state.clone())
    text = f"{len(shown)} of {total:,} states after {iteration:,} iterations."
    picture = Picture(encode_mosaic(visible(model, torch.cat(shown).float())), "states of the pool")
    return Section("Pool", text, [picture])
