"""`fastnca export`: write a saved model for other programs."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from fastnca.commands.show import load_model
from fastnca.exporting import export_html
from fastnca.exporting.distill import export_distill, quantisation_loss
from fastnca.exporting.onnx import export_onnx
from fastnca.module import NeuralCA
from fastnca.pictures.render import trained_size
from fastnca.storage.atomic import write_atomically

Writer = Callable[[NeuralCA, Path, Namespace], bytes]
"""Makes the content of a file: of the model, the file's name and the arguments."""


def page(model: NeuralCA, out: Path, arguments: Namespace) -> bytes:
    """Make the page; the model says its own grid unless the user does."""
    title = arguments.title or title_of(arguments.model)
    return export_html(model, title=title, size=arguments.size).encode()


def distill(model: NeuralCA, out: Path, arguments: Namespace) -> bytes:
    """Make the 8-bit JSON, and say what 8 bits cost in growth."""
    content = export_distill(model)
    rate = float(model.metadata.get("update_rate", 0.5))
    size = arguments.size or trained_size(model)
    print(f"{out}: {quantisation_loss(model, size=size, update_rate=rate)}")
    return content


def onnx(model: NeuralCA, out: Path, arguments: Namespace) -> bytes:
    """Make the ONNX graph of a step."""
    try:
        return export_onnx(model)
    except ImportError as error:
        raise ValueError(f"{out}: {error}") from error


WRITERS: dict[str, Writer] = {"html": page, "distill": distill, "onnx": onnx}
"""What can be written, by the name of its option."""


def add_outputs(parser: ArgumentParser) -> None:
    """Add the options that say what is written."""
    help_text = "one page in which the model grows and can be damaged"
    parser.add_argument("--html", type=Path, metavar="FILE", help=help_text)
    parser.add_argument("--title", help="heading of the page (the name of the run)")
    help_text = "8-bit JSON, as the page of Growing Neural Cellular Automata reads it"
    parser.add_argument("--distill", type=Path, metavar="FILE", help=help_text)
    help_text = "one step, with the mask as an input"
    parser.add_argument("--onnx", type=Path, metavar="FILE", help=help_text)


def export(arguments: Namespace) -> int:
    """Write what was asked for."""
    wanted = {name: getattr(arguments, name) for name in WRITERS}
    if not any(wanted.values()):
        options = " or ".join(f"--{name} FILE" for name in WRITERS)
        raise ValueError(f"nothing to write: give {options}")
    outs = {name: path for name, path in wanted.items() if path is not None}
    for path in outs.values():
        if not path.parent.is_dir() or path.is_dir():
            raise ValueError(f"{path}: no file can be written there")
    model = load_model(arguments.model)
    contents = {name: WRITERS[name](model, path, arguments) for name, path in outs.items()}
    for name, path in outs.items():
        write_atomically(path, contents[name])
        print(f"{path}: {len(contents[name]):,} bytes")
    return 0


def title_of(model: Path) -> str:
    """Return the heading of a page: the name of the run."""
    path = model.resolve()
    return path.name if path.is_dir() else path.stem
