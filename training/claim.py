"""The output folder of a run belongs to one process at a time."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from remix_runtime.errors import ConfigError
from remix_runtime.locks import try_lock

LOCK = ".lock"
"""In the output folder while a run writes there. The kernel's lock counts, not the file: what a
killed run leaves behind holds nobody up."""

_HOLDER = re.compile(r"pid \d{1,10}, since [\dT:+-]{25}")


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Keeps other runs out of `output`. A folder that is made for it and stays empty is removed.

    Raises `ConfigError`, at once, when another run has it or it cannot be written.
    """
    lock = output / LOCK
    try:
        existed = output.exists()
        held = _lock(lock)
    except OSError as error:
        raise ConfigError(
            f"output: {output}: found a place that cannot be written ({error.strerror}), "
            "expected a folder"
        ) from None
    if held is None:
        raise ConfigError(
            f"output: {output}: found another run ({_holder(lock)}) that writes there, expected "
            "none; wait for its end or name another folder"
        )
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        os.truncate(held, 0)
        os.write(held, f"pid {os.getpid()}, since {since}".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
            if not existed:
                output.rmdir()  # fails when it holds a run
        os.close(held)


def _lock(lock: Path) -> int | None:
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        # Else the file or folder went between the two lines: its holder has just ended.
        with contextlib.suppress(FileNotFoundError):
            return try_lock(lock)


def _holder(lock: Path) -> str:
    try:
        found = _HOLDER.fullmatch(lock.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    return found[0] if found else "its process is not known yet"
