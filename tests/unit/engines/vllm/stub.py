"""A vLLM that does what a test says, when it says so."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from remix_runtime.contracts import GenerationRequest
from remix_runtime.engines.vllm.config import VllmConfig
from remix_runtime.engines.vllm.engine import VllmEngine
from remix_runtime.engines.vllm.job import NewTokens
from remix_runtime.errors import EngineDeadError
from tests.models import EOS_ID, VOCAB_SIZE, tiny_config

Lora = tuple[str, int, Path]


class StubBackend:
    """As `backend.Backend`. Requests get tokens from `give`; calls wait where a gate is shut."""

    hf_config = tiny_config("llama-32")
    max_model_len = 64
    vocab_size = VOCAB_SIZE
    end_token_ids = frozenset({EOS_ID})
    parity_slack = 1.0
    kv_tokens = 1024
    kv_usage = 0.5

    def __init__(self) -> None:
        self.death: str | None = None
        self.loras: dict[int, str] = {}
        """Held by the workers."""
        self.most_loras = 0
        self.started: list[str] = []
        """Request ids, in the order in which they came here."""
        self.salts: dict[str, str] = {}
        self.running: dict[str, tuple[asyncio.Queue[NewTokens | Exception | None], int | None]] = {}
        self.adds: list[str] = []
        self.refusal: Exception | None = None
        """What the next `add_lora` raises."""
        self.add_gate, self.close_gate = asyncio.Event(), asyncio.Event()
        self.add_gate.set()
        self.close_gate.set()
        self.stopped = 0
        self._died = asyncio.Event()

    async def stop(self) -> None:
        self.stopped += 1

    async def add_lora(self, name: str, number: int, folder: Path) -> None:
        self.adds.append(name)
        await self._answer(self.add_gate)
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        assert number not in self.loras
        self.loras[number] = name
        self.most_loras = max(self.most_loras, len(self.loras))

    async def remove_lora(self, number: int) -> None:
        await self._answer(self.add_gate)
        assert number not in {lora for _, lora in self.running.values()}, "it is in use"
        del self.loras[number]

    async def on_workers(self, method: str, *args: Any) -> list[Any]:
        await self._answer(self.add_gate)
        return [{}]

    async def generate(
        self, request: GenerationRequest, ends: frozenset[int], lora: Lora | None, salt: str
    ) -> AsyncGenerator[NewTokens, None]:
        tokens: asyncio.Queue[NewTokens | Exception | None] = asyncio.Queue()
        number = None if lora is None else lora[1]
        assert lora is None or self.loras[lora[1]] == lora[0], "vLLM would read it in a step"
        self.started.append(request.request_id)
        self.salts[request.request_id] = salt
        self.running[request.request_id] = tokens, number
        try:
            while (new := await tokens.get()) is not None:
                if isinstance(new, Exception):
                    raise new
                yield new
        finally:
            await self.close_gate.wait()
            del self.running[request.request_id]

    def give(
        self,
        request_id: str,
        token_ids: Sequence[int],
        logprobs: Any = None,
        prompt: Any = None,
        cached: int | None = None,
    ) -> None:
        new = NewTokens(token_ids, logprobs, prompt, cached)
        self.running[request_id][0].put_nowait(new)

    def end(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self.give(request_id, [EOS_ID])

    def put(self, request_id: str, last: Exception | None) -> None:
        """The last thing that a request hears of."""
        self.running[request_id][0].put_nowait(last)

    def die(self) -> None:
        self.death = "killed"
        self._died.set()
        for request_id in self.running:
            self.put(request_id, EngineDeadError("the engine stopped: killed"))

    async def _answer(self, gate: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (gate, self._died)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self.death:
            raise EngineDeadError("the engine stopped: killed")


async def started(base: Path, **settings: Any) -> tuple[VllmEngine, StubBackend]:
    backend = StubBackend()

    async def start(config: VllmConfig) -> StubBackend:
        return backend

    # The real module needs vLLM.
    name = "remix_runtime.engines.vllm.backend"
    module = SimpleNamespace(Backend=SimpleNamespace(start=start))
    engine = VllmEngine(VllmConfig(model=str(base), **settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        await engine.start()
    return engine, backend


async def settled(turns: int = 30) -> None:
    """Until everything that can go on has gone on."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Files are read in threads: that takes what it takes."""
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110  what is waited for tells nobody
            await asyncio.sleep(0.005)
