"""The room on the disk of the store: set aside, so that imports at the same time do not count on
the same bytes; and what it means where there is none."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from server.store.errors import StoreError, StoreFullError

FREE_BYTES = 64 << 20
"""Bytes that are left on the disk for others."""

Wrote = Callable[[int], None]
"""Takes how many bytes are on the disk so far."""


class DiskRoom:
    """What the imports of this process are still to write. Used by many threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._to_come: dict[object, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def of(self, num_bytes: int) -> Iterator[Wrote]:
        """Holds room for one import. Raises `StoreFullError`."""
        key = object()
        with self._lock:
            free = shutil.disk_usage(self._root).free
            others = sum(self._to_come.values())
            if num_bytes + others + FREE_BYTES > free:
                raise StoreFullError(
                    f"{self._root}: found {free} bytes free, expected at least "
                    f"{num_bytes + FREE_BYTES} for this adapter and {others} for others that are "
                    "being imported"
                )
            self._to_come[key] = num_bytes

        def wrote(so_far: int) -> None:
            with self._lock:
                self._to_come[key] = max(0, num_bytes - so_far)

        try:
            yield wrote
        finally:
            with self._lock:
                del self._to_come[key]


@contextmanager
def of_our_disk() -> Iterator[None]:
    """Makes an error of the store's own disk one of the store. Sources have errors of their own."""
    try:
        yield
    except OSError as error:
        kind = StoreFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StoreError
        raise kind(f"the store's disk: {error.strerror or error}") from error
