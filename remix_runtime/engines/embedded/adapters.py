"""The adapters that requests may name: loading and unloading them beside running requests.

Lives on the event loop. What touches the bank is done in the engine's thread, between two steps,
through `in_engine`; what only computes is done in a thread that ends with it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from remix_runtime.checkpoint import Checkpoint, Parity, read_checkpoint, read_parity
from remix_runtime.contracts import AdapterInfo
from remix_runtime.engines.embedded.core import EngineCore
from remix_runtime.parity import require_decisive

T = TypeVar("T")

_RETRY_SECONDS = 0.02
_PATIENCE_SECONDS = 2.0
"""After so long a replay stops waiting for a slot or KV pages to be free by chance."""


class InEngine(Protocol):
    """Runs an action in the engine's thread, between two steps."""

    def __call__(self, action: Callable[[], T], /) -> Awaitable[T]: ...


class Adapters:
    """Loaded adapters by digest, and how many requests use each."""

    def __init__(self, in_engine: InEngine) -> None:
        self._in_engine = in_engine
        self._infos: dict[str, AdapterInfo] = {}
        self._users: Counter[str] = Counter()
        self._unused = asyncio.Condition()
        # One change at a time: two copies of a digest never race, and memory holds one adapter
        # that is not in the bank yet.
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    def __contains__(self, digest: str) -> bool:
        return digest in self._infos

    async def load(self, core: EngineCore, folder: Path) -> AdapterInfo:
        return await self._to_the_end(self._load(core, folder))

    async def unload(self, core: EngineCore, digest: str) -> None:
        """New requests are refused from now on; returns when nothing of the adapter is left."""
        self._infos.pop(digest, None)
        await self._to_the_end(self._unload(core, digest))

    def pin(self, digest: str) -> None:
        self._users[digest] += 1

    def release(self, digest: str) -> None:
        self._users[digest] -= 1
        if self._users[digest] == 0:
            del self._users[digest]
            self._start(self._notify())

    async def _load(self, core: EngineCore, folder: Path) -> AdapterInfo:
        shapes = core.runner.base_shapes
        checkpoint = await in_thread(lambda: read_checkpoint(folder, base=shapes))
        digest, config = checkpoint.digest, checkpoint.config
        async with self._changing:
            # It may be there without a name: unloaded, with requests that have not ended.
            if not await self._in_engine(lambda: digest in core.bank):
                await self._take_in(core, checkpoint, folder)
            self._infos[digest] = AdapterInfo(
                digest=digest,
                num_layers=len(checkpoint.layers),
                num_experts=config.num_experts,
                top_k=config.top_k,
                r=config.r,
                num_bytes=checkpoint.num_bytes,
            )
            return self._infos[digest]

    async def _take_in(self, core: EngineCore, checkpoint: Checkpoint, folder: Path) -> None:
        """Into the bank and through its parity file; one that fails is out again."""
        digest, model = checkpoint.digest, core.runner.model
        parity = await in_thread(
            lambda: read_parity(folder, vocab_size=model.vocab_size, max_tokens=model.max_model_len)
        )
        adapter = await in_thread(lambda: core.bank.prepare(checkpoint))
        await self._in_engine(lambda: core.bank.add(adapter))
        try:
            if parity is not None:
                await self._replay(core, digest, checkpoint.config.top_k, parity)
        except BaseException:
            await self._in_engine(lambda: core.bank.remove(digest))
            raise

    async def _replay(self, core: EngineCore, digest: str, top_k: int, parity: Parity) -> None:
        """Prompt by prompt, so that running requests move on in between.

        A prompt needs a slot and some KV pages, and running requests may hold all of them. After
        some patience no new ones are admitted until the prompt has run.
        """
        decisive = 0
        for index in range(len(parity.prompts)):
            started = time.monotonic()
            while True:
                first = time.monotonic() - started > _PATIENCE_SECONDS
                found = await self._in_engine(
                    partial(core.replay, digest, top_k, parity, index, before_others=first)
                )
                if found is not None:
                    break
                await asyncio.sleep(_RETRY_SECONDS)
            decisive += found
        require_decisive(parity, decisive, slack=core.runner.parity_slack)

    async def _unload(self, core: EngineCore, digest: str) -> None:
        async with self._unused:
            await self._unused.wait_for(lambda: self._users[digest] == 0)
        async with self._changing:
            # Loaded again while its last requests ended: then it stays.
            if digest not in self._infos:
                await self._in_engine(lambda: core.bank.remove(digest))

    async def _notify(self) -> None:
        async with self._unused:
            self._unused.notify_all()

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """`work`, which goes on when its caller is cancelled: half a change is none."""
        return await asyncio.shield(self._start(work))

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even where the caller has gone


async def in_thread(action: Callable[[], T]) -> T:
    """Runs `action` in a thread that ends with it, and its OpenMP pool with the thread."""
    executor = ThreadPoolExecutor(max_workers=1)
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, action)
    finally:
        executor.shutdown(wait=False)
