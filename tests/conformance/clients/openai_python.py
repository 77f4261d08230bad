"""openai for Python: chat, completions, responses, models."""

from __future__ import annotations

import json
from typing import Any

from calls import API_KEY, BASE_URL, MODEL, QUESTION, WEATHER, call, run
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel

client = OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)
ask: Any = [{"role": "user", "content": QUESTION}]
ask_weather: Any = [{"role": "user", "content": WEATHER}]


class City(BaseModel):
    name: str
    country: str


class GetWeather(BaseModel):
    """The weather of a city."""

    city: str


held: Any = {"model": MODEL, "max_tokens": 200, "temperature": 0}
"""Of chats whose answers are held to a form, which takes some tokens."""
tool = pydantic_function_tool(GetWeather, name="get_weather")
flat_tool: Any = {"type": "function", **tool["function"]}


@call("models")
def models() -> str:
    names = [model.id for model in client.models.list()]
    assert MODEL in names
    assert client.models.retrieve(MODEL).id == MODEL
    return ", ".join(names)


@call("chat")
def chat() -> str:
    answer = client.chat.completions.create(model=MODEL, messages=ask, max_tokens=32)
    assert answer.usage
    assert answer.usage.completion_tokens
    assert answer.choices[0].message.content
    return answer.choices[0].message.content


@call("chat, n and seed")
def choices() -> None:
    def texts() -> list[str | None]:
        answer = client.chat.completions.create(
            model=MODEL, messages=ask, n=2, seed=7, max_completion_tokens=8
        )
        return [choice.message.content for choice in answer.choices]

    first = texts()
    assert len(first) == 2
    assert first == texts()


@call("chat, stream")
def stream() -> str:
    chunks = client.chat.completions.create(
        model=MODEL,
        messages=ask,
        max_tokens=32,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, usage = "", None
    for chunk in chunks:
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text
    assert usage
    return text


@call("chat, logprobs")
def logprobs() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ask, max_tokens=16, logprobs=True, top_logprobs=3
    )
    found = answer.choices[0].logprobs
    assert found
    assert found.content
    assert all(len(token.top_logprobs) >= 3 for token in found.content)
    joined = b"".join(bytes(token.bytes or []) for token in found.content)
    assert joined.decode(errors="ignore").startswith(answer.choices[0].message.content or "")


@call("chat, parse")
def parse() -> City:
    answer = client.chat.completions.parse(messages=ask, response_format=City, **held)
    assert answer.choices[0].message.parsed
    return answer.choices[0].message.parsed


@call("chat, parse a stream")
def parse_stream() -> City:
    with client.chat.completions.stream(messages=ask, response_format=City, **held) as events:
        found = events.get_final_completion().choices[0].message.parsed
    assert found
    return found


@call("chat, JSON object")
def json_object() -> str:
    answer = client.chat.completions.create(
        messages=[{"role": "user", "content": "Write a JSON object with the key city."}],
        response_format={"type": "json_object"},
        **held,
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)
    return answer.choices[0].message.content or ""


@call("tools, auto")
def tools_auto() -> str:
    answer = client.chat.completions.create(
        model=MODEL, messages=ask_weather, tools=[tool], max_tokens=64, temperature=0
    )
    message = answer.choices[0].message
    assert message.content or message.tool_calls
    return "called" if message.tool_calls else "answered in words"


@call("tools, required")
def tools_required() -> str:
    answer = client.chat.completions.create(
        messages=ask_weather, tools=[tool], tool_choice="required", **held
    )
    found = answer.choices[0].message.tool_calls
    assert found
    assert answer.choices[0].finish_reason == "tool_calls"
    return str(GetWeather.model_validate_json(found[0].function.arguments))  # type: ignore[union-attr]


@call("tools, named")
def tools_named() -> str:
    answer = client.chat.completions.parse(
        messages=ask_weather,
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        **held,
    )
    found = answer.choices[0].message.tool_calls
    assert found
    assert isinstance(found[0].function.parsed_arguments, GetWeather)
    return str(found[0].function.parsed_arguments)


@call("tools, stream")
def tools_stream() -> str:
    with client.chat.completions.stream(
        messages=ask_weather, tools=[tool], tool_choice="required", **held
    ) as events:
        kinds = [event.type for event in events]
        answer = events.get_final_completion()
    found = answer.choices[0].message.tool_calls
    assert found
    assert isinstance(found[0].function.parsed_arguments, GetWeather)
    assert kinds.count("tool_calls.function.arguments.delta") >= 2, (
        "the arguments came in one piece"
    )
    return str(found[0].function.parsed_arguments)


@call("tools, the result sent back")
def tools_result() -> str:
    called: Any = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
            }
        ],
    }
    result: Any = {"role": "tool", "tool_call_id": "call_1", "content": "Sunny, 21 degrees."}
    answer = client.chat.completions.create(
        model=MODEL, messages=[*ask_weather, called, result], tools=[tool], max_tokens=48
    )
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls
    return answer.choices[0].message.content or "called again"


@call("completions")
def completions() -> str:
    answer = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=8)
    assert answer.choices[0].text
    return answer.choices[0].text


@call("completions, stream")
def completions_stream() -> str:
    chunks = client.completions.create(
        model=MODEL, prompt="One, two, three,", max_tokens=8, stream=True
    )
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text
    return text


@call("completions, echo with logprobs")
def completions_echo() -> None:
    answer = client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=0, echo=True, logprobs=1
    )
    found = answer.choices[0].logprobs
    assert found
    assert found.tokens
    assert found.token_logprobs
    assert "".join(found.tokens) == answer.choices[0].text == "The capital of France is"
    assert found.token_logprobs[0] is None
    assert all(value is not None for value in found.token_logprobs[1:])


@call("responses")
def responses() -> str:
    answer = client.responses.create(
        model=MODEL, input=QUESTION, instructions="Be brief.", max_output_tokens=48
    )
    assert answer.output_text
    assert answer.usage
    assert answer.usage.output_tokens
    return answer.output_text


@call("responses, stream")
def responses_stream() -> str:
    with client.responses.stream(model=MODEL, input=QUESTION, max_output_tokens=48) as events:
        deltas = [event for event in events if event.type == "response.output_text.delta"]
        final = events.get_final_response()
    text = "".join(event.delta for event in deltas)
    assert text == final.output_text
    assert text
    return text


@call("responses, parse")
def responses_parse() -> City:
    answer = client.responses.parse(
        model=MODEL, input=QUESTION, text_format=City, max_output_tokens=200, temperature=0
    )
    assert answer.output_parsed
    return answer.output_parsed


@call("responses, tools")
def responses_tools() -> str:
    first = client.responses.create(
        model=MODEL,
        input=WEATHER,
        tools=[flat_tool],
        tool_choice="required",
        max_output_tokens=200,
        temperature=0,
    )
    wanted = next(item for item in first.output if item.type == "function_call")
    assert GetWeather.model_validate_json(wanted.arguments)
    history: Any = [
        {"role": "user", "content": WEATHER},
        *first.output,
        {"type": "function_call_output", "call_id": wanted.call_id, "output": "Sunny, 21 degrees."},
    ]
    second = client.responses.create(
        model=MODEL, input=history, tools=[flat_tool], max_output_tokens=48
    )
    assert second.output
    return second.output_text or "called again"


@call("responses, previous_response_id")
def responses_previous() -> str:
    first = client.responses.create(model=MODEL, input="My name is Alice.", max_output_tokens=16)
    second = client.responses.create(
        model=MODEL,
        input="What is my name?",
        previous_response_id=first.id,
        max_output_tokens=24,
    )
    assert second.output_text
    return second.output_text


@call("embeddings")
def embeddings() -> str:
    return f"{len(client.embeddings.create(model=MODEL, input='Paris').data[0].embedding)} numbers"


run()
