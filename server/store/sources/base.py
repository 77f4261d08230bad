"""What every source answers: which files there are, and their bytes from an offset on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from remix_runtime.adapter.checkpoint.fields import CONFIG_FILE
from remix_runtime.adapter.checkpoint.files import MAX_BYTES
from remix_runtime.adapter.checkpoint.reader import TENSOR_FILE
from remix_runtime.errors import RemixError
from server.store.errors import SourceError, SourceMissingError, SourceUnavailableError

log = logging.getLogger(__name__)

REQUIRED = (CONFIG_FILE, TENSOR_FILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file as its source describes it."""

    name: str
    size: int
    version: str
    """Changes when the content changes, as far as the source can tell."""
    resumable: bool
    """Whether an equal `version` means equal bytes for sure, and reading may begin anywhere."""
    checksum: tuple[str, str] | None = None
    """Algorithm (`sha256` or `git-blob`) and hexadecimal digits, where the source states one."""


class Readable(Protocol):
    def read(self, length: int, /) -> bytes:
        """Reads at most `length` bytes; none at the end."""
        ...


class RangeRefusedError(Exception):
    """The source gives this file only from its start."""


class Source(Protocol):
    """All methods block, and raise `SourceError` or `SourceUnavailableError`."""

    @property
    def address(self) -> str:
        """The address that is written down for an adapter; without secrets."""
        ...

    def files(self) -> list[SourceFile]:
        """The files that the source has, of those in `MAX_BYTES` and in that order. Asks the source
        every time."""
        ...

    def open(self, file: SourceFile, offset: int) -> AbstractContextManager[Readable]:
        """Opens the bytes from `offset` on. Raises `RangeRefusedError` too if `offset` is not 0."""
        ...


def check_files(files: list[SourceFile], address: str) -> None:
    """Checks, before anything is copied, that all needed files are there and none is too large."""
    for name in REQUIRED:
        if all(file.name != name for file in files):
            raise SourceMissingError(f"{address}: {name} is missing")
    for file in files:
        if file.size > MAX_BYTES[file.name]:
            raise SourceError(
                f"{address}: {file.name}: found {file.size} bytes, "
                f"expected at most {MAX_BYTES[file.name]}"
            )


@contextmanager
def reading(address: str) -> Iterator[None]:
    """Turns what a client library raises into our two errors: every one has a tree of its own.

    What an error says may be a part of what the source answered, which is for the log only: who
    names a source must not be told what others would be told there."""
    try:
        yield
    except (RemixError, RangeRefusedError):
        raise
    except Exception as error:
        log.info("%s: %.500r", address, error)
        what = f"{address}: {without_content(error)}"
        refused = isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError)
        if refused or _status(error) in (401, 403, 404, 410):
            raise SourceError(what) from error
        raise SourceUnavailableError(what) from error


def without_content(error: Exception) -> str:
    """What went wrong, of which nothing comes from the source but an HTTP status."""
    if (status := _status(error)) is not None:
        return f"HTTP status {status}"
    number = error.errno if isinstance(error, OSError) else None
    reason = f": {os.strerror(number)}" if isinstance(number, int) and number > 0 else ""
    return f"{type(error).__name__}{reason}"


def _status(error: Exception) -> int | None:
    for found in (error, getattr(error, "response", None)):
        for name in ("status", "status_code"):
            if isinstance(status := getattr(found, name, None), int):
                return status
    return None
