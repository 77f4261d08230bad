"""Fields that completions and chats share: OpenAI's, with vLLM's extras.

A field that this server does not know is ignored and logged, as vLLM does; one that it knows
and cannot honour is refused, unless its value changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from remix_runtime.contracts import MAX_MODEL_NAME
from server.http.fields import (
    MAX_CHOICES,
    MAX_STOP_TOKEN_IDS,
    LogitBias,
    Seed,
    StopStrings,
    Text,
    TokenCount,
    TokenId,
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
