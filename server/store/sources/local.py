"""A folder on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from remix_runtime.adapter.checkpoint import DEFAULT_LIMITS
from remix_runtime.adapter.checkpoint.folder import open_folder
from remix_runtime.errors import CheckpointError
from server.store.errors import SourceError, SourceMissingError
from server.store.sources.base import MAX_BYTES, Readable, SourceFile, reading


class LocalSource:
    """A folder that may hold only files and folders, none of them a link, a pickle or code.

    Copies are not continued: they are fast, and a time of change is no proof of equal bytes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(os.path.abspath(folder))
        self.address = str(self._folder)

    def files(self) -> list[SourceFile]:
        found = []
        with self._refusing(), open_folder(self._folder, max_files=DEFAULT_LIMITS.files) as folder:
            for name in MAX_BYTES:
                if not folder.has(name):
                    continue
                with folder.open(name, max_bytes=MAX_BYTES[name]) as (stream, size):
                    status = os.fstat(stream.fileno())
                version = f"{status.st_dev}-{status.st_ino}-{status.st_mtime_ns}"
                found.append(SourceFile(name=name, size=size, version=version, resumable=False))
        return found

    @contextmanager
    def open(self, file: SourceFile, offset: int) -> Iterator[Readable]:
        assert offset == 0, "not resumable"
        with (
            self._refusing(),
            open_folder(self._folder, max_files=DEFAULT_LIMITS.files) as folder,
            folder.open(file.name, max_bytes=MAX_BYTES[file.name]) as (stream, _),
        ):
            yield stream

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            with reading(self.address):
                yield
        except CheckpointError as error:
            kind = SourceError if os.path.exists(self._folder) else SourceMissingError
            raise kind(f"{self.address}: {error}") from error
