"""A fake engine that says what it is told to, for tests of what is made of a text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from remix_runtime.contracts import TokenEvent
from remix_runtime.engines.fake import FakeConfig, FakeEngine, _Job
from remix_runtime.engines.fake_model import EOS_ID
from remix_runtime.errors import RemixError
from server.app import create_app
from server.settings import ServerSettings
from tests.unit.server.harness import Server, adapter_folders, listen


class TellingEngine(FakeEngine):
    """Answers every request with `script`, a byte a token, and ends it."""

    script = ""

    async def _run(self, job: _Job) -> None:
        for token_id in (*self.script.encode(), EOS_ID):
            await asyncio.sleep(0)
            if not self._is_open(job):
                return
            job.num_generated += 1
            try:
                event: TokenEvent | Exception = job.completion.take((token_id,))
            except RemixError as error:  # the request's grammar wants another text
                event = error
            self._send(job, event)


@asynccontextmanager
async def telling(root: Path, script: str, **settings: Any) -> AsyncIterator[Server]:
    """A server on a real socket whose engine tells `script`."""
    engine = TellingEngine(FakeConfig(max_model_len=4096))
    engine.script = script
    server_settings = ServerSettings(**{"port": 0, "log_level": "error", **settings})
    app = create_app(engine, server_settings, adapter_folders(root))
    async with (
        listen(app, server_settings) as url,
        httpx.AsyncClient(base_url=url, timeout=120) as client,
    ):
        yield Server(app, engine, client, url)


def prompt_of(server: Server) -> str:
    """The prompt of the newest request."""
    return server.engine.tokenizer.decode(server.engine.requests[-1].prompt_token_ids)
