"""Formats of answers in `/v1/responses` and `/v1/messages`: what reaches the engine, and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from remix_runtime.contracts import Grammar, GrammarKind
from remix_runtime.engines.fake import FakeEngine
from remix_runtime.errors import InvalidRequestError
from tests.unit.server.harness import Server
from tests.unit.server.test_messages import message
from tests.unit.server.test_responses import answered, respond

SCHEMA = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
NAMED = {"type": "json_schema", "name": "answer", "schema": SCHEMA}
MESSAGE_FORMAT = {"format": {"type": "json_schema", "schema": SCHEMA}}


async def test_responses(server: Server) -> None:
    answer = await answered(server, text={"format": {**NAMED, "strict": True}})
    grammar = server.engine.requests[-1].params.grammar
    assert grammar == Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
    assert answer["text"]["format"] == {**NAMED, "strict": True, "description": None}
    await answered(server, text={"format": {"type": "json_object"}})
    grammar = server.engine.requests[-1].params.grammar
    assert grammar is not None
    assert json.loads(grammar.text) == {"type": "object"}
    await answered(server, text={"format": {"type": "text"}})
    assert server.engine.requests[-1].params.grammar is None


async def test_messages(server: Server) -> None:
    assert (await message(server.client, output_config=MESSAGE_FORMAT)).status_code == 200
    grammar = server.engine.requests[-1].params.grammar
    assert grammar == Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_engine_refuses_has_the_clients_name(
    server: Server, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: FakeEngine, *_: Any) -> None:
        raise InvalidRequestError("no such grammar", param="response_format")

    monkeypatch.setattr(FakeEngine, "_open", refuse)
    refused = await respond(server.client, stream=stream, text={"format": NAMED})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "text.format")
    refused = await respond(server.client, stream=stream, structured_outputs={"regex": "a"})
    assert refused.json()["error"]["param"] == "structured_outputs"
    refused = await message(server.client, stream=stream, output_config=MESSAGE_FORMAT)
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, "no such grammar")
