"""Bodies: what the OpenAPI documents allow and forbid, what is known to work, and what becomes of
them field by field."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.core import NotSet

METHODS = ("get", "put", "post", "delete", "patch")


@dataclass(frozen=True)
class Operation:
    """Of an OpenAPI document."""

    method: str
    path: str
    """With names in braces."""
    has_body: bool
    statuses: frozenset[str]


@dataclass(frozen=True)
class Drawn:
    """What schemathesis made for an operation; a body is None where there is none."""

    body: Any
    query: dict[str, Any]


def operations_of(document: dict[str, Any]) -> list[Operation]:
    return [
        Operation(
            method.upper(),
            path,
            "requestBody" in described,
            frozenset(described["responses"]),
        )
        for path, operations in document["paths"].items()
        for method, described in operations.items()
        if method in METHODS
    ]


def names_of(document: dict[str, Any]) -> list[str]:
    """All names of fields in a document."""
    found: set[str] = set()

    def look(node: Any) -> None:
        if isinstance(node, dict):
            properties = node.get("properties")
            found.update(properties if isinstance(properties, dict) else ())
            for value in node.values():
                look(value)
        elif isinstance(node, list):
            for item in node:
                look(item)

    look(document)
    return sorted(found)


def draw(document: dict[str, Any], number: int, each: int) -> dict[tuple[str, str], list[Drawn]]:
    """`each` right ones and `each` wrong ones for every operation with a body or a query."""
    drawn: dict[tuple[str, str], list[Drawn]] = {}
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = result.ok()
        if not (operation.body or operation.query):
            continue
        found = drawn.setdefault((operation.method.upper(), operation.path), [])
        for mode in GenerationMode:
            _draw_into(found, operation, mode, number, each)
    return drawn


def _draw_into(
    found: list[Drawn], operation: Any, mode: GenerationMode, number: int, each: int
) -> None:
    @seed(number)
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=each,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def take(case: schemathesis.Case) -> None:
        body = None if isinstance(case.body, NotSet) else case.body
        try:
            json.dumps(body)
        except (TypeError, ValueError):
            return  # not to be sent as JSON
        found.append(Drawn(body, dict(case.query or {})))

    take()


# -- what is known to work ------------------------------------------------------------------------

_TOOL_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "days": {"type": "integer"}},
    "required": ["city"],
}
_FUNCTION = {"name": "weather", "description": "Of a city", "parameters": _TOOL_SCHEMA}
_TOOLS = [{"type": "function", "function": _FUNCTION}]
_CALL = {"name": "weather", "arguments": '{"city": "Rome"}'}
_HISTORY: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": _CALL}]},
    {"role": "tool", "tool_call_id": "1", "content": "20"},
]
_CHAT: list[Any] = [{"role": "user", "content": "Hi"}]
_BASIC = {"max_tokens": 6}
_SAMPLING = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "seed": 3,
    "n": 2,
    "stop": ["x", "yy"],
    "stop_token_ids": [7],
    "logit_bias": {"65": 5},
    "min_tokens": 1,
    "bad_words": ["bad"],
    "ignore_eos": True,
    "skip_special_tokens": False,
    "include_stop_str_in_output": True,
}
_SCHEMA = {"type": "object", "properties": {"a": {"enum": ["b", "c"]}}, "required": ["a"]}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "f", "schema": _SCHEMA}}
_COMPLETIONS: list[Any] = [
    {"prompt": "Hello", **_BASIC},
    {"prompt": ["a", "b"], "echo": True, "logprobs": 2, **_BASIC, **_SAMPLING},
    {"prompt": [[1, 2], [3]], "prompt_logprobs": 1, "max_tokens": 0},
    {"prompt": [1, 2, 3], "stream": True, "stream_options": {"include_usage": True}, **_BASIC},
    {"prompt": "a", "structured_outputs": {"regex": "[ab]{1,4}"}, "max_tokens": 9},
    {"prompt": "a", "guided_choice": ["one", "two"], "truncate_prompt_tokens": 1},
    {"prompt": "a", "guided_grammar": 'root ::= "a" | "b"', "return_token_ids": True},
    {"prompt": "a", "allowed_token_ids": [65, 66], "request_id": "mine", **_BASIC},
]
_CHATS: list[Any] = [
    {"messages": _CHAT},
    {"messages": _HISTORY, "tools": _TOOLS, "tool_choice": "auto", **_BASIC},
    {"messages": _CHAT, "tools": _TOOLS, "tool_choice": "required", "stream": True, **_BASIC},
    {"messages": _CHAT, "logprobs": True, "top_logprobs": 2, **_BASIC, **_SAMPLING},
    {"messages": _CHAT, "response_format": _FORMAT, "max_completion_tokens": 12},
    {"messages": [*_CHAT, {"role": "assistant", "content": "So"}], "echo": True, **_BASIC}
    | {"add_generation_prompt": False, "continue_final_message": True},
    {"messages": _CHAT, "reasoning_effort": "none", "stream": True, "metadata": {"a": "b"}},
]
_RESPONSES: list[Any] = [
    {"input": "Hi", "max_output_tokens": 6},
    {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "function_call", "call_id": "1", **_CALL},
            {"type": "function_call_output", "call_id": "1", "output": "20"},
        ],
        "tools": [{"type": "function", **_FUNCTION}],
        "instructions": "Be brief.",
        "stream": True,
        "store": False,
    },
    {"input": "a", "text": {"format": {"type": "json_schema", "name": "f", "schema": _SCHEMA}}},
    {"input": "a", "previous_response_id": "resp_none", "include": [], "reasoning": {}},
    {"input": [{"type": "item_reference", "id": "msg_none"}], "metadata": {"a": "b"}},
]
_MESSAGES: list[Any] = [
    {"messages": _CHAT, "max_tokens": 6},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "1", "name": "weather", "input": {}}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "1", "content": "20"}],
            },
        ],
        "system": [{"type": "text", "text": "Be brief."}],
        "tools": [{"name": "weather", "input_schema": _TOOL_SCHEMA}],
        "tool_choice": {"type": "any"},
        "stop_sequences": ["x"],
        "stream": True,
        "max_tokens": 6,
    },
    {"messages": _CHAT, "max_tokens": 6, "thinking": {"type": "disabled"}, "top_k": 2},
]


def known(operation: Operation, digests: list[str]) -> list[Any]:
    """Bodies that are taken, but for the model's name."""
    sets = [{"adapters": {"x": digests[0]}}, {"adapters": {"a": digests[0], "b": digests[1]}}]
    return {
        "/v1/completions": _COMPLETIONS,
        "/v1/chat/completions": _CHATS,
        "/invocations": [*_CHATS, *_COMPLETIONS],
        "/v1/responses": _RESPONSES,
        "/v1/responses/input_tokens": _RESPONSES,
        "/v1/messages": _MESSAGES,
        "/v1/messages/count_tokens": [
            {name: body[name] for name in body if name not in ("max_tokens", "stream")}
            for body in _MESSAGES
        ],
        "/tokenize": [{"prompt": "a b"}, {"messages": _HISTORY, "return_token_strs": True}],
        "/detokenize": [{"tokens": [65, 66, 200]}],
        "/admin/v1/tenants": [{"id": "victim"}, {"id": "other-7"}],
        "/admin/v1/tenants/{tenant}/quota": [
            {"requests_per_minute": 5, "tokens_per_minute": None, "may_use_base": True},
            {"max_concurrent": 3},
        ],
        "/admin/v1/tenants/{tenant}/set": sets,
        "/admin/v1/tenants/{tenant}/set/rollback": [{"revision": 1}, {"revision": 0}],
        # None that is asked beyond this machine.
        "/admin/v1/adapters": [
            {"source": text}
            for text in ("adapter-0", "../adapter-0", "nowhere", "http://127.0.0.1/x", "/etc")
        ]
        + [
            {"source": text}
            for text in ("file:///a%00b", "file://[", "https://a:99999", "https://..", "file:///a")
        ],
        "/v1/load_lora_adapter": [
            {"lora_name": "z", "lora_path": "adapter-1", "load_inplace": True},
            {"lora_name": "x", "lora_path": "adapter-0"},
        ],
        "/v1/unload_lora_adapter": [{"lora_name": "z"}, {"lora_name": "x"}],
    }.get(operation.path, [])


# -- what becomes of them -------------------------------------------------------------------------


class Raw:
    """Bytes in the place of a JSON value."""

    def __init__(self, text: bytes) -> None:
        self.text = text


class Twice(dict[str, Any]):
    """An object whose first name comes again at its end."""


def _deep(kind: bytes, depth: int) -> Raw:
    opened, closed = (b"[", b"]") if kind == b"[" else (b'{"a":', b"}")
    return Raw(opened * depth + b"1" + closed * depth)


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 1.5, 3.0, -0.0, 1e308, 5e-324, 2**31, 2**63, -(2**63) - 1),
    *(10**40, "", "a", "\0", "a\0b", "💥", "\u2028", "\u202e", "é" * 300, "x" * 3000, "1", "true"),
    *("null", "x\ny", "../..", "%00", "{{ 1 }}", "<|im_start|>", "$ref", "__class__"),
    *([], {}, [[]], [None], [0] * 500, ["a"] * 200, {"": None}, {"a": {"b": []}}, [{}] * 50),
    *(Raw(b"NaN"), Raw(b"Infinity"), Raw(b"-Infinity"), Raw(b"1e999"), Raw(b"-1e999"), Raw(b"01")),
    *(Raw(b'"\\ud800"'), Raw(b'"\\udfff\\ud800"'), Raw(b'"\xff"'), Raw(b'"\xed\xa0\x80"')),
    *(Raw(b"9" * 5000), Raw(b"1" + b"0" * 400 + b".5"), Raw(b""), Raw(b"'a'"), Raw(b"[1,]")),
    *(_deep(b"[", 100), _deep(b"[", 5000), _deep(b"{", 100), _deep(b"{", 3000)),
)


def _replace(chance: random.Random, holder: Any, key: Any) -> None:
    holder[key] = chance.choice(ODD)


def _remove(_: random.Random, holder: Any, key: Any) -> None:
    del holder[key]


def _wrap(chance: random.Random, holder: Any, key: Any) -> None:
    holder[key] = chance.choice(([holder[key]], {"a": holder[key]}, {"type": holder[key]}))


def _repeat(chance: random.Random, holder: Any, key: Any) -> None:
    value = holder[key]
    if isinstance(value, str):
        holder[key] = value * chance.choice((2, 100))
    elif isinstance(value, list):
        holder[key] = value * chance.choice((2, 20, 130))
    else:
        holder[key] = [value] * 3


def _as_text(_: random.Random, holder: Any, key: Any) -> None:
    holder[key] = write(holder[key]).decode("utf-8", "replace")


_CHANGES: tuple[Callable[[random.Random, Any, Any], None], ...] = (
    *(_replace, _replace, _replace, _replace, _remove, _wrap, _repeat, _as_text),
)


def change(chance: random.Random, body: Any, names: list[str]) -> Any:
    """The body with one thing changed, somewhere."""
    body = copy.deepcopy(body)
    places = list(_places(body))
    kind = chance.random()
    if kind < 0.03 or not isinstance(body, dict):
        return chance.choice(ODD)
    if kind < 0.25 or not places:
        body[chance.choice(names) if chance.random() < 0.9 else "x" * 200] = chance.choice(ODD)
    elif kind < 0.28:
        return Twice(body)
    else:
        chance.choice(_CHANGES)(chance, *chance.choice(places))
    return body


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    items: Any = ()
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    for key, value in items:
        yield node, key
        yield from _places(value)


def write(value: Any) -> bytes:
    """JSON, where it is."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        members = [(json.dumps(name).encode(), write(item)) for name, item in value.items()]
        if isinstance(value, Twice):
            members += members[:1]
        return b"{" + b", ".join(name + b": " + item for name, item in members) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b",".join(map(write, value)) + b"]"
    return json.dumps(value, ensure_ascii=isinstance(value, str) and len(value) % 2 == 0).encode(
        "utf-8", "surrogatepass"
    )
