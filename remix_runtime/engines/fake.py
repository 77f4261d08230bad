"""A deterministic engine without a model, for the tests of everything above the border.

Its "language model" is a hash (`fake_model.py`). Of the sampling parameters it honours
temperature, seed, logit_bias, logprobs, max_tokens, ignore_eos and both kinds of stop; the others
are accepted.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from remix_runtime.adapter.checkpoint import read_checkpoint
from remix_runtime.contracts import (
    AdapterInfo,
    AdapterState,
    AdapterTier,
    EngineStats,
    FinishReason,
    GenerationRequest,
    Health,
    ModelInfo,
    TokenEvent,
    Tokenizer,
)
from remix_runtime.engines.fairness import FairQueue
from remix_runtime.engines.fake_model import EOS_ID, VOCAB_SIZE, ByteTokenizer, HashModel
from remix_runtime.engines.text import TextStream
from remix_runtime.engines.validate import validate_request
from remix_runtime.errors import (
    AdapterNotLoadedError,
    AdapterUnavailableError,
    CheckpointError,
    CheckpointFormatError,
    ConfigError,
    EngineBusyError,
    EngineDeadError,
    InvalidRequestError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeConfig:
    """Sizes and speed of a `FakeEngine`."""

    model_name: str = "fake-base"
    max_model_len: int = 512
    max_running: int = 4
    max_waiting: int = 8
    host_adapters: int = 1000
    """Adapters in memory at once, those in use apart; others are read from their folders again."""
    prefill_seconds: float = 0.0
    token_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class _Sequence:
    request: GenerationRequest
    arrival: float = field(default_factory=monotonic)
    running: bool = False
    aborted: bool = False
    error: Exception | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    generated: int = 0


class FakeEngine:
    """See `contracts.Engine`. A folder with an `adapter_config.json` alone is an adapter too.

    For tests: `aborted` lists the ids of requests that ended early, `fail_next_after` makes the
    next request raise after that many tokens, `kill` makes the engine dead.
    """

    def __init__(self, config: FakeConfig | None = None) -> None:
        self._config = config or FakeConfig()
        self._tokenizer = ByteTokenizer()
        self._adapters: dict[str, AdapterInfo] = {}
        self._folders: dict[str, Path] = {}
        self._host: dict[str, None] = {}
        """Adapters in memory, the least recently used first."""
        self._reads = 0
        self._sequences: dict[str, _Sequence] = {}
        self._waiting: FairQueue[_Sequence] = FairQueue()
        self._changed = asyncio.Condition()
        self._users: Counter[str] = Counter()
        self._started = False
        self._draining = False
        self._death: str | None = None
        self.aborted: list[str] = []
        self.requests: list[GenerationRequest] = []
        self.fail_next_after: int | None = None

    @property
    def model(self) -> ModelInfo:
        return ModelInfo(
            name=self._config.model_name,
            max_model_len=self._config.max_model_len,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=(EOS_ID,),
            max_requests=self._config.max_running + self._config.max_waiting,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    async def start(self) -> None:
        if self._config.max_running < 1:
            raise ConfigError(f"max_running: found {self._config.max_running}, expected 1 or more")
        self._started = True

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        self._draining = True
        async with self._changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: not self._sequences), drain_seconds
                )
        for request_id in list(self._sequences):
            await self.abort(request_id)
        self._adapters.clear()
        self._started = False

    def kill(self, reason: str) -> None:
        """The engine is dead from now on; requests in flight end with `EngineDeadError`."""
        self._death = reason
        for sequence in self._sequences.values():
            sequence.error = EngineDeadError(reason)
            sequence.wake.set()

    async def load_adapter(self, folder: Path) -> AdapterInfo:
        self._check_alive()
        info = _read(folder)
        self._adapters[info.digest] = info
        self._folders[info.digest] = folder
        self._into_memory(info.digest)
        return info

    def _into_memory(self, digest: str) -> None:
        if digest in self._host:
            del self._host[digest]
        else:
            self._reads += 1
        self._host[digest] = None
        self._shrink(digest)

    def _shrink(self, keep: str) -> None:
        for other in [d for d in self._host if not self._users[d] and d != keep]:
            if len(self._host) > self._config.host_adapters:
                del self._host[other]

    def _read_again(self, digest: str) -> None:
        try:
            found = _read(self._folders[digest]).digest
        except CheckpointError as error:
            raise AdapterUnavailableError(f"adapter {digest}: {error}") from error
        if found != digest:
            raise AdapterUnavailableError(f"adapter {digest}: found {found} in its folder")

    async def adapter_states(self) -> list[AdapterState]:
        return [
            AdapterState(
                digest=digest,
                tier=AdapterTier.HOST if digest in self._host else AdapterTier.DISK,
                slot=None,
                requests=self._users[digest],
                idle_seconds=None,
                read_seconds=0.0,
            )
            for digest in self._adapters
        ]

    async def unload_adapter(self, digest: str) -> None:
        if self._adapters.pop(digest, None) is not None:
            async with self._changed:
                await self._changed.wait_for(lambda: self._users[digest] == 0)
            if digest not in self._adapters:
                self._host.pop(digest, None)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        self._admit(request)
        if request.digest is not None:
            if request.digest not in self._host:
                self._read_again(request.digest)
            self._into_memory(request.digest)
        sequence = _Sequence(request)
        fail_after, self.fail_next_after = self.fail_next_after, None
        self.requests.append(request)
        self._sequences[request.request_id] = sequence
        self._waiting.add(request.tenant, sequence)
        if request.digest is not None:
            self._users[request.digest] += 1
        finished = False
        try:
            async for event in self._events(sequence, fail_after):
                finished = event.finish_reason not in (None, FinishReason.ABORT)
                yield event
        finally:
            if not finished:
                self.aborted.append(request.request_id)
            await self._release(sequence)

    async def abort(self, request_id: str) -> None:
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            sequence.aborted = True
            sequence.wake.set()
            # Its memory is free now, even if nobody reads its last event.
            await self._release(sequence)

    def health(self) -> Health:
        if self._death is not None:
            return Health(alive=False, ready=False, reason=self._death)
        if self._draining:
            return Health(alive=True, ready=False, reason="draining")
        return Health(alive=True, ready=self._started)

    def stats(self) -> EngineStats:
        running = [s for s in self._sequences.values() if s.running]
        return EngineStats(
            running=len(running),
            waiting=len(self._sequences) - len(running),
            kv_tokens_used=sum(len(s.request.prompt_token_ids) + s.generated for s in running),
            kv_tokens_total=self._config.max_running * self._config.max_model_len,
            adapter_slots_used=len(self._host),
            adapter_slots_total=max(16, len(self._host)),
            adapters_loaded=len(self._adapters),
            adapters_on_host=len(self._host),
            adapter_reads=self._reads,
        )

    def _check_alive(self) -> None:
        if self._death is not None:
            raise EngineDeadError(self._death)
        if not self._started:
            raise EngineDeadError("the engine is not started")

    def _admit(self, request: GenerationRequest) -> None:
        if self._draining:
            raise EngineBusyError("the server is shutting down", retry_after=5.0)
        self._check_alive()
        if request.request_id in self._sequences:
            raise InvalidRequestError(f"request id {request.request_id!r} is in use")
        if request.digest is not None and request.digest not in self._adapters:
            raise AdapterNotLoadedError(f"adapter {request.digest} is not loaded")
        validate_request(request, self.model)
        # A free place counts as one in the queue, so that an idle engine takes a full batch.
        if len(self._sequences) >= self.model.max_requests:
            raise EngineBusyError(f"the queue is full ({self._config.max_waiting} requests wait)")

    async def _events(
        self, sequence: _Sequence, fail_after: int | None
    ) -> AsyncIterator[TokenEvent]:
        request, params = sequence.request, sequence.request.params
        self._fill_slots()
        while not sequence.running and not sequence.aborted:
            await self._pause(sequence, None)
        queue_seconds: float | None = monotonic() - sequence.arrival
        await self._pause(sequence, self._config.prefill_seconds)
        text = TextStream(self._tokenizer.decode, request.prompt_token_ids, params.stop)
        model = HashModel(request)
        while True:
            await self._pause(sequence, self._config.token_seconds)
            if sequence.aborted:
                yield TokenEvent(token_ids=(), text="", finish_reason=FinishReason.ABORT)
                return
            if sequence.generated == fail_after:
                raise RuntimeError("injected failure in /secret/path.py")
            token_id, logprobs = model.next_token()
            sequence.generated += 1
            self._waiting.charge_output(request.tenant)
            reason: FinishReason | None = None
            stops = () if params.ignore_eos else (EOS_ID,)
            if token_id in (*stops, *params.stop_token_ids):
                shown, reason = text.flush(), FinishReason.STOP
            else:
                shown = text.push(token_id)
                if text.stopped:
                    reason = FinishReason.STOP
                elif sequence.generated == params.max_tokens:
                    shown, reason = shown + text.flush(), FinishReason.LENGTH
            yield TokenEvent(
                token_ids=(token_id,),
                text=shown,
                logprobs=None if logprobs is None else (logprobs,),
                finish_reason=reason,
                queue_seconds=queue_seconds,
            )
            if reason is not None:
                return
            queue_seconds = None

    async def _pause(self, sequence: _Sequence, seconds: float | None) -> None:
        """Sleeps, or returns at once when the sequence is aborted or admitted."""
        if not sequence.aborted and sequence.error is None:
            sequence.wake.clear()
            try:
                await asyncio.wait_for(sequence.wake.wait(), seconds)
            except TimeoutError:
                await asyncio.sleep(0)
        if sequence.error is not None:
            raise sequence.error

    def _fill_slots(self) -> None:
        running = sum(s.running for s in self._sequences.values())
        while len(self._waiting) and running < self._config.max_running:
            tenant, sequence = next(iter(self._waiting))
            self._waiting.remove(tenant, sequence)
            self._waiting.charge_prompt(tenant, len(sequence.request.prompt_token_ids))
            sequence.running = True
            sequence.wake.set()
            running += 1

    async def _release(self, sequence: _Sequence) -> None:
        request = sequence.request
        if self._sequences.get(request.request_id) is not sequence:
            return
        del self._sequences[request.request_id]
        sequence.running = False
        self._waiting.remove(request.tenant, sequence)
        self._fill_slots()
        if request.digest is not None:
            self._users[request.digest] -= 1
            self._shrink(request.digest)
        async with self._changed:
            self._changed.notify_all()


def _read(folder: Path) -> AdapterInfo:
    if (folder / "adapter_model.safetensors").exists():
        return _info(read_checkpoint(folder).digest)
    config = folder / "adapter_config.json"
    if not config.is_file():
        raise CheckpointFormatError(f"{config}: not found, expected the adapter's configuration")
    return _info(hashlib.sha256(config.read_bytes()).hexdigest())


def _info(digest: str) -> AdapterInfo:
    return AdapterInfo(
        digest=digest, num_layers=1, num_experts=2, top_k=1, r=1, num_bytes=len(digest)
    )
