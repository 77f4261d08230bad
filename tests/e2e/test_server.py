"""The whole path: openai client, HTTP, registry, embedded engine, ReMix adapters on a tiny base.

What the client reads is compared with the per-token reference, not with the engine.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from torch import Tensor

from remix_runtime.adapter.checkpoint import Checkpoint, write_checkpoint
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.engines.embedded.runner import ModelRunner
from remix_runtime.engines.embedded.scheduler import Chunk
from server.app import create_app
from server.settings import ServerSettings
from tests.models import ATTENTION, MLP, random_checkpoint, save_tiny_base, tiny_model
from tests.reference import greedy, with_adapter
from tests.unit.server.harness import eventually, listen

BASE = "tiny"
NEW_TOKENS = 12
CONTEXT = 256


@dataclass(frozen=True)
class Folders:
    base: Path
    adapters: dict[str, Path]
    checkpoints: dict[str, Checkpoint | None]
    digests: dict[str, str]


@dataclass(frozen=True)
class Served:
    engine: EmbeddedEngine
    url: str
    http: httpx.AsyncClient
    openai: openai.AsyncOpenAI

    async def generated_tokens(self) -> float:
        """Tokens that the server has seen from the engine for the base model."""
        line = f'remix_generated_tokens_total{{adapter="{BASE}",tenant=""}} '
        text = (await self.http.get("/metrics")).text
        return float(text.partition(line)[2].partition("\n")[0])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("served")
    base = save_tiny_base(root / BASE)
    model = tiny_model("llama")
    shapes: dict[str, dict[str, Any]] = {
        "small": {"n": 4, "k": 2, "r": 4},
        "wide": {"n": 8, "k": 4, "r": 8, "target_modules": (*MLP, *ATTENTION)},
        "one": {"n": 3, "k": 1, "r": 5, "target_modules": ("down_proj",)},
    }
    checkpoints: dict[str, Checkpoint | None] = {BASE: None}
    digests = {BASE: f"base-{BASE}"}
    for seed, (name, shape) in enumerate(shapes.items()):
        checkpoint = random_checkpoint(model, seed=seed, **shape)
        checkpoints[name] = checkpoint
        digests[name] = write_checkpoint(
            root / name, checkpoint.config, checkpoint.layers, readme="random"
        )
    return Folders(base, {name: root / name for name in shapes}, checkpoints, digests)


@asynccontextmanager
async def serve(folders: Folders, **config: Any) -> AsyncIterator[Served]:
    engine = EmbeddedEngine(
        EmbeddedConfig(model=str(folders.base), kv_cache_bytes=1 << 22, **config)
    )
    settings = ServerSettings(log_level="error", drain_seconds=5)
    async with (
        listen(create_app(engine, settings, folders.adapters), settings) as url,
        httpx.AsyncClient(base_url=url, timeout=120) as http,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield Served(engine, url, http, client)


def reference_text(engine: EmbeddedEngine, checkpoint: Checkpoint | None, prompt: list[int]) -> str:
    model = tiny_model("llama")
    if checkpoint is not None:
        with_adapter(model, checkpoint)
    return engine.tokenizer.decode(greedy(model, prompt, NEW_TOKENS))


def is_idle(engine: EmbeddedEngine) -> bool:
    """The engine's thread ends a request a moment before the event loop hears of it."""
    stats = engine.stats()
    return stats.running == stats.waiting == 0


def assert_all_free(engine: EmbeddedEngine) -> None:
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_tokens_used) == (0, 0, 0)


async def test_every_name_gives_its_own_greedy_tokens_in_one_batch(folders: Folders) -> None:
    text = "the rain in Spain"
    messages: list[Any] = [{"role": "user", "content": text}]
    fields: dict[str, Any] = {
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }
    async with serve(folders) as served:
        tokenizer = served.engine.tokenizer
        prompt = tokenizer.encode(text, add_special_tokens=True)
        chat_prompt = tokenizer.apply_chat_template(messages)

        async def complete(name: str) -> tuple[str, str | None]:
            done = await served.openai.completions.create(model=name, prompt=text, **fields)
            return done.choices[0].text, done.system_fingerprint

        async def complete_ids(name: str) -> tuple[str, str | None]:
            done = await served.openai.completions.create(model=name, prompt=prompt, **fields)
            return done.choices[0].text, done.system_fingerprint

        async def chat(name: str) -> tuple[str, str | None]:
            done = await served.openai.chat.completions.create(
                model=name, messages=messages, **fields
            )
            return done.choices[0].message.content or "", done.system_fingerprint

        async def stream_chat(name: str) -> tuple[str, str | None]:
            stream = await served.openai.chat.completions.create(
                model=name, messages=messages, stream=True, **fields
            )
            chunks = [chunk async for chunk in stream]
            assert len(chunks) > 3
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            return text, chunks[-1].system_fingerprint

        names = [BASE, *folders.adapters]
        assert [model.id for model in (await served.openai.models.list()).data] == names
        ways = [complete, complete_ids, chat, stream_chat]
        got = await asyncio.gather(*(way(name) for name in names for way in ways))
        texts = set()
        for name, answers in zip(names, zip(*[iter(got)] * len(ways), strict=True), strict=True):
            checkpoint = folders.checkpoints[name]
            completed = reference_text(served.engine, checkpoint, prompt)
            chatted = reference_text(served.engine, checkpoint, chat_prompt)
            digest = folders.digests[name]
            assert list(answers) == [(t, digest) for t in (completed, completed, chatted, chatted)]
            texts.add(completed)
        assert len(texts) == len(names)  # every adapter has an effect
        assert_all_free(served.engine)


async def open_request(served: Served, **body: Any) -> asyncio.StreamWriter:
    """Sends a completion request for the base and reads nothing."""
    url = httpx.URL(served.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    fields = {"model": BASE, "prompt": [7] * 3, "ignore_eos": True, "max_tokens": CONTEXT - 3}
    content = json.dumps({**fields, **body}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()
    return writer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stage", ["queue", "prefill", "decode"])
async def test_disconnect_frees_everything(
    folders: Folders, stage: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One token a step, none of them quick: 240 take long enough to be met, also on a busy machine.
    run = ModelRunner.run

    def run_slowly(runner: ModelRunner, chunks: Sequence[Chunk]) -> Tensor:
        time.sleep(0.005)
        return run(runner, chunks)

    monkeypatch.setattr(ModelRunner, "run", run_slowly)
    async with serve(folders, max_running=1, max_tokens_per_step=1) as served:
        engine = served.engine
        long_prompt = {"prompt": [7] * (CONTEXT - 16), "max_tokens": 16}
        if stage == "queue":
            blocker = await open_request(served, **long_prompt)
            await eventually(lambda: engine.stats().running == 1)
            client = await open_request(served, stream=stream, n=2)
            await eventually(lambda: engine.stats().waiting == 2)
            client.transport.abort()
            await eventually(lambda: engine.stats().waiting == 0)
            assert engine.stats().running == 1  # the other one goes on
            blocker.transport.abort()
        else:
            body = long_prompt if stage == "prefill" else {}
            client = await open_request(served, stream=stream, **body)
            await eventually(lambda: engine.stats().running == 1)
            if stage == "decode":
                while await served.generated_tokens() < 3:
                    assert engine.stats().running == 1
            client.transport.abort()
        await eventually(lambda: is_idle(engine))
        assert_all_free(engine)
        generated = await served.generated_tokens()
        if stage == "decode":
            assert 3 <= generated < CONTEXT - 3
        else:
            assert generated == 0
        good = await served.openai.completions.create(model="small", prompt="hi", max_tokens=4)
        assert good.usage is not None
        assert_all_free(engine)


async def test_neighbours_of_a_request_that_goes_away_are_not_changed(folders: Folders) -> None:
    fields: dict[str, Any] = {
        "temperature": 0,
        "max_tokens": 40,
        "extra_body": {"ignore_eos": True},
    }
    async with serve(folders, max_running=4, max_tokens_per_step=8) as served:

        async def complete(name: str) -> str:
            done = await served.openai.completions.create(model=name, prompt=[9, 8, 7, 6], **fields)
            return done.choices[0].text

        alone = [await complete(name) for name in folders.adapters]
        leaving = await open_request(served)
        together = asyncio.gather(*map(complete, folders.adapters))
        await eventually(lambda: served.engine.stats().running == 4)
        leaving.transport.abort()
        assert await together == alone
        await eventually(lambda: is_idle(served.engine))
        assert_all_free(served.engine)


async def test_what_only_the_engine_can_refuse_is_a_400(folders: Folders) -> None:
    async with serve(folders) as served:
        for fields in (
            {"prompt": [10**6]},
            {"prompt": "hi", "logit_bias": {"99999": 1}},
            {"prompt": "hi", "extra_body": {"stop_token_ids": [99999]}},
            {"prompt": [7] * CONTEXT},
            {"prompt": ""},
        ):
            with pytest.raises(openai.BadRequestError) as error:
                await served.openai.completions.create(model="small", **fields)  # type: ignore[call-overload]
            assert error.value.param is not None
            good = await served.openai.completions.create(model="wide", prompt="hi", max_tokens=2)
            assert good.system_fingerprint == folders.digests["wide"]
        assert_all_free(served.engine)
