"""How families of models write calls of tools."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

ToolParserName = Literal["auto", "hermes", "llama3", "mistral", "json"]


class Form(StrEnum):
    """What is written of a call."""

    OBJECT = "object"
    """`{"name": …, "arguments": {…}}`"""
    NAMED = "named"
    """`name[ARGS]{…}`"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """All families also write bare JSON at times, and every parser takes it."""

    opener: str = ""
    closer: str = ""
    after_opener: str = ""
    separator: str = "\n"
    """Between the calls of an answer."""
    one_opener: bool = False
    """Whether the opener stands once before all calls."""
    in_list: bool = False
    arguments_key: str = "arguments"
    form: Form = Form.OBJECT
    short_ids: bool = False
    """Whether its templates want ids of nine letters and digits."""

    @property
    def openers(self) -> tuple[str, ...]:
        return (self.opener,) if self.opener else ()

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts around calls, which are special tokens of some tokenizers."""
        more = ("[ARGS]", "[CALL_ID]") if self.form is Form.NAMED else ()
        return tuple(mark for mark in (self.opener, self.closer, *more) if mark)


HERMES = Family(opener="<tool_call>", closer="</tool_call>", after_opener="\n")
LLAMA3 = Family(
    opener="<|python_tag|>", one_opener=True, separator="; ", arguments_key="parameters"
)
MISTRAL = Family(
    opener="[TOOL_CALLS]", one_opener=True, in_list=True, separator=", ", short_ids=True
)
MISTRAL_NAMED = Family(opener="[TOOL_CALLS]", separator="", form=Form.NAMED, short_ids=True)
JSON = Family()


def family_of(template: str, setting: ToolParserName = "auto") -> Family:
    """The family that a chat template is written for, where the operator's setting names none."""
    mistral = MISTRAL_NAMED if "[ARGS]" in template else MISTRAL
    match setting:
        case "hermes":
            return HERMES
        case "llama3":
            return LLAMA3
        case "mistral":
            return mistral
        case "json":
            return JSON
    if "[TOOL_CALLS]" in template:
        return mistral
    if "<function=" in template:  # Qwen3 Coder's XML, which nothing here reads
        return JSON
    if "<tool_call>" in template:
        return HERMES
    if "<|python_tag|>" in template or "<|start_header_id|>" in template:
        return LLAMA3
    return JSON
