"""Clients that do not take what they asked for."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile.acts import (
    CHAT,
    COMPLETIONS,
    DETOKENIZE,
    LEFT,
    MINE,
    RESPONSES,
    Entry,
    Hostile,
    as_json,
    chat,
    completion,
    pipeline,
    slowly,
    unread,
    unread_pipeline,
)
from tests.hostile.wire import request

TOLD = {"logprobs": True, "top_logprobs": 20, "ignore_eos": True}
STREAM = chat(max_tokens=300, n=4, stream=True, **TOLD)
WHOLE = chat(max_tokens=300, n=4, **TOLD)
CUT = ("200, cut", "closed")
"""Where the kernel does not hold all of the answer for its client."""


def document(hostile: Hostile) -> bytes:
    return request("GET", "/openapi.json", key=hostile.key)


def entries() -> Iterator[Entry]:
    yield Entry("a stream that nobody reads", unread(CHAT, STREAM), "200", CUT, clients=1)
    yield Entry("a whole answer that nobody reads", unread(CHAT, WHOLE), "200", CUT, clients=1)
    text = as_json(tokens=[*range(3, 40_000)] * 3)
    yield Entry("a text of 1 MB that nobody reads", unread(DETOKENIZE, text), "200", CUT)
    told = completion("x " * 900, prompt_logprobs=20)
    yield Entry(
        "a prompt's log-probabilities that nobody reads", unread(COMPLETIONS, told), "200", CUT
    )
    plain = chat(max_tokens=300, stream=True, ignore_eos=True)
    yield Entry(
        "a stream that is read by a byte", slowly(CHAT, plain, every=0.05, size=1, most=300), LEFT
    )
    yield Entry(
        "a stream that is read by 500 bytes a second",
        slowly(CHAT, STREAM, every=1.0, size=500, most=20_000),
        LEFT,
        clients=1,
    )
    response = as_json(model=MINE, input="x", max_output_tokens=300, stream=True, ignore_eos=True)
    yield Entry(
        "a response that is read by 100 bytes",
        slowly(RESPONSES, response, every=0.2, size=100, most=10_000),
        LEFT,
    )
    yield Entry("200 documents of 300 kB in one go", pipeline(document, times=200), "201 answers")
    yield Entry(
        "200 documents of 300 kB that nobody reads", unread_pipeline(document, times=200), "cut"
    )
