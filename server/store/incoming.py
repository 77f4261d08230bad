"""Holds unfinished imports: a folder for each, owned through a lock as long as its import lives.

incoming/once-<random>/                what cannot be continued
incoming/resume-<source>-<version>/    what can: named by the source and what it held
    lock                               held by the import
    files/                             what came so far; renamed away when it is complete
incoming/gone-<random>                 on its way out; nobody looks inside again
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from remix_runtime.locks import try_lock
from server.store.errors import SourceUnavailableError
from server.store.sources import SourceFile
from server.store.vanishing import states

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Incoming:
    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def claim(self, address: str, files: Sequence[SourceFile]) -> Iterator[Path]:
        """Yields a folder for the files of one import, with what an earlier import left of the
        same. It is gone afterwards, unless the source failed in the middle of what can be
        continued."""
        name = _resume_name(address, files)
        if name is not None:
            self._discard_other_versions(name)
        # Two imports of one source at once: the second one reads it on its own.
        owned = self._own(name) if name is not None else None
        folder, lock = owned or self._own_new()
        try:
            yield folder / "files"
        except SourceUnavailableError:
            if owned is None:
                self.discard(folder)
            raise
        except BaseException:
            self.discard(folder)
            raise
        else:
            self.discard(folder)
        finally:
            os.close(lock)

    def hide(self, folder: Path) -> Path:
        """Takes a folder of the store out of sight in one step; the next sweep of any process
        deletes it."""
        return folder.rename(self._root / f"gone-{secrets.token_hex(8)}")

    def discard(self, folder: Path) -> None:
        shutil.rmtree(self.hide(folder), ignore_errors=True)

    def sweep(self, *, max_age_seconds: float) -> None:
        """Removes folders that no living import owns. What could be continued stays until it is
        older."""
        oldest = time.time() - max_age_seconds
        for folder in sorted(self._root.iterdir()):
            if folder.name.startswith("gone-"):
                shutil.rmtree(folder, ignore_errors=True)
            elif not folder.name.startswith("resume-") or _last_change(folder) <= oldest:
                self._discard_if_free(folder)

    def _own(self, name: str) -> tuple[Path, int] | None:
        """Takes the folder of this name and its lock; None if a living import has it."""
        folder = self._root / name
        while True:
            folder.mkdir(exist_ok=True)
            try:
                lock = try_lock(folder / "lock")
            except FileNotFoundError:  # discarded between two of these lines
                continue
            if lock is None:
                return None
            (folder / "files").mkdir(exist_ok=True)
            return folder, lock

    def _own_new(self) -> tuple[Path, int]:
        while (owned := self._own(f"once-{secrets.token_hex(8)}")) is None:
            pass  # a sweep was looking at it
        return owned

    def _discard_if_free(self, folder: Path) -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            if (lock := try_lock(folder / "lock")) is not None:
                try:
                    self.discard(folder)
                finally:
                    os.close(lock)

    def _discard_other_versions(self, name: str) -> None:
        for folder in self._root.glob(name.rpartition("-")[0] + "-*"):
            if folder.name != name:
                self._discard_if_free(folder)


def _resume_name(address: str, files: Sequence[SourceFile]) -> str | None:
    """A name that two imports share only if the second one can go on from what the first one wrote.
    The boot is part of it: files are synced at the end only, and after a power failure an unsynced
    one may have its length but zeros for content."""
    if not all(file.resumable for file in files):
        return None
    try:
        boot = _BOOT_ID.read_text()
    except OSError:
        return None
    content = repr([boot, address, sorted((f.name, f.size, f.version) for f in files)])
    return f"resume-{_short_hash(address)}-{_short_hash(content)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _last_change(folder: Path) -> float:
    return max((state.st_mtime for state in states(folder)), default=0.0)
