"""TensorFlow checkpoints: a shard of raw numbers, and the index that says what they are.

The index is a table in LevelDB's format (its documentation, "table_format"), whose values are
`BundleEntryProto` messages of TensorFlow: dtype 1, shape 2 (dim 2, size 1), shard 3, offset 4,
size 5.
"""

import math
import struct
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fastnca.importing.json_files import from_tensorflow
from fastnca.importing.network import Network, NoModelError, find_network
from fastnca.importing.protobuf import read_varint

_FLOAT = 1  # DT_FLOAT
_FOOTER = 48  # bytes
_MAGIC = 0xDB4775248B80FB57
_MAX_ENTRIES = 4096
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def read_checkpoint(index: bytes, shards: Mapping[int, bytes]) -> Network:
    """Read the network of a checkpoint.

    Args:
        index: content of the `.index` file.
        shards: contents of the `.data-...` files by number.

    Raises:
        NoModelError: the files are damaged, or hold no network.
    """
    tensors: dict[str, Tensor] = {}
    try:
        for key, value in _read_table(index):
            name = key.decode("utf-8", "replace")
            if not name.endswith(_SUFFIX) or "OPTIMIZER_SLOT" in name:
                continue
            numbers, parts = _read_message(value)
            dims = _read_message(parts.get(2, [b""])[0])[1].get(2, [])
            shape = [_read_message(dim)[0].get(1, 0) for dim in dims]
            if numbers.get(1) != _FLOAT or not 1 <= len(shape) <= 4:
                continue
            data, start, size = shards.get(numbers.get(3, 0)), numbers.get(4, 0), numbers.get(5, 0)
            if data is None or 4 * math.prod(shape) != size or start + size > len(data) or not size:
                raise NoModelError(f"the shard with {name[:80]!r} is missing or too short")
            values = torch.frombuffer(bytearray(data[start : start + size]), dtype=torch.float32)
            tensors[name.removesuffix(_SUFFIX)] = from_tensorflow(values.reshape(shape))
    except NoModelError:
        raise
    except (IndexError, ValueError, struct.error) as error:
        raise NoModelError(f"a damaged index of a TensorFlow checkpoint ({error})") from error
    return find_network(
        _forward(tensors), "TensorFlow checkpoint", layout="interleaved", families=("growing",)
    )


def read_shard(data: bytes) -> Network:
    """Read a shard without its index: the model of "Growing Neural Cellular Automata" alone.

    That is kernel `[1, 1, 48, 128]`, bias, kernel `[1, 1, 128, 16]`, bias, and nothing else.

    Raises:
        NoModelError: it has another size.
    """
    sizes = (48 * 128, 128, 128 * 16, 16)
    if len(data) != 4 * sum(sizes):
        raise NoModelError(
            f"a shard of {len(data)} bytes without its .index file; only that of 16 channels and "
            f"128 hidden units, {4 * sum(sizes)} bytes, is known without"
        )
    first, bias, last, last_bias = torch.frombuffer(bytearray(data), dtype=torch.float32).split(
        list(sizes)
    )
    return Network(
        [first.reshape(48, 128).T.contiguous(), last.reshape(128, 16).T.contiguous()],
        [bias.clone(), last_bias.clone()],
        "TensorFlow checkpoint",
        layout="interleaved",
        families=("growing",),
    )


def _forward(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put kernels before biases, so that layers come in the order of their names."""
    return {
        name: tensors[name] for name in sorted(tensors, key=lambda n: (n.rpartition("/")[0], n))
    }


def _read_message(data: bytes) -> tuple[dict[int, int], dict[int, list[bytes]]]:
    """Return the fields of a protobuf message: numbers, and parts of any length, by their keys."""
    numbers: dict[int, int] = {}
    parts: dict[int, list[bytes]] = {}
    place = 0
    while place < len(data):
        key, place = read_varint(data, place)
        if key & 7 == 0:
            numbers[key >> 3], place = read_varint(data, place)
            continue
        size = {1: 8, 5: 4}.get(key & 7, -1)
        if key & 7 == 2:
            size, place = read_varint(data, place)
        if size < 0 or place + size > len(data):
            raise ValueError("a damaged message")
        parts.setdefault(key >> 3, []).append(data[place : place + size])
        place += size
    return numbers, parts


def _read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of a table, at most `_MAX_ENTRIES`."""
    if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise ValueError("it does not end as a table does")
    footer = data[-_FOOTER:]
    _, place = read_varint(footer, 0)
    _, place = read_varint(footer, place)
    start, place = read_varint(footer, place)
    size, _ = read_varint(footer, place)
    count = 0
    for _, handle in _read_block(data, start, size):
        first, place = read_varint(handle, 0)
        for key, value in _read_block(data, first, read_varint(handle, place)[0]):
            count += 1
            if count > _MAX_ENTRIES:
                raise ValueError(f"more than {_MAX_ENTRIES} entries")
            yield key, value


def _read_block(data: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of a block: keys share a prefix with the one before."""
    block = data[start : start + size]
    if len(block) != size or size < 4 or data[start + size] != 0:
        raise ValueError("a compressed or missing block")
    restarts = struct.unpack("<I", block[-4:])[0]
    end, place, key = size - 4 - 4 * restarts, 0, b""
    while place < end:
        shared, place = read_varint(block, place)
        own, place = read_varint(block, place)
        length, place = read_varint(block, place)
        if shared > len(key) or place + own + length > end:
            raise ValueError("a damaged entry")
        key = key[:shared] + block[place : place + own]
        place += own
        yield key, block[place : place + length]
        place += length
