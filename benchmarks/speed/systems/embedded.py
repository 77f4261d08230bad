"""The embedded engine, driven as the server drives it: all requests at once on one event loop."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.greedy import greedy
from benchmarks.speed.systems.protocol import Run, Workload
from remix_runtime.barriers import watch_barriers
from remix_runtime.contracts import Engine
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine

_MOST_SECONDS_TO_SETTLE = 3.0


class EmbeddedSystem:
    """`engine` are the fields of `EmbeddedConfig`; `adapters` are checkpoint folders to load.

    Before a workload, the adapters are loaded or unloaded as it asks; with `swap`, each is unloaded
    and loaded again. With `settles`, a workload begins when the threads spin at barriers again, as
    they do alone: a system that was measured before may have kept a core busy a moment ago.
    """

    def __init__(
        self,
        engine: dict[str, Any],
        adapters: tuple[str, ...] = (),
        swap: bool = False,
        settles: bool = False,
    ) -> None:
        watch = watch_barriers()
        self._watch = watch if settles else None
        self._loop = asyncio.new_event_loop()
        self.engine: Engine = EmbeddedEngine(EmbeddedConfig(**engine))
        self._folders = [Path(folder) for folder in adapters]
        self._digests: list[str] = []
        self._swap = swap
        self._loop.run_until_complete(self.engine.start())
        self._loop.run_until_complete(self._load())
        self.about: dict[str, Any] = {
            "version": f"remix-serve embedded engine, torch {torch.__version__}",
            "threads": torch.get_num_threads(),
            "settings": f"weights {engine.get('weights', 'stored')}, {len(self._folders)} adapters",
        }

    def run(self, workload: Workload) -> Run:
        self._loop.run_until_complete(self._hold(not workload.unloaded))
        end = time.monotonic() + _MOST_SECONDS_TO_SETTLE
        while self._watch is not None and self._watch.crowded and time.monotonic() < end:
            self._loop.run_until_complete(greedy(self.engine, workload.prompts[0][:1], 16))
        return self._loop.run_until_complete(self._run(workload))

    def close(self) -> None:
        """Ends the engine, for a caller that lives on."""
        self._loop.run_until_complete(self.engine.stop())
        self._loop.close()

    async def _hold(self, loaded: bool) -> None:
        """Has the adapters loaded, or none."""
        if self._digests and (self._swap or not loaded):
            for digest in self._digests:
                await self.engine.unload_adapter(digest)
            self._digests = []
        if loaded and not self._digests:
            await self._load()

    async def _load(self) -> None:
        for folder in self._folders:
            digest = (await self.engine.load_adapter(folder)).digest
            self._digests.append(digest)
            # The first request puts the adapter into its slot.
            await greedy(self.engine, [0], 1, digest=digest)

    async def _run(self, workload: Workload) -> Run:
        start = time.perf_counter()
        digests = [None if i is None else self._digests[i] for i in workload.adapters]
        rows = await asyncio.gather(
            *(
                greedy(self.engine, prompt, workload.new_tokens, digest=digest)
                for prompt, digest in zip(workload.prompts, digests, strict=True)
            )
        )
        return Run(
            arrivals=[[at - start for at in times] for times, _ in rows],
            tokens=[tokens for _, tokens in rows],
        )
