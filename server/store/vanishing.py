"""Looks at folders that another thread or process may remove at the same time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def states(folder: Path) -> Iterator[os.stat_result]:
    """The states of `folder` and of all files and folders in it that are still there when their
    turn comes. Links are not followed. What cannot be looked at is taken for gone."""
    with suppress(OSError):
        yield os.lstat(folder)
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with suppress(OSError):
                yield os.lstat(os.path.join(path, name))
