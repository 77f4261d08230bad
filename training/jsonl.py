"""A JSON file as rows: lines, which are found by their place and read when they are needed, or an
array."""

from __future__ import annotations

import codecs
import json
import os
import stat
import weakref
from array import array
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

from remix_runtime.errors import DataError
from training.progress import Move
from training.values import kind_of

_LINES = 4096
"""Lines between two moves of the bar."""
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "Parquet",
}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


class JsonRows:
    """The rows of a file: `len`, and each of them by its index.

    Opening it reads the file once: every line must be a JSON object, and `digest` is the sha256 of
    the bytes. Memory holds only where the rows are. Blank lines and a byte order mark at the
    beginning are passed over.
    """

    def __init__(self, path: Path, *, move: Move = lambda _: None) -> None:
        """Raises `DataError` with file and line."""
        self.path = path
        self._fd = _open(path)
        weakref.finalize(self, os.close, self._fd)
        self._stamp = _stamp(self._fd)
        self._starts, self._ends, self._lines = array("Q"), array("Q"), array("Q")
        self.digest = self._index(move)
        if not self._starts:
            raise DataError(f"{path}: found no rows, expected at least one JSON object per line")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = self._starts[index], self._ends[index]
        return _parsed(os.pread(self._fd, end - start, start), self.where(index))

    def where(self, index: int) -> str:
        """File and line of a row, for errors."""
        return f"{self.path}:{self._lines[index]}"

    def require_unchanged(self) -> None:
        """Raises `DataError` if the file was written to since it was opened."""
        if _stamp(self._fd) != self._stamp:
            raise DataError(f"{self.path}: found another content than at the start of the run")

    def _index(self, move: Move) -> str:
        size = max(1, os.fstat(self._fd).st_size)
        digest = sha256()
        start = 0
        with open(self._fd, "rb", closefd=False) as file:
            for line, raw in enumerate(file, start=1):
                digest.update(raw)
                end = start + len(raw)
                if line == 1:
                    self._require_plain(raw)
                    if raw.startswith(codecs.BOM_UTF8):
                        start += len(codecs.BOM_UTF8)
                        raw = raw.removeprefix(codecs.BOM_UTF8)
                if raw.strip():
                    _parsed(raw, f"{self.path}:{line}")
                    self._starts.append(start)
                    self._ends.append(end)
                    self._lines.append(line)
                if line % _LINES == 0:
                    move(end / size)
                start = end
        return digest.hexdigest()

    def _require_plain(self, first: bytes) -> None:
        for magic, kind in _PACKED.items():
            if first.startswith(magic):
                raise DataError(
                    f"{self.path}: found a {kind} file, expected plain JSONL; unpack it first"
                )
        encoding = json.detect_encoding(first[:4])
        if not encoding.startswith("utf-8"):
            name = encoding[: len("utf-16")].upper()
            raise DataError(f"{self.path}: found text in {name}, expected UTF-8")


class JsonList:
    """The rows of a file that is one JSON array. It is in memory as a whole."""

    def __init__(self, path: Path) -> None:
        """Raises `DataError`."""
        self.path = path
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        self.digest = sha256(raw).hexdigest()
        self._rows = _decoded(raw.removeprefix(codecs.BOM_UTF8), str(path), "one JSON array")
        if not self._rows:
            raise DataError(f"{path}: found no rows, expected at least one JSON object")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _object(self._rows[index], self.where(index))

    def where(self, index: int) -> str:
        """File and place of a row, for errors."""
        return f"{self.path}: [{index}]"

    def require_unchanged(self) -> None:
        """They were read when it was opened."""


def _open(path: Path) -> int:
    try:
        # Not blocking: a pipe that nobody writes to would hold `open` up.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    kind = next((kind for test, kind in _KINDS if test(mode)), "a device")
    raise DataError(f"{path}: found {kind}, expected a regular file, which can be read again")


def _stamp(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns


def _parsed(raw: bytes, where: str) -> dict[str, Any]:
    return _object(_decoded(raw, where, "one JSON object"), where)


def _decoded(raw: bytes, where: str, expected: str) -> Any:
    try:
        text = raw.decode("utf-8")
        if text.startswith("\ufeff"):
            raise ValueError("a byte order mark")
        return _DECODER.decode(text)
    except UnicodeDecodeError:
        raise DataError(f"{where}: found bytes that are not UTF-8") from None
    except (ValueError, RecursionError) as error:  # of JSON, or a number of 5,000 digits
        raise DataError(f"{where}: expected {expected}, found {error}") from None


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, found {kind_of(row)}")
    return row


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Of a key that stands twice, JSON readers silently take the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r} twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_without_doubles)
"""Made once: `json.loads` would make one for each text, which takes longer than to read a row."""
