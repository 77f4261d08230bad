"""The engine's inside: admit, schedule, run, sample, report. One thread owns all of it."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from dataclasses import dataclass

from remix_runtime.adapter.checkpoint import Parity
from remix_runtime.contracts import FinishReason, GenerationRequest, TokenEvent
from remix_runtime.engines.embedded.bank import AdapterBank, HostAdapter
from remix_runtime.engines.embedded.config import EmbeddedConfig
from remix_runtime.engines.embedded.replay import Replay
from remix_runtime.engines.embedded.runner import ModelRunner
from remix_runtime.engines.embedded.sampler import Sample, sample
from remix_runtime.engines.embedded.scheduler import Chunk, PagePool, Scheduler
from remix_runtime.engines.embedded.sequence import Sequence
from remix_runtime.engines.embedded.tiers import Tiers
from remix_runtime.engines.text import TextStream
from remix_runtime.errors import AdapterUnavailableError, EngineDeadError, RemixError

log = logging.getLogger(__name__)

_MAX_FAILED_STEPS = 3
"""Steps that may fail one after the other before the engine calls itself dead."""


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
        )
        self.tiers = Tiers(bank, self.scheduler)
        self._sequences: dict[str, Sequence] = {}
        self._failed_steps = 0

    # -- adapters -----------------------------------------------------------------------------

    def load(self, adapter: HostAdapter, top_k: int, parity: Parity | None) -> Future[None] | None:
        """Takes an adapter in. Where it has a parity file, it must not be used before the future
        is done, and is out again when that has an error. Raises `CapacityError`."""
        self.bank.add(adapter)
        if parity is None:
            return None
        replay = Replay(adapter.digest, top_k, parity)
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
        """An adapter that must be read from its folder now; one at a time, answered with
        `finish_read`."""
        return self.tiers.next_read()

    def finish_read(self, digest: str, result: HostAdapter | Exception) -> list[Output]:
        """Takes the copy in host memory, or fails the requests that waited for it."""
        if isinstance(result, HostAdapter):
            self.bank.fill(result)
            self.tiers.read(digest)
            return []
        error = AdapterUnavailableError(f"adapter {digest} cannot be read again: {result}")
        outputs = []
        for sequence in self.tiers.failed(digest):
            if isinstance(sequence, Replay):
                self._end_replay(sequence, result)
            else:
                del self._sequences[sequence.request.request_id]
                outputs.append(Output(sequence.request.request_id, error))
        return outputs

    # -- requests -----------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """False also while all requests wait for an adapter that is being read."""
        return self.scheduler.has_work

    def add(self, request: GenerationRequest) -> list[Output]:
        text = TextStream(
            self.runner.tokenizer.decode, request.prompt_token_ids, request.params.stop
        )
        sequence = self._sequences[request.request_id] = Sequence(request, text)
        self.tiers.add(sequence)
        return []

    def abort(self, request_id: str) -> list[Output]:
        """Ends a request now; what it held is free before the next step."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return []
        return [self._end(sequence, [], sequence.text.flush(), None, FinishReason.ABORT)]

    def step(self) -> list[Output]:
        """Computes one batch and returns what became of its requests."""
        chunks = []
        for chunk in self.scheduler.schedule():
            if isinstance(chunk.sequence, Replay):
                self._compute_replay(chunk.sequence, chunk)
            else:
                chunks.append(chunk)
        if not chunks:
            return []
        try:
            logits_SV = self.runner.run(chunks)
        except Exception as error:
            return self._fail([chunk.sequence for chunk in chunks], error)
        self._failed_steps = 0
        for chunk in chunks:
            chunk.sequence.num_computed += chunk.count
        sampling = [chunk.sequence for chunk in chunks if chunk.samples]
        if not sampling:
            return []
        samples = sample(logits_SV, sampling)
        return [self._advance(s, result) for s, result in zip(sampling, samples, strict=True)]

    def _advance(self, sequence: Sequence, result: Sample | Exception) -> Output:
        """Takes the sampled token into the sequence and says what can be shown of it."""
        if isinstance(result, Exception):
            self._forget(sequence)
            log.error("request %s failed in sampling: %s", sequence.request.request_id, result)
            return Output(sequence.request.request_id, RemixError(f"sampling failed: {result}"))
        params = sequence.params
        sequence.append(result.token_id)
        is_eos = not params.ignore_eos and result.token_id in self.runner.model.eos_token_ids
        if is_eos or result.token_id in params.stop_token_ids:
            text, reason = sequence.text.flush(), FinishReason.STOP
            return self._end(sequence, [result.token_id], text, result, reason)
        text = sequence.text.push(result.token_id)
        if sequence.text.stopped:
            return self._end(sequence, [result.token_id], text, result, FinishReason.STOP)
        if sequence.num_generated >= params.max_tokens:
            text += sequence.text.flush()
            stopped = sequence.text.stopped
            reason = FinishReason.STOP if stopped else FinishReason.LENGTH
            return self._end(sequence, [result.token_id], text, result, reason)
        return Output(
            sequence.request.request_id,
            _event(sequence, [result.token_id], text, result, None),
        )

    def _end(
        self,
        sequence: Sequence,
        token_ids: list[int],
        text: str,
        result: Sample | None,
        reason: FinishReason,
    ) -> Output:
        self._forget(sequence)
        return Output(
            sequence.request.request_id, _event(sequence, token_ids, text, result, reason)
        )

    def _fail(self, sequences: list[Sequence], error: Exception) -> list[Output]:
        """A batch that cannot be computed fails as one; the others go on."""
        self._failed_steps += 1
        log.exception("a step of %d requests failed", len(sequences))
        if self._failed_steps >= _MAX_FAILED_STEPS:
            raise EngineDeadError(f"{_MAX_FAILED_STEPS} steps failed in a row") from error
        for sequence in sequences:
            self._forget(sequence)
        failure = RemixError(f"the engine could not compute this request: {type(error).__name__}")
        return [Output(sequence.request.request_id, failure) for sequence in sequences]

    def _forget(self, sequence: Sequence) -> None:
        self.tiers.finish(sequence)
        del self._sequences[sequence.request.request_id]


def _event(
    sequence: Sequence,
    token_ids: list[int],
    text: str,
    result: Sample | None,
    reason: FinishReason | None,
) -> TokenEvent:
    logprobs = None
    if result is not None and result.logprobs is not None:
        logprobs = (result.logprobs,)
    queue_seconds = None
    if sequence.num_generated <= 1 and sequence.scheduled is not None:
        queue_seconds = sequence.scheduled - sequence.arrived
    return TokenEvent(
        token_ids=tuple(token_ids),
        text=text,
        logprobs=logprobs,
        finish_reason=reason,
        queue_seconds=queue_seconds,
    )
