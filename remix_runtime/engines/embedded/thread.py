"""The thread that owns the engine core, and the border to the event loop.

The event loop puts commands into an inbox; the thread takes them between steps and sends all
outputs of a step back in one call. Nothing else crosses.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from remix_runtime.engines.embedded.config import EmbeddedConfig
from remix_runtime.engines.embedded.core import EngineCore, Output
from remix_runtime.engines.embedded.startup import build_core
from remix_runtime.errors import ConfigError, EngineDeadError

T = TypeVar("T")
log = logging.getLogger(__name__)


class EngineThread:
    """All methods are for the event loop; the callbacks come on it."""

    def __init__(
        self,
        config: EmbeddedConfig,
        *,
        on_outputs: Callable[[list[Output]], None],
        on_read: Callable[[str], None],
        on_death: Callable[[], None],
    ) -> None:
        self.core: EngineCore | None = None
        self.death: BaseException | None = None
        self.busy_since: float | None = None
        self._config = config
        self._on_outputs = on_outputs
        self._on_read = on_read
        self._on_death = on_death
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._pending: set[Future[Any]] = set()
        self._stopping = False

    async def start(self) -> None:
        """Returns when the model is loaded. Raises `ConfigError`."""
        if self._loop is not None:
            raise ConfigError("an engine is started once; make a new one")
        self._loop = asyncio.get_running_loop()
        started: Future[EngineCore] = Future()
        thread = threading.Thread(
            target=self._run, args=(started,), name="remix-engine", daemon=True
        )
        thread.start()
        try:
            self.core = await asyncio.shield(asyncio.wrap_future(started))
        except asyncio.CancelledError:
            self._end()
            raise
        except BaseException:
            self._loop = None  # it may be tried again
            raise
        self._thread = thread

    async def stop(self, patience_seconds: float) -> None:
        """Ends the thread and frees everything. A thread that hangs is left alone after
        `patience_seconds`. Idempotent."""
        if self._thread is not None:
            self._end()
            await asyncio.to_thread(self._thread.join, patience_seconds)
        self._thread = None
        self.core = None
        self._fail_pending(EngineDeadError("the engine was stopped"))

    def _end(self) -> None:
        self._stopping = True
        self._inbox.put(lambda: None)

    @property
    def is_started(self) -> bool:
        return self._thread is not None

    def running_core(self) -> EngineCore:
        if self.death is not None:
            raise EngineDeadError(f"the engine stopped: {self.death}")
        if self.core is None:
            raise EngineDeadError("the engine is not started")
        return self.core

    def post(self, action: Callable[[], list[Output]]) -> None:
        """Runs `action` in the thread, between two steps, and delivers its outputs like those of a
        step."""
        self._inbox.put(lambda: self._send(action()))

    async def call(self, action: Callable[[], T]) -> T:
        """Runs `action` in the thread, between two steps, and returns what it returns."""
        future: Future[T] = Future()

        def command() -> None:
            # Its caller may have gone away; a cancelled future takes no result.
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(action())
            except Exception as error:
                future.set_exception(error)

        self.running_core()
        if self._stopping:
            raise EngineDeadError("the engine was stopped")
        self._inbox.put(command)
        return await self.result(future)

    async def result(self, future: Future[T]) -> T:
        """Waits for a future that the thread sets. Raises `EngineDeadError` if the thread ends."""
        self.running_core()
        self._pending.add(future)
        try:
            return await asyncio.wrap_future(future)
        finally:
            self._pending.discard(future)

    # -- in the thread --------------------------------------------------------------------------

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
                    self.busy_since = None
                    command = self._inbox.get()
                    self.busy_since = time.monotonic()
                    command()
                self._take_commands()
                self.busy_since = time.monotonic()
                digest = core.next_read()
                if digest is not None:
                    self._call_in_loop(partial(self._on_read, digest))
                self._send(core.step())
        except BaseException as error:
            log.exception("the engine thread ended")
            self.death = error
            self._call_in_loop(self._die)

    def _take_commands(self) -> None:
        while True:
            try:
                command = self._inbox.get_nowait()
            except queue.Empty:
                return
            command()

    def _send(self, outputs: list[Output]) -> None:
        if outputs:
            self._call_in_loop(partial(self._on_outputs, outputs))

    def _call_in_loop(self, callback: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            log.warning("the event loop closed before the engine was stopped")
            self._stopping = True

    # -- back on the event loop ---------------------------------------------------------------

    def _die(self) -> None:
        self._on_death()
        self._fail_pending(EngineDeadError(f"the engine stopped: {self.death}"))

    def _fail_pending(self, error: EngineDeadError) -> None:
        """Fails the calls that wait for the thread."""
        for future in self._pending:
            if not future.done():
                future.set_exception(error)
