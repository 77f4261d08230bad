"""anthropic for Python: messages, stream, tools, structured output, count_tokens, models."""

from __future__ import annotations

from typing import Any

from anthropic import Anthropic
from calls import API_KEY, BASE_URL, MODEL, QUESTION, WEATHER, call, run
from pydantic import BaseModel

client = Anthropic(base_url=BASE_URL.removesuffix("/v1"), api_key=API_KEY, max_retries=0)
ask: Any = [{"role": "user", "content": QUESTION}]
ask_weather: Any = [{"role": "user", "content": WEATHER}]
tool: Any = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


class City(BaseModel):
    name: str
    country: str


@call("messages")
def messages() -> str:
    answer = client.messages.create(model=MODEL, max_tokens=48, system="Be brief.", messages=ask)
    assert answer.usage.output_tokens
    assert answer.content[0].type == "text"
    return answer.content[0].text


@call("messages, blocks and settings")
def blocks() -> str:
    answer = client.messages.create(
        model=MODEL,
        max_tokens=24,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "My name is Alice."}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Hello Alice."}]},
            {"role": "user", "content": "What is my name?"},
        ],
        stop_sequences=["###"],
        extra_body={"temperature": 0.2, "top_k": 20, "top_p": 0.9, "metadata": {"user_id": "me"}},
    )
    assert answer.stop_reason in ("end_turn", "max_tokens")
    return answer.content[0].text if answer.content[0].type == "text" else ""


@call("messages, stream")
def stream() -> str:
    with client.messages.stream(model=MODEL, max_tokens=48, messages=ask) as events:
        text = "".join(events.text_stream)
        final = events.get_final_message()
    assert text
    assert final.usage.output_tokens
    assert final.stop_reason
    return text


@call("tools, any")
def tools_any() -> str:
    answer = client.messages.create(
        model=MODEL,
        max_tokens=200,
        messages=ask_weather,
        tools=[tool],
        tool_choice={"type": "any"},
    )
    used = next(block for block in answer.content if block.type == "tool_use")
    assert answer.stop_reason == "tool_use"
    assert isinstance(used.input, dict)
    assert "city" in used.input
    return str(used.input)


@call("tools, stream")
def tools_stream() -> str:
    with client.messages.stream(
        model=MODEL,
        max_tokens=200,
        messages=ask_weather,
        tools=[tool],
        tool_choice={"type": "tool", "name": "get_weather"},
    ) as events:
        kinds = {event.type for event in events}
        final = events.get_final_message()
    used = next(block for block in final.content if block.type == "tool_use")
    assert "input_json" in kinds
    assert isinstance(used.input, dict)
    assert "city" in used.input
    return str(used.input)


@call("tools, the result sent back")
def tools_result() -> str:
    used: Any = {"type": "tool_use", "id": "toolu_1", "name": "get_weather"}
    result: Any = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Sunny, 21 degrees."}
    answer = client.messages.create(
        model=MODEL,
        max_tokens=48,
        messages=[
            *ask_weather,
            {"role": "assistant", "content": [{**used, "input": {"city": "Paris"}}]},
            {"role": "user", "content": [result]},
        ],
        tools=[tool],
    )
    assert answer.content
    return answer.content[0].text if answer.content[0].type == "text" else "called again"


@call("messages, parse")
def parse() -> str:
    answer = client.messages.parse(model=MODEL, max_tokens=200, messages=ask, output_format=City)
    assert isinstance(answer.parsed_output, City)
    return str(answer.parsed_output)


@call("count_tokens")
def count_tokens() -> str:
    counted = client.messages.count_tokens(
        model=MODEL, messages=ask, system="Be brief.", tools=[tool]
    )
    assert counted.input_tokens > 5
    return str(counted.input_tokens)


@call("models")
def models() -> str:
    names = [model.id for model in client.models.list()]
    assert MODEL in names
    return ", ".join(names)


run()
