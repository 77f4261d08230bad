"""Tools in `/v1/responses` and `/v1/messages`: what models are told, what clients get, and the way
back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest

from tests.unit.server import chat_templates as templates
from tests.unit.server.harness import BASE
from tests.unit.server.named_events import message_events, response_events
from tests.unit.server.scripted import Scripted, scripted, scripted_on_a_socket
from tests.unit.server.test_messages import message
from tests.unit.server.test_responses import respond

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
ARGUMENTS = {"city": "Köln"}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
TWO_CALLS = f"Let me see.\n{CALL}\n{CALL}"
RESPONSE_TOOL = {"type": "function", "name": "weather", "parameters": SCHEMA}
MESSAGE_TOOL = {"name": "weather", "description": "Tells it.", "input_schema": SCHEMA}


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with scripted(script=TWO_CALLS) as running:
        yield running


async def test_responses_call_tools(server: Scripted) -> None:
    body = {"tools": [RESPONSE_TOOL], "max_output_tokens": 500}
    answer = (await respond(server.client, **body)).json()
    words, *calls = answer["output"]
    assert words["content"][0]["text"].strip() == "Let me see."
    assert [call["type"] for call in calls] == ["function_call"] * 2
    assert [json.loads(call["arguments"]) for call in calls] == [ARGUMENTS] * 2
    assert len({call["call_id"] for call in calls}) == 2
    assert answer["status"] == "completed"
    assert answer["tools"][0]["name"] == "weather"
    assert "weather" in server.prompt

    events = response_events((await respond(server.client, stream=True, **body)).text)
    for call in calls:
        [added, done] = [
            event["item"]
            for event in events
            if event["type"].startswith("response.output_item.")
            and event["output_index"] == answer["output"].index(call)
        ]
        assert (added["arguments"], added["status"]) == ("", "in_progress")
        assert (done["name"], done["arguments"]) == (call["name"], call["arguments"])
        mine = [event for event in events if event.get("item_id") == done["id"]]
        assert mine[-1]["type"] == "response.function_call_arguments.done"
        assert mine[-1]["arguments"] == call["arguments"]
        assert "".join(event["delta"] for event in mine[:-1]) == call["arguments"]


async def test_messages_use_tools(server: Scripted) -> None:
    body = {"tools": [MESSAGE_TOOL], "max_tokens": 500}
    answer = (await message(server.client, **body)).json()
    words, *uses = answer["content"]
    assert words["text"].strip() == "Let me see."
    assert [(use["type"], use["input"]) for use in uses] == [("tool_use", ARGUMENTS)] * 2
    assert answer["stop_reason"] == "tool_use"

    events = message_events((await message(server.client, stream=True, **body)).text)
    for index in (1, 2):
        start, *deltas, stop = [event for event in events if event.get("index") == index]
        assert (start["content_block"]["type"], start["content_block"]["input"]) == ("tool_use", {})
        assert {delta["delta"]["type"] for delta in deltas} == {"input_json_delta"}
        text = "".join(delta["delta"]["partial_json"] for delta in deltas)
        assert (json.loads(text), stop["type"]) == (ARGUMENTS, "content_block_stop")
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


async def test_a_cut_call_has_what_there_is(server: Scripted) -> None:
    server.engine.script = CALL
    limit = len(CALL.encode()) - len('ln"}}\n</tool_call>')
    answer = (await message(server.client, tools=[MESSAGE_TOOL], max_tokens=limit)).json()
    assert answer["stop_reason"] == "max_tokens"
    for block in answer["content"]:
        if block["type"] == "tool_use":
            assert block["input"].get("city", "").rstrip() in ("", "K", "Kö")
    body = {"tools": [RESPONSE_TOOL], "max_output_tokens": limit}
    cut = (await respond(server.client, **body)).json()
    assert (cut["status"], cut["output"][-1]["status"]) == ("incomplete", "incomplete")


async def test_agents_send_back_what_they_got(server: Scripted) -> None:
    """By `previous_response_id`, by the items, and by references to them: the same prompt."""
    body = {"tools": [RESPONSE_TOOL], "max_output_tokens": 500}
    first = (await respond(server.client, **body)).json()
    outputs = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "sunny"}
        for item in first["output"]
        if item["type"] == "function_call"
    ]
    question = {"role": "user", "content": "Hello"}
    references = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
    prompts = set()
    for again in (
        {"previous_response_id": first["id"], "input": outputs},
        {"input": [question, *first["output"], *outputs]},
        {"input": [question, *references, *outputs]},
    ):
        answer = await respond(server.client, **body, **again)
        assert answer.status_code == 200, answer.text
        prompts.add(server.prompt)
    [prompt] = prompts
    assert prompt.count("sunny") == 2
    assert prompt.count('"city"') >= 2
    assert prompt.count("assistant:") == 2  # one turn of both calls, and the one to come


async def test_results_of_tools_in_messages(server: Scripted) -> None:
    first = (await message(server.client, tools=[MESSAGE_TOOL], max_tokens=500)).json()
    one, two = [block["id"] for block in first["content"] if block["type"] == "tool_use"]
    results = [
        {"type": "tool_result", "tool_use_id": one, "content": "sunny"},
        {
            "type": "tool_result",
            "tool_use_id": two,
            "content": [{"type": "text", "text": "no such town"}],
            "is_error": True,
        },
        {"type": "text", "text": "And now?"},
    ]
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": results},
    ]
    answer = await message(server.client, tools=[MESSAGE_TOOL], messages=messages)
    assert answer.status_code == 200, answer.text
    prompt = server.prompt
    at = [prompt.index(text) for text in ("Köln", "sunny", "Error: no such town", "And now?")]
    assert at == sorted(at)


CHOICES: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({"tool_choice": "required"}, {"tool_choice": {"type": "any"}}, True),
    (
        {"tool_choice": {"type": "function", "name": "weather"}},
        {"tool_choice": {"type": "tool", "name": "weather"}},
        True,
    ),
    ({"tool_choice": "none"}, {"tool_choice": {"type": "none"}}, False),
    ({"tool_choice": "auto"}, {"tool_choice": {"type": "auto"}}, False),
    (
        {
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "weather"}],
            }
        },
        {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
        True,
    ),
]


@pytest.mark.parametrize(("response", "anthropics", "must"), CHOICES)
async def test_choices_of_tools(
    server: Scripted, response: dict[str, Any], anthropics: dict[str, Any], must: bool
) -> None:
    server.engine.script = CALL if must else "No."
    limits: dict[str, Any] = {"max_output_tokens": 500, **response}
    answers = [
        await respond(server.client, tools=[RESPONSE_TOOL], **limits),
        await message(server.client, tools=[MESSAGE_TOOL], max_tokens=500, **anthropics),
    ]
    for request, answer in zip(server.engine.requests, answers, strict=True):
        assert answer.status_code == 200, answer.text
        assert (request.params.grammar is not None) == must
    [items, blocks] = answers[0].json()["output"], answers[1].json()["content"]
    assert [item["type"] for item in items] == ["function_call" if must else "message"]
    assert [block["type"] for block in blocks] == ["tool_use" if must else "text"]


WRONG = [
    ([{**RESPONSE_TOOL, "name": "no name"}], {}, "tools[0].name"),
    ([RESPONSE_TOOL, RESPONSE_TOOL], {}, "tools"),
    ([{**RESPONSE_TOOL, "parameters": {"type": "string"}}], {}, "tools[0].parameters"),
    ([RESPONSE_TOOL], {"tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
    ([], {"tool_choice": "required"}, "tool_choice"),
]


@pytest.mark.parametrize(("tools", "more", "param"), WRONG)
async def test_wrong_tools_are_named_as_they_were_sent(
    server: Scripted, tools: list[dict[str, Any]], more: dict[str, Any], param: str
) -> None:
    refused = await respond(server.client, tools=tools, **more)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    theirs = [{"name": tool["name"], "input_schema": tool["parameters"]} for tool in tools]
    choices: dict[str, Any] = {"required": {"type": "any"}}
    if "tool_choice" in more:
        more = {
            "tool_choice": choices.get(str(more["tool_choice"])) or {"type": "tool", "name": "x"}
        }
    refused = await message(server.client, tools=theirs, **more)
    assert refused.status_code == 400
    place = param.replace("parameters", "input_schema")
    assert refused.json()["error"]["message"].startswith(f"{place}: ")


CALLED = {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"}
HISTORY: list[tuple[list[dict[str, Any]], str]] = [
    ([{"role": "user", "content": "x"}, {**CALLED, "arguments": "[1"}], "input[1].arguments"),
    ([CALLED, CALLED, {**CALLED, "name": ""}], "input[2].name"),
]


@pytest.mark.parametrize(("items", "param"), HISTORY)
async def test_wrong_histories_are_named_as_they_were_sent(
    server: Scripted, items: list[dict[str, Any]], param: str
) -> None:
    refused = await respond(server.client, input=items)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_thoughts_of_a_history_are_the_turns_own(server: Scripted) -> None:
    question = {"role": "user", "content": "x"}
    result = {"type": "function_call_output", "call_id": "a", "output": "sunny"}
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]}
    nothing = {"type": "reasoning", "summary": [], "content": [], "encrypted_content": None}
    prompts = set()
    for between in ([], [nothing], [thought]):  # this template does not read thoughts
        items = [question, *between, CALLED, result]
        assert (await respond(server.client, input=items)).status_code == 200
        prompts.add(server.prompt)
    assert len(prompts) == 1


async def test_the_openai_package(server: Scripted) -> None:
    tool: Any = {**RESPONSE_TOOL, "strict": False}
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="x", http_client=server.client
    ) as client:
        async with client.responses.stream(model=BASE, input="Hello", tools=[tool]) as stream:
            final = await stream.get_final_response()
        calls = [item for item in final.output if item.type == "function_call"]
        outputs: Any = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
            for call in calls
        ]
        server.engine.script = "It is sunny."
        items: Any = [{"role": "user", "content": "Hello"}, *final.output, *outputs]
        answer = await client.responses.create(model=BASE, input=items, tools=[tool])
        assert answer.output_text == "It is sunny."


async def test_the_anthropic_package() -> None:
    tool: Any = MESSAGE_TOOL
    messages: Any = [{"role": "user", "content": "Hello"}]
    async with (
        scripted_on_a_socket(TWO_CALLS) as server,
        anthropic.AsyncAnthropic(base_url=server.url, api_key="x") as client,
    ):
        async with client.messages.stream(
            model=BASE, max_tokens=500, messages=messages, tools=[tool]
        ) as stream:
            final = await stream.get_final_message()
        uses = [block for block in final.content if block.type == "tool_use"]
        assert [use.input for use in uses] == [ARGUMENTS] * 2
        results: Any = [
            {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"} for use in uses
        ]
        messages += [{"role": "assistant", "content": final.content}]
        messages += [{"role": "user", "content": results}]
        server.engine.script = "It is sunny."
        answer = await client.messages.create(
            model=BASE, max_tokens=500, messages=messages, tools=[tool]
        )
        assert [block.text for block in answer.content if block.type == "text"] == ["It is sunny."]


# -- thoughts ----------------------------------------------------------------------------------


THOUGHT = "so\nit is\n</think>\n\nYes."


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_are_an_item_of_their_own(stream: bool) -> None:
    async with scripted(templates.THINKING) as server:
        server.engine.script = THOUGHT
        answer = await respond(server.client, max_output_tokens=100, stream=stream)
        whole = response_events(answer.text)[-1]["response"] if stream else answer.json()
        thought, words = whole["output"]
        assert thought["type"] == "reasoning"
        assert thought["content"] == [{"type": "reasoning_text", "text": "so\nit is"}]
        assert words["content"][0]["text"] == "Yes."
        # And the way back.
        question = {"role": "user", "content": "x"}
        items = [question, *whole["output"], question]
        again = await respond(server.client, input=items)
        assert again.status_code == 200, again.text
        assert server.prompt.count("Yes.") == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("display", ["summarized", "omitted"])
async def test_thoughts_are_a_block_of_their_own(stream: bool, display: str) -> None:
    thinking = {"type": "adaptive", "display": display}
    async with scripted(templates.THINKING) as server:
        server.engine.script = THOUGHT
        answer = await message(server.client, max_tokens=100, stream=stream, thinking=thinking)
        if not stream:
            thought, words = answer.json()["content"]
            said = (thought["type"], thought["thinking"], words["text"])
        else:
            events = message_events(answer.text)
            deltas = [e["delta"] for e in events if e["type"] == "content_block_delta"]
            thoughts = "".join(delta.get("thinking", "") for delta in deltas)
            said = ("thinking", thoughts, "".join(delta.get("text", "") for delta in deltas))
        assert said == ("thinking", "so\nit is" if display == "summarized" else "", "Yes.")


@pytest.mark.parametrize(
    ("thinking", "off"),
    [
        ({"type": "disabled"}, True),
        ({"type": "enabled", "budget_tokens": 1024}, False),
        ({"type": "adaptive"}, False),
    ],
)
async def test_thinking_is_switched(thinking: dict[str, Any], off: bool) -> None:
    async with scripted(templates.QWEN3) as server:
        server.engine.script = "Yes."
        answer = await message(server.client, max_tokens=2000, thinking=thinking)
        assert answer.status_code == 200, answer.text
        assert server.prompt.endswith("<think>\n\n</think>\n\n") == off
        effort = {"effort": "none" if off else "low"}
        await respond(server.client, reasoning=effort)
        assert server.prompt.endswith("<think>\n\n</think>\n\n") == off
