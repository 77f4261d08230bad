"""Items of a response: what the model was told and what it said, as `POST /v1/responses` takes
them. What this server answers with is among it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Tag, TypeAdapter

from server.api.wire.unions import Kinds
from server.http.fields import MAX_PARTS, Text, invalid, without_nul

Id = Annotated[Text, Field(min_length=1, max_length=256)]


class _Item(BaseModel):
    """Fields that say nothing to a model (`status`, `annotations` …) are ignored."""

    model_config = ConfigDict(strict=True)


class ContentText(_Item):
    type: Literal["input_text", "output_text", "text"]
    text: Text


_TEXTS = dict.fromkeys(("input_text", "output_text", "text"), "<text>")
Content = Annotated[ContentText, Kinds("content", _TEXTS).known]


def _as_parts(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [{"type": "input_text", "text": without_nul(value)}]


Parts = Annotated[
    list[Content],
    Field(min_length=1, max_length=MAX_PARTS, fail_fast=True),
    BeforeValidator(_as_parts, json_schema_input_type=str | list[Content]),
]
"""Text, or parts of text."""


class MessageItem(_Item):
    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts


class FunctionCallItem(_Item):
    type: Literal["function_call"]
    call_id: Id
    name: Text
    arguments: Text


class FunctionCallOutputItem(_Item):
    type: Literal["function_call_output"]
    call_id: Id
    output: Parts


class ReasoningText(_Item):
    type: Literal["reasoning_text", "text"]
    text: Text


def _only_ours(value: Any) -> Any:
    if value not in (None, "", []):
        raise invalid("this server cannot read what another one wrote here; leave the item out")
    return None


Unreadable = Annotated[None, BeforeValidator(_only_ours)]


class ReasoningItem(_Item):
    """Thoughts, as this server gives them."""

    type: Literal["reasoning"]
    encrypted_content: Unreadable = None
    summary: Unreadable = None
    content: Annotated[list[ReasoningText], Field(max_length=MAX_PARTS, fail_fast=True)] | None = (
        None
    )


class ItemReference(_Item):
    """An item of an answer that this server remembers."""

    type: Literal["item_reference"] | None = None
    id: Id


def _untyped(item: Mapping[str, Any]) -> str:
    return "<reference>" if "id" in item and "role" not in item else "<message>"


_ITEMS = Kinds(
    "items",
    {
        "message": "<message>",
        "function_call": "<call>",
        "function_call_output": "<output>",
        "reasoning": "<reasoning>",
        "item_reference": "<reference>",
    },
    _untyped,
)
InputItem = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<call>")]
    | Annotated[FunctionCallOutputItem, Tag("<output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[ItemReference, Tag("<reference>")],
    _ITEMS.tags,
    _ITEMS.known,
]
ITEM: TypeAdapter[InputItem] = TypeAdapter(InputItem)
