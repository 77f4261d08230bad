"""The embedded engine, driven as the server drives it: all requests at once on one event loop."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.systems.protocol import Run, Workload
from remix_runtime.contracts import Engine, GenerationRequest, SamplingParams


class EmbeddedSystem:
    """`engine` are the fields of `EmbeddedConfig`; `adapters` are checkpoint folders to load.

    With `swap`, every adapter is unloaded and loaded again before each workload.
    """

    def __init__(
        self, engine: dict[str, Any], adapters: tuple[str, ...] = (), swap: bool = False
    ) -> None:
        from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine

        self._loop = asyncio.new_event_loop()
        self._engine: Engine = EmbeddedEngine(EmbeddedConfig(**engine))
        self._folders = [Path(folder) for folder in adapters]
        self._digests: list[str] = []
        self._swap = swap
        self._count = 0
        self._loop.run_until_complete(self._engine.start())
        self._loop.run_until_complete(self._load())
        self.about: dict[str, Any] = {
            "version": f"remix-serve embedded engine, torch {torch.__version__}",
            "threads": torch.get_num_threads(),
            "settings": f"float32, {len(self._digests)} adapters loaded",
        }

    def run(self, workload: Workload) -> Run:
        if self._swap:
            self._loop.run_until_complete(self._reload())
        return self._loop.run_until_complete(self._run(workload))

    async def _load(self) -> None:
        self._digests = [(await self._engine.load_adapter(f)).digest for f in self._folders]

    async def _reload(self) -> None:
        for digest in self._digests:
            await self._engine.unload_adapter(digest)
        await self._load()

    async def _run(self, workload: Workload) -> Run:
        requests = [
            self._request(prompt, workload.new_tokens, adapter)
            for prompt, adapter in zip(workload.prompts, workload.adapters, strict=True)
        ]
        start = time.perf_counter()
        rows = await asyncio.gather(*(self._collect(request, start) for request in requests))
        return Run(arrivals=[row[0] for row in rows], tokens=[row[1] for row in rows])

    def _request(
        self, prompt: list[int], new_tokens: int, adapter: int | None
    ) -> GenerationRequest:
        self._count += 1
        return GenerationRequest(
            request_id=f"bench-{self._count}",
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True),
            digest=None if adapter is None else self._digests[adapter],
        )

    async def _collect(
        self, request: GenerationRequest, start: float
    ) -> tuple[list[float], list[int]]:
        times: list[float] = []
        tokens: list[int] = []
        async for event in self._engine.generate(request):
            times += [time.perf_counter() - start] * len(event.token_ids)
            tokens += event.token_ids
        return times, tokens
