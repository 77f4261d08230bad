"""`EmbeddedEngine`: the async face of the engine. The core runs in a thread of its own
(`thread.py`); the adapters and their folders are `adapters.py`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

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
from remix_runtime.engines.embedded.adapters import EmbeddedAdapters
from remix_runtime.engines.embedded.config import EmbeddedConfig
from remix_runtime.engines.embedded.core import EngineCore, Output
from remix_runtime.engines.embedded.thread import EngineThread
from remix_runtime.engines.validate import validate_request
from remix_runtime.errors import (
    AdapterNotLoadedError,
    EngineBusyError,
    EngineDeadError,
    InvalidRequestError,
)

_STALL_SECONDS = 60.0
"""A step that takes longer than this counts as a hung device."""


class _Stream:
    """Where the outputs of one request go. Touched by the event loop's thread only."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.outputs: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()


class EmbeddedEngine:
    """Serves one model and many adapters from this process. See `contracts.Engine`."""

    def __init__(self, config: EmbeddedConfig) -> None:
        self._config = config
        self._thread = EngineThread(
            config, on_outputs=self._deliver, on_read=self._read, on_death=self._fail_all
        )
        self._adapters = EmbeddedAdapters(self._thread)
        self._streams: dict[str, _Stream] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        await self._thread.start()

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        self._draining = True
        if not self._thread.is_started:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), drain_seconds)
        for request_id in list(self._streams):
            await self.abort(request_id)
        # A step that hangs must not keep the process: its thread is a daemon.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), _STALL_SECONDS)
        await self._thread.stop(_STALL_SECONDS)
        await self._adapters.settle(_STALL_SECONDS)

    @property
    def model(self) -> ModelInfo:
        return self._thread.running_core().runner.model

    @property
    def tokenizer(self) -> Tokenizer:
        return self._thread.running_core().runner.tokenizer

    # -- adapters -----------------------------------------------------------------------------

    async def load_adapter(self, folder: Path) -> AdapterInfo:
        self._thread.running_core()
        return await self._adapters.load(folder)

    async def unload_adapter(self, digest: str) -> None:
        self._thread.running_core()
        await self._adapters.unload(digest)

    async def adapter_states(self) -> list[AdapterState]:
        return await self._adapters.states()

    # -- requests -----------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        core = self._admit(request)
        stream = _Stream(request)
        self._streams[request.request_id] = stream
        self._idle.clear()
        if request.digest is not None:
            self._adapters.use(request.digest)
        self._thread.post(lambda: core.add(request))
        try:
            while True:
                output = await stream.outputs.get()
                if isinstance(output, Exception):
                    raise output
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            if self._streams.get(request.request_id) is stream:
                await self.abort(request.request_id)

    async def abort(self, request_id: str) -> None:
        core = self._thread.core
        if core is not None:
            self._thread.post(lambda: core.abort(request_id))

    def health(self) -> Health:
        if self._thread.death is not None:
            return Health(alive=False, ready=False, reason=f"engine stopped: {self._thread.death}")
        if not self._thread.is_started:
            return Health(alive=not self._draining, ready=False, reason="not started")
        busy_since = self._thread.busy_since
        if busy_since is not None and time.monotonic() - busy_since > _STALL_SECONDS:
            return Health(alive=False, ready=False, reason=f"no progress for {_STALL_SECONDS:g} s")
        if self._draining:
            return Health(alive=True, ready=False, reason="draining")
        return Health(alive=True, ready=True)

    def stats(self) -> EngineStats:
        core = self._thread.core
        if core is None:
            return EngineStats(adapters_loaded=len(self._adapters))
        pool, running = core.scheduler.pool, len(core.scheduler.running)
        return EngineStats(
            running=running,
            waiting=max(0, len(self._streams) - running),
            waiting_for_read=core.tiers.num_cold,
            kv_tokens_used=(pool.num_pages - pool.num_free) * pool.page_tokens,
            kv_tokens_total=pool.num_pages * pool.page_tokens,
            adapter_slots_used=core.bank.slots_used,
            adapter_slots_total=core.bank.num_slots,
            adapter_slot_fills=core.bank.slot_fills,
            adapter_slot_fill_seconds=core.bank.slot_fill_seconds,
            adapters_loaded=len(self._adapters),
            adapters_on_host=core.bank.host_count,
            adapter_reads=self._adapters.num_reads,
            adapter_read_seconds=self._adapters.total_read_seconds,
            device_adapter_bytes_used=core.bank.device_bytes_used,
            device_adapter_bytes_total=self._config.adapter_bytes,
            host_adapter_bytes_used=core.bank.host_bytes_used,
            host_adapter_bytes_total=self._config.host_adapter_bytes,
        )

    def _admit(self, request: GenerationRequest) -> EngineCore:
        """Refuses what cannot or must not run, before anything is allocated."""
        core = self._thread.running_core()
        if self._draining:
            raise EngineBusyError("the server is shutting down", retry_after=5.0)
        if request.request_id in self._streams:
            raise InvalidRequestError(f"request id {request.request_id!r} is in use")
        if request.digest is not None and request.digest not in self._adapters:
            raise AdapterNotLoadedError(f"adapter {request.digest} is not loaded")
        validate_request(request, core.runner.model)
        # A free place counts as one in the queue, so that an idle engine takes a full batch.
        if len(self._streams) >= core.runner.model.max_requests:
            raise EngineBusyError(f"the queue is full ({self._config.max_waiting} requests wait)")
        return core

    # -- called by the thread, on the event loop ----------------------------------------------

    def _deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is None:
                continue
            stream.outputs.put_nowait(output.event)
            if isinstance(output.event, Exception) or output.event.finish_reason is not None:
                self._close(stream)

    def _close(self, stream: _Stream) -> None:
        del self._streams[stream.request.request_id]
        if not self._streams:
            self._idle.set()
        adapter = stream.request.digest
        if adapter is not None:
            self._adapters.unuse(adapter)

    def _read(self, digest: str) -> None:
        self._adapters.read(digest)

    def _fail_all(self) -> None:
        error = EngineDeadError(f"the engine stopped: {self._thread.death}")
        for stream in list(self._streams.values()):
            stream.outputs.put_nowait(error)
            self._close(stream)
