"""What the clients ask, and what an answer says: its text and numbers without what differs from
answer to answer, so that two answers to the same can be compared bit by bit."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
ENDPOINTS = {COMPLETIONS: "completions", CHAT: "chat", RESPONSES: "responses", MESSAGES: "messages"}

_ENDS = {
    *("response.completed", "response.incomplete", "response.failed"),
    *("message_stop", "error"),
}
"""The types of events that end a stream of the APIs that have types."""
_OWN = {"id", "created", "created_at", "completed_at", "model", "item_id", "metadata"}
"""Fields that are each answer's own."""


class NoEndError(Exception):
    """A stream that ends in no terminal event."""


class TwoEndsError(Exception):
    """Something comes after an end."""


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """A request but for its model and id."""

    path: str
    prompt: str
    max_tokens: int
    stream: bool = False
    n: int = 1
    more: dict[str, Any] = field(default_factory=dict)
    is_wrong: bool = False
    """Whether it must be refused with a 400."""

    def body(self, model: str, own_id: str) -> bytes:
        fields: dict[str, Any] = {"model": model, "temperature": 0, "stream": self.stream}
        turns = [{"role": "user", "content": self.prompt}]
        match self.path:
            case "/v1/completions":
                fields |= {"prompt": self.prompt, "max_tokens": self.max_tokens, "n": self.n}
            case "/v1/chat/completions":
                fields |= {"messages": turns, "max_tokens": self.max_tokens, "n": self.n}
            case "/v1/responses":
                fields |= {"input": self.prompt, "max_output_tokens": self.max_tokens}
                fields["metadata"] = {"mine": own_id}
            case "/v1/messages":
                fields |= {"messages": turns, "max_tokens": self.max_tokens}
        if self.path in (COMPLETIONS, CHAT):
            fields["request_id"] = own_id
            if self.stream:
                fields["stream_options"] = {"include_usage": True}
        return json.dumps(fields | self.more).encode()


def _good() -> Iterator[Shape]:
    prompts = ("Once", "the cat in the rain", "Zahlen: 1, 2")
    for index, (path, prompt) in enumerate((path, text) for path in ENDPOINTS for text in prompts):
        for stream in (False, True):
            tokens = (1, 5, 12)[(index + stream) % 3]
            n = 2 if path in (COMPLETIONS, CHAT) and index % 3 == 1 else 1
            yield Shape(path, prompt, tokens, stream, n)
    yield Shape(COMPLETIONS, prompts[1], 6, more={"logprobs": 2, "echo": True})
    yield Shape(CHAT, prompts[0], 6, more={"logprobs": True, "top_logprobs": 2})
    yield Shape(RESPONSES, prompts[2], 4, more={"store": False})


GOOD = tuple(_good())
WRONG = (
    *(Shape(path, "x", 2, more={"temperature": 99}, is_wrong=True) for path in ENDPOINTS),
    *(Shape(path, "x" * 3000, 2, stream=True, is_wrong=True) for path in (COMPLETIONS, CHAT)),
)


@dataclass(frozen=True, slots=True)
class Whole:
    """A complete answer."""

    model: str
    digest: str
    """Or the base's fingerprint."""
    own_id: str | None
    """What the client called it, where the API tells that."""
    id: str
    content: Any
    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A well-formed error."""

    status: int
    code: str
    message: str


def read_answer(shape: Shape, body: bytes) -> Whole | Failure:
    """Of a status 200. Raises `NoEndError`, `TwoEndsError`, and anything of what is malformed."""
    if not shape.stream:
        return _whole(shape, json.loads(body))
    *events, last = _events(shape, body)
    if last == "[DONE]" or (failure := _failure(last)) is None:
        return _streamed(shape, events, last)
    return failure


def read_failure(status: int, body: bytes) -> Failure:
    """Raises anything of what is malformed."""
    failure = _failure(json.loads(body), status)
    if failure is None or not failure.message:
        raise ValueError(f"no error: {body[:200]!r}")
    return failure


def _events(shape: Shape, body: bytes) -> list[Any]:
    *blocks, rest = body.decode().split("\n\n")
    if rest:
        raise NoEndError(f"ends in {rest[:200]!r}")
    events: list[Any] = []
    for block in blocks:
        data = [line[6:] for line in block.split("\n") if line.startswith("data: ")]
        if not data:
            continue  # a comment
        if events and _is_end(shape, events[-1]):
            raise TwoEndsError(f"{block[:200]!r} after {str(events[-1])[:200]}")
        events.append("[DONE]" if data == ["[DONE]"] else json.loads("\n".join(data)))
    if not events or not _is_end(shape, events[-1]):
        raise NoEndError(f"ends with {str(events[-1:])[:200]}")
    return events


def _is_end(shape: Shape, event: Any) -> bool:
    if shape.path in (COMPLETIONS, CHAT):
        return event == "[DONE]" or "error" in event
    return event.get("type") in _ENDS


def _failure(document: Any, status: int = 200) -> Failure | None:
    if document.get("type") == "response.failed":
        document = document["response"]
    error = document.get("error")
    if not error:
        return None
    return Failure(status, error.get("code") or error.get("type"), error["message"])


def _whole(shape: Shape, document: dict[str, Any]) -> Whole:
    usage = document["usage"]
    read, generated = (
        ("prompt_tokens", "completion_tokens")
        if shape.path in (COMPLETIONS, CHAT)
        else ("input_tokens", "output_tokens")
    )
    return Whole(
        model=document["model"],
        digest=document["system_fingerprint"],
        own_id=_own_id(shape, document),
        id=document["id"],
        content=_without_own(document),
        prompt_tokens=usage[read],
        generated_tokens=usage[generated],
    )


def _own_id(shape: Shape, document: dict[str, Any]) -> str | None:
    if shape.path == RESPONSES:
        return str(document["metadata"]["mine"])
    return None if shape.path == MESSAGES else str(document["id"])


def _without_own(item: Any) -> Any:
    if isinstance(item, dict):
        return {name: _without_own(value) for name, value in item.items() if name not in _OWN}
    return [_without_own(value) for value in item] if isinstance(item, list) else item


def _streamed(shape: Shape, events: list[Any], last: Any) -> Whole:
    if shape.path == RESPONSES:
        whole = _whole(shape, last["response"])
        if "".join(_deltas(events, "response.output_text.delta")) != _text(last["response"]):
            raise ValueError("the events have another text than the response")
        return whole
    if shape.path == MESSAGES:
        [message] = [event["message"] for event in events if event["type"] == "message_start"]
        [end] = [event for event in events if event["type"] == "message_delta"]
        text = "".join(delta["text"] for delta in _deltas(events, "content_block_delta"))
        usage = message["usage"] | end["usage"]
        reason = end["delta"]["stop_reason"]
        return _whole(shape, {**message, "usage": usage, "stop_reason": reason, "content": text})
    texts: dict[int, str] = defaultdict(str)
    ends: dict[int, str] = {}
    common = {(event["id"], event["model"], event["system_fingerprint"]) for event in events}
    if len(common) != 1:
        raise ValueError(f"events of several answers: {common}")
    for event in events:
        for choice in event["choices"]:
            said = choice["text"] if "text" in choice else choice["delta"].get("content")
            texts[choice["index"]] += said or ""
            if choice.get("finish_reason"):
                if choice["index"] in ends:
                    raise TwoEndsError(f"choice {choice['index']}")
                ends[choice["index"]] = choice["finish_reason"]
    if len(ends) != shape.n:
        raise NoEndError(f"{len(ends)} of {shape.n} choices ended")
    content = {"texts": dict(sorted(texts.items())), "ends": dict(sorted(ends.items()))}
    return _whole(shape, {**events[-1], **content, "choices": []})


def _deltas(events: list[Any], kind: str) -> Iterator[Any]:
    return (event["delta"] for event in events if event["type"] == kind)


def _text(response: dict[str, Any]) -> str:
    parts = (part for item in response["output"] for part in item["content"])
    return "".join(part["text"] for part in parts)
