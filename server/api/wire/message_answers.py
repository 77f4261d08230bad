"""What `POST /v1/messages` answers with. The types agree with those of the `anthropic` package."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class AnsweredText(BaseModel):
    type: Literal["text"] = "text"
    text: str
    citations: list[Any] = []
    """None. Some clients take no null for it, others want it there."""


class AnsweredThinking(BaseModel):
    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str = ""
    """Nothing is signed."""


class DirectCaller(BaseModel):
    type: Literal["direct"] = "direct"


class AnsweredToolUse(BaseModel):
    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]
    caller: DirectCaller = DirectCaller()


AnsweredBlock = AnsweredText | AnsweredThinking | AnsweredToolUse


class MessageUsage(BaseModel):
    """What Anthropic's usage has and this server does not tell apart is null."""

    input_tokens: int
    """Of the prompt, but those that were in the prefix cache."""
    output_tokens: int
    cache_creation: None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    inference_geo: None = None
    output_tokens_details: None = None
    server_tool_use: None = None
    service_tier: Literal["standard"] = "standard"


class AnsweredMessage(BaseModel):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnsweredBlock] = []
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    stop_details: None = None
    container: None = None
    usage: MessageUsage
    system_fingerprint: str
    """The adapter's digest, as in OpenAI's API."""


class TokenCounted(BaseModel):
    input_tokens: int
