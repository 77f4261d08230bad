"""No turn of the event loop is long, whatever a client asks for within the server's limits, and no
thread keeps the loop from its turns."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from server.api.fields import BODIES
from server.app import create_app
from server.http.weight import MAX_MEMBERS, MAX_OWN_MEMBERS, MAX_VALUES
from server.live.access import SINGLE_USER
from server.live.sets import LiveSet
from server.services import Services
from server.settings import ServerSettings
from server.tenancy.records import MAX_ADAPTERS
from tests.unit.server.harness import BASE
from tests.unit.server.turns import LONGEST_TURN, TellingEngine, as_body, ask, longest_turn

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MIB4 = (4 << 20) - 1000
TURN = {"role": "user", "content": "x"}
DECIMAL = b"1.23456789e-07"
LONG_INTEGER = b"1" * sys.get_int_max_str_digits()


def raw(fields: bytes) -> bytes:
    return b'{"model":"%s","prompt":"x","max_tokens":1,%s}' % (BASE.encode(), fields)


def many(item: bytes, count: int) -> bytes:
    return b"[" + b",".join([item] * count) + b"]"


def members(count: int) -> bytes:
    return b",".join(b'"k%d":1' % i for i in range(count))


def called(arguments: str, count: int = 1) -> bytes:
    """A chat with calls in its history."""
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments}}
    answer = {"role": "assistant", "content": "x", "tool_calls": [call] * count}
    return as_body(messages=[TURN, answer])


def large_bodies() -> Iterator[tuple[str, str, bytes, int]]:
    """Name, path, body, status."""
    yield "lists", COMPLETIONS, raw(b'"x":' + many(b"[]", MIB4 // 3)), 400
    nests = many(b"[" * 100 + b"]" * 100, 300)
    yield "nests", COMPLETIONS, raw(b'"user":' + nests), 200
    yield "too many nests", COMPLETIONS, raw(b'"user":' + many(b"[" * 100 + b"]" * 100, 9000)), 400
    yield "fields", COMPLETIONS, raw(members(350_000)), 400
    yield "fields of one object", COMPLETIONS, raw(members(MAX_MEMBERS - 3)), 400
    yield "unknown fields", COMPLETIONS, raw(members(MAX_OWN_MEMBERS - 4)), 400
    options = b'"stream":true,"stream_options":{%s}' % members(MAX_OWN_MEMBERS)
    yield "unknown options", COMPLETIONS, raw(options), 400
    yield "a text of marks", COMPLETIONS, raw(b'"user":"%s"' % (b"[,:" * (MIB4 // 3))), 200
    yield "texts of marks", COMPLETIONS, raw(b'"user":' + many(b'"\\\\\\":,"', 100_000)), 200
    yield "a text of quotes", COMPLETIONS, raw(b'"user":"%s"' % (b'\\"' * (MIB4 // 2))), 200
    yield "an endless text", COMPLETIONS, raw(b'"stop":"%s"' % (b"x" * MIB4)), 400
    ids = b'{"model":"fake-base","prompt":%s}' % many(b"1", MAX_VALUES - 9)
    yield "token ids", COMPLETIONS, ids, 400
    yield "wrong token ids", COMPLETIONS, raw(b'"allowed_token_ids":' + many(b'"1"', 65_000)), 400
    yield "allowed ids", COMPLETIONS, raw(b'"n":8,"allowed_token_ids":' + many(b"65", 65_000)), 200
    too_many = b'"n":64,"allowed_token_ids":' + many(b"65", 65_000)
    yield "too many allowed ids", COMPLETIONS, raw(too_many), 400
    yield "biases", COMPLETIONS, raw(b'"logit_bias":{%s}' % members(MAX_OWN_MEMBERS)), 400
    schema = b'"guided_json":{"enum":%s}' % many(b"1", MAX_VALUES - 9)
    yield "a schema", COMPLETIONS, raw(schema), 400
    schema = b'"guided_json":{"enum":%s}' % many(DECIMAL, MAX_VALUES - 9)
    yield "a schema of decimals", COMPLETIONS, raw(schema), 400
    # As many as there may be take half of the limit to parse.
    count = MIB4 // len(LONG_INTEGER) // 2
    schema = b'"guided_json":{"enum":%s}' % many(LONG_INTEGER, count)
    yield "a schema of long integers", COMPLETIONS, raw(schema), 400
    yield "a long prompt", COMPLETIONS, as_body(prompt="x" * MIB4), 400
    yield "messages", CHAT, as_body(messages=[{**TURN, "content": "x" * 900}] * 4096), 400
    yield (
        "wrong messages",
        CHAT,
        as_body(messages=[{"role": 1, "content": 2, "name": 3}] * 4096),
        400,
    )
    parts = [{"type": "text", "text": "x"}] * 4096
    yield "parts", CHAT, as_body(messages=[{**TURN, "content": parts}], max_tokens=1), 200
    document = {f"k{i}": "x" * 30 for i in range(MAX_OWN_MEMBERS - 1)}
    yield "documents", CHAT, as_body(messages=[TURN], documents=[document] * 6), 400
    many_decimals = {"x": [float(DECIMAL)] * (MAX_VALUES - 100)}
    yield "a document", CHAT, as_body(messages=[TURN], documents=[many_decimals]), 400
    variables = as_body(messages=[TURN], chat_template_kwargs=many_decimals)
    yield "template variables", CHAT, variables, 400
    parameters = {"enum": [1] * 1500}
    functions = [{"name": f"f{number}", "parameters": parameters} for number in range(128)]
    tools = [{"type": "function", "function": function} for function in functions]
    yield "tools", CHAT, as_body(messages=[TURN], tools=tools), 400
    function = {"name": "f", "parameters": many_decimals}
    tools = [{"type": "function", "function": function}]
    yield "a tool", CHAT, as_body(messages=[TURN], tools=tools), 400
    yield "arguments", CHAT, called(json.dumps({"a": [1] * 200_000})), 400
    yield "decimal arguments", CHAT, called(json.dumps(many_decimals)), 400
    nests = many(b"[" * 100 + b"]" * 100, 150).decode()
    yield "nests in arguments", CHAT, called(f'{{"a":{nests}}}', 128), 400
    use = {"type": "tool_use", "id": "x", "name": "f", "input": many_decimals}
    answer = {"role": "assistant", "content": [use]}
    yield "input", "/v1/messages", as_body(messages=[TURN, answer], max_tokens=1), 400
    blocks = [{"role": "user", "content": [{"type": "text", "text": "x" * 8}] * 2}] * 4000
    yield "blocks", "/v1/messages", as_body(messages=blocks, max_tokens=1), 400
    item = {"role": "user", "content": [{"type": "input_text", "text": "x" * 8}] * 2}
    yield "items", "/v1/responses", as_body(input=[item] * 4000), 400
    yield "to count", "/v1/messages/count_tokens", as_body(messages=blocks), 400
    yield "to detokenize", "/detokenize", as_body(tokens=[65] * (1 << 17)), 200
    yield "to tokenize", "/tokenize", as_body(prompt="x" * 32_000, return_token_strs=True), 200
    yield "invoked", "/invocations", raw(b'"user":"%s"' % (b"x" * MIB4)), 200


def large_answers() -> Iterator[tuple[str, str, bytes]]:
    told = {"logprobs": True, "top_logprobs": 20}
    for stream in (False, True):
        how = "stream" if stream else "whole"
        chat = {"messages": [TURN], "stream": stream}
        yield f"chat, {how}", CHAT, as_body(n=16, max_tokens=200, **told, **chat)
        more = {"n": 16, "max_tokens": 200, "logprobs": 20, "stream": stream}
        yield f"completions, {how}", COMPLETIONS, as_body(prompt="x", **more)
        echoed = {"prompt": ["x" * 370] * 64, "max_tokens": 1, "echo": True, "logprobs": 20}
        yield f"echo, {how}", COMPLETIONS, as_body(stream=stream, **echoed)
        ids = {"prompt": "x" * 30_000, "n": 64, "max_tokens": 1, "return_token_ids": True}
        yield f"token ids, {how}", COMPLETIONS, as_body(stream=stream, **ids)
        asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 20}
        long = {"input": "x", "max_output_tokens": 2000, "stream": stream}
        yield f"response, {how}", "/v1/responses", as_body(**asked, **long)
        yield f"text, {how}", CHAT, as_body(n=64, max_tokens=100, **chat)
    one = {"prompt": "x" * 20_000, "max_tokens": 0, "prompt_logprobs": 20}
    yield "a prompt", COMPLETIONS, as_body(**one)


BODIES_OF_ALL = {name: (path, body, status) for name, path, body, status in large_bodies()}
ANSWERS = {name: (path, body) for name, path, body in large_answers()}


@asynccontextmanager
async def telling() -> AsyncIterator[FastAPI]:
    app = create_app(TellingEngine(), ServerSettings(log_level="error"), {})
    async with app.router.lifespan_context(app):
        # The first request makes what all share.
        assert (await ask(app, COMPLETIONS, as_body(prompt="x", max_tokens=1)))[0] == 200
        yield app


@pytest.fixture
async def app() -> AsyncIterator[FastAPI]:
    async with telling() as made:
        yield made


@pytest.mark.parametrize("name", BODIES_OF_ALL)
async def test_large_bodies(app: FastAPI, name: str) -> None:
    path, body, status = BODIES_OF_ALL[name]

    async def work() -> None:
        found, _ = await ask(app, path, body)
        assert found == status

    assert len(body) <= 4 << 20
    assert await longest_turn(work) <= LONGEST_TURN


@pytest.mark.parametrize("name", ANSWERS)
async def test_large_answers(app: FastAPI, name: str) -> None:
    path, body = ANSWERS[name]

    async def work() -> None:
        status, size = await ask(app, path, body)
        assert status == 200
        assert size > 2000

    assert await longest_turn(work) <= LONGEST_TURN


@pytest.mark.parametrize(("n", "max_tokens"), [(16, 300), (1, 3000)])
async def test_the_backlog_of_a_slow_reader(app: FastAPI, n: int, max_tokens: int) -> None:
    services: Services = app.state.services
    engine = services.engine
    assert isinstance(engine, TellingEngine)
    body = as_body(
        messages=[TURN], n=n, max_tokens=max_tokens, logprobs=True, top_logprobs=20, stream=True
    )

    async def work() -> None:
        reads, engine.has_told = asyncio.Event(), asyncio.Event()
        asked = asyncio.ensure_future(ask(app, CHAT, body, may_send=reads))
        told = asyncio.ensure_future(engine.has_told.wait())
        await asyncio.wait({asked, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        reads.set()
        status, size = await asked
        assert status == 200
        assert size > n * max_tokens * 1000

    assert await longest_turn(work) <= LONGEST_TURN


async def test_metrics_of_many(app: FastAPI) -> None:
    services: Services = app.state.services
    for number in range(300):
        tenant = f"tenant-{number}"
        services.metrics.watch(tenant, "adapter", prompt_tokens=1)
        services.metrics.count_request(
            tenant=tenant, name="adapter", endpoint="chat", status="200", error=None, seconds=1
        )

    async def work() -> None:
        both = await asyncio.gather(*(ask(app, "/metrics", method="GET") for _ in range(2)))
        assert [status for status, _ in both] == [200, 200]
        assert min(size for _, size in both) > 300 * 5000

    assert await longest_turn(work) <= LONGEST_TURN


async def test_a_list_of_models(app: FastAPI) -> None:
    services: Services = app.state.services
    adapters = {f"adapter-{number}": f"{number:064x}" for number in range(MAX_ADAPTERS)}
    services.sets._sets[SINGLE_USER] = LiveSet(1, adapters)

    async def work() -> None:
        status, size = await ask(app, "/v1/models", method="GET")
        assert status == 200
        assert size > MAX_ADAPTERS * 200

    assert await longest_turn(work) <= LONGEST_TURN
    services.sets._sets.clear()


def lists_of(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The lists that a body may have, as pydantic sees them."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            yield path, schema
        for name, inner in schema.items():
            if name not in ("metadata", "serialization", "json_schema_input_schema"):
                yield from lists_of(inner, f"{path}.{name}")
    elif isinstance(schema, list | tuple):
        for number, inner in enumerate(schema):
            yield from lists_of(inner, f"{path}[{number}]")


@pytest.mark.parametrize("body", BODIES.values())
def test_every_list_has_a_limit_and_ends_with_its_first_mistake(body: type[BaseModel]) -> None:
    found = list(lists_of(body.__pydantic_core_schema__))
    assert found
    for path, schema in found:
        assert schema.get("max_length") is not None, path
        assert schema.get("fail_fast"), path
