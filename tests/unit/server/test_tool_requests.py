"""Chats with tools over HTTP, and through the `openai` package, on an engine that says what a test
wants."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pydantic
import pytest
from llguidance import LLMatcher, LLTokenizer
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from remix_runtime.contracts import Grammar, GrammarKind
from tests.unit.server import chat_templates as templates
from tests.unit.server.harness import BASE, sse_events
from tests.unit.server.scripted import Scripted, scripted
from tests.unit.server.test_bad_input import check_error

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS, **more}}


TOOLS = [tool("get_weather"), tool("get_time")]
ARGUMENTS = '{"city": "Oslo"}'


def hermes(name: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {ARGUMENTS}}}\n</tool_call>'


TWO = f"I look.\n{hermes('get_weather')}\n{hermes('get_time')}"
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with scripted(templates.QWEN) as running:
        yield running


def called(message: dict[str, Any]) -> list[tuple[str, str]]:
    functions = [call["function"] for call in message.get("tool_calls", [])]
    return [(function["name"], function["arguments"]) for function in functions]


async def test_calls(server: Scripted) -> None:
    answer = (await server.chat(TWO, tools=TOOLS)).json()
    chat = ChatCompletion.model_validate(answer, strict=True)
    (choice,) = chat.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    calls = choice.message.tool_calls
    assert calls is not None
    assert [call.type for call in calls] == ["function"] * 2
    assert len({call.id for call in calls}) == 2
    message = answer["choices"][0]["message"]
    assert called(message) == [("get_weather", ARGUMENTS), ("get_time", ARGUMENTS)]


async def test_only_calls_have_null_content(server: Scripted) -> None:
    choice = await server.message(hermes("get_time"), tools=TOOLS)
    assert choice["message"].keys() == {"role", "content", "refusal", "tool_calls"}
    assert choice["message"]["content"] is None
    plain = await server.message("Hello", tools=TOOLS)
    assert plain["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert plain["finish_reason"] == "stop"
    assert (await server.message("", tools=TOOLS))["message"]["content"] == ""


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, []),
        ({"tools": TOOLS, "tool_choice": "none"}, []),
        ({"tools": TOOLS[:1]}, ["get_weather"]),
        ({"tools": TOOLS, "tool_choice": "auto"}, ["get_weather", "get_time"]),
        ({"tools": TOOLS, "parallel_tool_calls": True}, ["get_weather", "get_time"]),
        ({"tools": TOOLS, "parallel_tool_calls": False}, ["get_weather"]),
        (
            {
                "tools": TOOLS,
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [NAMED]},
                },
            },
            ["get_weather"],
        ),
    ],
)
async def test_only_what_may_be_called_is(
    server: Scripted, body: dict[str, Any], names: list[str]
) -> None:
    message = (await server.message(TWO, **body))["message"]
    assert [name for name, _ in called(message)] == names
    assert server.engine.last.params.grammar is None
    if not names:
        assert message["content"] == TWO


@pytest.mark.parametrize(
    ("choice", "finish"), [("required", "tool_calls"), (NAMED, "stop"), ("auto", "tool_calls")]
)
async def test_how_an_answer_with_calls_ends(server: Scripted, choice: Any, finish: str) -> None:
    script = hermes("get_weather")
    whole = await server.message(script, tools=TOOLS, tool_choice=choice)
    assert whole["finish_reason"] == finish
    assert called(whole["message"]) == [("get_weather", ARGUMENTS)]
    stream = await server.chat(script, tools=TOOLS, tool_choice=choice, stream=True)
    assert sse_events(stream.text)[-1]["choices"][0]["finish_reason"] == finish
    cut = await server.message(script, tools=TOOLS, tool_choice=choice, max_tokens=60)
    assert cut["finish_reason"] == "length"
    ((name, arguments),) = called(cut["message"])
    assert name == "get_weather"
    assert ARGUMENTS.startswith(arguments)


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("script", [TWO, "Hello <tool", hermes("unknown"), hermes("get_time")])
async def test_a_stream_says_the_same_as_the_whole(
    server: Scripted, script: str, logprobs: bool
) -> None:
    body: dict[str, Any] = {"tools": TOOLS, "n": 2, "logprobs": logprobs}
    whole = (await server.chat(script, **body)).json()
    events = sse_events((await server.chat(script, **body, stream=True)).text)
    chunks = [ChatCompletionChunk.model_validate(event, strict=True) for event in events]
    for expected in whole["choices"]:
        mine = [c.choices[0] for c in chunks if c.choices[0].index == expected["index"]]
        text = "".join(part.delta.content or "" for part in mine)
        assert text == (expected["message"]["content"] or "")
        assert mine[-1].finish_reason == expected["finish_reason"]
        calls: list[list[str]] = []
        for part in mine:
            for delta in part.delta.tool_calls or []:
                assert delta.function is not None
                if delta.id is not None:
                    assert (delta.index, delta.type) == (len(calls), "function")
                    calls.append([delta.function.name or "", ""])
                assert delta.index == len(calls) - 1
                calls[-1][1] += delta.function.arguments or ""
        assert [tuple(call) for call in calls] == called(expected["message"])
        content = [e.model_dump() for part in mine if part.logprobs for e in part.logprobs.content]
        wanted = (expected["logprobs"] or {"content": []})["content"]
        assert content == wanted
        assert bool(content) == logprobs
    assert not any(
        choice["delta"] == {} and choice["finish_reason"] is None and not choice["logprobs"]
        for event in events
        for choice in event["choices"]
    )


async def test_a_call_comes_in_pieces(server: Scripted) -> None:
    events = sse_events((await server.chat(hermes("get_time"), tools=TOOLS, stream=True)).text)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant"}
    pieces = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    first = pieces[0]
    assert first["function"] == {"name": "get_time", "arguments": "{"}
    assert all(piece.keys() == {"index", "function"} for piece in pieces[1:])
    assert len(pieces) == len(ARGUMENTS)


# -- what the engine is told -------------------------------------------------------------------


def allows(grammar: Grammar | None, text: str) -> bool:
    assert grammar is not None
    assert grammar.kind is GrammarKind.LARK
    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(grammar.text))
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(list(text.encode())) == len(text) and matcher.is_accepting()


WEATHER, TIME, BAD = hermes("get_weather"), hermes("get_time"), hermes("get_time").replace("y", "z")
STRICT = [TOOLS[0], tool("get_time", strict=True)]


@pytest.mark.parametrize(
    ("body", "allowed", "not_allowed"),
    [
        (
            {"tool_choice": "required", "parallel_tool_calls": True},
            [WEATHER, f"{TIME}\n{WEATHER}"],
            [BAD, "", "Hello"],
        ),
        *[
            (
                {"tool_choice": "required", "parallel_tool_calls": parallel},
                [WEATHER, TIME],
                [BAD, f"{TIME}\n{WEATHER}", "Hello"],
            )
            for parallel in (False, None)
        ],
        (
            {"tool_choice": NAMED, "parallel_tool_calls": True},
            [WEATHER],
            [TIME, f"{WEATHER}\n{WEATHER}", "Hello"],
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "required", "tools": [NAMED]},
                }
            },
            [WEATHER],
            [TIME, "Hello"],
        ),
        (
            {"tools": STRICT},
            ["", "Hello", WEATHER, TIME, f"So: {TIME} ok", BAD.replace("time", "weather")],
            [BAD],
        ),
    ],
)
async def test_what_must_fit_is_held_by_a_grammar(
    server: Scripted, body: dict[str, Any], allowed: list[str], not_allowed: list[str]
) -> None:
    await server.message(WEATHER, **{"tools": TOOLS, **body})
    grammar = server.engine.last.params.grammar
    for text in allowed:
        assert allows(grammar, text), text
    for text in not_allowed:
        assert not allows(grammar, text), text


async def test_parameters_that_cannot_be_held_are_refused_by_name(server: Scripted) -> None:
    bad = tool("bad", parameters={"properties": {"x": {"$ref": "#/nope"}}})
    for body in (
        {"tool_choice": "required"},
        {"tools": [*TOOLS, {**bad, "function": {**bad["function"], "strict": True}}]},
    ):
        error = check_error(await server.chat("", **{"tools": [*TOOLS, bad], **body}), 400)
        assert error["param"] == "tools[2].function.parameters"
        assert "nope" in error["message"]
    assert server.engine.requests == []
    # Only a tool that may be called is held to them.
    await server.message("", tools=[*TOOLS, bad], tool_choice=NAMED)
    await server.message("", tools=[*TOOLS, bad])


async def test_tools_count_as_text_before_anything_is_rendered(server: Scripted) -> None:
    big = tool("big", description="x" * 60_000)
    error = check_error(await server.chat("", tools=[big]), 400)
    assert error["code"] == "context_length_exceeded"


SPECIAL = ("[TOOL_CALLS]", "[INST]", "[/INST]", "[ARGS]")


@pytest.mark.parametrize(
    ("script", "content", "names"),
    [
        (f"[TOOL_CALLS]get_time[ARGS]{ARGUMENTS}", None, ["get_time"]),
        ("One [INST]two[/INST] three", "One two three", []),
        ("One [TOOL_CALLS] two", "One  two", []),
    ],
)
async def test_special_tokens_are_read_and_not_shown(
    script: str, content: str | None, names: list[str]
) -> None:
    async with scripted(templates.MISTRAL_NAMED, SPECIAL) as server:
        choice = await server.message(script, tools=TOOLS)
        assert choice["message"]["content"] == content
        assert [name for name, _ in called(choice["message"])] == names
        assert not server.engine.last.params.skip_special_tokens
        plain = await server.message("One [INST]two")
        assert server.engine.last.params.skip_special_tokens
        assert plain["message"]["content"] == "One two"


async def test_a_template_without_tools_gets_ours(server: Scripted) -> None:
    async with scripted(templates.SMOLLM2, tool_parser="json") as smol:
        choice = await smol.message(hermes("get_time"), tools=TOOLS)
        assert "<tools>" in smol.prompt
        assert called(choice["message"]) == [("get_time", ARGUMENTS)]


async def test_the_parser_is_a_setting() -> None:
    script = f'<|python_tag|>{{"name": "get_time", "parameters": {ARGUMENTS}}}'
    for setting, is_call in (("llama3", True), ("auto", False), ("json", False)):
        async with scripted(templates.QWEN, tool_parser=setting) as server:
            choice = await server.message(script, tools=TOOLS)
            assert bool(called(choice["message"])) == is_call


# -- thoughts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts(stream: bool) -> None:
    script = f"so\nit is\n</think>\n\nI look.\n{hermes('get_time')}"
    async with scripted(templates.THINKING) as server:
        if not stream:
            message = (await server.message(script, tools=TOOLS))["message"]
            assert message["reasoning_content"] == "so\nit is"
            assert message["content"] == "I look."
            assert called(message) == [("get_time", ARGUMENTS)]
            return
        events = sse_events((await server.chat(script, tools=TOOLS, stream=True)).text)
        deltas = [event["choices"][0]["delta"] for event in events]
        assert "".join(d.get("reasoning_content", "") for d in deltas) == "so\nit is"
        assert "".join(d.get("content") or "" for d in deltas) == "I look."
        assert not any(d.get("content") for d in deltas if "reasoning_content" in d)


async def test_who_does_not_think_has_no_thoughts(server: Scripted) -> None:
    message = (await server.message("<think>so</think>yes"))["message"]
    assert message == {"role": "assistant", "content": "<think>so</think>yes", "refusal": None}


# -- the openai package ------------------------------------------------------------------------


class GetWeather(pydantic.BaseModel):
    """The weather of a city."""

    city: str


@pytest.fixture
async def client(server: Scripted) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx.ASGITransport(server.app)
    async with (
        httpx.AsyncClient(transport=transport) as http,
        openai.AsyncOpenAI(
            base_url="http://test/v1", api_key="x", max_retries=0, http_client=http
        ) as client,
    ):
        yield client


async def test_the_clients_loop_with_a_tool(server: Scripted, client: openai.AsyncOpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Rain?"}]
    server.engine.script = hermes("get_weather")
    answer = await client.chat.completions.create(model=BASE, messages=messages, tools=TOOLS)  # type: ignore[arg-type]
    message = answer.choices[0].message
    assert message.tool_calls is not None
    messages += [
        message,
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "No"},
    ]
    server.engine.script = "It does not."
    answer = await client.chat.completions.create(model=BASE, messages=messages, tools=TOOLS)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "It does not."
    assert f"{hermes('get_weather')}<|im_end|>" in server.prompt
    assert "<tool_response>\nNo\n</tool_response>" in server.prompt


async def test_the_clients_parsed_tools(server: Scripted, client: openai.AsyncOpenAI) -> None:
    tools = [openai.pydantic_function_tool(GetWeather)]
    server.engine.script = hermes("GetWeather")
    answer = await client.chat.completions.parse(
        model=BASE, messages=[{"role": "user", "content": "Rain?"}], tools=tools
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.parsed_arguments == GetWeather(city="Oslo")
    assert server.engine.last.params.grammar is not None  # pydantic_function_tool is strict


async def test_the_clients_stream_helper(server: Scripted, client: openai.AsyncOpenAI) -> None:
    tools = [openai.pydantic_function_tool(GetWeather)]
    server.engine.script = f"I look.\n{hermes('GetWeather')}"
    async with client.chat.completions.stream(
        model=BASE, messages=[{"role": "user", "content": "Rain?"}], tools=tools
    ) as stream:
        done = [e async for e in stream if e.type == "tool_calls.function.arguments.done"]
        final = await stream.get_final_completion()
    assert [(e.name, json.loads(e.arguments)) for e in done] == [("GetWeather", {"city": "Oslo"})]
    message = final.choices[0].message
    assert message.content == "I look."
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.parsed_arguments == GetWeather(city="Oslo")
