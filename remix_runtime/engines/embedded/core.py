"""The engine's inside: admit, schedule, run, sample, report. One thread owns all of it."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from remix_runtime.adapter.checkpoint import Parity
from remix_runtime.contracts import GenerationRequest, TokenEvent
from remix_runtime.engines.completion import Completion
from remix_runtime.engines.embedded.bank import AdapterBank, HostAdapter
from remix_runtime.engines.embedded.config import EmbeddedConfig
from remix_runtime.engines.embedded.drawing import Draw
from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.embedded.pages import PagePool
from remix_runtime.engines.embedded.proposals import Proposer
from remix_runtime.engines.embedded.replay import Replay
from remix_runtime.engines.embedded.runner import ModelRunner
from remix_runtime.engines.embedded.sampler import logprobs_of, sample
from remix_runtime.engines.embedded.scheduler import Chunk, Scheduler
from remix_runtime.engines.embedded.tiers import Tiers
from remix_runtime.engines.front import Prepared
from remix_runtime.errors import AdapterUnavailableError, EngineDeadError, RemixError

log = logging.getLogger(__name__)

_MAX_FAILED_STEPS = 3
"""So many failed steps in a row end the engine."""


@dataclass(frozen=True, slots=True)
class Output:
    """What one step, or one command, did to one request."""

    request_id: str
    event: TokenEvent | Exception


class EngineCore:
    """Continuous batching over a `ModelRunner`."""

    def __init__(self, config: EmbeddedConfig, runner: ModelRunner, bank: AdapterBank) -> None:
        self.runner = runner
        self.bank = bank
        self.scheduler = Scheduler(
            PagePool(runner.num_pages, runner.page_tokens),
            bank,
            max_running=config.max_running,
            max_tokens_per_step=config.max_tokens_per_step,
            prefix_cache=config.prefix_cache,
        )
        self.tiers = Tiers(bank, self.scheduler)
        self._jobs: dict[str, Job] = {}
        self._failed_steps = 0
        # A proposal is verified beside other rows: the same answer only where rows keep their bits.
        self.proposes = config.proposals and runner.is_native
        self.num_proposed = 0
        """Tokens that were proposed, since the start."""
        self.num_accepted = 0
        """Those of them that were drawn."""

    # -- adapters -----------------------------------------------------------------------------

    def load(self, adapter: HostAdapter, top_k: int, parity: Parity | None) -> Future[None] | None:
        """Adds an adapter. One with a parity file must not be used before the future is done, and
        is removed again if the future has an error. Raises `CapacityError`."""
        self.bank.add(adapter)
        if parity is None:
            return None
        replay = Replay(adapter.digest, top_k, parity, self.runner.tokenizer)
        self.tiers.add(replay)
        return replay.done

    def _compute_replay(self, replay: Replay, chunk: Chunk) -> None:
        try:
            if not replay.compute(self.runner, chunk):
                return
            error = None
        except Exception as caught:
            error = caught
        self.tiers.finish(replay)
        self._end_replay(replay, error)

    def _end_replay(self, replay: Replay, error: Exception | None) -> None:
        if error is None:
            replay.done.set_result(None)
        else:
            self.bank.remove(replay.digest)
            replay.done.set_exception(error)

    def next_read(self) -> str | None:
        """The digest of an adapter that must be read from its folder now; one at a time, answered
        with `finish_read`."""
        return self.tiers.next_read()

    def finish_read(self, digest: str, result: HostAdapter | Exception) -> list[Output]:
        """Keeps the copy that was read, or fails the requests that waited for it."""
        if isinstance(result, HostAdapter):
            self.bank.fill(result)
            self.tiers.read(digest)
            return []
        error = AdapterUnavailableError(
            f"adapter {digest} cannot be read again: {result}", digest=digest
        )
        outputs = []
        for job in self.tiers.failed(digest):
            if isinstance(job, Replay):
                self._end_replay(job, result)
            else:
                del self._jobs[job.request.request_id]
                outputs.append(Output(job.request.request_id, error))
        return outputs

    # -- requests -----------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything; False also while all requests wait for adapters to be
        read."""
        return self.scheduler.has_work

    def add(self, request: GenerationRequest, prepared: Prepared = Prepared()) -> list[Output]:
        ends = self.runner.model.eos_token_ids
        try:
            completion = Completion(request, self.runner.tokenizer, ends, prepared.matcher)
            forced = partial(completion.forced, self.runner.model.vocab_size)
            job = Job(
                request,
                completion,
                end_token_ids=ends,
                bad_words=prepared.bad_words,
                proposer=Proposer(forced) if self.proposes else None,
            )
        except Exception as error:
            return [_failed(request.request_id, error)]
        self._jobs[request.request_id] = job
        self.tiers.add(job)
        return []

    def abort(self, request_id: str) -> list[Output]:
        """Ends a request now; what it held is free before the next step."""
        job = self._jobs.get(request_id)
        if job is None:
            return []
        self._forget(job)
        return [Output(request_id, job.completion.abort())]

    def step(self) -> list[Output]:
        """Computes one batch and returns what became of its requests."""
        chunks = []
        for chunk in self.scheduler.schedule():
            if isinstance(chunk.job, Replay):
                self._compute_replay(chunk.job, chunk)
            else:
                chunks.append(chunk)
        outputs = self._refused()
        if not chunks:
            return outputs
        try:
            logits_SV = self.runner.run(chunks)
        except Exception as error:
            return outputs + self._fail([chunk.job for chunk in chunks], error)
        for chunk in chunks:
            chunk.job.num_computed += chunk.count
        outputs += self._score(chunks, logits_SV)
        return outputs + self._sample(chunks, logits_SV)

    def _refused(self) -> list[Output]:
        """Fails the jobs whose adapters could not be put into a slot."""
        outputs = []
        for job, error in self.scheduler.take_refused():
            if isinstance(job, Replay):
                self.tiers.finish(job)
                self._end_replay(job, error)
            else:
                outputs.append(self._fail_job(job, error))
        return outputs

    def _score(self, chunks: list[Chunk], logits_SV: Tensor) -> list[Output]:
        """Computes the log-probabilities that are wanted of the prompts' tokens."""
        outputs, row = [], 0
        for chunk in chunks:
            job, first, row = chunk.job, row, row + chunk.num_logits
            start = chunk.start + chunk.count + len(chunk.proposed) - chunk.num_logits
            following = job.tokens[start + 1 : job.prompt_len][: chunk.num_logits]
            if job.params.prompt_logprobs is None or not following:
                continue
            rows_TV = logits_SV[first : first + len(following)]
            try:
                job.prompt_logprobs += logprobs_of(rows_TV, following, job.params.prompt_logprobs)
            except Exception as error:
                outputs.append(self._fail_job(job, error))
        return outputs

    def _sample(self, chunks: list[Chunk], logits_SV: Tensor) -> list[Output]:
        """Draws the next token of each job whose newest token was computed, and further ones as far
        as they are the proposed ones."""
        draws, row = [], 0
        outputs: list[Output] = []
        for chunk in chunks:
            job, row = chunk.job, row + chunk.num_logits
            if not chunk.samples or job.request.request_id not in self._jobs:
                continue
            if job.params.prompt_logprobs is not None and not job.num_generated:
                job.completion.prompt_scored(job.prompt_logprobs)
            if job.params.max_tokens:
                draws.append(Draw(job, row - 1 - len(chunk.proposed), chunk.proposed))
            else:
                outputs.append(self._tell(job))
        failed: list[Output] = []
        going = draws
        while going:
            jobs, rows = [draw.job for draw in going], [draw.row for draw in going]
            try:
                rows_SV = logits_SV if len(rows) == len(logits_SV) else logits_SV[rows]
                samples = sample(rows_SV, jobs)
            except Exception as error:
                failed = self._fail(jobs, error)
                break
            going = [draw for draw, each in zip(going, samples, strict=True) if draw.take(each)]
        else:
            self._failed_steps = 0
        for draw in draws:
            outputs += self._report(draw)
        return outputs + failed

    def _report(self, draw: Draw) -> list[Output]:
        """What can be shown of the tokens that a job got, and its end."""
        job, outputs = draw.job, []
        self.num_proposed += len(draw.proposed)
        self.num_accepted += draw.num_accepted
        if draw.num_taken:
            self.scheduler.charge_more(job, draw.num_taken - 1)
            if job.request.request_id in self._jobs:  # else its next token has failed with others
                outputs.append(self._tell(job))
        if draw.error is not None and job.request.request_id in self._jobs:
            outputs.append(self._fail_job(job, draw.error))
        return outputs

    def _tell(self, job: Job) -> Output:
        try:
            event = job.completion.tell()
        except Exception as error:
            return self._fail_job(job, error)
        if event.finish_reason is not None:
            self._forget(job)
        return Output(job.request.request_id, event)

    def _fail_job(self, job: Job, error: Exception) -> Output:
        """Fails one request of a batch."""
        self._forget(job)
        return _failed(job.request.request_id, error)

    def _fail(self, jobs: list[Job], error: Exception) -> list[Output]:
        """Fails all requests of a batch that cannot be computed; other requests go on."""
        self._failed_steps += 1
        log.exception("a step of %d requests failed", len(jobs))
        if self._failed_steps >= _MAX_FAILED_STEPS:
            raise EngineDeadError(f"{_MAX_FAILED_STEPS} steps failed in a row") from error
        for job in jobs:
            self._forget(job)
        failure = RemixError(f"the engine could not compute this request: {type(error).__name__}")
        return [Output(job.request.request_id, failure) for job in jobs]

    def _forget(self, job: Job) -> None:
        self.tiers.finish(job)
        del self._jobs[job.request.request_id]


def _failed(request_id: str, error: Exception) -> Output:
    log.error("request %s failed: %s", request_id, error)
    return Output(request_id, RemixError(f"the request failed: {error}"))
