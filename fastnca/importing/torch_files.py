"""Files of `torch.save` and safetensors, state dicts and whole modules, without running their code.

A pickle may name any function of any module for the reader to call. Here the names that rebuild
tensors stand for functions of this file, and every other name stands for an empty class of this
file, whatever the pickle calls it: a module comes back as a tree of such objects with the tensors
in their places.
"""

import collections
import io
import pickle
import pickletools
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from fastnca._torch_internals import REBUILD_PARAMETER, REBUILD_TENSOR
from fastnca.importing.network import Network, NoModelError, find_network

MAX_BYTES = 1 << 26
"""A file may unpack to at most so many bytes."""

_MAX_DEPTH = 16
_MAX_NODES = 20_000
_FORBIDDEN = {"EXT1", "EXT2", "EXT4", "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"}
_NUMBERED = {"PUT", "BINPUT", "LONG_BINPUT"}


class Inert:
    """What takes the place of an object of a class that is not known here; it does nothing."""

    dump_patches = False  # or torch would write how a class's source has changed

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
            state = state[0]
        if isinstance(state, dict):
            self.__dict__.update({k: v for k, v in state.items() if isinstance(k, str)})

    def append(self, _: object) -> None:
        """Take an item of a list-like object."""

    def extend(self, _: object) -> None:
        """Take items of a list-like object."""

    def __setitem__(self, _: object, __: object) -> None:
        pass


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *_: object) -> Tensor:
    """Return the tensor `size` with `stride` in a storage, without any other memory."""
    flat = torch.tensor([], dtype=storage.dtype).set_(storage.untyped())
    return torch.as_strided(flat, tuple(size), tuple(stride), offset)


def _rebuild_parameter(data: Any, *_: object) -> Any:
    return data


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    **dict.fromkeys(REBUILD_TENSOR, _rebuild_tensor),
    **dict.fromkeys(REBUILD_PARAMETER, _rebuild_parameter),
    ("collections", "OrderedDict"): collections.OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    """Unpickle tensors and inert objects."""

    def __init__(self, file: IO[bytes], **options: Any) -> None:
        start = file.tell()
        _check_opcodes(file)
        file.seek(start)
        super().__init__(file, **options)

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name; nothing is imported."""
        return _FUNCTIONS.get((module, name), Inert)


class _PickleModule:
    """What `torch.load` takes for the module `pickle`."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file: IO[bytes], **options: Any) -> object:
        """Unpickle one object."""
        return _Unpickler(file, **options).load()


def _check_opcodes(file: IO[bytes]) -> None:
    """Refuse opcodes that reserve memory by a number in the file, before any is executed."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in _FORBIDDEN:
            raise NoModelError(f"the pickle uses {opcode.name}")
        if opcode.name in _NUMBERED and int(argument or 0) > 2 * count:
            raise NoModelError("the pickle numbers its objects oddly")


def read_torch(data: bytes) -> dict[str, Network]:
    """Read the models of a file of `torch.save` or safetensors.

    Args:
        data: content of the file.

    Returns:
        Networks by the place of their dictionary in the file; a model that is alone has the
        name "".

    Raises:
        NoModelError: the file is damaged, or holds no model.
    """
    faults: list[NoModelError] = []
    networks: dict[str, Network] = {}
    for place, tensors in _read_tensors(data):
        try:
            networks[place] = _recognise(tensors)
        except NoModelError as error:
            faults.append(error)
    if not networks:
        raise faults[0] if faults else NoModelError("it holds no tensors")
    return networks if len(networks) > 1 else {"": next(iter(networks.values()))}


def _recognise(tensors: dict[str, Tensor]) -> Network:
    """Find the network, with what is known of the programs whose entries have such names."""
    tensors = _strip_prefix(tensors)
    names = set(tensors)
    layout, families = "", tuple[str, ...]()
    if names == {"fc0.weight", "fc0.bias", "fc1.weight"}:
        layout = "blocks:identity,sobel_y,sobel_x"  # these programs exchange height and width
    elif names == {"w1.weight", "w1.bias", "w2.weight"} and len(tensors["w2.weight"]) == 12:
        layout = "interleaved:identity,8*sobel_x,8*sobel_y,8*laplacian"  # not divided by 8
        families = ("texture",)
    elif "perception.filters" in names:
        layout = "interleaved"
        families = ("growing, alpha alone", "growing")  # the tutorial's class, and its seed
    return find_network(tensors, "torch file", layout=layout, families=families)


def _strip_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove `module.`, `_orig_mod.` and the like from the names."""
    for prefix in ("module.", "_orig_mod.", "model.", "ca.", "module.", "_orig_mod."):
        if all(name.startswith(prefix) or name == "n_averaged" for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _read_tensors(data: bytes) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the groups of tensors in a file, with the place of each."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = _load(data)
        groups = list(_groups(content))
    except NoModelError:
        raise
    except Exception as error:  # torch and pickle raise about a dozen types on a damaged file
        fault = str(error).partition("\n")[0][:160] or type(error).__name__
        raise NoModelError(f"damaged, or no file of tensors ({fault})") from error
    yield from groups


def _load(data: bytes) -> object:
    if data[8:9] == b"{":
        return load_safetensors(data)
    room = MAX_BYTES
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise NoModelError("too large for a model once unpacked")
            if archive.testzip() is not None:
                raise NoModelError("damaged: a checksum in the archive does not fit")
    elif tarfile.is_tarfile(io.BytesIO(data)):  # torch would unpack it into a directory
        raise NoModelError("a tar archive, as torch saved before version 0.1.10")
    else:
        room = len(data)

    def place(storage: Any, _: str) -> Any:
        nonlocal room
        room -= storage.nbytes()
        if room < 0:
            raise NoModelError("its tensors claim more bytes than the file has")
        return storage

    return torch.load(
        io.BytesIO(data), map_location=place, weights_only=False, pickle_module=_PickleModule
    )


def _groups(content: object) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the tensors of every dictionary and every module, by the names they have there."""
    seen: set[int] = set()
    stack = [("", content, 0)]
    while stack:
        place, node, depth = stack.pop()
        if id(node) in seen or depth > _MAX_DEPTH:
            continue
        seen.add(id(node))
        if len(seen) > _MAX_NODES:
            raise NoModelError("it holds too many objects")
        if isinstance(node, Inert) and "_parameters" in node.__dict__:
            if tensors := dict(_module_tensors("", node, seen)):
                yield place, tensors
            continue
        entries = node.__dict__ if isinstance(node, Inert) else node
        if not isinstance(entries, dict):
            continue
        named = [(str(name), value) for name, value in entries.items() if _is_name(name)]
        if tensors := {name: value for name, value in named if _is_dense(value)}:
            yield place, tensors
        stack += [
            (f"{place}.{name}" if place else name, value, depth + 1)
            for name, value in reversed(named)
            if not isinstance(value, Tensor)
        ]


def _is_name(name: object) -> bool:
    return isinstance(name, str) and len(name) < 200


def _module_tensors(prefix: str, module: Any, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of an inert module and of those in it, each once."""
    if prefix.count(".") > _MAX_DEPTH:
        raise NoModelError("modules lie too deep in one another")
    for kind in ("_parameters", "_buffers"):
        entries = module.__dict__.get(kind)
        for name, value in entries.items() if isinstance(entries, dict) else ():
            if _is_name(name) and _is_dense(value):
                yield prefix + name, value
    parts = module.__dict__.get("_modules")
    for name, part in parts.items() if isinstance(parts, dict) else ():
        if _is_name(name) and isinstance(part, Inert) and id(part) not in seen:
            seen.add(id(part))
            yield from _module_tensors(f"{prefix}{name}.", part, seen)


def _is_dense(value: object) -> bool:
    """Tell a tensor with ordinary storage, no larger than it, from all else."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_nested
        and value.device.type == "cpu"
        and value.numel() * value.itemsize <= MAX_BYTES
    )
