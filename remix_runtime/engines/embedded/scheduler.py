"""Who runs in the next step, and with how many tokens: pure Python, no tensors.

Every running sequence with nothing but its newest token to compute decodes; what is left of the
step's token budget goes to prompts, in order of admission, in chunks. A sequence is admitted only
when all the KV pages it can ever need and its adapter's slot are there, so nothing is preempted.
Between tenants admission is fair (`engines/fairness.py`); which adapter gets a slot is decided in
`admission.py`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from remix_runtime.engines.embedded.admission import PATIENCE, AdapterSlots, SlotRound
from remix_runtime.engines.embedded.sequence import Sequence
from remix_runtime.engines.fairness import OUTPUT_WEIGHT, FairQueue


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
        self.queue: FairQueue[Sequence] = FairQueue()
        self.running: list[Sequence] = []
        self.num_admitted = 0
        self._wanted: Counter[str] = Counter()
        """Adapters that sequences in the queue wait for."""
        self._adapters = adapters
        self._max_running = max_running
        self._max_tokens = max_tokens_per_step
        # Where a tenant waits for a slot, others may go on, but only so far ahead: as far as the
        # counters may lie apart anyway. So the bound of service at most doubles for want of slots.
        self._max_lead = OUTPUT_WEIGHT * self.batch_tokens

    @property
    def batch_tokens(self) -> int:
        """As many tokens as a batch can hold: in KV memory, and the newest of each sequence."""
        return self.pool.num_pages * self.pool.page_tokens + self._max_running

    @property
    def has_work(self) -> bool:
        return bool(self.running) or len(self.queue) > 0

    def add(self, sequence: Sequence) -> None:
        self.queue.add(sequence.request.tenant, sequence)
        if sequence.request.digest is not None:
            self._wanted[sequence.request.digest] += 1

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step, tokens of the same adapter side by side."""
        self._admit()
        if not self.running and len(self.queue):
            self._lose_patience(sequence for _, sequence in self.queue)
            self._admit()
        budget = self._max_tokens
        chunks = []
        # Decodes first: the budget is at least max_running, so each of them always fits.
        for sequence in sorted(self.running, key=_remaining_is_prompt):
            count = min(len(sequence.tokens) - sequence.num_computed, budget)
            if count > 0:
                chunks.append(Chunk(sequence, sequence.num_computed, count))
                budget -= count
        for chunk in chunks:
            if chunk.samples:
                self.queue.charge_output(chunk.sequence.request.tenant)
        chunks.sort(key=lambda chunk: chunk.sequence.slot)
        return chunks

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees all that it holds."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.pool.give_back(sequence.pages)
            sequence.pages = []
            if sequence.request.digest is not None:
                self._adapters.release(sequence.request.digest)
        else:
            self._leave_queue(sequence)

    def _admit(self) -> None:
        """Moves waiting sequences in, in fair order.

        A sequence short of KV pages holds back those behind it, or a large one would starve;
        one whose adapter finds no slot does not, since others' adapters may be there already.
        """
        slots = SlotRound(
            self._adapters,
            wanted=self._wanted,
            running=self.running,
            num_admitted=self.num_admitted,
        )
        waits: set[Sequence] = set()
        while len(self.running) < self._max_running and self._admit_next(slots, waits):
            pass

    def _admit_next(self, slots: SlotRound, waits: set[Sequence]) -> bool:
        """Admits the first that can be. `waits`: those that have found no slot in this round."""
        for tenant, sequence in self.queue:
            if self.queue.lead(tenant) > self._max_lead:
                self._lose_patience(waits)
                return False
            if sequence in waits:
                continue
            pages = self.pool.take(self.pool.pages_for(sequence.max_len))
            if pages is None:
                return False
            if sequence.request.digest is not None:
                slot = slots.acquire(sequence)
                if slot is None:
                    self.pool.give_back(pages)
                    waits.add(sequence)
                    continue
                sequence.slot = slot
            sequence.pages = pages
            sequence.scheduled = time.monotonic()
            self._leave_queue(sequence)
            self.queue.charge_prompt(tenant, sequence.prompt_len)
            self.running.append(sequence)
            self.num_admitted += 1
            return True
        return False

    def _lose_patience(self, sequences: Iterable[Sequence]) -> None:
        """Nobody may pass them any more, so that waiting for slots saves nothing."""
        for sequence in sequences:
            sequence.turn_came = self.num_admitted - PATIENCE

    def _leave_queue(self, sequence: Sequence) -> None:
        adapter = sequence.request.digest
        if self.queue.remove(sequence.request.tenant, sequence) and adapter is not None:
            self._wanted[adapter] -= 1
            if not self._wanted[adapter]:
                del self._wanted[adapter]


def _remaining_is_prompt(sequence: Sequence) -> bool:
    return len(sequence.tokens) - sequence.num_computed > 1
