"""Reads streams of events that have names, each as the API's own package has its type."""

from __future__ import annotations

import json
from typing import Any

import anthropic.types as anthropics
import openai.types.responses as openais
from pydantic import TypeAdapter

_RESPONSE: TypeAdapter[Any] = TypeAdapter(openais.ResponseStreamEvent)
_MESSAGE: TypeAdapter[Any] = TypeAdapter(anthropics.RawMessageStreamEvent)


def response_events(text: str) -> list[dict[str, Any]]:
    """Of `/v1/responses`, numbered without a gap."""
    events = _events(text)
    for event in events:
        _RESPONSE.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def message_events(text: str) -> list[dict[str, Any]]:
    """Of `/v1/messages`."""
    events = _events(text)
    for event in events:
        if event["type"] not in ("ping", "error"):  # the package has no types for these
            _MESSAGE.validate_python(event)
    return events


def _events(text: str) -> list[dict[str, Any]]:
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events
