"""Arguments of calls in a history are JSON in a body's JSON, with the same bounds on its parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from server.api.wire.chat import ChatPrompt
from server.http.weight import MAX_CONTAINERS, MAX_MEMBERS, MAX_VALUES
from tests.unit.server.harness import BASE, Server
from tests.unit.server.test_bad_input import check_error

TURN = {"role": "user", "content": "x"}


def answer(*arguments: str) -> dict[str, Any]:
    calls = [
        {"id": "x", "type": "function", "function": {"name": "f", "arguments": text}}
        for text in arguments
    ]
    return {"role": "assistant", "tool_calls": calls}


def parts(value: Any) -> str:
    return json.dumps({"a": value})


def lists(count: int) -> str:
    return parts([[]] * count)


FEW = MAX_CONTAINERS - 2  # beside those of `parts`


@pytest.mark.parametrize(
    "arguments",
    [
        [lists(FEW)],
        [lists(FEW // 2), lists(FEW // 2 - 2)],
        [parts("[" * 2 * MAX_CONTAINERS + ":" * 2 * MAX_MEMBERS + "," * 2 * MAX_VALUES)],
        [parts('"'), parts("[" * 2 * MAX_CONTAINERS), parts("\\"), parts("[" * MAX_CONTAINERS)],
        [""],
    ],
)
def test_what_they_may_have(arguments: Sequence[str]) -> None:
    prompt = ChatPrompt.model_validate({"messages": [TURN, answer(*arguments)]})
    found = [call.function.arguments for call in prompt.messages[1].tool_calls or ()]
    assert found == [json.loads(text or "{}") for text in arguments]


@pytest.mark.parametrize(
    "messages",
    [
        [answer(lists(FEW + 1))],
        [answer(lists(FEW // 2), lists(FEW // 2))],
        [answer(lists(FEW // 2)), answer(lists(FEW // 2))],
        [answer(parts([1] * (MAX_VALUES + 2)))],
        [answer(json.dumps({str(number): 1 for number in range(MAX_MEMBERS + 1)}))],
    ],
)
def test_what_they_may_not_have(messages: Sequence[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatPrompt.model_validate({"messages": [TURN, *messages]})
    (error,) = caught.value.errors()
    assert error["loc"] == ("messages",)
    assert "the JSON of all arguments together has more than" in error["msg"]


@pytest.mark.parametrize(
    "messages",
    [
        None,
        {},
        [None],
        ["tool_calls"],
        [{**TURN, "tool_calls": value} for value in (None, "x", {}, [1], [{"function": 1}])],
        [answer("x", 1)],  # type: ignore[arg-type]
    ],
)
def test_what_is_wrong_otherwise_is_told_as_that(messages: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatPrompt.model_validate({"messages": messages})
    assert "together" not in str(caught.value)


async def test_the_error_names_what_the_client_sent(server: Server) -> None:
    chat = {"model": BASE, "messages": [TURN, answer(lists(FEW + 1))]}
    call = {"type": "function_call", "call_id": "x", "name": "f", "arguments": lists(FEW + 1)}
    response = {"model": BASE, "input": [{**TURN, "type": "message"}, call]}
    for path, body, param in (
        ("/v1/chat/completions", chat, "messages"),
        ("/v1/responses", response, "input"),
    ):
        error = check_error(await server.client.post(path, json=body), 400)
        assert error["param"] == param


def as_input(value: Any) -> dict[str, Any]:
    """A body of `/v1/messages`, which has objects where a chat has texts."""
    use = {"type": "tool_use", "id": "x", "name": "f", "input": {"a": value}}
    result = {"type": "tool_result", "tool_use_id": "x", "content": "y"}
    turns = [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    return {"model": BASE, "max_tokens": 1, "messages": [TURN, *turns]}


@pytest.mark.parametrize("value", [0.1, 1e-7, 1e16, -0.0, 2**80, -(10**200), "é\n\x7f", {"": {}}])
async def test_an_object_reaches_the_template_as_it_is(server: Server, value: Any) -> None:
    response = await server.client.post("/v1/messages", json=as_input(value))
    assert response.status_code == 200, response.text
    (request,) = server.engine.requests
    prompt = bytes(request.prompt_token_ids).decode()
    assert json.dumps({"a": value}, ensure_ascii=False) in prompt


async def test_an_object_with_an_endless_number(server: Server) -> None:
    body = json.dumps(as_input(1)).replace('{"a": 1}', '{"a": 1e999}')
    headers = {"content-type": "application/json"}
    answer = await server.client.post("/v1/messages", content=body, headers=headers)
    assert answer.status_code == 400
    assert "not valid JSON" in answer.json()["error"]["message"]
