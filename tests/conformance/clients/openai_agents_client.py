"""openai-agents: its default model class (responses) and chat; tools, handoffs, types."""

from __future__ import annotations

from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from calls import API_KEY, BASE_URL, MODEL, QUESTION, WEATHER, call, run
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)


class City(BaseModel):
    name: str
    country: str


@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"Sunny in {city}, 21 degrees."


def agent(api: str, settings: ModelSettings | None = None, **options: Any) -> Agent[Any]:
    client = AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)
    classes: Any = {"responses": OpenAIResponsesModel, "chat": OpenAIChatCompletionsModel}
    model = classes[api](model=MODEL, openai_client=client)
    settings = (settings or ModelSettings()).resolve(ModelSettings(temperature=0, max_tokens=200))
    return Agent(
        name="Helper", instructions="Be brief.", model=model, model_settings=settings, **options
    )


def calls_of(api: str) -> None:
    """The same calls through one of the two model classes."""

    @call(f"{api}, text")
    async def text() -> str:
        return str((await Runner.run(agent(api), QUESTION)).final_output)

    @call(f"{api}, stream")
    async def stream() -> str:
        streamed = Runner.run_streamed(agent(api), QUESTION)
        kinds = [event.type async for event in streamed.stream_events()]
        assert "raw_response_event" in kinds
        return str(streamed.final_output)

    @call(f"{api}, tools")
    async def tools() -> str:
        forced = ModelSettings(tool_choice="required")  # the first turn only: the run resets it
        done = await Runner.run(agent(api, forced, tools=[get_weather]), WEATHER, max_turns=4)
        assert any(item.type == "tool_call_output_item" for item in done.new_items)
        return str(done.final_output)

    @call(f"{api}, handoffs")
    async def handoffs() -> str:
        guide = agent(api).clone(name="Guide", handoff_description="Knows all capitals.")
        first = agent(api, ModelSettings(tool_choice="required"), handoffs=[guide])
        done = await Runner.run(first, QUESTION, max_turns=4)
        assert done.last_agent.name == "Guide"
        return str(done.final_output)

    @call(f"{api}, output type")
    async def output_type() -> str:
        done = await Runner.run(agent(api, output_type=City), QUESTION)
        assert isinstance(done.final_output, City)
        return str(done.final_output)


calls_of("responses")
calls_of("chat")
run()
