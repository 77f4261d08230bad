"""Downloads from a source into a folder: bounded, continued where it can be, checked at the end."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from remix_runtime.errors import CheckpointFormatError
from server.store.errors import (
    ImportStoppedError,
    SourceTooSlowError,
    SourceUnavailableError,
    StoreError,
    StoreFullError,
)
from server.store.pace import Pace
from server.store.sources.base import RangeRefusedError, Source, SourceFile

CHUNK_BYTES = 2 << 20


def download(
    source: Source,
    files: Sequence[SourceFile],
    folder: Path,
    *,
    pace: Pace,
    advanced: Callable[[int], None],
) -> None:
    """Completes `files` in `folder`, which may hold parts of them, as fast as `pace` demands.

    After every part `advanced` is called with the bytes of all files that are there. It may raise,
    to end the download.
    """
    before = 0
    pace.begin()
    for file in files:
        start = before

        def file_advanced(have: int, start: int = start) -> None:
            advanced(start + have)

        _download_file(source, file, folder / file.name, pace, file_advanced)
        before += file.size


def verify(files: Sequence[SourceFile], folder: Path) -> None:
    """Compares what came with the source's checksums. Raises `CheckpointFormatError`."""
    for file in files:
        if file.checksum is None:
            continue
        algorithm, expected = file.checksum
        found = _checksum(folder / file.name, algorithm, file.size)
        if found != expected:
            raise CheckpointFormatError(
                f"{file.name}: found {algorithm} {found}, expected {expected} as the source states"
            )


def _download_file(
    source: Source, file: SourceFile, path: Path, pace: Pace, advanced: Callable[[int], None]
) -> None:
    with _writing():
        path.touch()
        have = path.stat().st_size
    if have > file.size:
        have = _start_again(path)
    advanced(have)
    while have < file.size:
        before = have
        try:
            with source.open(file, have) as stream:
                while have < file.size:
                    wanted = min(CHUNK_BYTES, file.size - have)
                    part = stream.read(wanted)[:wanted]
                    if not part:
                        raise SourceUnavailableError(
                            f"{source.address}: {file.name}: ended after {have} bytes, "
                            f"expected {file.size}"
                        )
                    _append(path, part)
                    have += len(part)
                    advanced(have)
                    pace.came(len(part))
        except RangeRefusedError:
            have = _start_again(path)
        except (ImportStoppedError, SourceTooSlowError):
            raise
        except SourceUnavailableError:
            # A connection that breaks now and then still arrives; one that brings nothing is over.
            if have == before or not file.resumable:
                raise


def _start_again(path: Path) -> int:
    os.truncate(path, 0)
    return 0


def _append(path: Path, part: bytes) -> None:
    with _writing(), path.open("ab") as stream:
        stream.write(part)


@contextmanager
def _writing() -> Iterator[None]:
    """Marks an error of our disk, so that it is not taken for one of the source."""
    try:
        yield
    except OSError as error:
        kind = StoreFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StoreError
        raise kind(f"cannot write the adapter: {error.strerror}") from error


def _checksum(path: Path, algorithm: str, size: int) -> str:
    if algorithm == "sha256":
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while part := stream.read(CHUNK_BYTES):
            digest.update(part)
    return digest.hexdigest()
