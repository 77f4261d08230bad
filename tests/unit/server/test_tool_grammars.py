"""What grammars of calls allow, by a real tokenizer: the family's form, and arguments that fit."""

from __future__ import annotations

from functools import cache
from typing import Any

import llguidance.hf
import pytest
from llguidance import LLMatcher
from tokenizers import AddedToken

from remix_runtime.chats.families import HERMES, JSON, LLAMA3, MISTRAL, MISTRAL_NAMED, Family
from remix_runtime.contracts import Grammar, GrammarKind
from remix_runtime.errors import InvalidRequestError
from server.api.parts import parse_whole
from server.api.tools.grammar import GrammarForm, Thought, require_usable
from server.api.tools.parser import CallParser
from server.api.wire.tools import Function
from tests.tokenizers import tokenizer_of

F = Function(
    name="f",
    parameters={
        "properties": {"a": {"$ref": "#/$defs/number"}, "$ref": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
        "$defs": {"number": {"type": "integer"}},
    },
    strict=True,
)
G = Function(name="g")
FITS, ALSO, WRONG = '{"a": 1}', '{\n  "a": 1\n}', '{"a": "x"}'
MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]")


@cache
def backend(marks: bool) -> tuple[Any, Any]:
    tokenizer = tokenizer_of("llama 3")
    if marks:
        tokenizer.add_tokens([AddedToken(m, special="[" in m, normalized=False) for m in MARKS])
    return tokenizer, llguidance.hf.from_tokenizer(tokenizer)


def form(family: Family, marks: bool, thought: Thought = Thought.NEVER) -> GrammarForm:
    tokenizer, _ = backend(marks)
    tokens = {m: tokenizer.convert_tokens_to_ids(m) for m in MARKS} if marks else {}
    return GrammarForm(family=family, thought=thought, tokens=tokens)


def allows(grammar: Grammar, text: str, marks: bool) -> bool:
    tokenizer, backed = backend(marks)
    assert grammar.kind is GrammarKind.LARK
    matcher = LLMatcher(backed, LLMatcher.grammar_from_lark(grammar.text))
    assert not matcher.is_error(), matcher.get_error()
    ids = tokenizer.encode(text, add_special_tokens=False)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def written(family: Family, *calls: tuple[str, str]) -> str:
    """Calls as the family writes them."""
    key = family.arguments_key
    objects = [f'{{"name": "{name}", "{key}": {arguments}}}' for name, arguments in calls]
    if family == HERMES:
        return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in objects)
    if family == LLAMA3:
        return "; ".join(objects)
    if family == MISTRAL:
        return f"[TOOL_CALLS][{', '.join(objects)}]"
    if family == MISTRAL_NAMED:
        return "".join(f"[TOOL_CALLS]{name}[ARGS]{arguments}" for name, arguments in calls)
    return "\n".join(objects)


FAMILIES = pytest.mark.parametrize("family", [HERMES, LLAMA3, MISTRAL, MISTRAL_NAMED, JSON])
WITH_MARKS = pytest.mark.parametrize("marks", [True, False], ids=["tokens", "text"])


@FAMILIES
@WITH_MARKS
def test_a_call_must_come(family: Family, marks: bool) -> None:
    grammar = form(family, marks).must_call([F, G], many=True)
    one, two = written(family, ("f", FITS)), written(family, ("f", ALSO), ("g", "{}"))
    for text, allowed in {
        one: True,
        two: True,
        written(family, ("f", WRONG)): False,
        written(family, ("f", '{"a": 1, "b": 2}')): False,
        written(family, ("f", "{}")): False,
        written(family, ("g", FITS)): False,
        written(family, ("h", "{}")): False,
        "": False,
        "Hello": False,
        f"Hello\n{one}": False,
        f"{one} Hello": False,
    }.items():
        assert allows(grammar, text, marks) == allowed, text
    single = form(family, marks).must_call([F, G], many=False)
    assert allows(single, one, marks)
    assert not allows(single, two, marks)
    # One parser reads what any of these grammars leads to.
    answer = parse_whole(CallParser(family.openers, {"f", "g"}), two)
    assert [(call.name, call.arguments) for call in answer.calls] == [("f", ALSO), ("g", "{}")]
    assert answer.text == ""


@FAMILIES
@WITH_MARKS
def test_calls_of_strict_tools_fit_in_free_text(family: Family, marks: bool) -> None:
    grammar = form(family, marks).strict_calls([F, Function(name="free", parameters={})])
    for text, allowed in {
        "": True,
        "Hello {you}\n": True,
        written(family, ("f", FITS)): True,
        f"Well: {written(family, ('f', ALSO))} and so on": True,
        written(family, ("f", FITS), ("f", FITS)): True,
        written(family, ("f", WRONG)): False,
        written(family, ("f", "{}")): False,
        written(family, ("f", FITS), ("f", WRONG)): False,
        '{"name": "f",\n "arguments" :\n{"a": 1}}': True,
        '{"name": "f", "parameters": {"a": null}}': False,
        written(family, ("free", WRONG)): True,
        '{"name": "other", "arguments": {"a": null}}': True,
    }.items():
        assert allows(grammar, text, marks) == allowed, text


@WITH_MARKS
@pytest.mark.parametrize(
    ("thought", "before", "allowed"),
    [
        (Thought.NEVER, "", True),
        (Thought.NEVER, "<think>so</think>", False),
        (Thought.MAYBE, "", True),
        (Thought.MAYBE, "<think>\nso\n</think>\n\n", True),
        (Thought.MAYBE, "so</think>", False),
        (Thought.BEGUN, "so\n</think>\n\n", True),
        (Thought.BEGUN, "</think>", True),
        (Thought.BEGUN, "", False),
    ],
)
def test_thoughts_come_before_what_must_come(
    marks: bool, thought: Thought, before: str, allowed: bool
) -> None:
    call = written(HERMES, ("f", FITS))
    grammar = form(HERMES, marks, thought).must_call([F], many=True)
    assert allows(grammar, before + call, marks) == allowed
    assert not allows(grammar, before + "Hello", marks)
    schema = Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object", "required": ["x"]}')
    structured = form(HERMES, marks, thought).must_answer(schema)
    assert allows(structured, before + '{"x": 1}', marks) == allowed
    assert not allows(structured, before + "{}", marks)


@FAMILIES
@WITH_MARKS
def test_calls_or_an_answer_of_a_form(family: Family, marks: bool) -> None:
    schema = Grammar(
        GrammarKind.JSON_SCHEMA,
        '{"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}},'
        '"required": ["name", "n"], "additionalProperties": false}',
    )
    grammar = form(family, marks).must_call([F, G], many=True, answer=schema)
    for text, allowed in {
        written(family, ("f", FITS)): True,
        written(family, ("f", FITS), ("g", "{}")): True,
        written(family, ("f", WRONG)): False,
        '{"name": "f", "n": 3}': True,
        '{"name":"x","n":3}': True,
        '{"name": "f"}': False,
        "Hello": False,
    }.items():
        assert allows(grammar, text, marks) == allowed, text


@pytest.mark.parametrize(("text", "allowed"), [("a/b/c", True), ("a/b", False)])
def test_an_expression_after_a_thought(text: str, allowed: bool) -> None:
    expression = Grammar(GrammarKind.REGEX, r"a/b\/c")
    grammar = form(HERMES, True, Thought.BEGUN).must_answer(expression)
    assert allows(grammar, "so</think>" + text, True) == allowed


def test_rules_of_the_clients_own_do_not_go_into_others() -> None:
    rules = Grammar(GrammarKind.LARK, 'start: "x"')
    with pytest.raises(InvalidRequestError) as refused:
        form(HERMES, True).must_call([F], many=True, answer=rules)
    assert refused.value.param == "structured_outputs"


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"properties": {"x": {"type": "objekt"}}}, "objekt"),
        ({"properties": {"x": {"$ref": "#/$defs/nope"}}}, "nope"),
        ({"properties": {"x": {"$ref": "http://127.0.0.1:9/x"}}}, "127.0.0.1"),
        ({"properties": {"x": False}, "required": ["x"]}, "unsatisfiable"),
        ({"properties": {"x": {"type": "string", "pattern": "("}}}, "regex"),
    ],
)
def test_parameters_that_no_grammar_can_be_made_of(
    parameters: dict[str, Any], says: str, strict: bool
) -> None:
    function = Function(name="f", parameters=parameters, strict=strict)
    with pytest.raises(InvalidRequestError, match=says) as refused:
        require_usable(function, "tools[3].function.parameters")
    assert refused.value.param == "tools[3].function.parameters"
    assert "\n" not in str(refused.value)


def test_only_strict_tools_need_what_grammars_know() -> None:
    parameters = {"properties": {"x": {"type": "array", "uniqueItems": True}}}
    require_usable(Function(name="f", parameters=parameters), "tools")
    with pytest.raises(InvalidRequestError, match="uniqueItems"):
        require_usable(Function(name="f", parameters=parameters, strict=True), "tools")


def test_white_space_has_an_end() -> None:
    grammar = form(JSON, False).must_call([F], many=False)
    assert allows(grammar, '{"name": "f", "arguments": {"a":' + " " * 20 + "1}}", False)
    assert not allows(grammar, '{"name": "f", "arguments": {"a":' + " " * 21 + "1}}", False)


def test_parameters_that_require_themselves_without_an_end() -> None:
    endless = {"properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    with pytest.raises(InvalidRequestError, match="without an end"):
        require_usable(Function(name="f", parameters=endless), "tools[0].function.parameters")
    require_usable(Function(name="f", parameters={**endless, "required": []}), "tools")
