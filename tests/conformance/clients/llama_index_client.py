"""LlamaIndex: OpenAILike, structured programs, function calling."""

from __future__ import annotations

from typing import Any

from calls import API_KEY, BASE_URL, MODEL, QUESTION, WEATHER, call, run
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

settings: Any = {
    "model": MODEL,
    "api_base": BASE_URL,
    "api_key": API_KEY,
    "max_retries": 0,
    "temperature": 0,
    "max_tokens": 200,
    "context_window": 4096,
}
chat_model = OpenAILike(**settings, is_chat_model=True, is_function_calling_model=True)
text_model = OpenAILike(**settings, is_chat_model=False)
schema_model = OpenAILike(**settings, is_chat_model=True, should_use_structured_outputs=True)


class City(BaseModel):
    """A city."""

    name: str
    country: str


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"Sunny in {city}, 21 degrees."


@call("complete")
def complete() -> str:
    return text_model.complete("The capital of France is", max_tokens=8).text


@call("stream_complete")
def stream_complete() -> str:
    *_, last = text_model.stream_complete("One, two, three,", max_tokens=8)
    return last.text


@call("chat")
def chat() -> str:
    return str(chat_model.chat([ChatMessage(QUESTION)]).message.content)


@call("stream_chat")
def stream_chat() -> str:
    *_, last = chat_model.stream_chat([ChatMessage(QUESTION)])
    return str(last.message.content)


@call("as_structured_llm, functions")
def structured_functions() -> str:
    found = chat_model.as_structured_llm(City).chat([ChatMessage(QUESTION)]).raw
    assert isinstance(found, City)
    return str(found)


@call("as_structured_llm, schema")
def structured_schema() -> str:
    found = schema_model.as_structured_llm(City).chat([ChatMessage(QUESTION)]).raw
    assert isinstance(found, City)
    return str(found)


@call("chat_with_tools")
def chat_with_tools() -> str:
    answer = chat_model.chat_with_tools(
        [FunctionTool.from_defaults(get_weather)], user_msg=WEATHER, tool_required=True
    )
    found = chat_model.get_tool_calls_from_response(answer)
    assert found[0].tool_name == "get_weather"
    return str(found[0].tool_kwargs)


@call("FunctionAgent")
async def agent() -> str:
    return str(await FunctionAgent(tools=[get_weather], llm=chat_model).run(WEATHER))


run()
