"""Calls of tools in earlier answers of a chat. Their arguments are JSON in a text of the body."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator
from pydantic_core import from_json

from server.http.fields import Text, invalid
from server.http.weight import TOO_HEAVY, is_light


def _parse_arguments(value: Any) -> dict[str, Any]:
    """Templates want an object where the API has its JSON. Nothing at all is an empty one, as some
    models call tools that have no parameters."""
    if not isinstance(value, str):
        raise invalid("expected text, the arguments as JSON")
    if not value.strip():
        return {}
    try:
        parsed = from_json(value, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(f"not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise invalid("expected a JSON object")
    return parsed


class CalledFunction(BaseModel):
    model_config = ConfigDict(strict=True)

    name: Annotated[Text, Field(min_length=1, max_length=256)]
    arguments: Annotated[
        dict[str, Any], PlainValidator(_parse_arguments, json_schema_input_type=str)
    ]


class PastCall(BaseModel):
    """A call of a tool in an earlier answer."""

    model_config = ConfigDict(strict=True)

    id: Annotated[Text, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


def _with_light_calls(messages: Any) -> Any:
    """Bounds what is in all arguments together, before any of it is parsed, as that of a body is
    bounded: the collector of garbage stops all threads while it looks at millions of lists."""
    if not is_light([text.encode() for text in _arguments(messages)]):
        raise invalid(f"the JSON of all arguments together {TOO_HEAVY}")
    return messages


def _arguments(messages: Any) -> Iterator[str]:
    for message in messages if isinstance(messages, list) else ():
        match message:
            case {"tool_calls": [*calls]}:
                for call in calls:
                    match call:
                        case {"function": {"arguments": str(text)}}:
                            yield text


LightCalls = BeforeValidator(_with_light_calls)
"""For a list of messages."""
