"""`fastnca export`: write a saved model for other programs."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from fastnca.exporting import export_html
from fastnca.module import NeuralCA
from fastnca.storage.atomic import write_atomically

Writer = Callable[[NeuralCA, Path, Namespace], bytes]
"""Makes the content of a file: of the model, the file's name and the arguments."""


def page(model: NeuralCA, out: Path, arguments: Namespace) -> bytes:
    """Make the page; the model says its own grid unless the user does."""
    title = arguments.title or title_of(arguments.model)
    return export_html(model, title=title, size=arguments.size).encode()


WRITERS: dict[str, Writer] = {"html": page}
"""What can be written, by the name of its option."""


def add_outputs(parser: ArgumentParser) -> None:
    """Add the options that say what is written."""
    help_text = "one page in which the model grows and can be damaged"
    parser.add_argument("--html", type=Path, metavar="FILE", help=help_text)
    parser.add_argument("--title", help="heading of the page (the name of the run)")


def export(arguments: Namespace) -> int:
    """Write what was asked for."""
    wanted = {name: getattr(arguments, name) for name in WRITERS}
    if not any(wanted.values()):
        options = " or ".join(f"--{name} FILE" for name in WRITERS)
        raise ValueError(f"nothing to write; say what with {options}")
    outs = {name: path for name, path in wanted.items() if path is not None}
    for path in outs.values():
        if not path.parent.is_dir() or path.is_dir():
            raise ValueError(f"{path}: no file can be written there")
    model = load(arguments.model)
    contents = {name: WRITERS[name](model, path, arguments) for name, path in outs.items()}
    for name, path in outs.items():
        write_atomically(path, contents[name])
        print(f"{path}: {len(contents[name]):,} bytes")
    return 0


def load(path: Path) -> NeuralCA:
    """Read a model, and say so if it cannot grow."""
    model = NeuralCA.load(path)
    if not any(parameter.any() for parameter in model.update_net[-1].parameters()):
        print(
            f"fastnca: {path}: nothing can grow, because the last layer is zero, as in every "
            "untrained model; train it first",
            file=sys.stderr,
        )
    return model


def title_of(model: Path) -> str:
    """Return the heading of a page: the name of the run."""
    path = model.resolve()
    return path.name if path.is_dir() else path.stem
