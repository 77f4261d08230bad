"""Bodies and answers of `/tokenize`, `/detokenize`, `/tokenizer_info` and `/version`: vLLM's."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from remix_runtime.contracts import MAX_MODEL_NAME
from server.api.wire.answers import IfAsked
from server.api.wire.chat import Message
from server.api.wire.others import check_others
from server.api.wire.refusal import refused
from server.http.fields import Text, TokenId

MAX_TOKENS = 1 << 17
"""Token ids of one request."""

ModelName = Annotated[Text, Field(min_length=1, max_length=MAX_MODEL_NAME)]


class TokenizeRequest(BaseModel):
    """A prompt of completions, or the messages of a chat."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: ModelName | None = None
    """All adapters have the base's tokenizer, so nothing depends on it."""
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool | None = None
    """Whether the tokenizer adds its own; a prompt has them unless told otherwise, and a chat never
    has more than its template wrote."""
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise refused("prompt", "expected either a prompt or messages")
        if self.messages is None:
            if self.add_generation_prompt is False or self.continue_final_message:
                name = "continue_final_message"
                name = name if self.continue_final_message else "add_generation_prompt"
                raise refused(name, "only allowed with messages")
        elif self.add_special_tokens:
            raise refused("add_special_tokens", "a chat's template writes them; leave it out")
        elif self.continue_final_message and self.add_generation_prompt:
            message = "not allowed together with continue_final_message"
            raise refused("add_generation_prompt", message)
        check_others(self.model_extra or {})
        return self

    @property
    def num_characters(self) -> int:
        if self.prompt is not None:
            return len(self.prompt)
        return sum(len(message.content) for message in self.messages or ())


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: IfAsked[list[str]] = None


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    model: ModelName | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TOKENS)]

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
