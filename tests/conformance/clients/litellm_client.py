"""LiteLLM: chat, stream, structured output, tools, text, responses, Anthropic messages."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import litellm
from calls import API_KEY, BASE_URL, MODEL, QUESTION, WEATHER, call, run
from pydantic import BaseModel

litellm.suppress_debug_info = True
to: Any = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": API_KEY, "num_retries": 0}
ask: Any = [{"role": "user", "content": QUESTION}]
tool: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


class City(BaseModel):
    name: str
    country: str


@call("completion")
def completion() -> str:
    text = litellm.completion(**to, messages=ask, max_tokens=32).choices[0].message.content
    assert text
    return text


@call("completion, stream")
def stream() -> str:
    chunks = litellm.completion(**to, messages=ask, max_tokens=32, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text
    return text


@call("completion, response_format")
def response_format() -> str:
    answer = litellm.completion(
        **to, messages=ask, response_format=City, max_tokens=200, temperature=0
    )
    return str(City.model_validate_json(answer.choices[0].message.content))


@call("completion, tools")
def tools() -> str:
    answer = litellm.completion(
        **to,
        messages=[{"role": "user", "content": WEATHER}],
        tools=[tool],
        tool_choice="required",
        max_tokens=200,
        temperature=0,
    )
    arguments = answer.choices[0].message.tool_calls[0].function.arguments
    assert isinstance(json.loads(arguments)["city"], str)
    return arguments


@call("text_completion")
def text_completion() -> str:
    text = litellm.text_completion(
        **{**to, "model": f"text-completion-openai/{MODEL}"},
        prompt="The capital of France is",
        max_tokens=8,
    )
    return text.choices[0].text


@call("responses")
def responses() -> str:
    answer = litellm.responses(**to, input=QUESTION, max_output_tokens=48)
    assert answer.output_text
    return answer.output_text


@call("anthropic messages")
def messages() -> str:
    at = BASE_URL.removesuffix("/v1")
    answer: Any = asyncio.run(
        litellm.anthropic.messages.acreate(
            model=f"anthropic/{MODEL}", api_base=at, api_key=API_KEY, messages=ask, max_tokens=32
        )
    )
    assert answer["content"][0]["text"]
    return answer["content"][0]["text"]


run()
