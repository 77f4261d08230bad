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

    With `swap`, every adapter is unloaded and loaded again before each workload. With `settles`,
    a workload begins when the threads spin at barriers again, as they do alone: a system that was
    measured before may have kept a core busy a moment ago.
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
        self._engine: Engine = EmbeddedEngine(EmbeddedConfig(**engine))
        self._folders = [Path(folder) for folder in adapters]
        self._digests: list[str] = []
        self._swap = swap
        self._loop.run_until_complete(self._engine.start())
        self._loop.run_until_complete(self._load())
        self.about: dict[str, Any] = {
            "version": f"remix-serve embedded engine, torch {torch.__version__}",
            "threads": torch.get_num_threads(),
            "settings": f"weights {engine.get('weights', 'stored')}, "
            f"{len(self._digests)} adapters loaded",
        }

    def run(self, workload: Workload) -> Run:
        if self._swap:
            self._loop.run_until_complete(self._reload())
        end = time.monotonic() + _MOST_SECONDS_TO_SETTLE
        while self._watch is not None and self._watch.crowded and time.monotonic() < end:
            self._loop.run_until_complete(greedy(self._engine, workload.prompts[0][:1], 16))
        return self._loop.run_until_complete(self._run(workload))

    async def _load(self) -> None:
        self._digests = [(await self._engine.load_adapter(f)).digest for f in self._folders]

    async def _reload(self) -> None:
        for digest in self._digests:
            await self._engine.unload_adapter(digest)
        await self._load()

    async def _run(self, workload: Workload) -> Run:
        start = time.perf_counter()
        digests = [None if i is None else self._digests[i] for i in workload.adapters]
        rows = await asyncio.gather(
            *(
                greedy(self._engine, prompt, workload.new_tokens, digest=digest)
                for prompt, digest in zip(workload.prompts, digests, strict=True)
            )
        )
        return Run(
            arrivals=[[at - start for at in times] for times, _ in rows],
            tokens=[tokens for _, tokens in rows],
        )
