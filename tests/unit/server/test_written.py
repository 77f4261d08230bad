"""Lists that are written already stand in the JSON as if they had been models."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from server.api.wire.answers import ChatLogprobs, CompletionLogprobs
from server.api.wire.written import Written, WrittenList, write_json


class Leaf(BaseModel):
    text: str
    items: WrittenList[int] = []


class Other(BaseModel):
    kind: int
    items: WrittenList[int] = []


class Tree(BaseModel):
    first: WrittenList[str]
    leaves: list[Other | Leaf]
    last: WrittenList[int] | None = None


LISTS = st.lists(st.integers(), max_size=4)


@given(st.lists(st.text(), max_size=3), st.lists(st.tuples(st.text(), LISTS), max_size=4), LISTS)
def test_both_are_the_same(
    first: list[str], leaves: list[tuple[str, list[int]]], last: list[int]
) -> None:
    plain = Tree(
        first=first, leaves=[Leaf(text=text, items=items) for text, items in leaves], last=last
    )
    written = Tree(
        first=Written(map(json.dumps, first)),
        leaves=[Leaf(text=text, items=Written(map(str, items))) for text, items in leaves],
        last=Written(map(str, last)),
    )
    assert json.loads(write_json(written)) == json.loads(write_json(plain)) == plain.model_dump()
    assert written.model_dump() == plain.model_dump()
    event = {"tree": written, "own": Written(map(str, last)), "rest": 1}
    assert json.loads(write_json(event)) == {"tree": plain.model_dump(), "own": last, "rest": 1}


@pytest.mark.parametrize("kind", [CompletionLogprobs, ChatLogprobs])
def test_documents_describe_the_items(kind: type[BaseModel]) -> None:
    schema = TypeAdapter(kind).json_schema(mode="serialization")
    lists = [field for field in schema["properties"].values() if field.get("type") == "array"]
    assert lists
    assert all(field["items"] for field in lists)
