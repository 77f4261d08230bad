"""Folders and files that only the user whose process this is may look into."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def private_folder(path: Path) -> bool:
    """Makes the folder, and what is missing above it; closes one that is there to others. Returns
    whether it is closed: what belongs to another user cannot be. Raises `OSError`."""
    path.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
    return _close(path)


def private_file(path: Path) -> bool:
    """Makes the file, empty; closes one that is there to others. Returns whether it is closed.
    Raises `OSError`.

    A file that is there is never opened: to close it would drop the locks that this process has on
    it, SQLite's too.
    """
    with suppress(FileExistsError):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR))
    return _close(path)


def _close(path: Path) -> bool:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS:
        try:
            path.chmod(mode & ~_OTHERS)
        except PermissionError:
            return False
    return True
