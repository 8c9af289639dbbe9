"""What checkpoints hold beside the trainer: state that decides what a run delivers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from fastnca.storage.bundle import Header, parse_tensors, read_limited
from fastnca.training.checkpoint import check_finite


class Companion(Protocol):
    """State that a checkpoint holds beside the trainer's own."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return tensors of finite numbers; names, shapes and dtypes are the same at any time."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `state_dict` returned, on the CPU."""

    def restart(self) -> None:
        """Start anew from the trainer as it is."""


class Companions:
    """The companions of a trainer."""

    def __init__(self) -> None:
        self._members: dict[str, Companion] = {}
        self._path = Path()  # of the checkpoint that was resumed from
        self._iteration = -1  # of that checkpoint
        self._saved: dict[str, bytes] = {}  # its files, by name

    def add(self, name: str, companion: Companion, iteration: int) -> None:
        """Save a companion in every checkpoint from now on.

        If the trainer has been resumed and has not gone on since, the companion takes over what
        the checkpoint holds under its name. Otherwise the next `resume` hands it over.

        Args:
            name: letters, digits and hyphens; a companion of the same name is replaced.
            companion: the companion.
            iteration: iterations that the trainer has done.

        Raises:
            FileFormatError: the checkpoint holds something else under that name.
        """
        self._members[name] = companion
        if iteration == self._iteration:
            self._load(name)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the content of each companion's file, by the name of the file.

        Raises:
            ValueError: a number is not finite.
        """
        states = {_file(name): each.state_dict() for name, each in self._members.items()}
        for state in states.values():
            check_finite(state)
        return states

    def restore(self, path: Path, header: Header) -> list[str]:
        """Hand over what checkpoint `path`, whose manifest is `header`, holds.

        Returns:
            A sentence for each companion that the checkpoint does not hold.

        Raises:
            FileFormatError: the checkpoint holds something else under the name of a companion.
        """
        names = [name for name in header["files"] if name.startswith(_PREFIX)]
        self._saved = {n: read_limited(path / n, (path / n).stat().st_size) for n in names}
        self._path, self._iteration = path, header["iteration"]
        return [
            f"{path} does not hold the state of {name}, which starts anew: the run may deliver "
            "another model than one that was not interrupted"
            for name in self._members
            if not self._load(name)
        ]

    def _load(self, name: str) -> bool:
        """Hand a companion the state that was read, or let it start anew; tell which."""
        companion, data = self._members[name], self._saved.get(_file(name))
        if data is None:
            companion.restart()
            return False
        expected = {n: (tuple(v.shape), v.dtype) for n, v in companion.state_dict().items()}
        companion.load_state_dict(parse_tensors(self._path / _file(name), data, expected))
        return True


_PREFIX = "companion-"


def _file(name: str) -> str:
    return f"{_PREFIX}{name}.safetensors"
