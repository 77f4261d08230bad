"""Files of adapters that clients send, until they are imported by the source `upload://DIGEST`.

uploads/<digest>/<file>     whole files only; what is still coming has another name
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from remix_runtime.adapter.checkpoint.files import MAX_BYTES
from server.store.disk_room import DiskRoom, Wrote, of_our_disk
from server.store.errors import SourceError, SourceMissingError, StoreFullError
from server.store.sources.local import LocalSource

PROTOCOL = "upload://"
MAX_UPLOADS = 16
"""Adapters that may wait for their import."""
KEEP_SECONDS = 24 * 3600.0
"""Seconds after which one that nobody imported is removed."""
_WRITE_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


class UploadSource(LocalSource):
    """What was uploaded to this server, by its digest. Another server has none of it."""

    def __init__(self, folder: Path, root: Path) -> None:
        super().__init__(folder, root)
        self.address = f"{PROTOCOL}{folder.name}"


class Uploads:
    """Receives files under `root`. What its caller checks is the caller's right to send any."""

    def __init__(self, root: Path, disk_room: DiskRoom, *, tensor_bytes: int) -> None:
        self._root = root
        self._disk_room = disk_room
        self._limits = {name: min(most, tensor_bytes) for name, most in MAX_BYTES.items()}
        root.mkdir(exist_ok=True)
        self.sweep()

    async def receive(
        self, digest: str, name: str, size: int, chunks: AsyncIterator[bytes]
    ) -> None:
        """Takes one file of the adapter, in the place of one that came before. Raises
        `SourceError` for a file that no adapter has, `StoreFullError`; `StoreError` where the disk
        fails."""
        if not _DIGEST.fullmatch(digest):
            raise SourceError(f"upload: found {digest[:80]!r}, expected an adapter's digest")
        if name not in self._limits:
            raise SourceError(
                f"upload: found the file {name[:80]!r}, expected one of {', '.join(self._limits)}"
            )
        if size > self._limits[name]:
            raise SourceError(f"{name}: found {size} bytes, expected at most {self._limits[name]}")
        folder = self._root / digest
        with of_our_disk(), self._disk_room.of(size) as wrote:
            await asyncio.to_thread(self._make, folder)
            part = folder / f"{secrets.token_hex(8)}.part"
            try:
                await _write(part, chunks, size, wrote)
                part.rename(folder / name)
            finally:
                part.unlink(missing_ok=True)
                with suppress(OSError):  # a folder with a file takes one of the places
                    folder.rmdir()

    def has(self, address: str) -> bool:
        """Whether anything was uploaded under an address. Raises `SourceError`."""
        return (self._root / self.digest_of(address)).is_dir()

    def source(self, address: str) -> UploadSource:
        """What was uploaded under an address. Raises `SourceMissingError`."""
        digest = self.digest_of(address)
        folder = self._root / digest
        if not self.has(address):
            raise SourceMissingError(
                f"{PROTOCOL}{digest}: not on this server; upload it here, or import it from a "
                "place that all servers can read"
            )
        return UploadSource(folder, self._root)

    def digest_of(self, address: str) -> str:
        """Raises `SourceError`."""
        digest = address.removeprefix(PROTOCOL)
        if not _DIGEST.fullmatch(digest):
            raise SourceError(f"source: found {address[:100]!r}, expected {PROTOCOL}DIGEST")
        return digest

    def forget(self, digest: str) -> None:
        shutil.rmtree(self._root / digest, ignore_errors=True)

    def sweep(self, *, max_age_seconds: float = KEEP_SECONDS) -> None:
        """Removes what nobody imported."""
        oldest = time.time() - max_age_seconds
        for folder in self._root.iterdir():
            with suppress(FileNotFoundError):  # imported, or swept by another server
                if folder.stat().st_mtime <= oldest:
                    shutil.rmtree(folder, ignore_errors=True)

    def _make(self, folder: Path) -> None:
        if not folder.is_dir() and len(list(self._root.iterdir())) >= MAX_UPLOADS:
            self.sweep()
            if len(list(self._root.iterdir())) >= MAX_UPLOADS:
                raise StoreFullError(
                    f"upload: {MAX_UPLOADS} adapters wait for their import; import them first"
                )
        folder.mkdir(mode=0o700, exist_ok=True)


async def _write(part: Path, chunks: AsyncIterator[bytes], size: int, wrote: Wrote) -> None:
    """Raises `SourceError` for a file that is not as long as it was said."""
    done, pending = 0, bytearray()
    with await asyncio.to_thread(part.open, "wb") as file:
        async for chunk in chunks:
            pending += chunk
            done += len(chunk)
            if done > size:
                break
            if len(pending) >= _WRITE_BYTES:
                await asyncio.to_thread(file.write, bytes(pending))
                pending.clear()
                wrote(done)
        if done != size:
            raise SourceError(f"upload: found {done} bytes, expected {size}")
        await asyncio.to_thread(file.write, bytes(pending))
