"""`EmbeddedEngine`: the async face of the engine core, which runs in a thread of its own.

The event loop puts commands into an inbox; the thread takes them between steps and sends all
outputs of a step back in one call. Nothing else crosses the border.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from remix_runtime.contracts import (
    AdapterInfo,
    EngineStats,
    GenerationRequest,
    Health,
    ModelInfo,
    TokenEvent,
    Tokenizer,
)
from remix_runtime.engines.embedded.adapters import Adapters
from remix_runtime.engines.embedded.config import EmbeddedConfig
from remix_runtime.engines.embedded.core import EngineCore, Output
from remix_runtime.engines.embedded.startup import build_core
from remix_runtime.engines.validate import validate_request
from remix_runtime.errors import (
    AdapterNotLoadedError,
    ConfigError,
    EngineBusyError,
    EngineDeadError,
    InvalidRequestError,
)

T = TypeVar("T")
log = logging.getLogger(__name__)

_REPLAY_RETRY_SECONDS = 0.02

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
        self._core: EngineCore | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams: dict[str, _Stream] = {}
        self._adapters = Adapters(self._in_engine)
        self._pending: set[Future[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._stopping = False
        self._death: BaseException | None = None
        self._busy_since: float | None = None

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        if self._loop is not None:
            raise ConfigError("an engine is started once; make a new one")
        self._loop = asyncio.get_running_loop()
        started: Future[EngineCore] = Future()
        thread = threading.Thread(
            target=self._run, args=(started,), name="remix-engine", daemon=True
        )
        thread.start()
        try:
            self._core = await asyncio.shield(asyncio.wrap_future(started))
        except asyncio.CancelledError:
            self._stopping = True
            self._inbox.put(lambda: None)
            raise
        except BaseException:
            self._loop = None  # it may be tried again
            raise
        self._thread = thread

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        self._draining = True
        if self._thread is None:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), drain_seconds)
        for request_id in list(self._streams):
            await self.abort(request_id)
        # A step that hangs must not keep the process: its thread is a daemon.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), _STALL_SECONDS)
        self._stopping = True
        self._inbox.put(lambda: None)
        await asyncio.to_thread(self._thread.join, _STALL_SECONDS)
        self._thread = None
        self._core = None
        self._fail_pending(EngineDeadError("the engine was stopped"))

    @property
    def model(self) -> ModelInfo:
        return self._running_core().runner.model

    @property
    def tokenizer(self) -> Tokenizer:
        return self._running_core().runner.tokenizer

    # -- adapters -----------------------------------------------------------------------------

    async def load_adapter(self, folder: Path) -> AdapterInfo:
        return await self._adapters.load(self._running_core(), folder)

    async def unload_adapter(self, digest: str) -> None:
        await self._adapters.unload(self._running_core(), digest)

    # -- requests -----------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        core = self._admit(request)
        stream = _Stream(request)
        self._streams[request.request_id] = stream
        self._idle.clear()
        if request.adapter is not None:
            self._adapters.pin(request.adapter)
        self._inbox.put(lambda: core.add(request))
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
        core = self._core
        if core is not None:
            self._inbox.put(lambda: self._send(core.abort(request_id)))

    def health(self) -> Health:
        if self._death is not None:
            return Health(alive=False, ready=False, reason=f"engine stopped: {self._death}")
        if self._thread is None or self._core is None:
            return Health(alive=not self._draining, ready=False, reason="not started")
        busy_since = self._busy_since
        if busy_since is not None and time.monotonic() - busy_since > _STALL_SECONDS:
            return Health(alive=False, ready=False, reason=f"no progress for {_STALL_SECONDS:g} s")
        if self._draining:
            return Health(alive=True, ready=False, reason="draining")
        return Health(alive=True, ready=True)

    def stats(self) -> EngineStats:
        core = self._core
        if core is None:
            return EngineStats(
                running=0,
                waiting=0,
                kv_tokens_used=0,
                kv_tokens_total=0,
                adapter_slots_used=0,
                adapter_slots_total=0,
            )
        pool, running = core.scheduler.pool, len(core.scheduler.running)
        return EngineStats(
            running=running,
            waiting=max(0, len(self._streams) - running),
            kv_tokens_used=(pool.num_pages - pool.num_free) * pool.page_tokens,
            kv_tokens_total=pool.num_pages * pool.page_tokens,
            adapter_slots_used=core.bank.slots_used,
            adapter_slots_total=core.bank.num_slots,
        )

    def _running_core(self) -> EngineCore:
        if self._death is not None:
            raise EngineDeadError(f"the engine stopped: {self._death}")
        if self._core is None:
            raise EngineDeadError("the engine is not started")
        return self._core

    def _admit(self, request: GenerationRequest) -> EngineCore:
        """Refuses what cannot or must not run, before anything is allocated."""
        core = self._running_core()
        if self._draining:
            raise EngineBusyError("the server is shutting down", retry_after=5.0)
        if request.request_id in self._streams:
            raise InvalidRequestError(f"request id {request.request_id!r} is in use")
        if request.adapter is not None and request.adapter not in self._adapters:
            raise AdapterNotLoadedError(f"adapter {request.adapter} is not loaded")
        validate_request(request, core.runner.model)
        # A free place counts as one in the queue, so that an idle engine takes a full batch.
        if len(self._streams) >= core.runner.model.max_requests:
            raise EngineBusyError(f"the queue is full ({self._config.max_waiting} requests wait)")
        return core

    # -- the engine's thread --------------------------------------------------------------------

    def _run(self, started: Future[EngineCore]) -> None:
        # The model is built here too. OpenMP keeps a pool for every thread that ever computed,
        # and with more pool threads than cores its barriers stop spinning and sleep instead:
        # two thirds of the speed of small batches.
        started.set_running_or_notify_cancel()
        try:
            core = build_core(self._config)
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(core)
        try:
            while not self._stopping:
                if not core.has_work:
                    self._busy_since = None
                    command = self._inbox.get()
                    self._busy_since = time.monotonic()
                    command()
                self._take_commands()
                self._busy_since = time.monotonic()
                self._send(core.step())
        except BaseException as error:
            log.exception("the engine thread ended")
            self._death = error
            self._call_in_loop(self._fail_all)

    def _take_commands(self) -> None:
        while True:
            try:
                command = self._inbox.get_nowait()
            except queue.Empty:
                return
            command()

    def _send(self, outputs: list[Output]) -> None:
        if outputs:
            self._call_in_loop(lambda: self._deliver(outputs))

    def _call_in_loop(self, callback: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            log.warning("the event loop closed before the engine was stopped")
            self._stopping = True

    # -- back on the event loop ---------------------------------------------------------------

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
        if stream.request.adapter is not None:
            self._adapters.release(stream.request.adapter)

    def _fail_all(self) -> None:
        error = EngineDeadError(f"the engine stopped: {self._death}")
        for stream in list(self._streams.values()):
            stream.outputs.put_nowait(error)
            self._close(stream)
        self._fail_pending(error)

    def _fail_pending(self, error: EngineDeadError) -> None:
        """Commands that nobody will run any more."""
        for future in self._pending:
            if not future.done():
                future.set_exception(error)

    async def _in_engine(self, action: Callable[[], T]) -> T:
        """Runs `action` in the engine's thread, between two steps."""
        self._running_core()
        if self._stopping:
            raise EngineDeadError("the engine was stopped")
        future: Future[T] = Future()

        def command() -> None:
            # Its caller may have gone away; a cancelled future takes no result.
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(action())
            except Exception as error:
                future.set_exception(error)

        self._pending.add(future)
        try:
            self._inbox.put(command)
            return await asyncio.wrap_future(future)
        finally:
            self._pending.discard(future)
