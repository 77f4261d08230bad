"""What clients receive. The types agree with those of the `openai` package."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, Self

from pydantic import BaseModel, computed_field, model_serializer

FinishedBy = Literal["stop", "length"]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, completion: int) -> Self:
        total = prompt + completion
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=total)


class CompletionLogprobs(BaseModel):
    tokens: list[str] = []
    token_logprobs: list[float] = []
    top_logprobs: list[dict[str, float]] = []
    text_offset: list[int] = []


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishedBy | None = None
    """Null in the chunks of a stream before the last of the choice."""


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
    bytes: list[int] | None


class ChatTokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChatTokenLogprob]
    refusal: None = None


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishedBy


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer
    def _only_what_changes(self) -> dict[str, str]:
        fields = {"role": self.role, "content": self.content}
        return {name: value for name, value in fields.items() if value is not None}


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishedBy | None = None


class ChatCompletionChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


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
    """All models at once: nobody needs to ask for more."""

    object: Literal["list"] = "list"
    data: list[Model]
    has_more: Literal[False] = False

    @computed_field
    def first_id(self) -> str | None:
        return self.data[0].id if self.data else None

    @computed_field
    def last_id(self) -> str | None:
        return self.data[-1].id if self.data else None


class Status(BaseModel):
    status: str
