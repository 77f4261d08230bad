"""KV pages: which are free, who holds the others, and which can be found again. Pure Python.

A full page is known by the *key* of its sequence up to and with it: whose sequence it is, and all
tokens before and in it. Pages with a key are shared by those that hold them, and never written
again. One that nobody holds stays until its room is needed; the one unused longest leaves first.
"""

from __future__ import annotations

import json
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256


class PageKeys:
    """The keys of one sequence's full pages, made when they are first needed. A key is the SHA-256
    of the key before it and of its page's tokens; the first follows from the sequence's owner.

    `owner`: what keys and values depend on beside the tokens, and who may see them.
    """

    def __init__(self, *owner: str | None) -> None:
        self._keys: list[bytes] = []
        self._root = sha256(json.dumps(owner).encode()).digest()

    def first(self, count: int, tokens: Sequence[int], page_tokens: int) -> list[bytes]:
        """The keys of the first `count` pages. The tokens in them must not change later."""
        for number in range(len(self._keys), count):
            page = array("q", tokens[number * page_tokens : (number + 1) * page_tokens])
            assert len(page) == page_tokens, "a page that is not full has no key"
            before = self._keys[-1] if self._keys else self._root
            self._keys.append(sha256(before + page.tobytes()).digest())
        return self._keys[:count]


class PagePool:
    """All pages. Each is empty, or held, or *idle*: found by its key and held by nobody. All steps
    take constant time for each page that they name.

    A page leaves before those that stand before it in its sequence, without which it could not be
    found: an idle page's predecessors are held or became idle after it.
    """

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self._empty = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._key_of: list[bytes | None] = [None] * num_pages
        self._idle: OrderedDict[int, None] = OrderedDict()
        """The one unused longest comes first."""

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._empty) + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Those of them that can be found by their keys."""
        return len(self._idle)

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_tokens)

    def take(self, count: int) -> list[int] | None:
        """Takes `count` pages, empty ones first. Returns None, and takes nothing, when fewer are
        free."""
        if count > self.num_free:
            return None
        pages = [self._empty.pop() if self._empty else self._evict() for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def num_needed(self, count: int, keys: Sequence[bytes]) -> int:
        """How many of the free pages a sequence of `count` pages takes that begins with those of
        `keys`, as far as they are there."""
        return count - sum(self._holders[page] > 0 for page in self._find(keys))

    def share(self, keys: Sequence[bytes]) -> list[int]:
        """Holds the pages with the first keys, as far as they are there without a gap."""
        pages = self._find(keys)
        for page in pages:
            self._holders[page] += 1
            self._idle.pop(page, None)
        return pages

    def keep(self, page: int, key: bytes) -> None:
        """Lets a held page, full and computed, be found. A second page with a key stays its
        holder's own."""
        if key not in self._page_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def give_back(self, pages: Sequence[int], keys: Sequence[bytes] = ()) -> None:
        """Gives back a sequence's pages, with the keys of those first ones that are full and
        computed."""
        for number in range(len(pages) - 1, -1, -1):
            page = pages[number]
            assert self._holders[page] > 0, "given back more often than taken"
            if number < len(keys):
                self.keep(page, keys[number])
            self._holders[page] -= 1
            if not self._holders[page] and self._key_of[page] is None:
                self._empty.append(page)
            found = self._page_of[keys[number]] if number < len(keys) else page
            if not self._holders[found] and self._key_of[found] is not None:
                self._idle[found] = None
                self._idle.move_to_end(found)

    def _find(self, keys: Sequence[bytes]) -> list[int]:
        pages = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        key, self._key_of[page] = self._key_of[page], None
        assert key is not None
        del self._page_of[key]
        return page
