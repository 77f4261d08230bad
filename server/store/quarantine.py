"""Keeps what was imported and refused as no valid adapter, with the reason; the oldest leaves
first."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import stat
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from server.store.vanishing import states

REASON_FILE = "reason.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """The content of `reason.json`."""

    id: str
    at: str
    """UTC, ISO 8601."""
    source: str
    error: str
    """Name of the error's class."""
    reason: str


class Quarantine:
    def __init__(self, root: Path, *, max_entries: int, max_bytes: int) -> None:
        self._root = root
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        root.mkdir(parents=True, exist_ok=True)

    def put(self, files: Path, *, source: str, error: Exception) -> Quarantined:
        """Moves the folder `files` here, whole, in one step; without its reason where the disk does
        not take that. Raises `OSError`."""
        now = time.time_ns()
        entry = Quarantined(
            id=f"{self._after_all(now):020}-{secrets.token_hex(4)}",
            at=datetime.fromtimestamp(now / 1e9, UTC).isoformat(timespec="seconds"),
            source=source,
            error=type(error).__name__,
            reason=str(error),
        )
        try:
            (files / REASON_FILE).write_text(json.dumps(asdict(entry), indent=2) + "\n")
        except OSError:  # the reason may be a disk that is full or broken
            log.exception("the reason of quarantine entry %s was not written", entry.id)
        files.rename(self._root / entry.id)
        self._trim()
        return entry

    def _after_all(self, now: int) -> int:
        """A time that sorts behind all that is here, also where the clock was put back: what is
        put last must not be the first to leave."""
        begins = [name[:20] for name in os.listdir(self._root)]
        return max([now, *(int(begin) + 1 for begin in begins if begin.isdecimal())])

    def entries(self) -> list[Quarantined]:
        """Lists what is here, newest first."""
        found = []
        for folder in sorted(self._root.iterdir(), reverse=True):
            try:
                found.append(Quarantined(**json.loads((folder / REASON_FILE).read_text())))
            except (OSError, ValueError, TypeError):  # being removed, or cut short
                continue
        return found

    def _trim(self) -> None:
        """Removes the oldest ones over the limit; the newest one always stays. Others may trim at
        the same time."""
        num_bytes = 0
        for index, folder in enumerate(sorted(self._root.iterdir(), reverse=True)):
            num_bytes += sum(s.st_size for s in states(folder) if stat.S_ISREG(s.st_mode))
            if index and (index >= self._max_entries or num_bytes > self._max_bytes):
                shutil.rmtree(folder, ignore_errors=True)
