"""safetensors files from strangers: the header is judged before a byte of data is read.

A file is an 8-byte little-endian header length N, N bytes of JSON, and the data. The JSON maps
each tensor to its dtype, shape and [begin, end) in the data, and may hold a text map
`__metadata__`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from io import FileIO

import torch
from torch import Tensor

from remix_runtime.adapter.checkpoint.folder import read_exactly, read_into
from remix_runtime.adapter.checkpoint.strict_json import parse_object, show
from remix_runtime.errors import CheckpointFormatError

_TYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "U8": torch.uint8,
}
MAX_TENSORS = 1 << 16
MAX_NAME = 512
"""Characters of a tensor's name."""
_MAX_DIMS = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor as the header describes it."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """A validated header: the tensors lie end to end and fill the data exactly."""

    file: str
    tensors: Mapping[str, Entry]
    """In the order in which they lie in the file."""
    metadata: Mapping[str, str]
    raw: bytes
    """The length and the JSON, as in the file."""
    data_bytes: int


def read_header(
    stream: FileIO, size: int, *, file: str, max_bytes: int, dtypes: Set[str]
) -> Header:
    """Reads and validates the header of a file of `size` bytes.

    Takes at most `max_bytes` of memory for the text. Raises `CheckpointFormatError`.
    """
    if size < 8:
        raise CheckpointFormatError(f"{file}: found {size} bytes, expected at least 8")
    prefix = read_exactly(stream, 8, file)
    length = int.from_bytes(prefix, "little")
    if not 2 <= length <= min(max_bytes, size - 8):
        raise CheckpointFormatError(
            f"{file}: found a header of {length} bytes in a file of {size}, "
            f"expected 2 to {min(max_bytes, size - 8)}"
        )
    text = read_exactly(stream, length, file)
    if text[:1] != b"{":
        raise CheckpointFormatError(f"{file}: the header does not begin with '{{'")
    fields = parse_object(text, file=file)
    metadata = _metadata(fields.pop("__metadata__", {}), file)
    if len(fields) > MAX_TENSORS:
        raise CheckpointFormatError(
            f"{file}: found {len(fields)} tensors, expected at most {MAX_TENSORS}"
        )
    tensors: dict[str, Entry] = {}
    spans: list[tuple[int, int, str]] = []
    for name, value in fields.items():
        if len(name) > MAX_NAME:
            raise CheckpointFormatError(
                f"{file}: {show(name)}: found a name of {len(name)} characters, "
                f"expected at most {MAX_NAME}"
            )
        tensors[name], begin, end = _entry(name, value, file, dtypes)
        spans.append((begin, end, name))
    spans.sort()
    _check_spans(spans, size - 8 - length, file)
    in_order = {name: tensors[name] for _, _, name in spans}
    return Header(file, in_order, metadata, prefix + text, size - 8 - length)


def read_tensors(
    stream: FileIO, header: Header, take: Callable[[bytes | bytearray], object]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, from the stream that `read_header` read, one after the other: what
    this takes of memory is the tensors, where the library would hold the file's bytes too.

    `take` gets all bytes of the file, in their order. The header must still be the one that was
    judged.
    """
    stream.seek(0)
    if read_exactly(stream, len(header.raw), header.file) != header.raw:
        raise CheckpointFormatError(f"{header.file}: changed while it was read; write it again")
    take(header.raw)
    for name, entry in header.tensors.items():
        dtype = _TYPES[entry.dtype]
        data = bytearray(math.prod(entry.shape) * dtype.itemsize)
        read_into(stream, data, header.file)
        take(data)
        # torch makes no tensor of an empty buffer.
        tensor = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        yield name, tensor.reshape(entry.shape)


def _metadata(value: object, file: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise CheckpointFormatError(
            f"{file}: __metadata__: found {show(value)}, expected text values only"
        )
    return value


def _entry(name: str, value: object, file: str, dtypes: Set[str]) -> tuple[Entry, int, int]:
    """The entry and its [begin, end)."""
    where = f"{file}: {show(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointFormatError(
            f"{where}: found {show(value)}, expected exactly dtype, shape and data_offsets"
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise CheckpointFormatError(
            f"{where}: found dtype {show(dtype)}, expected {' or '.join(sorted(dtypes))}"
        )
    if not _naturals(shape) or len(shape) > _MAX_DIMS:
        raise CheckpointFormatError(
            f"{where}: found shape {show(shape)}, expected at most {_MAX_DIMS} sizes"
        )
    if not _naturals(offsets) or len(offsets) != 2:
        raise CheckpointFormatError(
            f"{where}: found data_offsets {show(offsets)}, expected [begin, end]"
        )
    begin, end = offsets
    need = math.prod(shape) * _TYPES[dtype].itemsize
    if end - begin != need:
        raise CheckpointFormatError(
            f"{where}: found data_offsets {show(offsets)}, expected {need} bytes for {dtype} "
            f"{show(shape)}"
        )
    return Entry(dtype, tuple(shape)), begin, end


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in value)


def _check_spans(spans: list[tuple[int, int, str]], data_bytes: int, file: str) -> None:
    """Checks that the tensors lie end to end, without a gap or an overlap, and inside the file."""
    position = 0
    for begin, end, name in spans:
        if begin != position or end > data_bytes:
            raise CheckpointFormatError(
                f"{file}: {show(name)}: found data_offsets [{begin}, {end}], expected to begin at "
                f"{position} and to end within {data_bytes} bytes of data"
            )
        position = end
    if position != data_bytes:
        raise CheckpointFormatError(
            f"{file}: found {data_bytes} bytes of data, expected {position} as the header says"
        )
