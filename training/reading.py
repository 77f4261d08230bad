"""The rows of a run beside its steps: training begins with what the first step needs, and goes
through the whole files while it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console

from training.data import Rows
from training.progress import stage

_FIRST = 1000
"""Rows of a file that are read before the first step: what is wrong is mostly wrong in all rows."""
_CHUNK = 32
"""Rows between two looks at the clock."""
_MOVE_S = 0.1
"""Seconds between two moves of the bar."""


class Reading:
    """Meets every row of `files`. The first that is wrong is a `DataError` of whatever call meets
    it; how many were cut is said when all are met."""

    def __init__(self, files: Sequence[Rows], console: Console) -> None:
        self._files = files
        self._console = console
        self._done = False

    def begin(self) -> None:
        """Reads the first rows of each file."""
        for rows in self._files:
            with stage(self._console, f"reading rows of {rows.path}"):
                rows.read_on(_FIRST)
        self.go_on(seconds=0)

    def go_on(self, *, seconds: float) -> None:
        """Reads for about so long, if there is anything left to read."""
        until = time.perf_counter() + seconds
        for rows in self._files:
            while rows.share_met < 1:
                if time.perf_counter() >= until:
                    return
                rows.read_on(_CHUNK)
        if not self._done:
            self._done = True
            self._say_cut()

    def finish(self) -> None:
        """Reads all that is left."""
        for rows in self._files:
            if rows.share_met == 1:
                continue
            with stage(self._console, f"checking the other rows of {rows.path}") as move:
                while rows.share_met < 1:
                    self.go_on(seconds=_MOVE_S)
                    move(rows.share_met)

    def _say_cut(self) -> None:
        for rows in self._files:
            if rows.truncated:
                cut = f"{rows.truncated} rows cut to {rows.max_length} tokens"
                self._console.print(f"{rows.path}: {cut}", markup=False)
