"""Who runs in the next step, and with how many tokens: pure Python, no tensors.

Every running job with nothing but its newest token to compute decodes; what is left of the
step's token budget goes to prompts, in chunks: in equal parts to the tenants that have some, in
order of admission inside a tenant. What is nearly free after that goes to proposals of next tokens
(`proposals.py`). A job is admitted when KV pages for its tokens and its adapter's slot are there,
and takes pages as it grows. Where none is left, the one that the fair order serves last is set back
to the queue: it keeps its tokens, and their keys and values are computed again. Pages that are
computed already are found by their tokens (`pages.py`). Between tenants admission is fair
(`fairness/queue.py`); which adapter gets a slot is decided in `admission.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from remix_runtime.engines.embedded.admission import PATIENCE, AdapterSlots, SlotRound
from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.embedded.pages import PagePool
from remix_runtime.engines.embedded.proposals import MAX_ROWS
from remix_runtime.fairness.queue import OUTPUT_WEIGHT, FairQueue

MAX_SCORED_TOKENS = 128
"""Prompt tokens of a step whose log-probabilities are computed: each takes logits of the whole
vocabulary."""


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
        first = max(self.start, self.job.num_scored)
        if self.job.params.prompt_logprobs is not None and first < self.job.prompt_len - 1:
            return max(self.start + self.count - first, 0)
        return int(self.samples) + len(self.proposed)


class Scheduler:
    def __init__(
        self,
        pool: PagePool,
        adapters: AdapterSlots,
        *,
        max_running: int,
        max_tokens_per_step: int,
        prefix_cache: bool = False,
    ) -> None:
        self.pool = pool
        self.queue: FairQueue[Job] = FairQueue()
        self.running: list[Job] = []
        self.num_admitted = 0
        self.num_preemptions = 0
        self.num_looked_for = 0
        """Prompt tokens that were looked for among the pages, and those that were found."""
        self.num_found = 0
        self._prefix_cache = prefix_cache
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
        """The most tokens that a batch can hold, if no two jobs share a page: those in KV memory
        and the newest one of each job."""
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
        self._keep()
        self._grow()
        if len(self.queue):
            self._admit()
            if not self.running:
                self._lose_patience(job for _, job in self.queue)
                self._admit()
        for job in filter(_is_prompt, self.running):
            self._look_again(job)
        # Decodes first: the budget is at least max_running, so each of them always fits.
        chunks = _chunks([job for job in self.running if not _is_prompt(job)], self._max_tokens)
        chunks = self._with_proposals(chunks + self._prompt_chunks(self._max_tokens - len(chunks)))
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
            proposed = proposed[: self._make_room(chunk.job, len(proposed))]
            left -= len(proposed)
            given.append(replace(chunk, proposed=proposed) if proposed else chunk)
        return given

    def _proposals(self, chunk: Chunk, at_most: int) -> tuple[int, ...]:
        job = chunk.job
        at_most = min(at_most, job.max_len - len(job.tokens))
        if job.proposer is None or not chunk.samples or chunk.count > 1 or at_most <= 0:
            return ()
        return job.proposer.propose(job.tokens, at_most)

    def _make_room(self, job: Job, num_rows: int) -> int:
        """How many of so many rows have room for their keys and values behind the newest token. A
        page is taken for them only where those that run leave one."""
        missing = self.pool.pages_for(len(job.tokens) + num_rows) - len(job.pages)
        if missing > 0 and self.pool.num_free - self._reserve() >= missing:
            job.pages += self.pool.take(missing) or ()
        return min(num_rows, len(job.pages) * self.pool.page_tokens - len(job.tokens))

    def take_refused(self) -> list[tuple[Job, Exception]]:
        """The jobs whose adapters could not be put into a slot, with the reasons, once. They are
        in the queue no more."""
        refused, self._refused = self._refused, []
        return refused

    def _charge(self, chunk: Chunk) -> None:
        """Charges what a chunk computes. Its tenant has paid for the prompt at admission, and gets
        back what was found of it. What is computed again costs nothing."""
        job = chunk.job
        meter = job.request.meter
        found = min(chunk.start, job.prompt_len) - meter.prompt_tokens
        if found > 0:  # each token of the prompt is computed once or found once
            self.num_found += found
            job.completion.prompt_cached(found)
            self.queue.charge_prompt(job.request.tenant, -found)
        end = min(chunk.start + chunk.count, job.prompt_len)
        meter.prompt_tokens = max(meter.prompt_tokens, end)
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
            self._stop(job)
        else:
            self._leave_queue(job)

    def _stop(self, job: Job) -> None:
        """Takes a job out of the batch, with its pages and the pin on its slot."""
        self.running.remove(job)
        self.pool.give_back(job.pages, self._keys(job, job.num_computed))
        job.pages = []
        if job.request.digest is not None:
            self._adapters.unpin_slot(job.request.digest)

    def _keys(self, job: Job, num_tokens: int) -> list[bytes]:
        """The keys of the pages that a job's first tokens fill; none where none are to be found."""
        if not self._prefix_cache or job.page_keys is None:
            return []
        size = self.pool.page_tokens
        return job.page_keys.first(num_tokens // size, job.tokens, size)

    def _keep(self) -> None:
        """Lets the pages be found that were filled since the last time. Only tokens whose step has
        succeeded count as computed."""
        for job in self.running:
            if job.num_computed // self.pool.page_tokens > job.num_kept:
                keys = self._keys(job, job.num_computed)
                for number in range(job.num_kept, len(keys)):
                    self.pool.keep(job.pages[number], keys[number])
                job.num_kept = len(keys)

    def _grow(self) -> None:
        """Gives each running job the pages of its next token, in fair order, and sets jobs back
        where there are none."""
        needy = [job for job in self.running if self._num_missing(job)]
        for job in sorted(needy, key=self._turn):
            if job in self.running and self._is_ahead(job):
                self._set_back(job)
            while job in self.running:
                pages = self.pool.take(self._num_missing(job))
                if pages is not None:
                    job.pages += pages
                    break
                self._set_back(self._last_in_turn())

    def _is_ahead(self, job: Job) -> bool:
        """Whether its tenant leads by too much while the next request waits for pages. Else those
        that run could grow into all that becomes free, and another tenant's long prompt would wait
        for the last of them."""
        _, waiting = next(iter(self.queue), ("", None))
        if waiting is None or self.queue.lead(job.request.tenant) <= self._max_lead:
            return False
        return not self._finds_room(waiting, self.pool.num_free - self._reserve())

    def _num_missing(self, job: Job) -> int:
        return max(0, self.pool.pages_for(len(job.tokens)) - len(job.pages))

    def _turn(self, job: Job) -> tuple[int, int]:
        """Running jobs in fair order."""
        return self.queue.counter(job.request.tenant), job.number

    def _last_in_turn(self) -> Job:
        """Who is set back: never the first in fair order, and nobody who has made no token since it
        was set back before, as long as there is another."""
        behind = sorted(self.running, key=self._turn)[1:]
        assert behind, "a job alone always finds its pages"
        return next((job for job in reversed(behind) if not job.has_returned), behind[-1])

    def _set_back(self, job: Job) -> None:
        """Sends a job to the front of its tenant's queue; it goes on where it was."""
        self._stop(job)
        job.set_back()
        # Inside a tenant the order stays that of first admission.
        self.queue.put_back(
            job.request.tenant, job, behind=lambda other: 0 <= other.number < job.number
        )
        if job.request.digest is not None:
            self._wanted[job.request.digest] += 1
        self.num_preemptions += 1

    def _finds_room(self, job: Job, room: int) -> bool:
        """Whether a waiting job could enter with `room` free pages, and those that it finds."""
        count = self.pool.pages_for(job.num_rows)
        if count > room:
            count = self.pool.num_needed(count, self._keys(job, job.num_reusable))
        return count <= room

    def _reserve(self) -> int:
        """Pages that a newcomer leaves to those that run: the next one of each that will grow, so
        that nobody has to go before some steps are over."""
        return sum(self.pool.pages_for(job.max_len) > len(job.pages) for job in self.running)

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
        room = self.pool.num_free - self._reserve()
        for tenant, job in self.queue:
            if self.queue.lead(tenant) > self._max_lead:
                self._lose_patience(waits)
                return False
            if job in waits:
                continue
            if not self._finds_room(job, room):
                return False
            if job.request.digest is not None:
                try:
                    slot = slots.pin(job)
                except Exception as error:  # of the device: the others' adapters may be there
                    self._leave_queue(job)
                    self._refused.append((job, error))
                    return True
                if slot is None:
                    waits.add(job)
                    continue
                job.slot = slot
            self._leave_queue(job)
            self._enter(job)
            return True
        return False

    def _enter(self, job: Job) -> None:
        if job.number < 0:
            job.number = self.num_admitted
            job.completion.scheduled()
            self.queue.charge_prompt(job.request.tenant, job.prompt_charge)
            if self._prefix_cache and job.page_keys is not None:
                job.completion.prompt_cached(0)
                self.num_looked_for += job.prompt_len if job.num_reusable else 0
        job.pages = self._find(job)
        pages = self.pool.take(self.pool.pages_for(job.num_rows) - len(job.pages))
        assert pages is not None
        job.pages += pages
        self.running.append(job)
        self.num_admitted += 1

    def _look_again(self, job: Job) -> None:
        """Finds what others have computed of a job's tokens since it came: of many that come
        together and begin alike, one computes."""
        start = job.num_kept
        if pages := self._find(job):
            self.pool.give_back(job.pages[start : job.num_kept])
            job.pages[start : job.num_kept] = pages

    def _find(self, job: Job) -> list[int]:
        """Holds the pages that are there already of those which the job would compute next."""
        pages = self.pool.share(self._keys(job, job.num_reusable)[job.num_kept :])
        if pages:
            job.num_kept += len(pages)
            job.num_computed = job.num_kept * self.pool.page_tokens
        return pages

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
            known = max(job.num_scored - job.num_computed, 0)
            count = min(count, known + scored)
            scored -= max(count - known, 0)
        if count > 0:
            chunks.append(Chunk(job, job.num_computed, count))
            budget -= count
    return chunks
