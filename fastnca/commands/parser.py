"""Arguments of the command line, and its errors: one sentence, and an exit code.

Exit codes: 0 done, 1 refused or failed, 2 wrong arguments, 3 training diverged, or its model
does not grow, 4 out of memory, 5 the seed died or states exploded and repairs did not help, 130
Ctrl-C, 143 SIGTERM.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastnca import __version__
from fastnca.backends import BackendError, backend_names
from fastnca.commands.config_file import expand_config
from fastnca.commands.values import (
    CELLS,
    as_count,
    as_device,
    as_length,
    as_port,
    as_positive,
    as_size,
)
from fastnca.memory import MemoryLimitError, is_out_of_memory
from fastnca.storage import FileFormatError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; `argv` is the process's arguments if None. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = _parse(words)
        return int(arguments.run(arguments))
    except (BackendError, FileFormatError, OSError, TypeError, ValueError) as error:
        print(f"fastnca: {_sentence(error)}", file=sys.stderr)
        return 1
    except MemoryLimitError as error:
        print(f"fastnca: {error}", file=sys.stderr)
        return 4
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fault = str(error).splitlines()[0] if str(error) else "no more is known"
        print(f"fastnca: memory ran out ({fault}); use a smaller grid or model", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        return 130


def _sentence(error: Exception) -> str:
    """Say what went wrong, the file first where the system names one."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _parse(words: list[str]) -> argparse.Namespace:
    """Parse the command line, with the options of the file that --config names."""
    parser = _build_parser()
    if words[:1] == ["train"]:
        options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        _add_train(options)
        words = ["train", *expand_config(options, words[1:])]
    return parser.parse_args(words)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastnca", description="Train Neural Cellular Automata and look at what grows."
    )
    parser.add_argument("--version", action="version", version=f"fastnca {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        # an abbreviated --config would escape expand_config
        return commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)

    _add_train(command("train", "train a model and draw what it learned"))
    _add_import(command("import", "read a model that others trained, certified by growth"))
    _add_grow(command("grow", "draw a saved model growing from its seed"))
    _add_regenerate(command("regenerate", "draw its recovery from damage"))
    _add_report(command("report", "measure and show a run as one HTML page"))
    _add_export(command("export", "write a saved model for other programs"))
    _add_play(command("play", "grow and damage a saved model in the browser"))
    _add_life(command("life", "draw Conway's Game of Life"))
    _add_info(command("info", "print versions, devices and backends, or a model's rule"))
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    from fastnca.commands.recipe import add_recipe
    from fastnca.commands.rule import add_rule
    from fastnca.commands.train import train
    from fastnca.targets import TARGETS
    from fastnca.textures import TEXTURES

    names = ", ".join((*TARGETS, *TEXTURES))
    parser.set_defaults(run=train)
    parser.add_argument("--target", help=f"{names}, or a picture file (circle)")
    parser.add_argument("--size", type=as_size, help=f"{CELLS} (64)")
    text = "of a texture's picture, which may be larger than the grid (192)"
    parser.add_argument("--target-size", type=as_size, metavar="SIZE", help=text)
    parser.add_argument(
        "--target-padding",
        type=as_count,
        metavar="N",
        help="empty cells around a picture (an eighth of the shorter side)",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="options as TOML")
    parser.add_argument("--out", type=Path, help="directory of the run (runs/TARGET)")
    parser.add_argument("--force", action="store_true", help="overwrite a run in --out")
    parser.add_argument(
        "--init-from", type=Path, metavar="MODEL", help="a saved model whose weights come first"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        choices=("yes", "auto"),
        const="yes",
        help="continue the run in --out; auto: start one if there is none",
    )
    parser.add_argument(
        "--device", type=as_device, default=as_device("auto"), help="cpu, cuda, ..."
    )
    parser.add_argument(
        "--mosaic-interval",
        type=as_count,
        default=0,
        metavar="N",
        help="iterations between two pictures of the pool (none)",
    )
    parser.add_argument(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="write for TensorBoard, too",
    )
    parser.add_argument(
        "--timeout",
        type=as_length,
        default=600.0,
        metavar="SECONDS",
        help="several processes: how long one waits for another that no longer answers (600)",
    )
    _add_backend(parser)
    add_rule(parser, as_positive)
    add_recipe(parser, as_count)


def _add_import(parser: argparse.ArgumentParser) -> None:
    from fastnca.commands.import_model import import_model

    parser.set_defaults(run=import_model)
    kinds = (
        "Distill or TensorFlow JSON, checkpoint, torch, safetensors, Keras, ONNX, or a zip of it"
    )
    parser.add_argument("file", type=Path, metavar="FILE", help=kinds)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="directory of the model (models/NAME)"
    )
    parser.add_argument(
        "--layout",
        default="auto",
        help="auto, interleaved, blocks, or blocks:identity,sobel_y,sobel_x (auto)",
    )
    parser.add_argument("--model", metavar="NAME", help="of a file with several: name or number")
    parser.add_argument("--all", action="store_true", help="every model of the file, each in DIR")
    parser.add_argument("--license", metavar="TEXT", help="note that is saved with the model")
    parser.add_argument("--force", action="store_true", help="overwrite a model in --out")


def _add_grow(parser: argparse.ArgumentParser) -> None:
    from fastnca.commands.show import GROW_STEPS, grow

    parser.set_defaults(run=grow)
    _add_model(parser)
    help_text = f"steps of the rollout ({GROW_STEPS})"
    parser.add_argument("--steps", type=as_count, default=GROW_STEPS, help=help_text)


def _add_regenerate(parser: argparse.ArgumentParser) -> None:
    from fastnca.commands.show import regenerate
    from fastnca.training.ema import DAMAGE_STEPS, HEALING_STEPS

    parser.set_defaults(run=regenerate)
    _add_model(parser)
    before, after = f"steps before the damage ({DAMAGE_STEPS})", f"steps after it ({HEALING_STEPS})"
    parser.add_argument("--grow-steps", type=as_count, default=DAMAGE_STEPS, help=before)
    parser.add_argument("--steps", type=as_count, default=HEALING_STEPS, help=after)
    kinds, text = ("rectangle", "disc"), "shape of what is set to zero (rectangle)"
    parser.add_argument("--damage", choices=kinds, default=kinds[0], help=text)
    box = ("TOP", "LEFT", "BOTTOM", "RIGHT")
    parser.add_argument("--box", type=int, nargs=4, metavar=box, help="of the rectangle, in cells")
    parser.add_argument("--center", type=float, nargs=2, metavar=("Y", "X"), help="of the disc")
    parser.add_argument("--radius", type=as_length, help="of the disc, in cells (shorter side / 5)")


def _add_report(parser: argparse.ArgumentParser) -> None:
    from fastnca.commands.report import report

    parser.set_defaults(run=report)
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="page to write (RUN/report.html)")
    parser.add_argument(
        "--steps",
        type=as_positive,
        nargs="+",
        default=[100, 1_000, 10_000],
        metavar="N",
        help="steps after which stability is measured (100 1000 10000)",
    )
    parser.add_argument("--runs", type=as_positive, default=4, help="rollouts measured (4)")
    _add_backend(parser)


def _add_export(parser: argparse.ArgumentParser) -> None:
    from fastnca.commands.export import add_outputs, export

    parser.set_defaults(run=export)
    _add_saved(parser)
    add_outputs(parser)


def _add_play(parser: argparse.ArgumentParser) -> None:
    from fastnca.commands.play import play

    parser.set_defaults(run=play)
    _add_saved(parser)
    parser.add_argument(
        "--port", type=as_port, default=0, help="of this machine (one that is free)"
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the address")


def _add_life(parser: argparse.ArgumentParser) -> None:
    from fastnca.commands.show import LIFE_PATTERNS, life

    parser.set_defaults(run=life)
    parser.add_argument(
        "--pattern",
        choices=list(LIFE_PATTERNS),
        default="glider",
        help="what it starts as (glider)",
    )
    parser.add_argument("--size", type=as_size, default=32, help=f"{CELLS} (32)")
    parser.add_argument("--steps", type=as_count, default=50, help="steps of the run (50)")
    _add_out(parser)


def _add_info(parser: argparse.ArgumentParser) -> None:
    from fastnca.commands.info import info

    parser.set_defaults(run=info)
    parser.add_argument(
        "model", type=Path, nargs="?", help="directory of a run, or a file with a state dict"
    )


def _add_saved(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="directory of a run, or a file with a state dict")
    parser.add_argument("--size", type=as_size, help=f"{CELLS} (as it was trained)")


def _add_model(parser: argparse.ArgumentParser) -> None:
    _add_saved(parser)
    parser.add_argument(
        "--synchronous",
        action="store_true",
        help="update every cell in every step (eval mode), instead of at random as in training",
    )
    _add_out(parser)
    _add_backend(parser)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, nargs="+", metavar="FILE", help="pictures to write, .png or .gif"
    )


def _add_backend(parser: argparse.ArgumentParser) -> None:
    text = "what computes rollouts; auto: the fastest that can (auto)"
    parser.add_argument("--backend", choices=backend_names(), default="auto", help=text)
