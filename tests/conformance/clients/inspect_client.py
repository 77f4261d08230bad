"""inspect-ai: one evaluation of two samples, with a tool and without, and structured output."""

from __future__ import annotations

import asyncio
import json
import tempfile
from typing import Any

from calls import API_KEY, BASE_URL, MODEL, QUESTION, WEATHER, call, run
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, ResponseSchema, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, tool
from inspect_ai.util import json_schema
from pydantic import BaseModel

config = GenerateConfig(temperature=0, max_tokens=100, max_retries=0)
model = get_model(f"openai-api/served/{MODEL}", base_url=BASE_URL, api_key=API_KEY, config=config)


class City(BaseModel):
    name: str
    country: str


@tool
def get_weather() -> Tool:
    async def execute(city: str) -> str:
        """The weather of a city.

        Args:
            city: Name of the city.
        """
        return f"Sunny in {city}, 21 degrees."

    return execute


def evaluate(question: str, solver: Any, **sample: Any) -> str:
    task = Task(dataset=[Sample(question, **sample)], solver=solver, scorer=includes())
    with tempfile.TemporaryDirectory() as logs:
        (log,) = eval(task, model=model, display="none", log_dir=logs)
        assert log.status == "success", log.error and log.error.message
        assert log.samples
        return log.samples[0].output.completion


@call("an evaluation")
def evaluation() -> str:
    return evaluate(QUESTION, generate(), target="Paris")


@call("an evaluation with a tool")
def with_tool() -> str:
    return evaluate(WEATHER, [use_tools(get_weather()), generate()], target="Sunny")


@call("response_schema")
def response_schema() -> str:
    schema = ResponseSchema(name="city", json_schema=json_schema(City))
    wanted = config.merge(GenerateConfig(response_schema=schema))
    answer = asyncio.run(model.generate(QUESTION, config=wanted))
    return str(City.model_validate(json.loads(answer.completion)))


@call("logprobs")
def logprobs() -> None:
    wanted = config.merge(GenerateConfig(logprobs=True, top_logprobs=2, max_tokens=4))
    answer = asyncio.run(model.generate(QUESTION, config=wanted))
    assert answer.choices[0].logprobs


run()
