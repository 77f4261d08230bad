"""Calls in what models write: the same whatever the cuts, and nothing is lost that is no call."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from remix_runtime.chats.families import HERMES, JSON, LLAMA3, MISTRAL, MISTRAL_NAMED, Family
from server.api.parts import (
    Answer,
    AnswerParser,
    CallDelta,
    CallStart,
    ReasoningDelta,
    TextDelta,
    parse_whole,
)
from server.api.tools.call_text import MAX_UNDECIDED
from server.api.tools.parser import CallParser, new_call_id
from server.api.tools.special import HidingParser
from server.api.tools.thoughts import ThoughtParser

NAMES = {"f", "get_weather"}
F = '{"name": "f", "arguments": {"a": 1}}'
W = '{"name": "get_weather", "arguments": {"city": "São Paulo {}[]", "days": [1, {"x": null}]}}'
P = W.replace("arguments", "parameters")
F_ARGS, W_ARGS = '{"a": 1}', '{"city": "São Paulo {}[]", "days": [1, {"x": null}]}'
BOTH = [("f", F_ARGS), ("get_weather", W_ARGS)]
FAMILIES = {
    "hermes": HERMES,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "mistral, named": MISTRAL_NAMED,
    "json": JSON,
}

Said = tuple[str, list[tuple[str, str]]]


def parser_of(family: Family, **more: object) -> CallParser:
    return CallParser(family.openers, NAMES, **more)  # type: ignore[arg-type]


def said(answer: Answer) -> Said:
    return answer.text, [(call.name, call.arguments) for call in answer.calls]


CALLS: dict[tuple[str, str], Said] = {
    ("hermes", f"<tool_call>\n{F}\n</tool_call>"): ("", BOTH[:1]),
    ("hermes", f"<tool_call>\n{F}\n</tool_call>\n<tool_call>\n{W}\n</tool_call>\n"): ("", BOTH),
    ("hermes", f"I will look.\n\n<tool_call>{F}</tool_call>"): ("I will look.", BOTH[:1]),
    ("hermes", f"<tool_call>{F}</tool_call>\nThat is all."): ("\nThat is all.", BOTH[:1]),
    ("hermes", f"<tool_call>\n{F}\n{W}\n</tool_call>"): ("", BOTH),
    ("hermes", f"<tool_call>\n{F[:-1]}\n</tool_call>\n<tool_call>{W}"): ("", BOTH),
    ("hermes", f"\n\n<tool_call>\n{F}\n</tool"): ("", BOTH[:1]),
    ("llama3", f"<|python_tag|>{F.replace('arguments', 'parameters')}; {P}"): ("", BOTH),
    ("llama3", f'{{"type": "function", {P[1:]}'): ("", BOTH[1:]),
    ("llama3", f"Sure.<|python_tag|>{P}"): ("Sure.", BOTH[1:]),
    ("mistral", f"[TOOL_CALLS] [{F}, {W}]"): ("", BOTH),
    ("mistral", f'[TOOL_CALLS][{F[:-1]}, "id": "abcdefghi"}}]'): ("", BOTH[:1]),
    ("mistral, named", f"[TOOL_CALLS]f[ARGS]{F_ARGS}[TOOL_CALLS]get_weather[ARGS]{W_ARGS}"): (
        "",
        BOTH,
    ),
    ("mistral, named", f"[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{F_ARGS}"): ("", BOTH[:1]),
    ("json", f"{F}\n{W}"): ("", BOTH),
    ("json", f"[{F},\n {W}]\n"): ("", BOTH),
    ("json", f"```json\n{F}\n{W}\n```"): ("", BOTH),
    ("json", f"Here it is:\n```json\n[{W}]\n```\nDone."): ("Here it is:\n\nDone.", BOTH[1:]),
    ("json", '{"arguments": {"a": 1}, "name": "f"}'): ("", BOTH[:1]),
    ("json", json.dumps({"name": "f", "arguments": F_ARGS})): ("", BOTH[:1]),
    ("json", '{"name": "f"}'): ("", [("f", "{}")]),
    ("json", '{"name": "f", "arguments": null}'): ("", [("f", "{}")]),
    ("json", '{"name": "f", "arguments": {"code": "a\nb\tc"}}'): (
        "",
        [("f", r'{"code": "a\nb\tc"}')],
    ),
    ("json", '{"name": "f", "arguments": {"n": -1.5e3, "m": 0}, "why": "because"}'): (
        "",
        [("f", '{"n": -1.5e3, "m": 0}')],
    ),
    # Cut by its length, as OpenAI gives it; and no JSON, as the model wrote it.
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": "lo'): ("", [("f", '{"a": "lo')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1,, 2}}</tool_call>so'): (
        "so",
        [("f", '{"a": 1,, 2}}')],
    ),
}
TEXTS = [
    "",
    " \n",
    "  Hello {name}, [1] is `x` and ``` is a fence. \n",
    "<tool_call> is a tag",
    "<tool_call>\nnot JSON\n</tool_call>",
    f"<tool_call>{F[:20]}",
    f"<tool_call>\n{F.replace('f', 'unknown', 1)}\n</tool_call>\n",
    '{"name": "unknown", "arguments": {}}',
    '{"name": 5, "arguments": {}}',
    '{"name": {"f": 1}, "arguments": {}}',
    '{"name": "\\ud800", "arguments": {}}',
    '{"name": "f", "arguments": [1]}',
    '{"name": "f", "arguments": "[1]"}',
    '{"name": "f", "arguments": "{"}',
    '{"name": "f", "arguments": tru}',
    '{"answer": 42, "name": "f"}',
    '[{"answer": 42}]',
    "[1, 2, 3]\n[\n\n[",
    "{\n{\n{\n",
    "{}\n[]\n",
    "```json\n{}\n```",
    "```python\nprint({'a': 1})\n```\n",
    "[TOOL_CALLS]",
    "[TOOL_CALLS]unknown[ARGS]{}",
    "[TOOL_CALLS] Hm. [TOOL_CALLS]",
    "<|python_tag|>print(1)",
    f"a call in a line: {F}",
    '{"arguments": {"a": "' + "x" * MAX_UNDECIDED + '"}, "name": "f"}',
]


@pytest.mark.parametrize(("written", "expected"), CALLS.items(), ids=lambda v: str(v)[:50])
def test_calls(written: tuple[str, str], expected: Said) -> None:
    family, text = written
    assert said(parse_whole(parser_of(FAMILIES[family]), text)) == expected


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("text", TEXTS, ids=lambda v: v[:20])
def test_what_is_no_call_stays_text_to_the_letter(family: Family, text: str) -> None:
    assert said(parse_whole(parser_of(family), text)) == (text, [])


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_family_takes_bare_json(family: Family) -> None:
    assert said(parse_whole(parser_of(family), f"Well:\n{F}\n{W}")) == ("Well:", BOTH)


PIECES = [
    *(text for _, text in CALLS),
    *TEXTS[:-1],
    *(
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        "```json\n",
        "```",
        "; ",
        "]",
    ),
    *("\n", "  ", "f[ARGS]", "{", "[", "`", "<", '"', "word", "}", F[:17], F[17:], "\\"),
]


def cut(text: str, sizes: Sequence[int]) -> list[str]:
    parts, at = [], 0
    for size in sizes:
        parts.append(text[at : at + size])
        at += size
    return [*parts, text[at:]]


def parse_cut(parser: AnswerParser, parts: Sequence[str]) -> Answer:
    answer = Answer("", "", [])
    for delta in (*(d for part in parts for d in parser.push(part)), *parser.close()):
        match delta:
            case TextDelta() | ReasoningDelta():
                assert delta.text
                if isinstance(delta, TextDelta):
                    answer.text += delta.text
                else:
                    answer.reasoning += delta.text
            case CallStart():
                assert delta.index == len(answer.calls)
                assert delta.name in NAMES
                answer.calls.append(parse_whole(CallParser([], NAMES), F).calls[0])
                answer.calls[-1].name, answer.calls[-1].arguments = delta.name, ""
            case CallDelta():
                assert delta.arguments
                assert delta.index == len(answer.calls) - 1
                answer.calls[-1].arguments += delta.arguments
    return answer


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=5),
    sizes=st.lists(st.integers(1, 9), max_size=40),
)
@example(pieces=["```json\n", F, "\n```"], sizes=[1] * 60)
@settings(max_examples=120)
def test_no_cut_changes_what_an_answer_says(
    family: Family, pieces: list[str], sizes: list[int]
) -> None:
    text = "".join(pieces)
    whole, parts = parse_whole(parser_of(family), text), cut(text, sizes)
    assert said(parse_cut(parser_of(family), parts)) == said(whole)
    if not whole.calls:
        assert whole.text == text


def test_arguments_come_while_they_are_written() -> None:
    parser = parser_of(HERMES)
    assert list(parser.push('Sure.\n<tool_call>\n{"name": "f"')) == [TextDelta("Sure.")]
    first, second = parser.push(', "arguments": {"a": "one')
    assert first == CallStart(0, first.id, "f")
    assert second == CallDelta(0, '{"a": "one')
    assert list(parser.push(" two")) == [CallDelta(0, " two")]
    assert list(parser.push('"}}\n</tool_call>')) == [CallDelta(0, '"}')]


def test_text_comes_while_it_is_written() -> None:
    parser = parser_of(HERMES)
    assert list(parser.push("One two ")) == [TextDelta("One two")]
    assert list(parser.push("three <tool")) == [TextDelta(" three")]
    assert list(parser.push("box")) == [TextDelta(" <toolbox")]


def test_only_as_many_calls_as_are_wanted() -> None:
    text = f"<tool_call>{F}</tool_call><tool_call>{W}</tool_call>"
    assert said(parse_whole(parser_of(HERMES, most=1), text)) == ("", BOTH[:1])


@pytest.mark.parametrize(
    ("text", "is_call"),
    [
        (F, True),
        (F.replace(" ", "\n "), True),
        ('{"arguments": {"a": 1}, "name": "f"}', False),
        ('{"type": "function", "name": "f", "arguments": {"a": 1}}', False),
        ('{"name": "f"}', False),
        ('{"name": "f", "arguments": "{}"}', False),
        ('{"name": "\\u0066", "arguments": {}}', False),
        (W, True),
    ],
)
def test_a_call_of_a_strict_tool_begins_as_its_grammar_has_it(text: str, is_call: bool) -> None:
    answer = parse_whole(parser_of(HERMES, strict={"f"}), text)
    assert bool(answer.calls) == is_call
    assert is_call or answer.text == text


@pytest.mark.parametrize(
    "unit", ['{"arguments": {"x": "\n', "[TOOL_CALLS]", "<tool_call>{", "{\n", " "]
)
def test_long_answers_of_any_kind_take_little_work(unit: str) -> None:
    text = unit * (20_000 // len(unit))
    steps = 0
    original: Callable[..., None] = CallParser._in_call

    class Counting(CallParser):
        def _in_call(self, char: str) -> None:
            nonlocal steps
            steps += 1
            original(self, char)

    parser = Counting(["<tool_call>", "[TOOL_CALLS]"], NAMES)
    assert parse_whole(parser, text).text == text
    assert steps <= len(text) * MAX_UNDECIDED / len(unit)


def test_ids_suit_every_template() -> None:
    ids = {new_call_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(i) == 9 and i.isascii() and i.isalnum() for i in ids)


# -- thoughts ----------------------------------------------------------------------------------

THOUGHTS: dict[tuple[bool, str], tuple[str, str, int]] = {
    (False, "Hello"): ("", "Hello", 0),
    (False, "  Hello"): ("", "  Hello", 0),
    (False, "<think>\nso so\n</think>\n\nHello\n"): ("so so", "Hello\n", 0),
    (False, "<think>\n\n</think>\n\nHello"): ("", "Hello", 0),
    (False, f"<think>so</think>\n<tool_call>\n{F}\n</tool_call>"): ("so", "", 1),
    (False, f"<think>{F}"): (F, "", 0),
    (False, "<thinking>"): ("", "<thinking>", 0),
    (False, "Hello <think>no</think>"): ("", "Hello <think>no</think>", 0),
    (True, "so so\n</think>\n\nHello"): ("so so", "Hello", 0),
    (True, "so </thin king> so"): ("so </thin king> so", "", 0),
    (True, "so </thi"): ("so </thi", "", 0),
    (True, "</think>Hello"): ("", "Hello", 0),
    (True, ""): ("", "", 0),
}


def thinker(begun: bool) -> ThoughtParser:
    return ThoughtParser(parser_of(HERMES), begun=begun)


@pytest.mark.parametrize(("written", "expected"), THOUGHTS.items(), ids=lambda v: str(v)[:40])
def test_thoughts(written: tuple[bool, str], expected: tuple[str, str, int]) -> None:
    begun, text = written
    answer = parse_whole(thinker(begun), text)
    assert (answer.reasoning, answer.text, len(answer.calls)) == expected


THOUGHT_PIECES = ["<think>", "</think>", "\n", " ", "so", "<", "</", F, "<tool_call>", "</thin"]


@given(
    begun=st.booleans(),
    pieces=st.lists(st.sampled_from(THOUGHT_PIECES), min_size=1, max_size=8),
    sizes=st.lists(st.integers(1, 5), max_size=40),
)
@settings(max_examples=200)
def test_no_cut_changes_what_was_thought(begun: bool, pieces: list[str], sizes: list[int]) -> None:
    text = "".join(pieces)
    whole, parts = parse_whole(thinker(begun), text), parse_cut(thinker(begun), cut(text, sizes))
    assert (parts.reasoning, said(parts)) == (whole.reasoning, said(whole))


# -- special tokens ----------------------------------------------------------------------------

SPECIAL = {"<|eot|>", "<|eot_id|>", "[TOOL_CALLS]", "[INST]"}


@given(
    pieces=st.lists(
        st.sampled_from([*SPECIAL, "<|", "[", "eot", "word", f"[TOOL_CALLS][{F}]"]), max_size=6
    ),
    sizes=st.lists(st.integers(1, 5), max_size=40),
)
@settings(max_examples=200)
def test_special_tokens_are_not_shown(pieces: list[str], sizes: list[int]) -> None:
    def hiding() -> HidingParser:
        return HidingParser(parser_of(MISTRAL), special=SPECIAL, marks={"[TOOL_CALLS]"})

    text = "".join(pieces)
    answer = parse_whole(hiding(), text)
    assert len(answer.calls) == sum(F in piece for piece in pieces)
    assert answer.text.count("word") == pieces.count("word")
    cut_answer = parse_cut(hiding(), cut(text, sizes))
    assert said(cut_answer) == said(answer)
