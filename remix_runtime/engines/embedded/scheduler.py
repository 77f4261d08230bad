"""Who runs in the next step, and with how many tokens: pure Python, no tensors.

Every running sequence with nothing but its newest token to compute decodes; what is left of the
step's token budget goes to prompts, in order of arrival, in chunks. A sequence is admitted only
when all the KV pages it can ever need and its adapter's slot are there, so nothing is preempted.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from remix_runtime.engines.embedded.sequence import Sequence

MAX_TIMES_OVERTAKEN = 64
"""So many younger sequences may begin while an older one waits for its adapter's slot."""


class AdapterSlots(Protocol):
    """What the scheduler needs of the adapter bank."""

    def acquire(self, digest: str) -> int | None:
        """Pins the adapter on the device and returns its slot; None while all are pinned."""
        ...

    def release(self, digest: str) -> None: ...


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
        """`count` pages, or None and no change when there are fewer."""
        if count > len(self._free):
            return None
        return [self._free.pop() for _ in range(count)]

    def give_back(self, pages: list[int]) -> None:
        self._free.extend(pages)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + count) of a sequence, computed in one step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """The chunk reaches the newest token, so its logits give the next one."""
        return self.start + self.count == len(self.sequence.tokens)


class Scheduler:
    def __init__(
        self, pool: PagePool, adapters: AdapterSlots, *, max_running: int, max_tokens_per_step: int
    ) -> None:
        self.pool = pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.admits = True
        """False holds new sequences back, for one who waits for what the running ones hold."""
        self._adapters = adapters
        self._max_running = max_running
        self._max_tokens = max_tokens_per_step

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step, tokens of the same adapter side by side."""
        self._admit()
        budget = self._max_tokens
        chunks = []
        # Decodes first: the budget is at least max_running, so each of them always fits.
        for sequence in sorted(self.running, key=_remaining_is_prompt):
            count = min(len(sequence.tokens) - sequence.num_computed, budget)
            if count > 0:
                chunks.append(Chunk(sequence, sequence.num_computed, count))
                budget -= count
        chunks.sort(key=lambda chunk: chunk.sequence.slot)
        return chunks

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees all that it holds."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.pool.give_back(sequence.pages)
            sequence.pages = []
            if sequence.request.adapter is not None:
                self._adapters.release(sequence.request.adapter)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def _admit(self) -> None:
        """Moves waiting sequences in, oldest first.

        A sequence short of KV pages holds back those behind it, or a large one would starve;
        one whose adapter finds no slot does not, since others' adapters may be there already;
        but overtaken too often, it holds back all that would keep a slot in use.
        """
        overtaken: list[Sequence] = []
        for sequence in list(self.waiting):
            if len(self.running) >= self._max_running or not self.admits:
                return
            if sequence.request.adapter is not None and any(
                waiting.times_overtaken >= MAX_TIMES_OVERTAKEN for waiting in overtaken
            ):
                continue
            pages = self.pool.take(self.pool.pages_for(sequence.max_len))
            if pages is None:
                return
            if sequence.request.adapter is not None:
                slot = self._adapters.acquire(sequence.request.adapter)
                if slot is None:
                    self.pool.give_back(pages)
                    overtaken.append(sequence)
                    continue
                sequence.slot = slot
            sequence.pages = pages
            sequence.scheduled = time.monotonic()
            self.waiting.remove(sequence)
            self.running.append(sequence)
            for waiting in overtaken:
                waiting.times_overtaken += 1


def _remaining_is_prompt(sequence: Sequence) -> bool:
    return len(sequence.tokens) - sequence.num_computed > 1
