"""Who runs in the next step, and with how many tokens: pure Python, no tensors.

Every running job with nothing but its newest token to compute decodes; what is left of the
step's token budget goes to prompts, in chunks: in equal parts to the tenants that have some, in
order of admission inside a tenant. What is nearly free after that goes to proposals of next tokens
(`proposals.py`). A job is admitted only when all the KV pages it can ever need and its adapter's
slot are there, so nothing is preempted. Between tenants admission is fair
(`fairness/queue.py`); which adapter gets a slot is decided in `admission.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from remix_runtime.engines.embedded.admission import PATIENCE, AdapterSlots, SlotRound
from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.embedded.proposals import MAX_ROWS
from remix_runtime.fairness.queue import OUTPUT_WEIGHT, FairQueue

MAX_SCORED_TOKENS = 128
"""Prompt tokens of a step whose log-probabilities are computed: each takes logits of the whole
vocabulary."""


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
        if count > len(self._free):
            return None
        return [self._free.pop() for _ in range(count)]

    def give_back(self, pages: list[int]) -> None:
        self._free.extend(pages)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + count) of a job, computed in one step."""

    job: Job
    start: int
    count: int
    proposed: tuple[int, ...] = ()
    """Tokens that may follow the newest one, computed behind it. Only where the chunk samples."""

    @property
    def token_ids(self) -> list[int]:
        """The tokens of its rows."""
        return [*self.job.tokens[self.start : self.start + self.count], *self.proposed]

    @property
    def samples(self) -> bool:
        """The chunk reaches the newest token, so its logits give the next one."""
        return self.start + self.count == len(self.job.tokens)

    @property
    def num_logits(self) -> int:
        """Tokens at the chunk's end whose logits are wanted."""
        if self.job.params.prompt_logprobs is not None and self.start < self.job.prompt_len - 1:
            return self.count
        return int(self.samples) + len(self.proposed)


class Scheduler:
    def __init__(
        self, pool: PagePool, adapters: AdapterSlots, *, max_running: int, max_tokens_per_step: int
    ) -> None:
        self.pool = pool
        self.queue: FairQueue[Job] = FairQueue()
        self.running: list[Job] = []
        self.num_admitted = 0
        self._refused: list[tuple[Job, Exception]] = []
        self._wanted: Counter[str] = Counter()
        """Adapters that jobs in the queue wait for."""
        self._adapters = adapters
        self._max_running = max_running
        self._max_tokens = max_tokens_per_step
        # Where a tenant waits for a slot, others may go on, but only so far ahead: as far as the
        # counters may lie apart anyway. So the bound of service at most doubles for want of slots.
        self._max_lead = OUTPUT_WEIGHT * self.batch_tokens

    @property
    def batch_tokens(self) -> int:
        """The most tokens that a batch can hold: those in KV memory and the newest one of each
        job."""
        return self.pool.num_pages * self.pool.page_tokens + self._max_running

    @property
    def has_work(self) -> bool:
        return bool(self.running) or len(self.queue) > 0

    def add(self, job: Job) -> None:
        self.queue.add(job.request.tenant, job)
        if job.request.digest is not None:
            self._wanted[job.request.digest] += 1

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step, tokens of the same adapter side by side."""
        self._admit()
        if not self.running and len(self.queue):
            self._lose_patience(job for _, job in self.queue)
            self._admit()
        # Decodes first: the budget is at least max_running, so each of them always fits.
        chunks = _chunks([job for job in self.running if not _is_prompt(job)], self._max_tokens)
        chunks += self._prompt_chunks(self._max_tokens - len(chunks))
        chunks = self._with_proposals(chunks)
        for chunk in chunks:
            self._charge(chunk)
        chunks.sort(key=lambda chunk: chunk.job.slot)
        return chunks

    def _prompt_chunks(self, budget: int) -> list[Chunk]:
        """Shares the budget between the tenants, so that one's long prompts delay those of others
        by no more than its part. What one does not need is the others'."""
        prompts: dict[str, list[Job]] = {}
        for job in self.running:
            if _is_prompt(job):
                prompts.setdefault(job.request.tenant, []).append(job)
        scoring = {job.request.tenant for job in self.running if job.scores_prompt}
        scored = max(1, MAX_SCORED_TOKENS // max(1, len(scoring)))
        # Who wants least comes first, and leaves its rest to those behind it.
        wanted = {
            tenant: sum(chunk.count for chunk in _chunks(jobs, budget, scored))
            for tenant, jobs in prompts.items()
        }
        chunks: list[Chunk] = []
        for number, tenant in enumerate(sorted(prompts, key=wanted.__getitem__)):
            share = _chunks(prompts[tenant], budget // (len(prompts) - number), scored)
            budget -= sum(chunk.count for chunk in share)
            chunks += share
        return chunks

    def _with_proposals(self, chunks: list[Chunk]) -> list[Chunk]:
        """The chunks, with proposals for decodes in rows that are left and nearly free: in equal
        parts, and what one does not need is the others'."""
        left = min(MAX_ROWS, self._max_tokens) - sum(chunk.count for chunk in chunks)
        if left <= 0:
            return chunks
        wanted = [(chunk, self._proposals(chunk, left)) for chunk in chunks]
        wanted.sort(key=lambda item: len(item[1]))
        given = []
        for number, (chunk, proposed) in enumerate(wanted):
            proposed = proposed[: left // (len(wanted) - number)]
            left -= len(proposed)
            given.append(replace(chunk, proposed=proposed) if proposed else chunk)
        return given

    def _proposals(self, chunk: Chunk, at_most: int) -> tuple[int, ...]:
        job = chunk.job
        at_most = min(at_most, self._room(job))
        if job.proposer is None or not chunk.samples or chunk.count > 1 or at_most <= 0:
            return ()
        return job.proposer.propose(job.tokens, at_most)

    def _room(self, job: Job) -> int:
        """Rows for keys and values that the job may use behind its newest token."""
        return min(job.max_len, len(job.pages) * self.pool.page_tokens) - len(job.tokens)

    def take_refused(self) -> list[tuple[Job, Exception]]:
        """The jobs whose adapters could not be put into a slot, with the reasons, once. They are
        in the queue no more."""
        refused, self._refused = self._refused, []
        return refused

    def _charge(self, chunk: Chunk) -> None:
        """Charges what a chunk computes; its tenant has paid for the prompt at admission."""
        job = chunk.job
        meter = job.request.meter
        meter.prompt_tokens += max(0, min(chunk.count, job.prompt_len - chunk.start))
        if chunk.samples:
            self.queue.charge_output(job.request.tenant)
            meter.output_tokens += job.params.max_tokens > 0

    def charge_more(self, job: Job, num_tokens: int) -> None:
        """Charges tokens that came in a step beside the one that was scheduled."""
        self.queue.charge_output(job.request.tenant, num_tokens)
        job.request.meter.output_tokens += num_tokens

    def finish(self, job: Job) -> None:
        """Takes a job out, wherever it is, and frees all that it holds."""
        if job in self.running:
            self.running.remove(job)
            self.pool.give_back(job.pages)
            job.pages = []
            if job.request.digest is not None:
                self._adapters.unpin_slot(job.request.digest)
        else:
            self._leave_queue(job)

    def _admit(self) -> None:
        """Moves waiting jobs in, in fair order.

        A job short of KV pages holds back those behind it, or a large one would starve;
        one whose adapter finds no slot does not, since others' adapters may be there already.
        """
        slots = SlotRound(
            self._adapters,
            wanted=self._wanted,
            running=self.running,
            num_admitted=self.num_admitted,
        )
        waits: set[Job] = set()
        while len(self.running) < self._max_running and self._admit_next(slots, waits):
            pass

    def _admit_next(self, slots: SlotRound, waits: set[Job]) -> bool:
        """Admits the first job that can be admitted, or refuses it. `waits`: jobs that found no
        slot in this round."""
        for tenant, job in self.queue:
            if self.queue.lead(tenant) > self._max_lead:
                self._lose_patience(waits)
                return False
            if job in waits:
                continue
            pages = self.pool.take(self.pool.pages_for(job.max_len))
            if pages is None:
                return False
            if job.request.digest is not None:
                try:
                    slot = slots.pin(job)
                except Exception as error:  # of the device: the others' adapters may be there
                    self.pool.give_back(pages)
                    self._leave_queue(job)
                    self._refused.append((job, error))
                    return True
                if slot is None:
                    self.pool.give_back(pages)
                    waits.add(job)
                    continue
                job.slot = slot
            job.pages = pages
            job.completion.scheduled()
            self._leave_queue(job)
            self.queue.charge_prompt(tenant, job.prompt_charge)
            self.running.append(job)
            self.num_admitted += 1
            return True
        return False

    def _lose_patience(self, jobs: Iterable[Job]) -> None:
        """Lets nobody pass these jobs any more, so that waiting for a slot earns a tenant
        nothing."""
        for job in jobs:
            job.turn_came = self.num_admitted - PATIENCE

    def _leave_queue(self, job: Job) -> None:
        digest = job.request.digest
        if self.queue.remove(job.request.tenant, job) and digest is not None:
            self._wanted[digest] -= 1
            if not self._wanted[digest]:
                del self._wanted[digest]


def _is_prompt(job: Job) -> bool:
    return len(job.tokens) - job.num_computed > 1


def _chunks(jobs: Iterable[Job], budget: int, scored: int = 0) -> list[Chunk]:
    """The next tokens of the jobs, one job after the other; `scored` of them with log-probabilities
    of the prompt."""
    chunks = []
    for job in jobs:
        count = min(len(job.tokens) - job.num_computed, budget)
        if job.scores_prompt:
            count = min(count, scored)
            scored -= count
        if count > 0:
            chunks.append(Chunk(job, job.num_computed, count))
            budget -= count
    return chunks
