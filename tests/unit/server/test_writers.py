"""Thoughts, words and calls as the writers of `/v1/responses` and `/v1/messages` give them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import anthropic.types
import openai.types.responses
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from remix_runtime.contracts import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from remix_runtime.engines.fake_model import ByteTokenizer
from server.api.fanout import Choice
from server.api.message_writer import MessageWriter, arguments_object
from server.api.response_writer import ResponseWriter
from server.api.wire.response_answers import AnsweredReasoning, AnsweredText, ResponseObject
from server.api.wire.response_items import ITEM
from server.api.writer import Event, Writer
from server.live.sets import Target
from tests.unit.server.test_blocks import LetterParser

RESPONSE_EVENT: TypeAdapter[Any] = TypeAdapter(openai.types.responses.ResponseStreamEvent)
MESSAGE_EVENT: TypeAdapter[Any] = TypeAdapter(anthropic.types.RawMessageStreamEvent)
TARGET = Target("pirate", "d" * 64)
REQUEST = GenerationRequest(
    request_id="resp_1-0", prompt_token_ids=(97,), params=SamplingParams(max_tokens=9)
)
PIECES = st.lists(st.text('abAB12{}"', max_size=5), max_size=6)
FINISHES = st.sampled_from([FinishReason.STOP, FinishReason.LENGTH])


def response_writer() -> ResponseWriter:
    response = ResponseObject(
        id="resp_1",
        created_at=1,
        model=TARGET.name,
        system_fingerprint=TARGET.fingerprint,
        instructions=None,
        previous_response_id=None,
        store=True,
        tools=[],
        tool_choice="auto",
        parallel_tool_calls=True,
        max_tool_calls=None,
        text=AnsweredText(),
        reasoning=AnsweredReasoning(),
        temperature=1,
        top_p=1,
        presence_penalty=0,
        frequency_penalty=0,
        max_output_tokens=None,
        top_logprobs=0,
        metadata={},
        user=None,
        safety_identifier=None,
        prompt_cache_key=None,
        prompt_cache_retention=None,
    )
    return ResponseWriter(
        answer_id="resp_1",
        target=TARGET,
        tokenizer=ByteTokenizer(),
        prompt_tokens=3,
        request=REQUEST,
        response=response,
        make_parser=LetterParser,
        remember=lambda answer: None,
        renamed=lambda error: error,
    )


def message_writer(stops: Sequence[str] = ()) -> MessageWriter:
    return MessageWriter(
        answer_id="msg_1",
        target=TARGET,
        tokenizer=ByteTokenizer(),
        prompt_tokens=3,
        make_parser=LetterParser,
        renamed=lambda error: error,
        request_id="r",
        stops=stops,
    )


def told(
    stream: Writer, whole: Writer, pieces: Sequence[str], finish: FinishReason
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events of an answer that comes in pieces, and the same answer at once."""
    choice = Choice()
    events: list[Event] = [*stream.opening(TokenEvent(token_ids=(), text=""))]
    ends = [None] * (len(pieces) - 1) + [finish] if pieces else []
    for piece, end in zip(pieces, ends, strict=True):
        event = TokenEvent(token_ids=(1,), text=piece, finish_reason=end)
        choice.add(event)
        events += stream.chunks(0, event)
    if not pieces:
        event = TokenEvent(token_ids=(), text="", finish_reason=finish)
        choice.add(event)
        events += stream.chunks(0, event)
    events += stream.closing([choice])
    bodies = [json.loads(event.data) for event in events]
    assert [body["type"] for body in bodies] == [event.name for event in events]
    return bodies, json.loads(whole.whole([choice]))


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in item.items() if name != "id"} for item in items]


@given(PIECES, FINISHES)
def test_responses_grow_into_what_they_are(pieces: list[str], finish: FinishReason) -> None:
    events, whole = told(response_writer(), response_writer(), pieces, finish)
    for event in events:
        RESPONSE_EVENT.validate_python(event)
    last = events[-1]["response"]
    assert events[-1]["type"] == f"response.{last['status']}"
    assert without_ids(last["output"]) == without_ids(whole["output"])
    grown: dict[int, str] = {}
    for event in events:
        if event["type"] == "response.output_item.added":
            assert event["output_index"] == len(grown)
            grown[event["output_index"]] = ""
        if event["type"].endswith(".delta"):
            grown[event["output_index"]] += event["delta"]
        if event["type"] == "response.output_item.done":
            assert last["output"][event["output_index"]] == event["item"]
    assert len(grown) == len(last["output"]) >= 1
    for text, item in zip(grown.values(), last["output"], strict=True):
        written = (
            item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        )
        assert text == written
        ITEM.validate_python(item)
    assert [item["status"] for item in last["output"][:-1]] == ["completed"] * (len(grown) - 1)
    assert last["output"][-1]["status"] == last["status"]


@given(PIECES, FINISHES)
def test_messages_grow_into_what_they_are(pieces: list[str], finish: FinishReason) -> None:
    events, whole = told(message_writer(), message_writer(), pieces, finish)
    blocks: list[dict[str, Any]] = []
    for event in events:
        if event["type"] != "ping":
            MESSAGE_EVENT.validate_python(event)
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append({**event["content_block"], "json": ""})
            case "content_block_delta":
                block = blocks[event["index"]]
                kind, text = event["delta"].values()
                name = kind.removesuffix("_delta").replace("input_json", "json")
                block[name] += text
    assert [block["type"] for block in blocks] == [block["type"] for block in whole["content"]]
    for block, final in zip(blocks, whole["content"], strict=True):
        for name in ("text", "thinking", "signature"):
            assert block.get(name) == final.get(name)
        if block["json"] in ("", "{}"):
            assert final.get("input", {}) == {}
    assert events[-2]["delta"]["stop_reason"] == whole["stop_reason"]


@pytest.mark.parametrize(
    ("stops", "text", "left", "stop"),
    [
        (["b"], "aab", "aa", "b"),
        (["b", "ab"], "aab", "a", "ab"),
        (["x"], "aab", "aab", None),
        (["b"], "b", "", "b"),
        ([], "aab", "aab", None),
    ],
)
@pytest.mark.parametrize("finish", [FinishReason.STOP, FinishReason.LENGTH])
def test_the_stop_sequence_that_was_met(
    stops: list[str], text: str, left: str, stop: str | None, finish: FinishReason
) -> None:
    events, whole = told(message_writer(stops), message_writer(stops), [text], finish)
    if finish is FinishReason.LENGTH:
        left, stop = text, None
    assert "".join(block["text"] for block in whole["content"]) == left
    assert whole["stop_sequence"] == events[-2]["delta"]["stop_sequence"] == stop
    expected = "end_turn" if stop is None else "stop_sequence"
    assert whole["stop_reason"] == ("max_tokens" if finish is FinishReason.LENGTH else expected)
    written = [e["delta"]["text"] for e in events if e["type"] == "content_block_delta"]
    assert "".join(written) == left


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        ('{"a": "hal', {"a": "hal"}),
        ('{"a": {"b": [1', {"a": {"b": [1]}}),
        ("[1]", {"arguments": "[1]"}),
        ("{a}", {"arguments": "{a}"}),
    ],
)
def test_arguments_are_an_object_as_far_as_they_go(arguments: str, found: dict[str, Any]) -> None:
    assert arguments_object(arguments) == found
