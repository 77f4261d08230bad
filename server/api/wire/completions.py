"""Body of `POST /v1/completions`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from server.api.wire.generation import GenerationBody
from server.api.wire.refusal import refused
from server.http.fields import MAX_CHOICES, CountFromZero, NumLogprobs, Prompts, Whole


class CompletionRequest(GenerationBody):
    """Body of `POST /v1/completions`."""

    prompt: Prompts
    max_tokens: CountFromZero | None = None
    """0 with `echo` or `prompt_logprobs`: what concerns the prompt alone."""
    echo: bool | None = None
    logprobs: NumLogprobs | None = None
    best_of: Annotated[Whole, Field(ge=1, le=MAX_CHOICES)] | None = None
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
        if self.most_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise refused("max_tokens", "0 is only allowed with echo or prompt_logprobs")
        return self

    @property
    def most_prompt_logprobs(self) -> int | None:
        """How many log-probabilities the engine tells of each of the prompt's tokens."""
        echoed = self.logprobs if self.echo else None
        given = [count for count in (self.prompt_logprobs, echoed) if count is not None]
        return max(given, default=None)
