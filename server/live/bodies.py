"""Memory for the bodies of requests, from their first byte to the last byte of the answer."""

from __future__ import annotations

from collections import Counter


class Bodies:
    """Bounded for all tenants together. The fuller it is, the less may one tenant hold: none takes
    the last of it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: Counter[str] = Counter()

    def take(self, tenant: str, num_bytes: int) -> bool:
        """Whether there is room for so many more bytes; they are then taken."""
        left = self.max_bytes - self._held.total() - num_bytes
        if self._held[tenant] + num_bytes > left:
            return False
        self._held[tenant] += num_bytes
        return True

    def give_back(self, tenant: str, num_bytes: int) -> None:
        self._held[tenant] -= num_bytes
        if not self._held[tenant]:
            del self._held[tenant]

    @property
    def num_bytes(self) -> int:
        return self._held.total()
