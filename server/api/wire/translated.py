"""Fields of bodies that become a chat, beyond those that are the body's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.api.wire.refusal import refused

_MAX_NAME = 100

SAMPLING = frozenset(
    {
        "allowed_token_ids",
        "bad_words",
        "cache_salt",
        "chat_template",
        "chat_template_kwargs",
        "documents",
        "frequency_penalty",
        "ignore_eos",
        "logit_bias",
        "min_p",
        "min_tokens",
        "presence_penalty",
        "repetition_penalty",
        "seed",
        "skip_special_tokens",
        "stop_token_ids",
        "structured_outputs",
        "top_k",
        "truncate_prompt_tokens",
        "truncation_side",
    }
)
"""Fields of a chat, most of them vLLM's, that mean the same in every body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherFields:
    """What becomes of the fields that a body does not have as its own; unknown ones are refused."""

    passed_on: frozenset[str]
    """Honoured, as in a chat."""
    named_otherwise: Mapping[str, str]
    """A chat's fields that have another name here."""
    ask_nothing: Mapping[str, tuple[Any, ...]]
    """Fields that cannot be honoured, with the values that ask for nothing (null always does)."""
    taken: frozenset[str] = field(default=frozenset())
    """Fields that cannot change an answer, whatever their value."""

    @property
    def all(self) -> frozenset[str]:
        return self.passed_on | self.taken | {*self.named_otherwise, *self.ask_nothing}

    def check(self, fields: Mapping[str, Any]) -> None:
        for name, value in fields.items():
            if value is None or name in self.passed_on or name in self.taken:
                continue
            if name in self.named_otherwise:
                raise refused(name, f"its name here is {self.named_otherwise[name]}")
            if name not in self.ask_nothing:
                reason = "this server does not know this field; leave it out"
                raise refused(name[:_MAX_NAME], reason)
            if value not in self.ask_nothing[name]:
                raise refused(name, "this server does not support it; leave it out")
