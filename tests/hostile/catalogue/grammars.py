"""Grammars that explode, and tools in hundreds. Each try sends another one: none is remembered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from tests.hostile.acts import (
    CHAT,
    COMPLETIONS,
    LEFT,
    MESSAGES,
    MINE,
    RESPONSES,
    Entry,
    as_json,
    chat,
    completion,
    leave,
    post,
)

REFUSED = "400 at structured_outputs"
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["next"],
            "additionalProperties": False,
        }
    },
}


def regex(text: str) -> Callable[[int], bytes]:
    return lambda number: completion(structured_outputs={"regex": f"(?:{text})(?:|n{number})"})


def schema(value: dict[str, Any], max_tokens: int = 1) -> Callable[[int], bytes]:
    def make(number: int) -> bytes:
        named = {"name": "x", "schema": {**value, "description": str(number)}}
        wanted = {"type": "json_schema", "json_schema": named}
        return chat(response_format=wanted, max_tokens=max_tokens)

    return make


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        value = {"type": "object", "properties": {"a": value}, "required": ["a"]}
    return value


def function(number: int, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": f"f{number}", "parameters": parameters}}


def entries() -> Iterator[Entry]:
    yield from regexes()
    yield from schemas()
    yield from other_notations()
    yield from tools()


def regexes() -> Iterator[Entry]:
    for name, text, end in (
        ("repeats of repeats", "((a{1,1000}){1,1000}){1,1000}", "200"),
        ("alternatives that overlap", "(a|aa|aaa|a+)+b", "200"),
        ("a distance of 300", "(a|b)*a(a|b){300}", "200"),
        ("a hundred thousand characters", "[a-z]" * 20_000, "200"),
        ("classes of all letters, repeated", r"(\p{L}{1,500}\p{N}{1,500}){1,50}", "200"),
        ("what looks back", r"(a*)\1+", REFUSED),
        ("what matches nothing", r"[^\s\S]", REFUSED),
        ("200 kB", "x" * 200_000, "400 invalid_value at structured_outputs.regex"),
    ):
        yield Entry(f"a regex: {name}", post(COMPLETIONS, regex(text)), end)


def schemas() -> Iterator[Entry]:
    without_end = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    texts = {f"k{number}": {"type": "string"} for number in range(3000)}
    chosen = [{"type": "object", "properties": {f"k{n}": {"const": n}}} for n in range(400)]
    ranges = [{"type": "object", "patternProperties": {f"^a{n}": {}}} for n in range(30)]
    integers = {"type": "array", "minItems": 10_000, "items": {"type": "integer"}}
    for name, value in {
        "of a list without an end": TREE,
        "of 12,000 texts": {"enum": [f"{n}" for n in range(12_000)]},
        "60 deep": nested(60),
        "of 10,000 items": integers,
        "with a pattern that explodes": {"type": "string", "pattern": "^(a{1,500}){1,500}$"},
    }.items():
        yield Entry(f"a schema {name}", post(CHAT, schema(value)), "200")
    for name, value in {
        "that requires itself": without_end,
        "of 400 alternatives": {"anyOf": chosen},
        "of 3,000 properties": {"type": "object", "properties": texts},
        "of 30 that all hold": {"allOf": ranges},
        "of numbers of 600 digits": {"type": "number", "minimum": 1e-300, "maximum": 1e300},
        "that refers to a file": {"$ref": "file:///etc/passwd"},
        "that refers to the web": {"$ref": "http://169.254.169.254/"},
        "that refers to nothing": {"$ref": "#/$defs/none"},
    }.items():
        yield Entry(f"a schema {name}", post(CHAT, schema(value)), "400 at response_format")
    deep = b'{"a":' * 2600 + b"1" + b"}" * 2600
    body = b'{"model":"mine","prompt":"x","guided_json":' + deep + b"}"
    yield Entry("a schema 2,600 deep", post(COMPLETIONS, body), "400 invalid_json")
    followed = schema(TREE, max_tokens=200)
    yield Entry("200 tokens by a schema without an end", post(CHAT, followed), "200")
    left = schema({"anyOf": chosen})
    yield Entry("a schema, and away while it is compiled", leave(CHAT, left), LEFT)


def other_notations() -> Iterator[Entry]:
    def grammar(text: str) -> Callable[[int], bytes]:
        return lambda number: completion(structured_outputs={"grammar": f"{text}\n// {number}\n"})

    rules = "\n".join(f'r{n}: r{n + 1} r{n + 1} | "a"' for n in range(2000))
    for name, text, end in (
        ("ambiguous", 'start: start start start | start start | "a"', "200"),
        ("of 2,000 rules", f'start: r0\n{rules}\nr2000: "a"', REFUSED),
        ("left recursive", 'start: start "a" | "a"', "200"),
        ("that never ends", 'start: "a" start', REFUSED),
        ("of no sense", "start: ((((", REFUSED),
    ):
        yield Entry(f"a grammar {name}", post(COMPLETIONS, grammar(text)), end)
    many = "\n".join(f'r{n} ::= r{n + 1} | "a"' for n in range(1001))
    yield Entry(
        "a grammar of 1,001 rules to be translated",
        post(COMPLETIONS, grammar(f"root ::= r0\n{many}")),
        "400 invalid_value at structured_outputs.grammar",
    )

    def words(number: int) -> bytes:
        choice = [f"{number} {n} " + "x" * 100 for n in range(1024)]
        return completion(structured_outputs={"choice": choice})

    yield Entry("1,024 choices", post(COMPLETIONS, words), "200")
    chosen = completion(structured_outputs={"choice": ["x"] * 1025})
    end = "400 invalid_value at structured_outputs.choice"
    yield Entry("1,025 choices", post(COMPLETIONS, chosen), end)


def tools() -> Iterator[Entry]:
    text = {"type": "object", "properties": {"a": {"type": "string"}}}
    many = [function(number, text) for number in range(3000)]
    user = [{"role": "user", "content": "x"}]
    flat = [{"type": "function", "name": f"f{n}", "parameters": text} for n in range(3000)]
    theirs = [{"name": f"f{n}", "input_schema": text} for n in range(3000)]
    for path, body, end in (
        (CHAT, chat(tools=many), "400 too_long at tools"),
        (RESPONSES, as_json(model=MINE, input="x", tools=flat), "400 too_long at tools"),
        (
            MESSAGES,
            as_json(model=MINE, messages=user, max_tokens=1, tools=theirs),
            "400 invalid_request_error",
        ),
    ):
        yield Entry(f"3,000 functions to {path}", post(path, body), end)
    some = {"type": "object", "properties": {"a": {"enum": list(range(10))}}}

    def required(number: int) -> bytes:
        made = [function(128 * number + n, some) for n in range(8)]
        return chat(tools=made, tool_choice="required", max_tokens=8)

    yield Entry("8 functions, one of which must be called", post(CHAT, required), "200")
    long = {"type": "object", "properties": {"a": {"enum": ["x" * 1900]}}}
    heavy = [function(number, long) for number in range(128)]
    yield Entry(
        "128 functions of 2 kB",
        post(CHAT, chat(tools=heavy)),
        "400 context_length_exceeded at messages",
    )
    arguments = json.dumps({"a": "[" * 100_000})
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments}}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    yield Entry(
        "a call with arguments of 100 kB",
        post(CHAT, chat(messages=[*user, called])),
        "400 context_length_exceeded at messages",
    )
