"""Renders messages with a base's chat template, for serving and training alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from remix_runtime.errors import ChatTemplateError


def template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The source of a tokenizer's chat template."""
    # Some models have several templates by name; this is the one for chats with tools.
    template: str | dict[str, str] | None = tokenizer.chat_template
    if isinstance(template, dict):
        return template.get("tool_use", template.get("default"))
    return template


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    **variables: Any,
) -> str:
    """The text of the messages. `variables` are further names that a template may use, as `tools`.

    A template is a program, in a sandbox, and may fail as any program does: whatever it raises
    becomes `ChatTemplateError`, caused by what was raised.
    """
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except Exception as error:
        message = " ".join(str(error).split())
        if not isinstance(error, TemplateError):  # which is a sentence; others are not
            message = f"{type(error).__name__}: {message}"
        raise ChatTemplateError(message) from error
    if not isinstance(text, str):
        raise ChatTemplateError(f"found {type(text).__name__}, expected a text")
    return text
