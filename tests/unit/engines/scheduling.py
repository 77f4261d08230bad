"""A scheduler without a model: the real bookkeeping of slots, sequences of any size, steps."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Sequence

from remix_runtime.contracts import (
    GenerationRequest,
    PositionLogprobs,
    SamplingParams,
    TokenLogprob,
)
from remix_runtime.engines.completion import Completion
from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.embedded.scheduler import Scheduler
from remix_runtime.engines.embedded.slots import SlotTable
from tests.engines import NoText

PAGE = 4


class Slots:
    """What a bank does with slots, for adapters of one byte each."""

    def __init__(self, count: int) -> None:
        self.table = SlotTable(count, count)
        self.fills = 0

    @property
    def residents(self) -> tuple[str, ...]:
        return self.table.residents

    def is_resident(self, digest: str) -> bool:
        return digest in self.table

    def fits(self, digests: Collection[str], without: Collection[str]) -> bool:
        return self.table.fits([1] * len(digests), without)

    def pin_slot(self, digest: str, keep: Collection[str] = ()) -> int | None:
        if digest not in self.table:
            if self.table.place(digest, 1, keep) is None:
                return None
            self.fills += 1
        return self.table.pin(digest)

    def unpin_slot(self, digest: str) -> None:
        self.table.unpin(digest)


def job_of(
    prompt: int | Sequence[int],
    new: int,
    adapter: str | None = None,
    name: str = "r",
    tenant: str = "",
    prompt_logprobs: int | None = None,
    salt: str = "",
) -> Job:
    """`prompt`: its tokens, or how many."""
    request = GenerationRequest(
        request_id=name,
        prompt_token_ids=tuple(range(prompt) if isinstance(prompt, int) else prompt),
        params=SamplingParams(max_tokens=new, prompt_logprobs=prompt_logprobs),
        digest=adapter,
        tenant=tenant,
        cache_salt=salt,
    )
    return Job(request, Completion(request, NoText(), ()))


def advance(s: Scheduler) -> list[tuple[str, int]]:
    """One step as the engine does it; finished sequences leave."""
    chunks = s.schedule()
    for chunk in chunks:
        chunk.job.num_computed += chunk.count
        if chunk.samples:
            chunk.job.append(0)
            if chunk.job.num_generated == chunk.job.params.max_tokens:
                s.finish(chunk.job)
    return [(chunk.job.request.request_id, chunk.count) for chunk in chunks]


def row_of(before: int, token: int, request: GenerationRequest) -> int:
    """Keys and values of a token, as one number that tells all they were computed from."""
    whose = (request.digest, request.tenant, request.cache_salt)
    return zlib.crc32(repr((before, token, whose)).encode())


def token_of(row: int) -> int:
    """Three tokens, so that texts often begin alike."""
    return row % 3


def alone(request: GenerationRequest) -> tuple[list[int], list[int]]:
    """What a request's answer must be, and the rows of its prompt."""
    tokens, rows, row = list(request.prompt_token_ids), [], 0
    for token in tokens:
        row = row_of(row, token, request)
        rows.append(row)
    answer: list[int] = []
    while len(answer) < request.params.max_tokens:
        answer.append(token_of(row))
        row = row_of(row, answer[-1], request)
    return answer, rows


class PagedModel:
    """Steps a scheduler with a model whose memory is its pages: a token's row follows from the row
    that stands before it there, whoever wrote it."""

    def __init__(self, s: Scheduler) -> None:
        self.s = s
        self.rows: dict[tuple[int, int], int] = {}

    def step(self) -> list[Job]:
        """One step; returns the jobs that ended in it."""
        chunks = self.s.schedule()
        assert chunks, "work waits but nothing is scheduled"
        holders = Counter(page for job in self.s.running for page in job.pages)
        wanted: list[tuple[Job, list[int]]] = []
        for chunk in chunks:
            job, end = chunk.job, chunk.start + chunk.count
            assert chunk.start == job.num_computed
            row, rows = self._read(job, chunk.start - 1), []
            for at in range(chunk.start, end):
                page = job.pages[at // PAGE]
                assert holders[page] == 1, "a page that others read is written"
                row = row_of(row, job.tokens[at], job.request)
                self.rows[page, at % PAGE] = row
                rows.append(row)
            wanted.append((job, rows[chunk.count - chunk.num_logits :]))
        ended = []
        for chunk, (job, rows) in zip(chunks, wanted, strict=True):
            samples = chunk.samples
            job.num_computed += chunk.count
            if job.params.prompt_logprobs is not None:
                job.prompt_logprobs += map(
                    _as_logprobs, rows[: job.prompt_len - len(job.prompt_logprobs)]
                )
            if samples:
                assert rows[-1] == self._read(job, len(job.tokens) - 1)
                job.append(token_of(rows[-1]))
                if job.num_generated == job.params.max_tokens:
                    self.s.finish(job)
                    ended.append(job)
        return ended

    def _read(self, job: Job, at: int) -> int:
        return self.rows[job.pages[at // PAGE], at % PAGE] if at >= 0 else 0


def _as_logprobs(row: int) -> PositionLogprobs:
    return PositionLogprobs(chosen=TokenLogprob(token_id=row, logprob=0.0), top=())
