"""Runs that are kept in files, so that a stopped experiment goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def remembered(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, kept in a file so that a second call only reads it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(make()))
        unfinished.replace(path)
    found: dict[str, Any] = json.loads(path.read_text())
    return found
