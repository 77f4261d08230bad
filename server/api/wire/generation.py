"""Fields that completions and chats share: OpenAI's, with vLLM's extras."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from remix_runtime.contracts import MAX_MODEL_NAME
from server.api.wire.others import check_others
from server.api.wire.refusal import refused
from server.api.wire.setting import Setting
from server.api.wire.structure import StructuredBody
from server.http.fields import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORDS,
    MAX_CHOICES,
    MAX_STOP_TOKEN_IDS,
    CountFromZero,
    LogitBias,
    NumLogprobs,
    Seed,
    StopStrings,
    Text,
    TokenCount,
    TokenId,
    Whole,
)


def conversation_of(*given: object) -> str | None:
    """The first text among fields that clients send alike with all requests of a conversation, or
    of a user."""
    return next((field for field in given if isinstance(field, str) and field), None)


class StreamOptions(Setting):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """vLLM's: with `include_usage`, the usage so far in every chunk."""
    include_obfuscation: Literal[False] | None = None


class GenerationBody(StructuredBody):
    """Fields that both endpoints share. null means the default, as with OpenAI."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: Annotated[Text, Field(min_length=1, max_length=MAX_MODEL_NAME)]
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    """OpenAI's newer name of `max_tokens`."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[Whole, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: StopStrings | None = None
    seed: Seed | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias = Field(default_factory=dict)
    top_k: Annotated[Whole, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    stop_token_ids: (
        Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS, fail_fast=True)] | None
    ) = None
    ignore_eos: bool | None = None
    min_tokens: CountFromZero | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    allowed_token_ids: (
        Annotated[list[TokenId], Field(max_length=MAX_ALLOWED_TOKEN_IDS, fail_fast=True)] | None
    ) = None
    bad_words: (
        Annotated[
            list[Annotated[Text, Field(min_length=1, max_length=100)]],
            Field(max_length=MAX_BAD_WORDS, fail_fast=True),
        ]
        | None
    ) = None
    prompt_logprobs: NumLogprobs | None = None
    truncate_prompt_tokens: Annotated[Whole, Field(ge=-1, lt=1 << 31)] | None = None
    """Keeps so many tokens of a longer prompt; -1: as many as fit beside the answer."""
    truncation_side: Literal["left", "right"] | None = None
    """Where tokens are cut off; the left unless told otherwise."""
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    """Writes `token_id:5` for the token 5 in log-probabilities."""
    cache_salt: Annotated[Text, Field(min_length=1, max_length=256)] | None = None
    """Requests with different salts share no cached prefix; those of other tenants never do."""
    request_id: Annotated[Text, Field(min_length=1, max_length=256)] | None = None
    """The `id` of the answer."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options", "only allowed when stream is true")
        if self.stream and self.prompt_logprobs is not None:
            raise refused("prompt_logprobs", "not available when stream is true")
        if self.truncate_prompt_tokens == 0:
            raise refused("truncate_prompt_tokens", "found 0, expected -1 or at least 1")
        check_others(self.model_extra or {})
        return self

    @property
    def most_tokens(self) -> int | None:
        """The most that each choice may generate, by whichever name it was given."""
        if self.max_completion_tokens is None:
            return self.max_tokens
        return self.max_completion_tokens

    @property
    def conversation(self) -> str | None:
        """What its client says it belongs to."""
        extra = self.model_extra or {}
        return conversation_of(extra.get("prompt_cache_key"), extra.get("user"))

    @property
    def choices_per_prompt(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream tells the usage so far."""
        options = self.stream_options
        return self.include_usage and bool(options and options.continuous_usage_stats)
