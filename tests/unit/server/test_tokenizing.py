"""Short texts are tokenized at once, all others in the tokenizer's thread."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from remix_runtime.engines.fake import ByteTokenizer, FakeEngine
from server.api.tokenizing import run_tokenizer
from server.app import create_app
from server.settings import ServerSettings
from tests.unit.server.harness import Server, adapter_folders

LONG = {"stop": [str(i) * 500 for i in range(5)]}
"""What makes a body long, and its prompt not."""


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the threads that encoded, filled in as they do."""
    names: set[str] = set()
    encode = ByteTokenizer.encode

    def noted(self: ByteTokenizer, text: str, **kwargs: Any) -> list[int]:
        names.add(threading.current_thread().name.rpartition("_")[0])
        return encode(self, text, **kwargs)

    monkeypatch.setattr(ByteTokenizer, "encode", noted)
    return names


@pytest.mark.parametrize("path", ["chat", "complete"])
async def test_a_short_body_needs_no_thread_and_a_long_one_does(
    server: Server, encoders: set[str], path: str
) -> None:
    ask = getattr(server, path)
    assert (await ask()).status_code == 200
    assert encoders == {""}
    encoders.clear()
    assert (await ask(**LONG)).status_code == 200
    assert encoders == {"remix-tokenizer"}


async def test_nothing_is_encoded_beside_the_thread(server: Server, encoders: set[str]) -> None:
    """Fast tokenizers must not be used from two threads at once."""
    let_go = threading.Event()
    busy = asyncio.create_task(run_tokenizer(server.services, "another", let_go.wait))
    await asyncio.sleep(0)
    short = asyncio.create_task(server.chat())
    try:
        for _ in range(100):
            await asyncio.sleep(0)
        assert not encoders
    finally:
        let_go.set()
    assert (await short).status_code == 200
    assert encoders == {"remix-tokenizer"}
    await busy


async def test_an_adapters_own_template_is_never_rendered_on_the_event_loop(
    tmp_path: Path, encoders: set[str]
) -> None:
    """It is a program that its tenant wrote."""
    folders = adapter_folders(tmp_path)
    (folders["pirate"] / "defaults.json").write_text(
        json.dumps({"chat_template": "{{ messages }}"})
    )
    server_settings = ServerSettings(log_level="error")
    engine = FakeEngine()
    app = create_app(engine, server_settings, folders)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        assert (await Server(app, engine, client).chat(model="pirate")).status_code == 200
    assert encoders == {"remix-tokenizer"}
