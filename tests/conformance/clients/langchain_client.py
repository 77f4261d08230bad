"""LangChain: ChatOpenAI, structured output by each method, tools and an agent."""

from __future__ import annotations

from typing import Any

from calls import API_KEY, BASE_URL, MODEL, QUESTION, WEATHER, call, run
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

settings: Any = {"base_url": BASE_URL, "api_key": API_KEY, "model": MODEL, "max_retries": 0}
model = ChatOpenAI(**settings, temperature=0, max_tokens=200)


class City(BaseModel):
    """A city."""

    name: str
    country: str


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"Sunny in {city}, 21 degrees."


def structured(method: Any, **options: Any) -> str:
    ask = QUESTION + " Answer as JSON with the keys name and country."
    found = model.with_structured_output(City, method=method, **options).invoke(ask)
    assert isinstance(found, City), f"found {found!r}"
    return str(found)


@call("invoke")
def invoke() -> str:
    answer = model.invoke(QUESTION)
    assert answer.usage_metadata
    assert answer.text
    return answer.text


@call("stream")
def stream() -> str:
    text = "".join(chunk.text for chunk in model.stream(QUESTION))
    assert text
    return text


@call("completions invoke")
def completions() -> str:
    return OpenAI(**settings, max_tokens=8).invoke("The capital of France is")


@call("structured, json_schema")
def json_schema() -> str:
    return structured("json_schema")


@call("structured, function_calling")
def function_calling() -> str:
    return structured("function_calling")


@call("structured, json_mode")
def json_mode() -> str:
    found = model.with_structured_output(None, method="json_mode").invoke(
        "Write a JSON object with the key city."
    )
    assert isinstance(found, dict)
    return str(found)


@call("bind_tools")
def bind_tools() -> str:
    answer: Any = model.bind_tools([get_weather]).invoke(WEATHER)
    return f"called {answer.tool_calls}" if answer.tool_calls else answer.text


@call("bind_tools, any")
def bind_tools_any() -> str:
    answer: Any = model.bind_tools([get_weather], tool_choice="any").invoke(WEATHER)
    assert answer.tool_calls[0]["name"] == "get_weather"
    return str(answer.tool_calls[0]["args"])


@call("bind_tools, stream")
def bind_tools_stream() -> str:
    whole: Any = None
    for chunk in model.bind_tools([get_weather], tool_choice="get_weather").stream(WEATHER):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls[0]["name"] == "get_weather"
    return str(whole.tool_calls[0]["args"])


@call("create_agent")
def agent() -> str:
    made = create_agent(model, [get_weather])
    found = made.invoke({"messages": [("user", WEATHER)]}, {"recursion_limit": 12})
    return str(found["messages"][-1].text)


@call("create_agent, response_format")
def agent_structured() -> str:
    made = create_agent(model, [], response_format=City)
    found = made.invoke({"messages": [("user", QUESTION)]}, {"recursion_limit": 12})
    assert isinstance(found["structured_response"], City)
    return str(found["structured_response"])


@call("responses API")
def responses() -> str:
    return ChatOpenAI(**settings, use_responses_api=True, max_tokens=48).invoke(QUESTION).text


run()
