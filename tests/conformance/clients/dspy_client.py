"""dspy: Predict, ChainOfThought, the JSON adapter, typed outputs, ReAct with a tool."""

from __future__ import annotations

from typing import Any

import dspy
from calls import API_KEY, BASE_URL, MODEL, call, run

settings: Any = {
    "model": f"openai/{MODEL}",
    "api_base": BASE_URL,
    "api_key": API_KEY,
    "temperature": 0,
    "max_tokens": 200,
    "cache": False,
    "num_retries": 0,
}
model = dspy.LM(**settings)
dspy.configure(lm=model)


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"Sunny in {city}, 21 degrees."


@call("LM")
def lm() -> str:
    return str(model("Say hello.")[0])


@call("Predict")
def predict() -> str:
    return str(dspy.Predict("question -> answer")(question="What is the capital of France?").answer)


@call("Predict, JSON adapter")
def json_adapter() -> str:
    with dspy.context(adapter=dspy.JSONAdapter()):
        found = dspy.Predict("question -> city: str, is_capital: bool")(
            question="Is Paris a capital?"
        )
    assert isinstance(found.is_capital, bool)
    return str(found.city)


@call("Predict, native function calling")
def native_tools() -> str:
    class Ask(dspy.Signature):
        question: str = dspy.InputField()
        tools: list[dspy.Tool] = dspy.InputField()
        calls: dspy.ToolCalls = dspy.OutputField()

    with dspy.context(adapter=dspy.ChatAdapter(use_native_function_calling=True)):
        found = dspy.Predict(Ask)(question="Weather in Paris?", tools=[dspy.Tool(get_weather)])
    return str(found.calls)


@call("text model")
def text_model() -> str:
    return str(dspy.LM(**{**settings, "model_type": "text"})("The capital of France is")[0])


@call("responses model")
def responses_model() -> str:
    return str(dspy.LM(**{**settings, "model_type": "responses"})("Say hello.")[0])


run()
