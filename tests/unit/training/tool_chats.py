"""Chats with tools, as clients send them and as rows have them, and bases to encode them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tests.tokenizers import END, TEMPLATES, tokenizer_of
from tests.unit.server import chat_templates
from tests.unit.training.served import Row, Served

TEMPLATE = {
    "qwen": chat_templates.QWEN,
    "qwen 3": chat_templates.QWEN3,
    "llama 3": chat_templates.LLAMA3,
    "mistral": chat_templates.MISTRAL,
    "mistral, named": chat_templates.MISTRAL_NAMED,
    "knows no tools": chat_templates.SMOLLM2,
    "no system": chat_templates.NO_SYSTEM,
    "plain": TEMPLATES["plain"],
}
ONE_CALL = {"llama 3"}
"""Refuses two calls in an answer."""
CALLS_ALONE = {"llama 3", "mistral", "mistral, named"}
"""Write no content beside calls."""

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Says the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]
USER = {"role": "user", "content": "Rain?"}
ANSWER = {"role": "assistant", "content": "It is sunny."}


def call(id: str, name: str = "get_weather", **arguments: Any) -> Row:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": id, "type": "function", "function": function}


def calling(*calls: Row, content: str | None = None) -> Row:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def result(id: str, text: str) -> Row:
    return {"role": "tool", "tool_call_id": id, "content": text}


OSLO, ROME = call("aaaaaaaaa", city="Oslo"), call("call_2", city="Rome")
CHATS = {
    "a call": [USER, calling(OSLO)],
    "after a result": [USER, calling(OSLO), result("aaaaaaaaa", "sunny"), ANSWER],
    "calls in turn": [
        *(USER, calling(OSLO), result("aaaaaaaaa", "sunny")),
        *(calling(call("bbbbbbbbb", "clock")), result("bbbbbbbbb", "3"), ANSWER),
        *(USER, ANSWER),
    ],
    "two calls": [
        *(USER, calling(OSLO, ROME)),
        *(result("call_2", "rain"), result("aaaaaaaaa", "sunny"), ANSWER),
    ],
    "content beside a call": [USER, calling(OSLO, content="I look."), result("aaaaaaaaa", "s")],
    "with a system message": [{"role": "system", "content": "Be brief."}, USER, calling(OSLO)],
}


@cache
def served(template: str, family: str = "gpt2") -> Served:
    return Served(tokenizer_of(family, TEMPLATE.get(template, template).replace("<|eot_id|>", END)))


LIGHT: Row = {"name": "light", "arguments": {"room": "kitchen", "level": None}}
TRL = [
    {"role": "user", "content": "light"},
    {"role": "assistant", "tool_calls": [{"type": "function", "function": LIGHT}]},
    {"role": "tool", "name": "light", "content": "on"},
    {"role": "assistant", "content": "Done!"},
]
SCHEMA: Row = {
    "type": "function",
    "function": {
        "name": "light",
        "description": "Light.",
        "parameters": {"type": "object", "properties": {"room": {"type": "string"}}},
    },
}


def said(by: str, value: Any) -> Row:
    return {"from": by, "value": value if isinstance(value, str) else json.dumps(value)}
