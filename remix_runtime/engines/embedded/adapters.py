"""The adapters that an embedded engine serves: loaded, read again from their folders, unloaded.

Lives on the event loop. Files are read in threads of their own, so that neither the loop nor the
engine's thread waits for a disk.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from remix_runtime.adapter.checkpoint import read_adapter, read_checkpoint
from remix_runtime.contracts import AdapterInfo
from remix_runtime.engine_state import AdapterState, AdapterTier
from remix_runtime.engines.embedded.bank import HostAdapter
from remix_runtime.engines.embedded.core import EngineCore
from remix_runtime.engines.embedded.thread import EngineThread
from remix_runtime.engines.served import (
    ServedAdapter,
    ServedAdapters,
    adapter_info,
    require_digest,
)
from remix_runtime.errors import AdapterNotLoadedError

T = TypeVar("T")
log = logging.getLogger(__name__)


class EmbeddedAdapters(ServedAdapters[ServedAdapter]):
    """Adapters by digest. A folder must stay where it is as long as its adapter is loaded."""

    def __init__(self, thread: EngineThread) -> None:
        super().__init__(log)
        self._thread = thread
        self._replays: dict[str, asyncio.Task[None]] = {}
        """Replays of parity files that are not finished, by digest."""
        # What reading takes comes on top of the memory budget: one load at a time.
        self._loading = asyncio.Lock()

    async def unload(self, digest: str) -> None:
        if digest in self._served:
            await super().unload(digest)
        else:
            # One that another caller unloads leaves with a command that is in the inbox already.
            await self._thread.call(lambda: None)

    def read(self, digest: str) -> None:
        """Reads an adapter back into host memory, for requests that wait for it."""
        self._tasks.start(self._read(digest))

    async def states(self) -> list[AdapterState]:
        core = self._thread.running_core()
        digests = [digest for digest in self._served if digest in self]
        places = await self._thread.call(lambda: {d: _place(core, d) for d in digests})
        return [
            self._served[digest].state(*places[digest])
            for digest in digests
            if digest in self._served
        ]

    async def _load(self, folder: Path, digest: str | None) -> AdapterInfo:
        core = self._thread.running_core()
        base_shapes, model = core.runner.base_shapes, core.runner.model
        async with self._loading:
            started = time.monotonic()
            checkpoint, parity = await _in_thread(
                lambda: read_adapter(
                    folder,
                    base=base_shapes,
                    vocab_size=model.vocab_size,
                    max_tokens=model.max_model_len,
                )
            )
            require_digest(checkpoint.digest, digest, folder)
            digest = checkpoint.digest
            # Another load of the same may still fail, and this one's parity file be better.
            while digest in self._replays:
                await asyncio.wait([self._replays[digest]])
            if (known := self._open_again(digest, folder)) is not None:
                return known
            adapter = await _in_thread(lambda: core.bank.prepare(checkpoint))
            top_k = checkpoint.top_k
            self._served[digest] = served = ServedAdapter(folder, adapter_info(checkpoint))
            self._count_read(served, started)
            try:
                replayed = await self._thread.call(lambda: core.load(adapter, top_k, parity))
            except BaseException:
                del self._served[digest]
                raise
            if replayed is None:
                served.is_open = True
                return served.info
            replay = self._replays[digest] = self._tasks.start(self._finish_load(digest, replayed))
        await self._tasks.result(replay)  # without the lock, since it waits for others' requests
        return served.info

    async def _finish_load(self, digest: str, replayed: Future[None]) -> None:
        try:
            await self._thread.result(replayed)
            self._served[digest].is_open = True
        except BaseException:
            del self._served[digest]
            raise
        finally:
            del self._replays[digest]

    async def _unload(self, digest: str, served: ServedAdapter) -> None:
        async with self._unpinned:
            await self._unpinned.wait_for(lambda: not served.pins)
        # Loaded again while the last requests ended: then it stays.
        if not served.is_open:
            core = self._thread.running_core()
            del self._served[digest]
            await self._thread.call(lambda: core.bank.remove(digest))

    async def _read(self, digest: str) -> None:
        core = self._thread.running_core()
        # Unless all its requests were aborted, and it was unloaded since.
        result: HostAdapter | Exception = AdapterNotLoadedError(f"adapter {digest} is not loaded")
        tried = None
        # Loaded meanwhile from another folder, it is read from there.
        while (served := self._served.get(digest)) is not None and served.folder != tried:
            started, tried = time.monotonic(), served.folder
            try:
                result = await _in_thread(partial(_read_again, core, tried, digest))
            except Exception as error:
                result = error
            else:
                self._count_read(served, started)
                break
        # Whatever came, the engine must hear of it: it asks for no other read before.
        self._thread.post(lambda: core.finish_read(digest, result))


def _read_again(core: EngineCore, folder: Path, digest: str) -> HostAdapter:
    checkpoint = read_checkpoint(folder, base=core.runner.base_shapes)
    require_digest(checkpoint.digest, digest, folder)
    return core.bank.prepare(checkpoint)


def _place(core: EngineCore, digest: str) -> tuple[AdapterTier, int | None]:
    slot = core.bank.slot(digest)
    if slot is not None:
        return AdapterTier.DEVICE, slot
    return AdapterTier.HOST if core.bank.is_ready(digest) else AdapterTier.DISK, None


async def _in_thread(action: Callable[[], T]) -> T:
    """Runs `action` in a thread that ends with it, and its OpenMP pool with the thread."""
    executor = ThreadPoolExecutor(max_workers=1)
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, action)
    finally:
        executor.shutdown(wait=False)
