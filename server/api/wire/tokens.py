"""Bodies and answers of `/tokenize`, `/detokenize`, `/tokenizer_info` and `/version`: vLLM's."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from remix_runtime.contracts import MAX_MODEL_NAME
from server.api.wire.answers import IfAsked
from server.api.wire.chat import ChatPrompt, Message
from server.api.wire.others import check_others
from server.api.wire.refusal import refused
from server.http.fields import MAX_PARTS, Text, TokenId

MAX_TOKENS = 1 << 17
"""Token ids of one request."""

_SAY_NOTHING: tuple[object, ...] = (None, True, [], {}, "none", "auto")
"""Values of a chat's fields beside a prompt that has no chat."""

ModelName = Annotated[Text, Field(min_length=1, max_length=MAX_MODEL_NAME)]


class TokenizeRequest(ChatPrompt):
    """A prompt of completions, or what the prompt of a chat is made of."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: ModelName | None = None
    """All adapters have the base's tokenizer; one may have a chat template of its own."""
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(max_length=MAX_PARTS, fail_fast=True)] = Field(
        default_factory=list
    )
    add_special_tokens: bool | None = None
    """Whether the tokenizer adds its own; a prompt has them unless told otherwise, and a chat never
    has more than its template wrote."""
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.prompt is None) == (not self.messages):
            name = "messages" if self.model_fields_set & {"messages"} else "prompt"
            name = name if self.prompt is None else "prompt"
            raise refused(name, "expected either a prompt or messages")
        if self.prompt is not None:
            for name in ChatPrompt.model_fields:
                if name != "messages" and getattr(self, name) not in _SAY_NOTHING:
                    raise refused(name, "only allowed with messages")
        elif self.add_special_tokens:
            raise refused("add_special_tokens", "a chat's template writes them; leave it out")
        check_others(self.model_extra or {})
        return self


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: IfAsked[list[str]] = None


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    model: ModelName | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TOKENS, fail_fast=True)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_others(self.model_extra or {})
        return self


class Detokenized(BaseModel):
    prompt: str


class TokenizerInfo(BaseModel):
    tokenizer_class: str
    bos_token: str | None
    """What a prompt begins with, if the tokenizer adds something."""
    eos_token: str | None
    chat_template: str | None
    max_model_len: int


class Version(BaseModel):
    version: str
