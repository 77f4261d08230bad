"""Body of `POST /v1/responses`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from remix_runtime.contracts import MAX_MODEL_NAME
from server.api.wire.generation import conversation_of
from server.api.wire.refusal import refused
from server.api.wire.response_items import Id, InputItem
from server.api.wire.setting import Effort, Setting
from server.api.wire.tools import MAX_TOOLS
from server.api.wire.translated import SAMPLING, OtherFields
from server.api.wire.unions import Kinds
from server.http.fields import MAX_LOGPROBS, MAX_PARTS, Text, TokenCount, without_nul

LOGPROBS = "message.output_text.logprobs"

OTHERS = OtherFields(
    passed_on=SAMPLING | {"include_stop_str_in_output", "stop"},
    named_otherwise={
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "max_completion_tokens": "max_output_tokens",
        "response_format": "text.format",
        "reasoning_effort": "reasoning.effort",
        "logprobs": "include",
        "functions": "tools",
        "function_call": "tool_choice",
    },
    ask_nothing={
        "access_programs": (),
        "background": (False,),
        "background_options": (),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "moderation": (),
        "n": (1,),
        "prompt": (),
        "service_tier": ("auto", "default"),
        "truncation": ("disabled",),
    },
    taken=frozenset({"client_metadata", "prompt_cache_options", "session_id"}),
)


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class FunctionTool(_Part):
    type: Literal["function"]
    name: Text
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: Literal[False] | None = None


Tool = Annotated[FunctionTool, Kinds("tools", {"function": "<function>"}).known]


class NamedFunction(Setting):
    type: Literal["function"]
    name: Text


class AllowedTools(Setting):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


_CHOICES = Kinds("a choice", {"function": "<function>", "allowed_tools": "<allowed>"})


def _check_choice(value: Any) -> Any:
    return value if isinstance(value, str) else _CHOICES.check(value)


def _tag_of_choice(value: Any) -> str:
    return "<word>" if isinstance(value, str) else _CHOICES.tag(value)


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")]
    | Annotated[NamedFunction, Tag("<function>")]
    | Annotated[AllowedTools, Tag("<allowed>")],
    Discriminator(_tag_of_choice),
    BeforeValidator(_check_choice),
]


class PlainFormat(Setting):
    type: Literal["text", "json_object"]


class SchemaFormat(Setting):
    model_config = ConfigDict(serialize_by_alias=True)

    type: Literal["json_schema"]
    name: Text
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: Text | None = None
    strict: bool | None = None


_FORMATS = Kinds(
    "a format", {"text": "<plain>", "json_object": "<plain>", "json_schema": "<schema>"}
)
Format = Annotated[
    Annotated[PlainFormat, Tag("<plain>")] | Annotated[SchemaFormat, Tag("<schema>")],
    _FORMATS.tags,
    _FORMATS.known,
]


class TextConfig(Setting):
    format: Format | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Setting):
    effort: Effort | None = None
    """As `reasoning_effort` of a chat."""
    summary: Literal["auto"] | None = None
    """Thoughts come as they are: none is summarized."""
    generate_summary: None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class StreamOptions(Setting):
    include_obfuscation: Literal[False] | None = None


def _as_items(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [{"type": "message", "role": "user", "content": without_nul(value)}]


ShortText = Annotated[Text, Field(max_length=512)]


class ResponsesRequest(BaseModel):
    """Body of `POST /v1/responses`. null means the default."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: Annotated[Text, Field(min_length=1, max_length=MAX_MODEL_NAME)]
    input: Annotated[
        list[InputItem],
        Field(min_length=1, max_length=MAX_PARTS, fail_fast=True),
        BeforeValidator(_as_items, json_schema_input_type=str | list[InputItem]),
    ]
    instructions: Text | None = None
    previous_response_id: Id | None = None
    store: bool | None = None

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: TokenCount | None = None
    """Of tools that run on the server, of which there are none."""

    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_output_tokens: TokenCount | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    include: (
        Annotated[
            list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]],
            Field(max_length=64, fail_fast=True),
        ]
        | None
    ) = None
    """`reasoning.encrypted_content` asks for nothing: no thoughts are encrypted."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: Annotated[dict[ShortText, ShortText], Field(max_length=16)] | None = None

    # Taken and given back; a canary keeps on one side what has the same.
    user: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_retention: Text | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        OTHERS.check(self.model_extra or {})
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options", "only allowed when stream is true")
        if self.top_logprobs and not self.wants_logprobs:
            raise refused("top_logprobs", f"only allowed when include has {LOGPROBS}")
        if self.wants_logprobs and self.tools and self.tool_choice != "none":
            raise refused("include", f"{LOGPROBS} is not supported together with tools")
        return self

    @property
    def conversation(self) -> str | None:
        """What its client says it belongs to."""
        return conversation_of(self.prompt_cache_key, self.user)

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())
