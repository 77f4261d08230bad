"""A deterministic engine without a model, for the tests of everything above the border.

Its "language model" is a hash (`fake_model.py`). It honours every sampling parameter but top_p,
top_k, min_p and the penalties, which are accepted.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llguidance import LLTokenizer

from remix_runtime.adapter.checkpoint import read_adapter, read_defaults
from remix_runtime.contracts import (
    AdapterDefaults,
    AdapterInfo,
    FinishReason,
    GenerationRequest,
    ModelInfo,
    TokenEvent,
    Tokenizer,
)
from remix_runtime.engine_state import AdapterState, AdapterTier, EngineStats
from remix_runtime.engines.completion import Completion
from remix_runtime.engines.fake_config import FakeConfig
from remix_runtime.engines.fake_model import (
    EOS_ID,
    VOCAB_SIZE,
    ByteTokenizer,
    HashModel,
    byte_grammar_tokenizer,
)
from remix_runtime.engines.front import EngineFront, Prepared, Stream
from remix_runtime.engines.served import ServedAdapter, ServedAdapters, require_digest
from remix_runtime.errors import (
    AdapterUnavailableError,
    CheckpointError,
    CheckpointFormatError,
    EngineDeadError,
)
from remix_runtime.fairness.queue import FairQueue

log = logging.getLogger(__name__)

NUM_EXPERTS = 2
"""Of every adapter, whatever its folder says."""
MODULE = "fake"
"""Its only adapted linear."""


class _Job(Stream):
    def __init__(
        self, request: GenerationRequest, prepared: Prepared, tokenizer: Tokenizer
    ) -> None:
        super().__init__(request, prepared)
        self.completion = Completion(request, tokenizer, (EOS_ID,), prepared.matcher)
        self.num_generated = 0
        self.fail_after: int | None = None
        self.run: asyncio.Task[None] | None = None


class FakeEngine(EngineFront[_Job]):
    """See `contracts.Engine`. A folder with an `adapter_config.json` alone is an adapter too.

    For tests: `requests` lists all that were admitted and `aborted` the ids of those that ended
    early, `fail_next_after` makes the next request fail after that many tokens, `kill` makes the
    engine dead.
    """

    def __init__(self, config: FakeConfig | None = None) -> None:
        self._config = config or FakeConfig()
        self._model = ModelInfo(
            name=self._config.served_model_name or "fake-base",
            max_model_len=self._config.max_model_len,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=(EOS_ID,),
            max_requests=self._config.max_requests,
        )
        self._adapters = _FakeAdapters(self._config.host_adapters)
        super().__init__(self._adapters, max_requests=self._config.max_requests)
        self._tokenizer = ByteTokenizer()
        self._waiting: FairQueue[_Job] = FairQueue()
        self._running: set[_Job] = set()
        self._started = False
        self._killed: str | None = None
        self.requests: list[GenerationRequest] = []
        self.aborted: list[str] = []
        self.fail_next_after: int | None = None

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        self._started = True

    async def _shut_down(self) -> None:
        await self._adapters.settle(1.0)
        self._started = False

    def kill(self, reason: str) -> None:
        """The engine is dead from now on; requests in flight end with `EngineDeadError`."""
        self._killed = reason
        self._fail(self._streams.values(), EngineDeadError(reason))

    @property
    def model(self) -> ModelInfo:
        return self._model

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @property
    def _is_started(self) -> bool:
        return self._started

    @property
    def _death(self) -> str | None:
        return self._killed

    @property
    def _busy_since(self) -> float | None:
        return None

    # -- requests -----------------------------------------------------------------------------

    def _grammar_tokenizer(self) -> LLTokenizer:
        return byte_grammar_tokenizer()

    def _open(self, request: GenerationRequest, prepared: Prepared) -> _Job:
        if request.digest is not None:
            self._adapters.read(request.digest)
        self.requests.append(request)
        job = _Job(request, prepared, self._tokenizer)
        job.fail_after, self.fail_next_after = self.fail_next_after, None
        return job

    def _submit(self, stream: _Job) -> None:
        self._waiting.add(stream.request.tenant, stream)
        self._pump()

    async def abort(self, request_id: str) -> None:
        job = self._streams.get(request_id)
        if job is not None:
            self._send(job, job.completion.abort())

    def stats(self) -> EngineStats:
        on_host = self._adapters.num_on_host
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_tokens_used=sum(
                len(job.request.prompt_token_ids) + job.num_generated for job in self._running
            ),
            kv_tokens_total=self._config.max_running * self._config.max_model_len,
            adapter_slots_used=on_host,
            adapter_slots_total=max(16, on_host),
            adapters_loaded=len(self._adapters),
            adapters_on_host=on_host,
            adapter_reads=self._adapters.num_reads,
        )

    def expert_load(self, digest: str) -> Mapping[str, tuple[int, ...]]:
        return self._adapters.expert_load(digest)

    def _pump(self) -> None:
        while len(self._waiting) and len(self._running) < self._config.max_running:
            tenant, job = next(iter(self._waiting))
            self._waiting.remove(tenant, job)
            self._waiting.charge_prompt(tenant, len(job.request.prompt_token_ids))
            job.request.meter.prompt_tokens = len(job.request.prompt_token_ids)
            self._running.add(job)
            job.completion.scheduled()
            if self._config.cached_tokens is not None:
                longest = len(job.request.prompt_token_ids) - 1
                job.completion.prompt_cached(min(self._config.cached_tokens, longest))
            job.run = asyncio.get_running_loop().create_task(self._run(job))

    async def _run(self, job: _Job) -> None:
        try:
            await self._compute(job)
        except Exception as error:
            self._send(job, error)

    async def _compute(self, job: _Job) -> None:
        params = job.request.params
        model = HashModel(job.request, job.prepared.bad_words, job.completion.matcher)
        await asyncio.sleep(self._config.prefill_seconds)
        self._adapters.activate(job.request.digest, job.request.prompt_token_ids)
        if params.prompt_logprobs is not None:
            job.completion.prompt_scored(model.prompt_logprobs(params.prompt_logprobs))
        if not params.max_tokens:
            self._send(job, job.completion.take(()))
        while self._is_open(job):
            await asyncio.sleep(self._config.token_seconds)
            if job.num_generated == job.fail_after:
                raise RuntimeError("injected failure in /secret/path.py")
            token_id, logprobs = model.next_token()
            event = job.completion.take((token_id,), None if logprobs is None else (logprobs,))
            job.num_generated += 1
            self._waiting.charge_output(job.request.tenant)
            job.request.meter.output_tokens += 1
            self._send(job, event)
            if self._is_open(job):  # else nothing follows the token, and it is not computed
                self._adapters.activate(job.request.digest, (token_id,))

    def _send(self, stream: _Job, event: TokenEvent | Exception) -> None:
        if isinstance(event, Exception) or event.finish_reason == FinishReason.ABORT:
            self.aborted.append(stream.request.request_id)
        super()._send(stream, event)

    def _close(self, stream: _Job) -> None:
        super()._close(stream)
        self._waiting.remove(stream.request.tenant, stream)
        self._running.discard(stream)
        if stream.run is not None and stream.run is not asyncio.current_task():
            stream.run.cancel()
        self._pump()


@dataclass(slots=True)
class _Served(ServedAdapter):
    activations: list[int] = field(default_factory=lambda: [0] * NUM_EXPERTS)


class _FakeAdapters(ServedAdapters[_Served]):
    def __init__(self, host_adapters: int) -> None:
        super().__init__(log)
        self._host_adapters = host_adapters
        self._host: dict[str, None] = {}
        """Adapters in memory, the least recently used first."""

    @property
    def num_on_host(self) -> int:
        return len(self._host)

    def activate(self, digest: str | None, token_ids: Sequence[int]) -> None:
        """Every token activates one expert of its adapter."""
        if digest is not None:
            for token_id in token_ids:
                self._served[digest].activations[token_id % NUM_EXPERTS] += 1

    def expert_load(self, digest: str) -> dict[str, tuple[int, ...]]:
        served = self._served.get(digest)
        return {} if served is None else {MODULE: tuple(served.activations)}

    def read(self, digest: str) -> None:
        """Reads an adapter back into memory if it is not there. Raises
        `AdapterUnavailableError`."""
        if digest not in self._host:
            try:
                folder = self._served[digest].folder
                require_digest(_read(folder).digest, digest, folder)
            except CheckpointError as error:
                raise AdapterUnavailableError(
                    f"adapter {digest}: {error}", digest=digest
                ) from error
        self._into_memory(digest)

    async def states(self) -> list[AdapterState]:
        def tier(digest: str) -> AdapterTier:
            return AdapterTier.HOST if digest in self._host else AdapterTier.DISK

        return [s.state(tier(digest), slot=None) for digest, s in self._served.items() if s.is_open]

    def unpin(self, digest: str) -> None:
        super().unpin(digest)
        self._shrink(keep=digest)

    async def _load(self, folder: Path, digest: str | None) -> AdapterInfo:
        info = _read(folder)
        require_digest(info.digest, digest, folder)
        if self._open_again(info.digest, folder) is None:
            self._served[info.digest] = _Served(folder, info, is_open=True)
        self._into_memory(info.digest)
        return info

    async def _unload(self, digest: str, served: _Served) -> None:
        async with self._unpinned:
            await self._unpinned.wait_for(lambda: not served.pins)
        if not served.is_open:  # or it was loaded again meanwhile, and stays
            del self._served[digest]
            self._host.pop(digest, None)

    def _into_memory(self, digest: str) -> None:
        if digest in self._host:
            del self._host[digest]
        else:
            self.num_reads += 1
        self._host[digest] = None
        self._shrink(keep=digest)

    def _shrink(self, keep: str) -> None:
        for other in [d for d in self._host if not self._served[d].pins and d != keep]:
            if len(self._host) > self._host_adapters:
                del self._host[other]


def _read(folder: Path) -> AdapterInfo:
    if (folder / "adapter_model.safetensors").exists():
        checkpoint, _ = read_adapter(folder)
        return _info(checkpoint.digest, checkpoint.defaults)
    config = folder / "adapter_config.json"
    if not config.is_file():
        raise CheckpointFormatError(f"{config}: not found, expected the adapter's configuration")
    return _info(hashlib.sha256(config.read_bytes()).hexdigest(), read_defaults(folder))


def _info(digest: str, defaults: AdapterDefaults) -> AdapterInfo:
    return AdapterInfo(
        digest=digest,
        num_layers=1,
        num_experts=NUM_EXPERTS,
        top_k=1,
        r=1,
        num_bytes=len(digest),
        defaults=defaults,
    )
