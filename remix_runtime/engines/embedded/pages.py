"""KV pages: which are free, and who holds the others. Pure Python, no tensors."""

from __future__ import annotations

from collections.abc import Sequence


class PagePool:
    """Free KV pages, handed out last-freed first."""

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_tokens)

    def take(self, count: int) -> list[int] | None:
        """Takes `count` pages. Returns None, and takes nothing, when fewer are free."""
        if count > self.num_free:
            return None
        return [self._free.pop() for _ in range(count)]

    def give_back(self, pages: Sequence[int]) -> None:
        self._free.extend(pages)
