"""What an answer must look like: every way to say it, and every wrong way."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from remix_runtime.contracts import Grammar, GrammarKind
from remix_runtime.engines.fake import FakeEngine
from remix_runtime.errors import InvalidRequestError
from tests.unit.server.harness import Server
from tests.unit.server.test_bad_input import check_error

SCHEMA = {"type": "object", "properties": {"ä": {"const": 'q"'}}, "required": ["ä"]}
NAMED = {"name": "answer", "schema": SCHEMA, "strict": True}
ANY_OBJECT = Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}')
SCHEMA_GRAMMAR = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA, ensure_ascii=False))
GBNF = 'root ::= ("yes" | "no") " "\n'


async def grammar_of(server: Server, **body: Any) -> Grammar | None:
    """What reaches the engine, the same from both endpoints."""
    server.engine.requests.clear()
    for response in (await server.complete(**body), await server.chat(**body)):
        assert response.status_code == 200, response.text
    first, second = (request.params.grammar for request in server.engine.requests)
    assert first == second
    return first


@pytest.mark.parametrize(
    ("body", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
        ({"response_format": {"type": "json_schema", "json_schema": NAMED}}, SCHEMA_GRAMMAR),
        (
            {"response_format": {"type": "json_schema", "json_schema": {**NAMED, "strict": None}}},
            SCHEMA_GRAMMAR,
        ),
        ({"structured_outputs": {"json": SCHEMA}}, SCHEMA_GRAMMAR),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, SCHEMA_GRAMMAR),
        ({"structured_outputs": {"json_object": True, "regex": None}}, ANY_OBJECT),
        ({"structured_outputs": {"regex": "a+"}}, Grammar(GrammarKind.REGEX, "a+")),
        (
            {"structured_outputs": {"regex": "a", "disable_any_whitespace": False}},
            Grammar(GrammarKind.REGEX, "a"),
        ),
        ({"guided_json": SCHEMA, "response_format": {"type": "text"}}, SCHEMA_GRAMMAR),
        ({"guided_json": json.dumps(SCHEMA), "guided_regex": None}, SCHEMA_GRAMMAR),
        ({"guided_regex": "[0-9]"}, Grammar(GrammarKind.REGEX, "[0-9]")),
        ({"guided_grammar": 'start: "a"'}, Grammar(GrammarKind.LARK, 'start: "a"')),
    ],
)
async def test_every_way_to_ask(server: Server, body: dict[str, Any], grammar: Grammar) -> None:
    assert await grammar_of(server, **body) == grammar


def accepts(grammar: Grammar, text: str) -> bool:
    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(grammar.text))
    assert not matcher.is_error(), matcher.get_error()
    return all(map(matcher.consume_token, text.encode())) and matcher.is_accepting()


@pytest.mark.parametrize(
    "ask", [lambda c: {"guided_choice": c}, lambda c: {"structured_outputs": {"choice": c}}]
)
async def test_choices_are_literal(server: Server, ask: Any) -> None:
    choices = ['a"b', "a\\nb", "new\nline", "\x01\x7f\x85", "é🌍", '| "x"', "//", "start: a", "a|b"]
    grammar = await grammar_of(server, **ask(choices))
    assert grammar is not None
    assert grammar.kind is GrammarKind.LARK
    assert all(accepts(grammar, choice) for choice in choices)
    assert not any(accepts(grammar, other) for other in ("x", "a", "", "a\nb", "é🌍é"))


@pytest.mark.parametrize(
    "ask", [lambda g: {"guided_grammar": g}, lambda g: {"structured_outputs": {"grammar": g}}]
)
async def test_gbnf_becomes_lark(server: Server, ask: Any) -> None:
    grammar = await grammar_of(server, **ask(GBNF))
    assert grammar is not None
    assert grammar.kind is GrammarKind.LARK
    assert [accepts(grammar, text) for text in ("yes ", "no ", "yes", "maybe ")] == [True] * 2 + [
        False
    ] * 2


LONG = "a" * ((1 << 17) + 1)
DEEP = "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000


@pytest.mark.parametrize(
    ("body", "param"),
    [
        *[({"response_format": v}, "response_format") for v in (1, "json_object", [])],
        *[({"response_format": v}, "response_format.type") for v in ({}, {"type": "xml"})],
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_object", "json_schema": NAMED}},
            "response_format.json_schema",
        ),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
        *[
            (
                {"response_format": {"type": "json_schema", "json_schema": {"name": "a", **v}}},
                f"response_format.json_schema.{name}",
            )
            for v, name in (
                ({}, "schema"),
                ({"schema": None}, "schema"),
                ({"schema": "{}"}, "schema"),
                ({"schema": {"const": LONG}}, "schema"),
                ({"schema": {}, "strict": 1}, "strict"),
                ({"schema": {}, "other": 1}, "other"),
            )
        ],
        *[
            ({"structured_outputs": v}, "structured_outputs")
            for v in ({}, {"json_object": False}, {"regex": "a", "json": {}}, 5, "a")
        ],
        *[
            ({"structured_outputs": {"regex": "a", name: value}}, f"structured_outputs.{name}")
            for name, value in {
                "whitespace_pattern": " ",
                "disable_any_whitespace": True,
                "disable_additional_properties": True,
                "structural_tag": "{}",
                "backend": "auto",
            }.items()
        ],
        *[
            ({"structured_outputs": {"json": v}}, "structured_outputs.json")
            for v in (1, [], "[", "1")
        ],
        *[({"guided_json": v}, "guided_json") for v in (True, "{", '"a"', LONG)],
        *[({"guided_regex": v}, "guided_regex") for v in ("", 1, "a\0", LONG)],
        *[
            ({"guided_choice": v}, "guided_choice")
            for v in ([], "a", [1], [""], ["a\0"], ["a"] * 1025, [LONG], ["a" * 1000] * 1000)
        ],
        *[
            ({"guided_grammar": v}, "guided_grammar")
            for v in ("", 1, "x", "root ::= foo", 'root ::= "\\', DEEP, 'a ::= "a"\n' * 1001, LONG)
        ],
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
        ),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"guided_decoding_backend": "outlines"}, "guided_decoding_backend"),
    ],
    ids=lambda v: f"{v}"[:60],
)
async def test_wrong_structure(server: Server, body: dict[str, Any], param: str) -> None:
    for response in (await server.complete(**body), await server.chat(**body)):
        assert check_error(response, 400)["param"] == param
    assert server.engine.requests == []
    await server.expect_good_request()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", {"type": "json_object"}),
        ("structured_outputs", {"regex": "a"}),
        ("guided_json", {}),
        ("guided_regex", "a"),
        ("guided_choice", ["a"]),
        ("guided_grammar", 'start: "a"'),
    ],
)
async def test_what_the_engine_refuses_has_the_clients_name(
    server: Server, field: str, value: Any, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: FakeEngine, *_: Any) -> None:
        raise InvalidRequestError("no such grammar", param="response_format")

    monkeypatch.setattr(FakeEngine, "_open", refuse)
    body = {field: value, "stream": stream}
    for response in (await server.complete(**body), await server.chat(**body)):
        error = check_error(response, 400)
        assert (error["param"], error["message"]) == (field, "no such grammar")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 5}}},
        ),
        ("structured_outputs", {"regex": "("}),
        ("guided_json", {"type": "strange"}),
        ("guided_regex", "["),
        ("guided_grammar", 'start: "a'),
    ],
)
async def test_what_cannot_be_compiled_has_the_clients_name(
    server: Server, field: str, value: Any, stream: bool
) -> None:
    body = {field: value, "stream": stream}
    for response in (await server.complete(**body), await server.chat(**body)):
        assert check_error(response, 400)["param"] == field
    assert server.engine.requests == []
    await server.expect_good_request()


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        ({"guided_choice": ["yes", "no"]}, {"yes", "no"}),
        ({"structured_outputs": {"regex": "[ab]"}}, {"a", "b"}),
        ({"guided_grammar": GBNF}, {"yes ", "no "}),
        ({"guided_json": {"enum": ["é", 7]}}, {'"é"', "7"}),
    ],
)
async def test_answers_are_what_was_asked_for(
    server: Server, body: dict[str, Any], texts: set[str]
) -> None:
    for seed in range(4):
        choice = (await server.complete(**body, seed=seed, max_tokens=60)).json()["choices"][0]
        assert choice["text"] in texts
        assert choice["finish_reason"] == "stop"
        answer = (await server.chat(**body, seed=seed, max_tokens=60)).json()["choices"][0]
        assert answer["message"]["content"] in texts
