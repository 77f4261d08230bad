"""A folder on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from remix_runtime.adapter.checkpoint.files import MAX_BYTES
from remix_runtime.adapter.checkpoint.folder import open_folder
from remix_runtime.errors import CheckpointError
from server.store.errors import SourceError, SourceMissingError
from server.store.sources.base import Readable, SourceFile, reading


class LocalSource:
    """A folder, under `root` if one is given: so are then the files that its links lead to. What
    is not part of an adapter is never opened.

    Copies are not continued: they are fast, and a time of change is no proof of equal bytes.
    """

    def __init__(self, folder: Path, root: Path | None) -> None:
        self._root = None if root is None else Path(os.path.realpath(root))
        # Relative to the root. A loop of links ends in a name that cannot be opened.
        self._folder = Path(os.path.realpath(os.path.join(self._root or "", folder)))
        self.address = str(self._folder)
        if self._root is not None and not self._folder.is_relative_to(self._root):
            raise SourceError(
                f"source: found {str(folder)[:200]!r}, expected a folder under {self._root}"
            )

    def files(self) -> list[SourceFile]:
        found = []
        with self._refusing(), open_folder(self._folder, root=self._root) as folder:
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
            open_folder(self._folder, root=self._root) as folder,
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
