"""Bodies of `POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Tag, model_validator

from remix_runtime.contracts import MAX_MODEL_NAME
from server.api.wire.refusal import refused
from server.api.wire.setting import Effort, Setting
from server.api.wire.tools import MAX_TOOLS
from server.api.wire.translated import SAMPLING, OtherFields
from server.api.wire.unions import Kinds
from server.http.fields import MAX_PARTS, StopStrings, Text, TokenCount, invalid, without_nul

OTHERS = OtherFields(
    passed_on=SAMPLING - {"top_k"},
    named_otherwise={
        "max_completion_tokens": "max_tokens",
        "stop": "stop_sequences",
        "response_format": "output_config.format",
        "output_format": "output_config.format",
        "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
        "reasoning_effort": "output_config.effort",
    },
    ask_nothing={
        "container": (),
        "context_management": ({}, {"edits": []}),
        "diagnostics": (),
        "fallbacks": ([],),
        "mcp_servers": ([],),
        "n": (1,),
        "speed": ("standard",),
    },
    taken=frozenset({"cache_control", "inference_geo", "user_profile_id"}),
)


class _Part(BaseModel):
    """`cache_control` is taken wherever it stands: what is cached changes no answer."""

    model_config = ConfigDict(strict=True)


class TextBlock(_Part):
    type: Literal["text"]
    text: Text


def _as_blocks(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [{"type": "text", "text": without_nul(value)}]


TextOnly = Annotated[TextBlock, Kinds("content", {"text": "<text>"}).known]
Texts = Annotated[
    list[TextOnly],
    Field(max_length=MAX_PARTS, fail_fast=True),
    BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextOnly]),
]
"""Text, or blocks of text."""

Id = Annotated[Text, Field(min_length=1, max_length=256)]


class ToolUseBlock(_Part):
    type: Literal["tool_use"]
    id: Id
    name: Text
    input: dict[str, Any]


class ToolResultBlock(_Part):
    type: Literal["tool_result"]
    tool_use_id: Id
    content: Texts = []
    is_error: bool | None = None


class ThinkingBlock(_Part):
    type: Literal["thinking"]
    thinking: Text


class RedactedThinkingBlock(_Part):
    """Another server's thoughts, which nobody but that server can read."""

    type: Literal["redacted_thinking"]


_BLOCKS = Kinds(
    "content",
    {
        "text": "<text>",
        "tool_use": "<use>",
        "tool_result": "<result>",
        "thinking": "<thinking>",
        "redacted_thinking": "<redacted>",
    },
)
Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ToolUseBlock, Tag("<use>")]
    | Annotated[ToolResultBlock, Tag("<result>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[RedactedThinkingBlock, Tag("<redacted>")],
    _BLOCKS.tags,
    _BLOCKS.known,
]


class Message(_Part):
    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[Block],
        Field(max_length=MAX_PARTS, fail_fast=True),
        BeforeValidator(_as_blocks, json_schema_input_type=str | list[Block]),
    ]


class Tool(_Part):
    type: Literal["custom"] | None = None
    name: Text
    description: Text | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    input_examples: Annotated[list[Any], Field(max_length=0, fail_fast=True)] | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: (
        Annotated[list[Literal["direct"]], Field(max_length=16, fail_fast=True)] | None
    ) = None


AnyTool = Annotated[Tool, Kinds("tools", {"custom": "<custom>"}, lambda _: "<custom>").known]


class ToolChoice(Setting):
    type: Literal["auto", "any", "none", "tool"]
    name: Text | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if (self.type == "tool") != (self.name is not None):
            raise invalid("name is given with type tool, and only then")
        return self


class Thinking(Setting):
    """`adaptive` leaves it to the model whether it thinks."""

    type: Literal["adaptive", "disabled", "enabled"]
    budget_tokens: Annotated[TokenCount, Field(ge=1024)] | None = None
    """A target, as Anthropic says, and no limit: `max_tokens` is one."""
    display: Literal["summarized", "omitted"] | None = None
    """Thoughts that are not left out are shown as they are."""

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        if (self.type == "enabled") != (self.budget_tokens is not None):
            raise refused("budget_tokens", "given with type enabled, and only then")
        return self


class OutputFormat(Setting):
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Setting):
    format: OutputFormat | None = None
    effort: Effort | None = None
    """As `reasoning_effort` of a chat."""


class Metadata(_Part):
    user_id: Text | None = None


class CountTokensRequest(BaseModel):
    """Body of `POST /v1/messages/count_tokens`: what the prompt is made of."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: Annotated[Text, Field(min_length=1, max_length=MAX_MODEL_NAME)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
    system: Texts | None = None
    tools: Annotated[list[AnyTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        OTHERS.check(self.model_extra or {})
        return self


class MessagesRequest(CountTokensRequest):
    """Body of `POST /v1/messages`. null means the default."""

    max_tokens: TokenCount
    stop_sequences: StopStrings | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
    """Its `user_id` is what a canary keeps on one side; nothing else depends on it."""
    service_tier: Literal["auto", "standard_only"] | None = None

    @model_validator(mode="after")
    def _check_thinking(self) -> Self:
        budget = self.thinking and self.thinking.budget_tokens
        if budget and budget >= self.max_tokens:
            raise refused("thinking.budget_tokens", "expected fewer than max_tokens")
        return self

    @property
    def conversation(self) -> str | None:
        """What its client says it belongs to."""
        return (self.metadata and self.metadata.user_id) or None

    @property
    def omits_thoughts(self) -> bool:
        return self.thinking is not None and self.thinking.display == "omitted"
