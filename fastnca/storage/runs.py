"""The directory of a run: checkpoints that survive crashes, and one trainer at a time."""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import torch

from fastnca.distributed import Processes
from fastnca.storage.atomic import FileEntry, write_atomically, write_file
from fastnca.storage.bundle import FileFormatError, Header
from fastnca.storage.checkpoints import (
    checkpoint_path,
    clear_staging,
    hash_file,
    list_checkpoints,
    newest_intact,
    prune,
    publish,
    read_manifest,
    staging_path,
    verify,
)
from fastnca.storage.lock import lock_directory
from fastnca.storage.model import MODEL_FORMAT, describe_model, save_model
from fastnca.storage.tensors import encode_tensors
from fastnca.storage.training_state import (
    State,
    check_manifest,
    make_header,
    read_state,
    shard_name,
    shard_tensors,
    shared_tensors,
)

BEST = "best"
"""File that names the checkpoint with the lowest loss."""

_DIGEST = 32  # bytes of a SHA-256
_log = logging.getLogger("fastnca")


class Trainer(Protocol):
    """What a run directory saves and resumes."""

    model: Any

    def state_dict(self) -> State:
        """Return its state."""

    def load_state_dict(self, state_dict: State) -> None:
        """Continue from a state."""

    def check_facts(self, saved: Mapping[str, Any], where: str) -> None:
        """Refuse the manifest `where` of another run."""


class CheckpointError(OSError):
    """A checkpoint could not be written; those before it are untouched."""


@dataclass(frozen=True)
class Resumed:
    """From where a run goes on.

    Attributes:
        path: the checkpoint.
        notes: sentences that the user should read: what was skipped, what is not exact.
    """

    path: Path
    notes: list[str] = field(default_factory=list)

    def log(self) -> None:
        """Log the notes as warnings."""
        for note in self.notes:
            _log.warning(note)


class RunDirectory:
    """The checkpoints of one run.

    Args:
        path: the directory; made if missing.
        processes: those that train together, which all make this object; None for this one alone.

    Attributes:
        path: the directory.

    Raises:
        OSError: the directory cannot be made.
    """

    def __init__(self, path: str | PathLike[str], processes: Processes | None = None) -> None:
        self.path, self._processes = Path(path), processes or Processes()
        with self._processes.all_or_none():
            if self._processes.is_main:
                if self.path.is_file():
                    raise NotADirectoryError(f"{self.path} is a file; a run needs a directory")
                self.path.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other trainers out of the directory, and remove what killed ones left.

        Raises:
            DirectoryInUseError: another process trains in it.
            OSError: it cannot be written to.
        """
        with contextlib.ExitStack() as stack:
            with self._processes.all_or_none():
                if self._processes.is_main:
                    stack.enter_context(lock_directory(self.path))
                    clear_staging(self.path)
            yield

    def clear(self) -> None:
        """Remove every checkpoint, for a run that starts anew."""
        if self._processes.is_main:
            prune(self.path, 0, None)
            for name in ("latest", BEST):
                (self.path / name).unlink(missing_ok=True)

    def save(self, trainer: Trainer) -> Path:
        """Write a checkpoint; every process writes its part, the first one the rest.

        Returns:
            The checkpoint. One that is there and intact already, of the same run and iteration,
            is not written again.

        Raises:
            CheckpointError: it could not be written; the message says why.
            FileExistsError: the directory belongs to another run.
        """
        state = trainer.state_dict()
        target = checkpoint_path(self.path, state["iteration"])
        staging = staging_path(self.path, state["iteration"])
        if self._agree(lambda: self._is_there(state["run_id"], target)):
            return target
        try:
            with self._processes.all_or_none():
                if self._processes.is_main:
                    shutil.rmtree(staging, ignore_errors=True)
                    staging.mkdir()
            files = self._write_shards(state, staging)
            with self._processes.all_or_none():
                if self._processes.is_main:
                    self._finish(trainer.model, state, staging, files)
        except (OSError, ValueError) as error:
            if self._processes.is_main:
                shutil.rmtree(staging, ignore_errors=True)
            space = ""
            with contextlib.suppress(OSError):
                free = shutil.disk_usage(self.path).free / 2**30
                space = f"; {free:.3g} GiB free on that disk" if isinstance(error, OSError) else ""
            raise CheckpointError(f"{target}: not written ({error}){space}") from error
        return target

    def resume(self, trainer: Trainer) -> Resumed:
        """Continue from the newest intact checkpoint.

        Newer ones that are damaged are set aside under a name that begins with `damaged-`.

        Raises:
            FileFormatError: no checkpoint is intact.
            FileNotFoundError: there is none.
            ValueError: the saved run is another one.
        """
        notes: list[str] = []

        def choose() -> int:
            path, _, faults = newest_intact(self.path)
            for fault in faults:
                notes.append(f"skipped a checkpoint: {fault}")
                _set_aside(self.path, fault.path)
            return int(path.name.removeprefix("ckpt-"))

        path = checkpoint_path(self.path, self._agree(choose))
        header, own = read_manifest(path), trainer.state_dict()
        describe_model(trainer.model)  # refuses a model that no checkpoint could describe
        check_manifest(path, header)
        trainer.check_facts(header, f"{path}: ")
        state = read_state(path, header, own, self._processes)
        trainer.load_state_dict(state)
        if header["processes"] != self._processes.world_size:
            notes.append(
                f"the run was saved by {header['processes']} processes and goes on with "
                f"{self._processes.world_size}: the pool is shared out anew, and the run is no "
                "longer bit for bit the one that was interrupted"
            )
        notes += [
            f"{path} does not hold the state of {name}, which starts anew: the run may deliver "
            "another model than one that was not interrupted"
            for name in own["callbacks"]
            if name not in state["callbacks"]
        ]
        notes += _differences(header, make_header(own, self._processes.world_size))
        return Resumed(path, notes)

    def has_checkpoints(self) -> bool:
        """Tell whether there is anything to resume from."""
        return bool(self._agree(lambda: int(bool(list_checkpoints(self.path)))))

    def _is_there(self, run_id: str, target: Path) -> int:
        """Tell whether `target` is written already; refuse a directory of another run."""
        for path in list_checkpoints(self.path):
            with contextlib.suppress(FileFormatError):
                if read_manifest(path).get("run_id") != run_id:
                    raise FileExistsError(
                        f"{path} belongs to another run; save to another directory, or remove it"
                    )
        with contextlib.suppress(FileFormatError):
            return int(target.exists() and bool(verify(target)))
        return 0

    def _write_shards(self, state: State, staging: Path) -> dict[str, FileEntry]:
        """Write this process's part; return name, size and digest of all processes' parts."""
        name = shard_name(self._processes.rank, self._processes.world_size)
        report = torch.zeros(_DIGEST + 8, dtype=torch.uint8)
        with self._processes.all_or_none():
            entry = write_file(staging / name, encode_tensors(shard_tensors(state)))
            content = bytes.fromhex(entry.sha256) + entry.size.to_bytes(8, "little")
            report = torch.tensor(list(content), dtype=torch.uint8)
        files = {}
        for rank, each in enumerate(self._processes.all_gather(report)):
            content = bytes(each.tolist())
            size = int.from_bytes(content[_DIGEST:], "little")
            files[shard_name(rank, self._processes.world_size)] = FileEntry(
                size, content[:_DIGEST].hex()
            )
        return files

    def _finish(self, model: Any, state: State, staging: Path, files: dict[str, FileEntry]) -> None:
        """Write what is written once, make the checkpoint count, and remove old ones."""
        for name, tensors in shared_tensors(state).items():
            files[name] = write_file(staging / name, encode_tensors(tensors))
        save_model(model, staging)
        for name in (MODEL_FORMAT.json_name, MODEL_FORMAT.tensors_name):
            files[name] = hash_file(staging / name)
        header = make_header(state, self._processes.world_size)
        target = checkpoint_path(self.path, state["iteration"])
        publish(staging, target, header, files)
        prune(self.path, header["config"]["keep"], self._update_best(target, header))

    def _update_best(self, target: Path, header: Header) -> str | None:
        """Let `best` name the checkpoint with the lowest loss; return that name."""
        file, score = self.path / BEST, header["score"]
        best = None
        with contextlib.suppress(OSError, FileFormatError, UnicodeDecodeError):
            best = read_manifest(self.path / file.read_text().strip())
        if best is not None and (score is None or (best.get("score") or 0) <= score):
            return checkpoint_path(self.path, int(best["iteration"])).name
        write_atomically(file, f"{target.name}\n".encode())
        return target.name

    def _agree(self, answer: Callable[[], int]) -> int:
        """Return in every process what `answer` returns in the first one."""
        value = torch.zeros(1, dtype=torch.int64)
        with self._processes.all_or_none():
            if self._processes.is_main:
                value[0] = answer()
        return int(self._processes.all_gather(value)[0])


def _set_aside(directory: Path, damaged: Path) -> None:
    """Rename the checkpoint that holds file `damaged`, so that it is not mistaken for a good one.

    A read-only directory keeps the name; the checkpoint does not count either way.
    """
    name = damaged.relative_to(directory).parts[0]
    for number in range(1000):
        target = directory / (f"damaged-{name}" + (f".{number}" if number else ""))
        if not target.exists():
            with contextlib.suppress(OSError):
                os.rename(directory / name, target)
            return


def _differences(saved: Header, now: Header) -> list[str]:
    """Say what may make the resumed run differ in its last bits."""
    notes, before, after = [], *(each["config"]["iterations"] for each in (saved, now))
    if now["config"]["schedule"] != "milestones" and before != after:
        notes.append(
            f"the run was saved with {before} iterations and goes on with {after}: the learning "
            "rate falls over the new number"
        )
    names = ("fastnca_version", "torch_version", "device", "threads")
    return notes + [
        f"the run was saved with {name.replace('_', ' ')} {saved.get(name)} and goes on with "
        f"{now[name]}: the last bits may differ"
        for name in names
        if saved.get(name) != now[name]
    ]
