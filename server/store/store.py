"""Adapters on disk by digest: a folder under `adapters/` is whole, verified and never changes, but
for `training.json`, which is no part of the digest: the last import that has one brings it.

    adapters/<digest>/   what is served
    uploads/             what clients send, see `server/store/uploads.py`
    incoming/            imports that are not done, see `server/store/incoming.py`
    quarantine/          what was refused, see `server/store/quarantine.py`
    lock                 held for the moment in which adapters/ changes

Many processes may share one root. An adapter comes into sight by one rename, after everything is
on the disk, and goes out of sight by one rename, before anything is deleted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from remix_runtime.adapter.checkpoint import Description, sync_folder
from remix_runtime.adapter.checkpoint.training_file import TRAINING_FILE
from remix_runtime.adapter.examination import ExaminationError, ExaminationLimits
from remix_runtime.errors import CheckpointError, CheckpointFormatError
from remix_runtime.locks import locked
from remix_runtime.private import private_folder
from server.store.disk_room import DiskRoom, Wrote, of_our_disk
from server.store.download import CHUNK_BYTES, download, verify
from server.store.errors import (
    ImportStoppedError,
    RejectedAdapterError,
    SourceError,
    SourceUnavailableError,
    UnknownDigestError,
)
from server.store.incoming import Incoming
from server.store.pace import Pace
from server.store.quarantine import Quarantine, Quarantined
from server.store.rooms import THREADS, Examiner, Room
from server.store.sources import PROTOCOLS, FetchPolicy, Source, SourceFile, open_source
from server.store.sources.base import check_files
from server.store.uploads import PROTOCOL as UPLOAD
from server.store.uploads import Uploads, UploadSource

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TRIES = 3
"""The most times that a source may change while it is read."""
_KEEP_PARTIAL_SECONDS = 24 * 3600
DOWNLOADING_BYTES = 2 * (THREADS + THREADS) * CHUNK_BYTES
"""Memory of all downloads at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAdapter:
    """The result of an import."""

    digest: str
    folder: Path
    source: str
    """The address that it came from, to the commit for the hub; without secrets."""
    num_bytes: int
    """Bytes of its files on disk."""
    description: Description
    created: bool
    """False if the store had it already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of a download, in bytes of all files; what an earlier import left counts."""

    done: int
    total: int


class AdapterStore:
    """The adapters under `root`, which is made. Folders of this machine are imported from under
    `import_root` only, if it is given: who may name a source may not read the whole disk."""

    def __init__(
        self,
        root: Path,
        *,
        protocols: Set[str] = PROTOCOLS,
        import_root: Path | None = None,
        policy: FetchPolicy | None = None,
        quarantine_entries: int = 32,
        quarantine_bytes: int = 8 << 30,
        limits: ExaminationLimits | None = None,
    ) -> None:
        self._root = Path(os.path.abspath(root))
        self._protocols = protocols
        self._import_root = import_root
        self._policy = policy or FetchPolicy()
        self._adapters = self._root / "adapters"
        if not private_folder(self._root):
            log.warning("%s: others may look into this folder of another user", self._root)
        self._adapters.mkdir(exist_ok=True)
        self._incoming = Incoming(self._root / "incoming")
        self._quarantine = Quarantine(
            self._root / "quarantine", max_entries=quarantine_entries, max_bytes=quarantine_bytes
        )
        self._disk_room = DiskRoom(self._root)
        self._lock = self._root / "lock"
        limits = limits or ExaminationLimits()
        self._examiner = Examiner(limits)
        self.uploads = Uploads(
            self._root / "uploads", self._disk_room, tensor_bytes=limits.tensor_bytes
        )
        self._closed = threading.Event()
        self._new, self._served = Room("import"), Room("import-again")
        self._collector = ThreadPoolExecutor(1, thread_name_prefix="remix-collector")
        self._incoming.sweep(max_age_seconds=_KEEP_PARTIAL_SECONDS)

    async def import_from(
        self,
        source: str,
        *,
        progress: Callable[[Progress], None] | None = None,
        is_served: bool = False,
    ) -> StoredAdapter:
        """Copies the adapter at `source` into the store and verifies it.

        `source` is a path, an fsspec URL or `hf://OWNER/NAME[@REVISION]`. What is there already
        is a success too, and counts as fresh for the garbage collector. `progress` is called on
        the event loop. What `is_served` waits for no new imports. When this is cancelled, it
        returns after the thread's last read, and the next import continues. Raises `StoreError`.
        """
        loop = asyncio.get_running_loop()
        stop = threading.Event()

        def advanced(total: int, done: int) -> None:
            if stop.is_set() or self._closed.is_set():
                raise ImportStoppedError(f"the import of {source} was stopped")
            if progress is not None and total:
                loop.call_soon_threadsafe(progress, Progress(done=done, total=total))

        room = self._served if is_served else self._new
        async with room.turn(source):
            work = asyncio.wrap_future(
                room.start(source, partial(self._import, source, advanced, is_served))
            )
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                stop.set()
                with suppress(Exception):
                    await work
                raise

    def folder(self, digest: str) -> Path:
        """The folder of a digest. Raises `UnknownDigestError`, also for what is no digest."""
        path = self._adapters / digest
        with of_our_disk():
            if not _DIGEST.fullmatch(digest) or not path.is_dir():
                raise UnknownDigestError(f"no adapter of digest {digest[:80]!r} is in the store")
        return path

    async def set_aside(self, digest: str) -> str | None:
        """Puts the adapter's folder into quarantine if it is damaged, and says what is wrong with
        it; None, and no change, for a folder that is as it was imported. Raises `StoreError`."""
        target = self.folder(digest)
        work = partial(self._set_aside, target, is_served=True)
        return await asyncio.wrap_future(self._served.start(str(target), work))

    def digests(self) -> list[str]:
        """The digests of all adapters, sorted."""
        return sorted(name for name in os.listdir(self._adapters) if _DIGEST.fullmatch(name))

    def quarantined(self) -> list[Quarantined]:
        """Lists what was refused lately and why, newest first."""
        return self._quarantine.entries()

    async def collect_garbage(self, keep: Set[str], *, min_age_seconds: float) -> list[str]:
        """Removes the adapters that are not in `keep` and that nothing imported for
        `min_age_seconds`, and unfinished imports of that age that no process works on.

        Returns the digests that were removed. The age covers the time between an import and its
        first reference: who puts an old digest to use again imports it again. Raises `StoreError`.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._collector, self._collect_garbage, frozenset(keep), min_age_seconds
        )

    def close(self) -> None:
        """Ends running imports at their next read; they can be continued."""
        self._closed.set()
        self._new.close()
        self._served.close()
        self._collector.shutdown(wait=False)

    def _import(
        self, text: str, advanced: Callable[[int, int], None], is_served: bool
    ) -> StoredAdapter:
        with of_our_disk():
            return self._import_on_disk(text, advanced, is_served)

    def _import_on_disk(
        self, text: str, advanced: Callable[[int, int], None], is_served: bool
    ) -> StoredAdapter:
        advanced(0, 0)
        pace = Pace(text[:200], self._policy.seconds)
        source = self._open(text, pace)
        for _ in range(_TRIES):
            files = source.files()
            check_files(files, source.address)
            total = sum(file.size for file in files)
            with (
                self._disk_room.of(total) as wrote,
                self._incoming.claim(source.address, files) as folder,
            ):

                def came(done: int, total: int = total, wrote: Wrote = wrote) -> None:
                    wrote(done)
                    advanced(total, done)

                download(source, files, folder, pace=pace, advanced=came)
                if source.files() == files:
                    try:
                        stored = self._admit(folder, source, files, is_served)
                    except RejectedAdapterError:
                        self._forget_upload(text)
                        raise
                    self._forget_upload(text, stored)
                    return stored
        raise SourceUnavailableError(
            f"{source.address}: changed while it was read, {_TRIES} times in a row"
        )

    def _open(self, text: str, pace: Pace) -> Source:
        if text.startswith(UPLOAD):
            # After a lost answer it is asked for again, and the upload is gone.
            stored = self._adapters / self.uploads.digest_of(text)
            if stored.is_dir() and not self.uploads.has(text):
                return UploadSource(stored, self._adapters)
            return self.uploads.source(text)
        return open_source(
            text,
            pace=pace,
            protocols=self._protocols,
            import_root=self._import_root,
            policy=self._policy,
        )

    def _forget_upload(self, text: str, stored: StoredAdapter | None = None) -> None:
        """Makes room for others where an upload is in the store, or in quarantine. Raises
        `SourceError` where it was another adapter than its address says: who asks for one again
        must get that one."""
        if not text.startswith(UPLOAD):
            return
        expected = self.uploads.digest_of(text)
        self.uploads.forget(expected)
        if stored is not None and stored.digest != expected:
            raise SourceError(f"{text}: found adapter {stored.digest}, expected {expected}")

    def _admit(
        self, files: Path, source: Source, listed: Sequence[SourceFile], is_served: bool
    ) -> StoredAdapter:
        try:
            verify(listed, files)
            description = self._examine(files, is_served)
        except CheckpointError as error:
            entry = self._quarantine.put(files, source=source.address, error=error)
            raise RejectedAdapterError(
                f"{source.address}: {error}", quarantine_id=entry.id
            ) from error
        created = self._publish(files, description.digest, is_served)
        return StoredAdapter(
            digest=description.digest,
            folder=self._adapters / description.digest,
            source=source.address,
            num_bytes=sum(file.size for file in listed),
            description=description,
            created=created,
        )

    def _examine(self, folder: Path, is_served: bool) -> Description:
        """Raises `CheckpointError`, and `ImportStoppedError` for what says nothing of the
        adapter."""
        try:
            return self._examiner.examine(folder, is_urgent=is_served)
        except ExaminationError as error:
            raise ImportStoppedError(f"{error}; import it again") from error

    def _publish(self, files: Path, digest: str, is_served: bool) -> bool:
        """Puts a verified folder in its place. Returns whether the place was free, or held a
        damaged adapter, which goes to quarantine: importing an adapter again repairs it."""
        target = self._adapters / digest
        self._set_aside(target, is_served=is_served)
        _sync(files)
        os.utime(files)  # its age begins now
        with locked(self._lock):
            if target.exists():
                _take_training(files, target)
                os.utime(target)
                return False
            files.rename(target)
            sync_folder(self._adapters)
            return True

    def _set_aside(self, target: Path, *, is_served: bool) -> str | None:
        with of_our_disk():
            looked_at = _inodes(target)
            damage = None if looked_at is None else self._damage(target, is_served)
            if damage is None:
                return None
            with locked(self._lock):
                # The collector may have taken it away meanwhile, another server repaired it, or an
                # import changed its `training.json` under the reader.
                if _inodes(target) == looked_at:
                    self._quarantine.put(target, source=str(target), error=damage)
        return str(damage)

    def _damage(self, folder: Path, is_served: bool) -> CheckpointError | None:
        try:
            found = self._examine(folder, is_served).digest
        except CheckpointError as error:
            return error
        except ImportStoppedError:
            if folder.exists():
                raise
            return None
        if found != folder.name:
            return CheckpointFormatError(f"found digest {found}, expected the folder's name")
        return None

    def _collect_garbage(self, keep: Set[str], min_age_seconds: float) -> list[str]:
        with of_our_disk():
            return self._collect_on_disk(keep, min_age_seconds)

    def _collect_on_disk(self, keep: Set[str], min_age_seconds: float) -> list[str]:
        removed = []
        for digest in self.digests():
            if digest in keep:
                continue
            path = self._adapters / digest
            # An import that finds the folder freshens it under the same lock.
            with locked(self._lock), suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime >= min_age_seconds:
                    self._incoming.hide(path)
                    removed.append(digest)
        self._incoming.sweep(max_age_seconds=min_age_seconds)
        self.uploads.sweep()
        return removed


def _inodes(folder: Path) -> tuple[int, ...] | None:
    """Of the folder and of what may change in it; None where there is none."""
    found = []
    for path in (folder, folder / TRAINING_FILE):
        with suppress(FileNotFoundError, NotADirectoryError):
            status = path.stat(follow_symlinks=False)
            found += [status.st_dev, status.st_ino]
    return tuple(found) or None


def _take_training(files: Path, target: Path) -> None:
    """Takes over the newer record of the training; where the import has none, the old one stays. A
    reader sees the old file or the new one."""
    new, old = files / TRAINING_FILE, target / TRAINING_FILE
    if not new.exists() or (old.exists() and new.read_bytes() == old.read_bytes()):
        return
    new.replace(old)
    sync_folder(target)


def _sync(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    sync_folder(folder)
