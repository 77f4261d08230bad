"""pydantic-ai: text, stream, output types by each mode, tools, chat and responses models."""

from __future__ import annotations

from typing import Any

from calls import API_KEY, BASE_URL, MODEL, QUESTION, WEATHER, call, run
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=BASE_URL, api_key=API_KEY)
chat_model = OpenAIChatModel(MODEL, provider=provider)
responses_model = OpenAIResponsesModel(MODEL, provider=provider)
settings: Any = {"temperature": 0, "max_tokens": 200}


class City(BaseModel):
    """A city."""

    name: str
    country: str


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"Sunny in {city}, 21 degrees."


def ask(model: Any, question: str, **options: Any) -> Any:
    return Agent(model, model_settings=settings, **options).run_sync(question).output


@call("text")
def text() -> str:
    return str(ask(chat_model, QUESTION))


@call("stream")
async def stream() -> str:
    async with Agent(chat_model, model_settings=settings).run_stream(QUESTION) as answer:
        parts = [part async for part in answer.stream_text(delta=True)]
    assert parts
    return "".join(parts)


@call("output type")
def output_type() -> str:
    return str(ask(chat_model, QUESTION, output_type=City))


@call("output type, two tools")
def output_types() -> str:
    kinds = [ToolOutput(City, name="city"), ToolOutput(int, name="number")]
    return str(ask(chat_model, QUESTION, output_type=kinds))


@call("native output")
def native_output() -> str:
    return str(ask(chat_model, QUESTION, output_type=NativeOutput(City)))


@call("prompted output")
def prompted_output() -> str:
    return str(ask(chat_model, QUESTION, output_type=PromptedOutput(City)))


@call("tools")
def tools() -> str:
    return str(ask(chat_model, WEATHER, tools=[get_weather]))


@call("responses, text")
def responses_text() -> str:
    return str(ask(responses_model, QUESTION))


@call("responses, output type")
def responses_output_type() -> str:
    return str(ask(responses_model, QUESTION, output_type=City))


@call("responses, tools")
def responses_tools() -> str:
    return str(ask(responses_model, WEATHER, tools=[get_weather]))


run()
