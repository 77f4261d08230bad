"""Clients that read by lines get whole events, whatever is in them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.writer import Event
from server.http.lines import one_line
from tests.unit.server.harness import Server

BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
Send = Callable[..., Awaitable[httpx.Response]]


@settings(max_examples=40)
@given(st.text() | st.text(alphabet=BREAKS + '\\"u', min_size=1))
def test_a_document_is_one_line_and_the_same(text: str) -> None:
    document = one_line(json.dumps({text: [text]}, ensure_ascii=False))
    assert document.splitlines() == [document]
    assert json.loads(document) == {text: [text]}
    event = Event(document, "delta").encode().decode()
    assert event.splitlines() == ["event: delta", f"data: {document}", ""]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
async def test_an_echo_by_lines(server: Server, character: str) -> None:
    prompt = f"a{character}b"
    answer = await server.complete(prompt=prompt, echo=True, stream=True, max_tokens=2)
    documents = [
        json.loads(line.removeprefix("data: "))
        for line in answer.text.splitlines()
        if line and line != "data: [DONE]"
    ]
    assert documents[0]["choices"][0]["text"] == prompt
