"""Large bodies are sent in slices that add up to them."""

from __future__ import annotations

import os
from typing import Any

import pytest

from server.http.slices import SLICE_BYTES, in_slices


@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize("size", [0, 1, SLICE_BYTES, SLICE_BYTES + 1, 3 * SLICE_BYTES])
async def test_slices(size: int, more: bool) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    body = os.urandom(size)
    start = {"type": "http.response.start", "status": 200, "headers": []}
    sliced = in_slices(send)
    await sliced(start)
    await sliced({"type": "http.response.body", "body": body, "more_body": more})
    assert sent.pop(0) == start
    assert b"".join(message["body"] for message in sent) == body
    assert max(len(message["body"]) for message in sent) <= SLICE_BYTES
    assert [message["more_body"] for message in sent] == [True] * (len(sent) - 1) + [more]
