"""`VllmEngine`: vLLM behind the `Engine` protocol. Requests wait here, in fair order between
tenants, until vLLM has a place for them and its workers hold their adapter."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from remix_runtime.adapter.checkpoint import BaseShapes, read_parity
from remix_runtime.adapter.layers import base_shapes
from remix_runtime.base_model import without_weights
from remix_runtime.contracts import (
    AdapterInfo,
    AdapterState,
    EngineStats,
    GenerationRequest,
    Health,
    ModelInfo,
    TokenEvent,
    Tokenizer,
)
from remix_runtime.engines.fairness import FairQueue
from remix_runtime.engines.tokenizer import ModelTokenizer
from remix_runtime.engines.validate import validate_request
from remix_runtime.engines.vllm.adapters import Served, VllmAdapters
from remix_runtime.engines.vllm.config import VllmConfig
from remix_runtime.engines.vllm.job import Job, logprobs_of
from remix_runtime.engines.vllm.load import ExpertLoad
from remix_runtime.engines.vllm.replay import replay_on
from remix_runtime.errors import (
    AdapterNotLoadedError,
    EngineBusyError,
    EngineDeadError,
    InvalidRequestError,
    RemixError,
)

if TYPE_CHECKING:
    from remix_runtime.engines.vllm.backend import Backend  # needs vLLM

log = logging.getLogger(__name__)

_STALL_SECONDS = 60.0
"""Running requests that bring no token for so long mean a hung device."""

LOAD_SECONDS = 10.0
"""Between two questions to the workers after the load of experts."""

PATIENCE = 32
"""Requests with adapters that may pass one whose adapter has no slot; as the embedded engine's."""


async def _start_backend(config: VllmConfig) -> Backend:
    from remix_runtime.engines.vllm.backend import Backend

    return await Backend.start(config)


class VllmEngine:
    """See `contracts.Engine`."""

    def __init__(
        self,
        config: VllmConfig,
        start_backend: Callable[[VllmConfig], Awaitable[Backend]] = _start_backend,
    ) -> None:
        self._config = config
        self._start_backend = start_backend
        self._backend: Backend | None = None
        self._adapters = VllmAdapters(config, self._adapter_read)
        self._jobs: dict[str, Job] = {}
        self._waiting: FairQueue[Job] = FairQueue()
        self._running: set[Job] = set()
        self._num_admitted = 0
        """Requests with adapters, so far."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._progress = 0.0
        self._load = ExpertLoad()

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        self._tokenizer = ModelTokenizer(self._config.model)
        backend = await self._start_backend(self._config)
        ends = backend.end_token_ids
        if self._tokenizer.eos_token_id is not None:
            ends |= {self._tokenizer.eos_token_id}
        self._model = ModelInfo(
            name=self._config.served_model_name or Path(self._config.model).name,
            max_model_len=backend.max_model_len,
            vocab_size=backend.vocab_size,
            eos_token_ids=tuple(sorted(ends)),
            max_requests=self._config.max_running + self._config.max_waiting,
        )
        self._ends = ends
        self._base_shapes: BaseShapes = base_shapes(without_weights(backend.hf_config))
        self._backend = backend
        self._watching = asyncio.create_task(self._watch_load(backend))

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        self._draining = True
        if self._backend is None:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), drain_seconds)
        for request_id in list(self._jobs):
            await self.abort(request_id)
        await self._adapters.settle(_STALL_SECONDS)
        self._watching.cancel()
        backend, self._backend = self._backend, None
        if backend is not None:
            await backend.stop()

    @property
    def model(self) -> ModelInfo:
        self._alive()
        return self._model

    @property
    def tokenizer(self) -> Tokenizer:
        self._alive()
        return self._tokenizer

    # -- adapters -----------------------------------------------------------------------------

    async def load_adapter(self, folder: Path) -> AdapterInfo:
        return await self._adapters.load(self._alive(), folder, self._base_shapes, self._replay)

    async def unload_adapter(self, digest: str) -> None:
        await self._adapters.unload(self._alive(), digest)

    async def adapter_states(self) -> list[AdapterState]:
        return self._adapters.states()

    async def _watch_load(self, backend: Backend) -> None:
        """Asks the workers now and then, while there is something to hear of."""
        seen = 0
        with contextlib.suppress(EngineDeadError):
            while True:
                await asyncio.sleep(LOAD_SECONDS)
                if self._num_admitted == seen and not self._running:
                    continue
                seen = self._num_admitted
                parts = await backend.on_workers("remix_expert_load")
                self._load.add(parts, self._adapters.numbers, self._adapters.digests)

    async def _replay(self, served: Served) -> None:
        backend = self._alive()
        parity = await asyncio.to_thread(
            read_parity,
            served.folder,
            vocab_size=self._model.vocab_size,
            max_tokens=self._model.max_model_len - 1,
        )
        if parity is not None:
            lora = (served.info.digest, served.number, served.folder)
            await replay_on(backend, parity, lora, slack=backend.parity_slack)

    # -- requests -----------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        self._admit(request)
        job = Job(request, self._tokenizer.decode, self._ends)
        self._jobs[request.request_id] = job
        self._idle.clear()
        if request.digest is not None:
            self._adapters.use(request.digest)
        self._waiting.add(request.tenant, job)
        self._pump_if_alive()
        try:
            while True:
                event = await job.events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            if self._jobs.get(request.request_id) is job:
                await self.abort(request.request_id)

    async def abort(self, request_id: str) -> None:
        job = self._jobs.get(request_id)
        if job is None:
            return
        job.abort()
        self._close(job)
        if job.run is not None:
            job.run.cancel()
            await asyncio.wait([job.run])
        self._pump_if_alive()

    def health(self) -> Health:
        if self._backend is None:
            return Health(alive=not self._draining, ready=False, reason="not started")
        if self._draining:
            return Health(alive=True, ready=False, reason="draining")
        if death := self._backend.death:
            return Health(alive=False, ready=False, reason=f"engine stopped: {death}")
        if self._running and time.monotonic() - self._progress > _STALL_SECONDS:
            return Health(alive=False, ready=False, reason=f"no progress for {_STALL_SECONDS:g} s")
        return Health(alive=True, ready=True)

    def stats(self) -> EngineStats:
        backend = self._backend
        if backend is None:
            return EngineStats()
        # Without requests the scheduler reports nothing more, and holds nothing but its cache.
        used = backend.kv_usage if self._running else 0.0
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            waiting_for_read=sum(not self._is_held(job) for _, job in self._waiting),
            kv_tokens_used=round(used * backend.kv_tokens),
            kv_tokens_total=backend.kv_tokens,
            # Whatever the workers load they put into a slot at once.
            adapter_slots_used=min(self._adapters.num_held, self._config.adapter_slots),
            adapter_slots_total=self._config.adapter_slots,
            adapters_loaded=len(self._adapters),
            adapters_on_host=self._adapters.num_held,
            expert_load=self._load.totals,
            adapter_reads=self._adapters.num_reads,
            adapter_read_seconds=self._adapters.total_read_seconds,
        )

    def _alive(self) -> Backend:
        backend = self._backend
        if backend is None:
            raise EngineDeadError("the engine is not started")
        if death := backend.death:
            raise EngineDeadError(f"the engine stopped: {death}")
        return backend

    def _admit(self, request: GenerationRequest) -> None:
        if self._draining:
            raise EngineBusyError("the server is shutting down", retry_after=5.0)
        self._alive()
        if request.request_id in self._jobs:
            raise InvalidRequestError(f"request id {request.request_id!r} is in use")
        if request.digest is not None and request.digest not in self._adapters:
            raise AdapterNotLoadedError(f"adapter {request.digest} is not loaded")
        validate_request(request, self._model)
        if len(self._jobs) >= self._model.max_requests:
            raise EngineBusyError(f"the queue is full ({self._config.max_waiting} requests wait)")

    def _is_held(self, job: Job) -> bool:
        adapter = job.request.digest
        return adapter is None or self._adapters.is_held(adapter)

    # -- from the queue to vLLM -----------------------------------------------------------------

    def _pump(self) -> None:
        """Admits who may run now."""
        backend = self._alive() if self._jobs else None
        while backend is not None and len(self._running) < self._config.max_running:
            job = self._next(backend)
            if job is None:
                return
            self._waiting.remove(job.request.tenant, job)
            self._start(backend, job)

    def _next(self, backend: Backend) -> Job | None:
        """The first in fair order that may run now. One whose adapter must be read, or finds no
        slot, lets others pass for a while."""
        adapters, is_closed = self._adapters, self._adapters.needs_room
        for _, job in self._waiting:
            adapter = job.request.digest
            if adapter is None:
                return job
            has_slot, is_held = adapters.has_slot(adapter), adapters.is_held(adapter)
            if is_held and has_slot and not is_closed:
                return job
            if not is_held and (has_slot or adapters.has_room):
                adapters.read(backend, adapter, self._base_shapes)
            if job.turn_came is None:
                job.turn_came = self._num_admitted
            if not has_slot and self._num_admitted - job.turn_came >= PATIENCE:
                is_closed = True  # until the requests of an adapter in a slot have run out
        return None

    def _start(self, backend: Backend, job: Job) -> None:
        request = job.request
        self._waiting.charge_prompt(request.tenant, len(request.prompt_token_ids))
        self._running.add(job)
        self._progress = time.monotonic()
        job.admitted()
        lora = None
        if request.digest is not None:
            lora = self._adapters.admit(request.digest)
            self._num_admitted += 1
        job.run = asyncio.get_running_loop().create_task(self._run(backend, job, lora))
        # Not in the task, which may be cancelled before its first line.
        job.run.add_done_callback(lambda _: self._ended(job))

    async def _run(self, backend: Backend, job: Job, lora: tuple[str, int, Path] | None) -> None:
        request = job.request
        wanted = request.params.logprobs
        outputs = backend.generate(request, self._ends, lora, salt=request.tenant)
        try:
            async for new in outputs:
                self._progress = time.monotonic()
                self._waiting.charge_output(request.tenant, len(new.token_ids))
                logprobs = None
                if wanted is not None and new.logprobs is not None:
                    logprobs = [
                        logprobs_of(position, token_id, wanted)
                        for position, token_id in zip(new.logprobs, new.token_ids, strict=True)
                    ]
                if job.take(new.token_ids, logprobs) is not None:
                    self._close(job)  # before its caller hears of it, who would abort what is open
                    break
            else:
                raise RemixError("vLLM ended the request before its time")
        except EngineDeadError as error:
            job.events.put_nowait(error)
        except Exception as error:
            log.exception("request %s failed", request.request_id)
            job.events.put_nowait(
                RemixError(f"the engine could not compute this request: {type(error).__name__}")
            )
        finally:
            await outputs.aclose()  # a request that ended before vLLM knows of it is aborted there

    def _ended(self, job: Job) -> None:
        self._running.discard(job)
        if job.request.digest is not None:
            self._adapters.leave(job.request.digest)
        self._close(job)
        self._pump_if_alive()

    def _close(self, job: Job) -> None:
        request = job.request
        if self._jobs.get(request.request_id) is not job:
            return
        del self._jobs[request.request_id]
        self._waiting.remove(request.tenant, job)
        if request.digest is not None:
            self._adapters.unuse(request.digest)
        if not self._jobs:
            self._idle.set()

    def _pump_if_alive(self) -> None:
        """A dead engine's requests hear of it here, the waiting ones too."""
        try:
            self._pump()
        except EngineDeadError as error:
            self._fail([job for _, job in self._waiting], error)

    def _adapter_read(self, digest: str, error: RemixError | None) -> None:
        if error is not None:
            self._fail([j for _, j in self._waiting if j.request.digest == digest], error)
        self._pump_if_alive()

    def _fail(self, jobs: list[Job], error: RemixError) -> None:
        for job in jobs:
            job.events.put_nowait(error)
            self._close(job)
