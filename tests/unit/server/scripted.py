"""A fake engine that says what a test wants, also with a chat template of the test's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
from fastapi import FastAPI
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from remix_runtime.contracts import (
    GenerationRequest,
    ModelInfo,
    PositionLogprobs,
    TokenEvent,
    TokenLogprob,
)
from remix_runtime.engines.fake import FakeConfig, FakeEngine, _Job
from remix_runtime.engines.fake_model import EOS_ID, ByteTokenizer
from remix_runtime.engines.front import Prepared
from remix_runtime.errors import InvalidRequestError, RemixError
from server.app import create_app
from server.settings import ServerSettings
from tests.unit.server.harness import BASE, Server, listen

_FIRST_SPECIAL = EOS_ID + 1


class TemplateTokenizer(ByteTokenizer):
    """A token for each byte, and one for each special token."""

    def __init__(self, template: str | None, special: Sequence[str] = ()) -> None:
        self.chat_template = template  # type: ignore[assignment]
        self.special_tokens = {text: _FIRST_SPECIAL + i for i, text in enumerate(special)}
        self._special = list(special)
        self._split = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool,
        at_most: int | None = None,
        keep_end: bool = False,
    ) -> list[int]:
        ids: list[int] = []
        at = 0
        for found in self._split.finditer(text):
            ids += text[at : found.start()].encode()
            ids.append(_FIRST_SPECIAL + self._special.index(found[0]))
            at = found.end()
        return [*ids, *text[at:].encode()]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        out = b""
        for token_id in token_ids:
            if token_id < EOS_ID:
                out += bytes([token_id])
            elif token_id >= _FIRST_SPECIAL and not skip_special_tokens:
                out += self._special[token_id - _FIRST_SPECIAL].encode()
        return out.decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < _FIRST_SPECIAL:
            return super().token_bytes(token_id)
        return self._special[token_id - _FIRST_SPECIAL].encode()

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        at_most: int | None = None,
        keep_end: bool = False,
        **variables: Any,
    ) -> list[int]:
        try:
            (text,), _ = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                chat_template=template or self.chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **{"bos_token": "<s>", "eos_token": "</s>", **variables},
            )
        except TemplateError as error:
            raise InvalidRequestError(f"refused: {error}", param="messages") from error
        return self.encode(text, add_special_tokens=False)


class ScriptedEngine(FakeEngine):
    """Answers every request with `script`, a token after the other, and ends it."""

    def __init__(self, tokenizer: ByteTokenizer) -> None:
        super().__init__(FakeConfig(served_model_name=BASE, max_model_len=1 << 15))
        self._tokenizer = tokenizer
        self.script = ""

    @property
    def model(self) -> ModelInfo:
        return replace(super().model, vocab_size=_FIRST_SPECIAL + 100)

    @property
    def last(self) -> GenerationRequest:
        return self.requests[-1]

    async def _prepare(self, request: GenerationRequest) -> Prepared:
        if isinstance(self._tokenizer, TemplateTokenizer):
            return Prepared()  # grammars know nothing of its special tokens
        return await super()._prepare(request)

    async def _run(self, job: _Job) -> None:
        for token_id in (*self._tokenizer.encode(self.script, add_special_tokens=False), EOS_ID):
            await asyncio.sleep(0)
            if not self._is_open(job):
                return
            chosen = TokenLogprob(token_id=token_id, logprob=-0.5)
            positions = (PositionLogprobs(chosen=chosen, top=()),)
            wanted = job.request.params.logprobs is not None
            try:
                event: TokenEvent | Exception = job.completion.take(
                    (token_id,), positions if wanted else None
                )
            except RemixError as error:  # the request's grammar wants another text
                event = error
            self._send(job, event)


@dataclass
class Scripted(Server):
    engine: ScriptedEngine

    async def chat(self, script: str = "", **body: Any) -> httpx.Response:
        self.engine.script = script
        return await super().chat(**body)

    async def message(self, script: str, **body: Any) -> dict[str, Any]:
        """The first choice of an answer that says `script`."""
        answer = await self.chat(script, **body)
        assert answer.status_code == 200, answer.text
        choice: dict[str, Any] = answer.json()["choices"][0]
        return choice


@asynccontextmanager
async def scripted(
    template: str | None = None, special: Sequence[str] = (), *, script: str = "", **settings: Any
) -> AsyncIterator[Scripted]:
    """Without a template of its own the engine has the fake one's, and follows grammars."""
    tokenizer = TemplateTokenizer(template, special) if template else ByteTokenizer()
    app, engine, _ = _app(tokenizer, script, settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield Scripted(app, engine, client)


@asynccontextmanager
async def scripted_on_a_socket(script: str) -> AsyncIterator[Scripted]:
    """For clients that take no transport of the test's."""
    app, engine, settings = _app(ByteTokenizer(), script, {"port": 0})
    async with listen(app, settings) as url, httpx.AsyncClient(base_url=url, timeout=120) as client:
        yield Scripted(app, engine, client, url)


def _app(
    tokenizer: ByteTokenizer, script: str, settings: Mapping[str, Any]
) -> tuple[FastAPI, ScriptedEngine, ServerSettings]:
    engine = ScriptedEngine(tokenizer)
    engine.script = script
    server_settings = ServerSettings(log_level="error", **settings)
    return create_app(engine, server_settings, {}), engine, server_settings
