"""What a chat request says of tools: which there are, and which may or must be called."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

from remix_runtime.chats.prompt import TOOL_NAME, shown_tool
from server.api.wire.json_size import json_size
from server.http.fields import Text, invalid

MAX_TOOLS = 128
"""OpenAI's limit."""
_MAX_SCHEMA_CHARS = 1 << 18
"""Of all parameters together: they are compiled, and shown to the model."""

ToolName = Annotated[str, Field(pattern=TOOL_NAME)]


def _describes_object(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema.get("type", "object")
    if kind != "object":
        raise invalid(f"found type {str(kind)[:40]!r}, expected the schema of an object")
    return schema


class Function(BaseModel):
    model_config = ConfigDict(strict=True)

    name: ToolName
    description: Annotated[Text, Field(max_length=1 << 16)] | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_describes_object)] | None = None
    """A JSON schema of the arguments; without one there are none."""
    strict: bool | None = None
    """Whether every call fits `parameters` to the letter."""

    @property
    def arguments_schema(self) -> dict[str, Any]:
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **self.parameters}


class Tool(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        function = self.function
        return shown_tool(function.name, function.description, function.parameters)


def _differ(tools: list[Tool] | None) -> list[Tool] | None:
    seen, size = set(), 0
    for tool in tools or ():
        size += json_size(tool.function.parameters, at_most=_MAX_SCHEMA_CHARS)
        if size > _MAX_SCHEMA_CHARS:
            raise invalid(f"expected at most {_MAX_SCHEMA_CHARS} characters of parameters")
        if tool.function.name in seen:
            raise invalid(f"found two tools named {tool.function.name}, expected one")
        seen.add(tool.function.name)
    return tools


Tools = Annotated[
    Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None,
    AfterValidator(_differ),
]


class FunctionName(BaseModel):
    model_config = ConfigDict(strict=True)

    name: ToolName


class NamedTool(BaseModel):
    """One tool, which must be called."""

    model_config = ConfigDict(strict=True)

    type: Literal["function"]
    function: FunctionName


class AllowedTools(BaseModel):
    model_config = ConfigDict(strict=True)

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class AllowedChoice(BaseModel):
    """Some of the tools: the others are as if they were not there."""

    model_config = ConfigDict(strict=True)

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ChoiceWord = Literal["none", "auto", "required"]
_WORDS = ("none", "auto", "required")


def _parse_choice(value: Any) -> Any:
    if value is None or value in _WORDS:
        return value
    kinds: dict[Any, type[BaseModel]] = {"function": NamedTool, "allowed_tools": AllowedChoice}
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise invalid(
            "expected none, auto, required, {type: function, function: {name: …}} or "
            "{type: allowed_tools, allowed_tools: {mode: …, tools: […]}}"
        )
    return kinds[kind].model_validate(value)


ToolChoice = Annotated[
    ChoiceWord | NamedTool | AllowedChoice | None,
    PlainValidator(
        _parse_choice, json_schema_input_type=ChoiceWord | NamedTool | AllowedChoice | None
    ),
]
