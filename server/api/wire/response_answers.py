"""What `POST /v1/responses` answers with. The types agree with those of the `openai` package."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from server.api.wire.answers import ChatTokenLogprob
from server.api.wire.responses import Format, FunctionTool, PlainFormat, ToolChoice
from server.api.wire.written import WrittenList

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: WrittenList[ChatTokenLogprob] = []


class OutputMessage(BaseModel):
    type: Literal["message"] = "message"
    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class OutputCall(BaseModel):
    type: Literal["function_call"] = "function_call"
    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


class OutputReasoningText(BaseModel):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class OutputReasoning(BaseModel):
    type: Literal["reasoning"] = "reasoning"
    id: str
    summary: list[Any] = []
    content: list[OutputReasoningText]
    status: ItemStatus


OutputItem = OutputMessage | OutputCall | OutputReasoning


class InputDetails(BaseModel):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(BaseModel):
    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """What is not told apart is 0."""

    input_tokens: int
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int


class ResponseFailure(BaseModel):
    code: str
    message: str


class Incomplete(BaseModel):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class AnsweredText(BaseModel):
    format: Format = PlainFormat(type="text")
    verbosity: Literal["medium"] = "medium"


class AnsweredReasoning(BaseModel):
    effort: str | None = None
    summary: Literal["auto"] | None = None


class ResponseObject(BaseModel):
    """A response, with what it was asked for and how it was sampled."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    background: Literal[False] = False
    error: ResponseFailure | None = None
    incomplete_details: Incomplete | None = None
    model: str
    system_fingerprint: str
    output: list[OutputItem] = []
    usage: ResponseUsage | None = None

    instructions: str | None
    previous_response_id: str | None
    store: bool
    tools: list[FunctionTool]
    tool_choice: ToolChoice
    parallel_tool_calls: bool
    max_tool_calls: int | None
    text: AnsweredText
    reasoning: AnsweredReasoning
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    max_output_tokens: int | None
    top_logprobs: int
    truncation: Literal["disabled"] = "disabled"
    service_tier: Literal["default"] = "default"
    metadata: dict[str, str]
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    prompt_cache_retention: str | None


class DeletedResponse(BaseModel):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class InputTokens(BaseModel):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int
