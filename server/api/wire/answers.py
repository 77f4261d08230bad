"""What clients receive. The types agree with those of the `openai` package."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    computed_field,
    model_serializer,
)

from server.api.wire.written import WrittenList

FinishedBy = Literal["stop", "length"]
ChatFinishedBy = Literal["stop", "length", "tool_calls"]

T = TypeVar("T")
IfAsked = Annotated[T | None, Field(exclude_if=lambda value: value is None)]
"""Fields that are there when a request asks for them, or there is something to tell."""


class PromptLogprob(BaseModel):
    """vLLM's form, under the token's id."""

    logprob: float
    rank: int | None
    """1 is the likeliest token; null for one that is not among those asked for."""
    decoded_token: str


PromptLogprobs = WrittenList[dict[int, PromptLogprob] | None]


class PromptTokensDetails(BaseModel):
    cached_tokens: int
    """Tokens that were in the prefix cache."""


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: IfAsked[PromptTokensDetails] = None
    """Not there where the engine keeps no prefix cache."""

    @classmethod
    def of(cls, prompt: int, completion: int, cached: int | None = None) -> Self:
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=cached
            if cached is None
            else PromptTokensDetails(cached_tokens=cached),
        )


class CompletionLogprobs(BaseModel):
    """null stands at the first token of an echoed prompt, which nothing stands before."""

    tokens: WrittenList[str] = []
    token_logprobs: WrittenList[float | None] = []
    top_logprobs: WrittenList[dict[str, float] | None] = []
    text_offset: WrittenList[int] = []


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishedBy | None = None
    """Null in the chunks of a stream before the last of the choice."""
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: IfAsked[list[int]] = None
    """In a stream, in the first chunk of the choice."""
    token_ids: IfAsked[list[int]] = None


class Completion(BaseModel):
    """A whole completion or one chunk of its stream: OpenAI uses one shape for both."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: WrittenList[ChatTokenLogprob]
    refusal: None = None


class AnsweredFunction(BaseModel):
    name: str
    arguments: str
    """JSON, as the model wrote it."""


class AnsweredCall(BaseModel):
    """A call of a tool that the client has to make."""

    id: str
    type: Literal["function"] = "function"
    function: AnsweredFunction


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    """Null where there is nothing but calls."""
    refusal: None = None
    reasoning_content: str | None = None
    """Only where the model thought."""
    tool_calls: list[AnsweredCall] | None = None
    """Only where there are some."""

    @model_serializer(mode="wrap")
    def _only_what_there_is(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        optional = ("reasoning_content", "tool_calls")
        return {k: v for k, v in fields.items() if v is not None or k not in optional}


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishedBy
    token_ids: IfAsked[list[int]] = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: IfAsked[list[int]] = None


class _Changing(BaseModel):
    """A part of a message that says what is new, and nothing else."""

    @model_serializer(mode="wrap")
    def _only_what_changes(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        return {name: value for name, value in fields.items() if value is not None}


class FunctionDelta(_Changing):
    name: str | None = None
    arguments: str = ""


class ToolCallDelta(_Changing):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatDelta(_Changing):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishedBy | None = None
    token_ids: IfAsked[list[int]] = None


class ChatCompletionChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    prompt_token_ids: IfAsked[list[int]] = None
    """In the first chunk of each choice."""


class Model(BaseModel):
    """A model for clients of OpenAI's, vLLM's and Anthropic's API."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "remix-serve"
    root: str
    """Digest of the adapter, or the base model's name."""
    parent: str | None
    """The base model's name for an adapter, null for the base itself."""
    max_model_len: int
    defaults: IfAsked[dict[str, Any]] = None
    """Of one model that is asked for: what its adapter gives a request that says nothing else."""
    type: Literal["model"] = "model"
    lifecycle: Literal["active"] = "active"

    @computed_field
    def display_name(self) -> str:
        return self.id

    @computed_field
    def created_at(self) -> datetime:
        return datetime.fromtimestamp(self.created, UTC)

    @computed_field
    def max_input_tokens(self) -> int:
        return self.max_model_len


class ModelList(BaseModel):
    """All models, or a page of them."""

    object: Literal["list"] = "list"
    data: list[Model]
    has_more: bool

    @computed_field
    def first_id(self) -> str | None:
        return self.data[0].id if self.data else None

    @computed_field
    def last_id(self) -> str | None:
        return self.data[-1].id if self.data else None


class Status(BaseModel):
    status: str
    failing: tuple[str, ...] = ()
    """Long-lived tasks of the server that do not work, and `adapters` while some cannot be loaded
    or read."""
