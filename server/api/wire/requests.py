"""What clients send. Fields and ranges are OpenAI's, with vLLM's extras.

A field that this server does not know is ignored and logged, as vLLM does; one that it knows
and cannot honour is refused, unless its value changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from remix_runtime.contracts import MAX_MODEL_NAME
from server.http.fields import (
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_STOP_TOKEN_IDS,
    LogitBias,
    Prompts,
    Seed,
    StopStrings,
    Text,
    TokenCount,
    TokenId,
    invalid,
)

log = logging.getLogger(__name__)

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    # OpenAI's
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    # vLLM's
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "prompt_logprobs": (),
    "min_tokens": (0,),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "prompt_embeds": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "logits_processors": ([],),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
}
"""Known fields that cannot be honoured, with the values that ask for nothing (null always)."""


def refused(param: str, message: str) -> PydanticCustomError:
    """A validation error of the whole request that names one field."""
    return PydanticCustomError("remix_refused", "{reason}", {"reason": message, "param": param})


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class GenerationBody(BaseModel):
    """Fields that both endpoints share. null means the default, as with OpenAI."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: Annotated[Text, Field(min_length=1, max_length=MAX_MODEL_NAME)]
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    """OpenAI's newer name of `max_tokens`."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: StopStrings = []
    seed: Seed | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias = {}
    user: Text | None = None
    """Accepted for compatibility; nothing depends on it."""

    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    ignore_eos: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options", "only allowed when stream is true")
        ignored = []
        for name, value in (self.model_extra or {}).items():
            if name in _UNSUPPORTED:
                if value is not None and value not in _UNSUPPORTED[name]:
                    raise refused(name, "this server does not support it; leave it out")
            else:
                ignored.append(name)
        if ignored:
            log.info("ignored %d unknown request fields: %.200r", len(ignored), sorted(ignored))
        return self

    @property
    def most_tokens(self) -> int | None:
        """The most that each choice may generate, by whichever name it was given."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def choices_per_prompt(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(GenerationBody):
    """Body of `POST /v1/completions`."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    add_special_tokens: bool | None = None
    """vLLM's: whether the tokenizer adds its beginning-of-text token to a text prompt; it does
    unless told otherwise."""

    @model_validator(mode="after")
    def _check_completion(self) -> Self:
        if self.best_of is not None and self.best_of != self.choices_per_prompt:
            raise refused("best_of", "this server does not support best_of other than n")
        if self.max_tokens is not None and self.most_tokens != self.max_tokens:
            raise refused(
                "max_completion_tokens", "another name of max_tokens here; found two lengths"
            )
        if self.echo and self.logprobs is not None:
            raise refused("logprobs", "log-probabilities of an echoed prompt are not supported")
        return self


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: Text


def _join_parts(value: Any) -> Any:
    """The text of a list of content parts, one part a line."""
    if not isinstance(value, list):
        return value
    if not value:
        raise invalid("expected at least one content part")
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise invalid("expected text, or parts of the form {type: text, text: …}")
    return "\n".join(TextPart.model_validate(part).text for part in value)


def _says_nothing(value: Any) -> None:
    """Clients send answers back as they came, with all that was null or empty in them."""
    if value not in (None, "", [], {}, False):
        raise invalid("this server does not support it; leave it out")


Absent = Annotated[None, BeforeValidator(_says_nothing)]
"""A field that changes what a message means and cannot be honoured."""


class Message(BaseModel):
    """One message of a chat. Fields that no template reads are ignored."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    # OpenAI's, before content, which is null beside some of them.
    tool_calls: Absent = None
    tool_call_id: Absent = None
    function_call: Absent = None
    refusal: Absent = None
    audio: Absent = None
    # Other servers'.
    reasoning_content: Absent = None
    reasoning: Absent = None
    thinking: Absent = None
    images: Absent = None
    prefix: Absent = None
    partial: Absent = None
    name: Annotated[Text, Field(max_length=256)] | None = None
    """Given to the template, which may not read it."""
    content: Annotated[
        Text, BeforeValidator(_join_parts, json_schema_input_type=str | list[TextPart])
    ]

    def for_template(self) -> dict[str, str]:
        # Templates do not know OpenAI's newer name of the system role.
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": self.content}
        return {**message, "name": self.name} if self.name else message


class ChatRequest(GenerationBody):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise refused("top_logprobs", "only allowed when logprobs is true")
        if (self.model_extra or {}).get("echo"):
            raise refused("echo", "this server does not support it; leave it out")
        return self
