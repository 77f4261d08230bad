"""How slow the source of an import may be. A source that sends a byte a minute is never silent, and
would keep its place for ever."""

from __future__ import annotations

import time

from server.store.errors import SourceTooSlowError

LEAST_BYTES_PER_SECOND = 32 << 10
WINDOW_SECONDS = 60.0
"""A source may be slower for a shorter time."""


class Pace:
    """The time of one import, from its begin on."""

    def __init__(self, address: str, seconds: float) -> None:
        self._address = address
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._window_began = time.monotonic()
        self._window_bytes = 0

    def left(self) -> float:
        """Seconds that are left. Raises `SourceTooSlowError` if none are."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise SourceTooSlowError(
                f"{self._address}: not read within {self._seconds:g} seconds; importing it again "
                "goes on from there if the source can"
            )
        return left

    def begin(self) -> None:
        """From now on bytes are awaited."""
        self._window_began, self._window_bytes = time.monotonic(), 0

    def came(self, num_bytes: int) -> None:
        """Notes bytes that came. Raises `SourceTooSlowError`."""
        self.left()
        self._window_bytes += num_bytes
        seconds = time.monotonic() - self._window_began
        if seconds < WINDOW_SECONDS:
            return
        if self._window_bytes < LEAST_BYTES_PER_SECOND * seconds:
            raise SourceTooSlowError(
                f"{self._address}: found {self._window_bytes} bytes in {seconds:.0f} seconds, "
                f"expected {LEAST_BYTES_PER_SECOND} a second"
            )
        self.begin()
