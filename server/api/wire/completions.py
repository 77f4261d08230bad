"""Body of `POST /v1/completions`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from server.api.wire.generation import GenerationBody, refused
from server.http.fields import MAX_CHOICES, MAX_LOGPROBS, Prompts


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
