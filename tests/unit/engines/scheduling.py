"""A scheduler without a model: the real bookkeeping of slots, sequences of any size, steps."""

from __future__ import annotations

from collections.abc import Collection

from remix_runtime.contracts import GenerationRequest, SamplingParams
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
    prompt: int,
    new: int,
    adapter: str | None = None,
    name: str = "r",
    tenant: str = "",
    prompt_logprobs: int | None = None,
) -> Job:
    request = GenerationRequest(
        request_id=name,
        prompt_token_ids=tuple(range(prompt)),
        params=SamplingParams(max_tokens=new, prompt_logprobs=prompt_logprobs),
        digest=adapter,
        tenant=tenant,
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
