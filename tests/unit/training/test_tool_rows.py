"""Rows with tools: training sees what the server sees, and learns the calls that a template writes.

Templates are those that the server's tests have, with ends that the tests' tokenizers know.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remix_runtime.errors import DataError
from tests.tokenizers import END, TEMPLATES, tokenizer_of
from tests.unit.server import chat_templates
from tests.unit.training.conftest import MakeConfig, write_rows
from tests.unit.training.served import Row, Served, answers
from training.evaluation import compare_with_base
from training.run import run_training

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


def check_row(base: Served, row: Row, messages: list[Row], **fields: Any) -> None:
    """Each answer has the server's prompt for the request as its context, and is what the template
    writes after it."""
    learned = [
        i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight") != 0
    ]
    found = list(answers(base.encode(row)))
    assert len(found) == len(learned)
    requests = [{k: v for k, v in m.items() if k != "weight"} for m in messages]
    for index, (context, answer) in zip(learned, found, strict=True):
        assert list(context) == base.prompt_of(requests[:index], **fields)
        whole = base.prompt_of(requests[: index + 1], add_generation_prompt=False, **fields)
        prompt, text = base.server.decode(context), base.server.decode(whole)
        assert text.startswith(prompt)
        rest = text[len(prompt) :]
        said = base.said(context, answer)
        assert rest.startswith(said)
        assert rest[len(said) :].strip() in ("", "<end_of_turn>", END, "</s>")


def refusal(template: str, chat: str) -> str | None:
    """Why a template cannot be trained on a chat, if it cannot."""
    if chat == "with a system message":
        if template == "llama 3":
            return "^tools: the base's chat template shows them before none of these answers"
        if "mistral" in template or template == "no system":
            return "^messages: the chat template refuses them"
    if chat == "two calls" and template in ONE_CALL:
        return "^messages: the chat template refuses them: This model only supports single"
    if chat == "content beside a call" and template in CALLS_ALONE:
        return r"^messages\[1\]\.content: the base's chat template leaves it out beside tool_calls"
    return None


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATE)
def test_a_row_with_tools_is_what_the_server_sees(template: str, chat: str) -> None:
    base, messages = served(template), CHATS[chat]
    row = {"messages": messages, "tools": TOOLS}
    if (why := refusal(template, chat)) is not None:
        with pytest.raises(DataError, match=why):
            base.encode(row)
        return
    check_row(base, row, messages, tools=TOOLS)


@pytest.mark.parametrize("family", ["llama 3", "llama 2", "gemma", "mistral"])
@pytest.mark.parametrize("template", ["qwen", "mistral", "knows no tools"])
def test_other_tokenizers_see_it_too(template: str, family: str) -> None:
    base, messages = served(template, family), CHATS["two calls"]
    for (context, answer), index in zip(
        answers(base.encode({"messages": messages, "tools": TOOLS})), (1, 4), strict=True
    ):
        assert list(context) == base.prompt_of(messages[:index], tools=TOOLS)
        said = base.said(context, answer)
        assert all(word in said for word in (("Oslo", "Rome") if index == 1 else ("sunny",)))


@pytest.mark.parametrize("chat", ["a call", "after a result", "calls in turn"])
@pytest.mark.parametrize("template", TEMPLATE)
def test_calls_without_tools(template: str, chat: str) -> None:
    """Also where the tools may not be called, as it says."""
    base, messages = served(template), CHATS[chat]
    check_row(base, {"messages": messages}, messages)
    row = {"messages": messages, "tools": TOOLS, "tool_choice": "none"}
    check_row(base, row, messages, tools=TOOLS, tool_choice="none")


def test_what_is_learned_of_calls() -> None:
    row = {"messages": CHATS["two calls"], "tools": TOOLS}
    base = served("qwen")
    first, last = (base.said(*pair) for pair in answers(base.encode(row)))
    assert first == (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
        '\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    )
    assert last == "It is sunny."
    base = served("mistral")
    first, _ = (base.said(*pair) for pair in answers(base.encode(row)))
    assert first.startswith('[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}, ')


def test_a_template_that_moves_tools_once_there_is_an_answer() -> None:
    """Some show tools, or the system message, where a question is the last message only."""
    base = served(chat_templates.MISTRAL.replace("message == asked[-1]", "loop.last"))
    row = {"messages": CHATS["a call"], "tools": TOOLS}
    ((context, answer),) = answers(base.encode(row))
    assert list(context) == base.prompt_of([USER], tools=TOOLS)
    (expected,) = answers(served("mistral").encode(row))
    assert base.said(context, answer) == base.said(*expected)


def test_a_call_behind_an_open_thought_closes_it() -> None:
    base = served(chat_templates.THINKING)
    ((context, answer),) = answers(base.encode({"messages": CHATS["a call"], "tools": TOOLS}))
    assert list(context) == base.prompt_of([USER], tools=TOOLS)
    assert base.said(context, answer).startswith("\n</think>\n\n<tool_call>\n")
    thoughtful = calling(OSLO, content="so\n</think>\n\nI look.")
    ((context, answer),) = answers(base.encode({"messages": [USER, thoughtful], "tools": TOOLS}))
    assert base.said(context, answer).startswith("so\n</think>\n\nI look.\n<tool_call>\n")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(-1e9, 1e9)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0\ufffd"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text('a b_é"', max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("template", ["qwen", "mistral", "plain"])
@settings(max_examples=40, deadline=None)
@given(arguments=st.dictionaries(st.text("ab c\n", max_size=5), JSON, max_size=3))
def test_any_arguments_are_those_of_a_request(template: str, arguments: Row) -> None:
    messages = [USER, calling(call("aaaaaaaaa", **{}), call("bbbbbbbbb", "clock"))]
    calls = messages[1]["tool_calls"]
    calls[0]["function"]["arguments"] = json.dumps(arguments)
    as_object = json.loads(json.dumps(messages))
    as_object[1]["tool_calls"][0]["function"]["arguments"] = arguments
    base = served(template)
    check_row(base, {"messages": messages, "tools": TOOLS}, messages, tools=TOOLS)
    (as_text,) = base.encode({"messages": messages, "tools": TOOLS})
    assert base.encode({"messages": as_object, "tools": TOOLS}) == [as_text]


# -- shapes ------------------------------------------------------------------------------------

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
FULL = [
    TRL[0],
    {**TRL[1], "content": "", "tool_calls": [call("x", "light", room="kitchen", level=None)]},
    {"role": "tool", "tool_call_id": "x", "name": "light", "content": "on"},
    TRL[3],
]


def said(by: str, value: Any) -> Row:
    return {"from": by, "value": value if isinstance(value, str) else json.dumps(value)}


SAME: dict[str, Row] = {
    "TRL's": {"messages": TRL, "tools": [SCHEMA]},
    "tools as text": {"messages": TRL, "tools": json.dumps([SCHEMA])},
    "calls as text": {
        "messages": [
            TRL[0],
            {**TRL[1], "content": None, "tool_calls": json.dumps(TRL[1]["tool_calls"])},
            *TRL[2:],
        ],
        "tools": [SCHEMA],
    },
    "what the server does not show": {
        "messages": TRL,
        "tools": [
            {"type": "function", "function": {**SCHEMA["function"], "return": {}, "strict": True}}
        ],
    },
    "an unnamed result": {
        "messages": [*TRL[:2], {"role": "tool", "content": "on"}, TRL[3]],
        "tools": [SCHEMA],
    },
    "sharegpt": {
        "conversations": [
            said("human", "light"),
            said("function_call", LIGHT),
            said("observation", "on"),
            said("gpt", "Done!"),
        ],
        "tools": json.dumps([SCHEMA["function"]]),
    },
    "sharegpt, of lists": {
        "conversations": [
            said("user", "light"),
            said("function_call", [{**LIGHT, "arguments": json.dumps(LIGHT["arguments"])}]),
            said("tool", "on"),
            said("assistant", "Done!"),
        ],
        "tools": [SCHEMA],
    },
}


@pytest.mark.parametrize("row", SAME.values(), ids=SAME)
def test_the_same_chat_in_other_shapes(row: Row) -> None:
    before = json.dumps(row)
    for template in ("qwen", "llama 3", "knows no tools"):
        check_row(served(template), row, FULL, tools=[SCHEMA])
    assert json.dumps(row) == before


def test_a_conversational_prompt_with_tools() -> None:
    base = served("qwen")
    row = {"prompt": TRL[:3], "completion": TRL[3:], "tools": [SCHEMA]}
    check_row(base, row, [FULL[0], {**FULL[1], "weight": 0}, *FULL[2:]], tools=[SCHEMA])
    row = {"prompt": TRL[:1], "completion": TRL[1:], "tools": json.dumps([SCHEMA])}
    check_row(base, row, FULL, tools=[SCHEMA])


def test_ids_that_a_row_lacks_are_those_of_nine_characters() -> None:
    """Each its own, and that of the call that a result answers."""
    calls = [{"function": {"name": name, "arguments": {}}} for name in ("clock", "clock", "light")]
    results = [{"role": "tool", "name": n, "content": n} for n in ("light", "clock", "clock")]
    chat = [USER, {"role": "assistant", "tool_calls": calls}, *results, ANSWER]
    base = served("mistral")
    (_, answer), (context, _) = answers(base.encode({"messages": chat}))
    written = json.loads(base.said((), answer).removeprefix("[TOOL_CALLS] "))
    ids = [each["id"] for each in written]
    assert len(set(ids)) == 3
    assert {len(id) for id in ids} == {9}
    prompt = base.server.decode(context)
    # Results come in the order of their calls, as the server has them.
    places = [prompt.rindex(id) for id in ids]
    assert places == sorted(places)
    assert prompt.index("light, ", places[0]) < places[2]


@pytest.mark.usefixtures("one_thread", "no_plots")
def test_a_run_and_its_evaluation_with_tools(make_config: MakeConfig, tmp_path: Path) -> None:
    """Tools have another name in the file; the template is short, as the tiny base's context."""
    rows = [{"messages": TRL, "schemas": json.dumps([SCHEMA])}] * 4
    path = write_rows(tmp_path / "tools.jsonl", rows)
    columns = {"tools": "schemas"}
    template = (
        "{{ tools[0].function.name if tools }};{% for m in messages %}{{ m.role }}:{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function|tojson }}{% endfor %}<|im_end|>"
        "{% endfor %}{{ 'assistant:' if add_generation_prompt and 'tool' }}"
    )
    settings = {"columns": columns, "steps": 2, "defaults": {"chat_template": template}}
    run = run_training(make_config(data=str(path), **settings))
    assert run.adapter is not None
    scores = compare_with_base(run.adapter, path, columns=columns)
    assert [score.rows for score in scores.values()] == [4, 4]


# -- refusals ----------------------------------------------------------------------------------


def broken(**changes: Any) -> Row:
    """A row whose call, or the function in it, is another."""
    of_function = {k: v for k, v in changes.items() if k in ("name", "arguments", "parameters")}
    of_call = {k: v for k, v in changes.items() if k not in of_function}
    called = {"type": "function", "function": {**LIGHT, **of_function}, **of_call}
    return {"messages": [USER, {"role": "assistant", "tool_calls": [called]}]}


def with_tools(tools: Any) -> Row:
    return {"messages": TRL, "tools": tools}


def with_function(**changes: Any) -> Row:
    return with_tools([{**SCHEMA, "function": {**SCHEMA["function"], **changes}}])


CALL = r"^messages\[1\]\.tool_calls\[0\]"
WRONG: list[tuple[Row, str]] = [
    (with_tools("{"), "^tools: expected JSON: EOF"),
    (with_tools({"a": 1}), "^tools: found an object, expected a list"),
    (with_tools([7]), r"^tools\[0\]: found a number, expected an object"),
    (with_tools([{"type": "function"}]), r"^tools\[0\]\.function: found null, expected an object"),
    (with_tools([{**SCHEMA, "type": "x"}]), r"^tools\[0\]\.type: found 'x', expected 'function'"),
    (with_tools([SCHEMA, SCHEMA]), r"^tools\[1\]\.function\.name: found 'light' again"),
    (with_function(name="a.b"), r"^tools\[0\]\.function\.name: found 'a\.b', expected 1 to 128"),
    (with_function(name=None), r"^tools\[0\]\.function\.name: found null, expected a string"),
    (with_function(description=7), r"^tools\[0\]\.function\.description: found a number"),
    (with_function(parameters=[]), r"^tools\[0\]\.function\.parameters: found a list, expected an"),
    (with_function(parameters={"type": "array"}), r"parameters\.type: found 'array', expected"),
    ({"prompt": "a", "completion": "b", "tools": [SCHEMA]}, "^tools: found a list, expected none"),
    ({"text": "a", "tools": [SCHEMA]}, "^tools: found a list, expected none; text is learned"),
    (broken(name=""), rf"{CALL}\.function\.name: found an empty string"),
    (broken(arguments=None), rf"{CALL}\.function\.arguments: found null, expected an object, or"),
    (broken(arguments="[1]"), rf"{CALL}\.function\.arguments: found a list, expected an object"),
    (broken(arguments="{"), rf"{CALL}\.function\.arguments: expected JSON: EOF"),
    (broken(arguments={"a": float("nan")}), r"^messages\[1\]\.tool_calls: expected JSON"),
    (broken(arguments={"a": "\ud800"}), r"^messages\[1\]\.tool_calls: expected JSON"),
    (broken(arguments={"a": {1}}), r"^messages\[1\]\.tool_calls: expected JSON"),
    (broken(parameters={}), rf"{CALL}\.function\.parameters: found an object, expected none"),
    (broken(id=7), rf"{CALL}\.id: found a number, expected a string"),
    (broken(type="custom"), rf"{CALL}\.type: found 'custom', expected 'function'"),
    (broken(function="light"), rf"{CALL}\.function: found a string, expected an object"),
    (broken(thought="x"), rf"{CALL}\.thought: found a string, expected none"),
    ({"messages": [USER, {**ANSWER, "tool_calls": {"a": 1}}]}, "tool_calls: found an object, exp"),
    ({"messages": [USER, {**ANSWER, "tool_call_id": "x"}]}, "tool_call_id: found a string, exp"),
    (
        {"messages": [{**USER, "tool_calls": TRL[1]["tool_calls"]}, ANSWER]},
        r"^messages\[0\]\.tool_calls: found a list, expected none; only an answer",
    ),
    ({"messages": [USER, {"role": "assistant"}]}, r"^messages\[1\]\.content: found nothing"),
    ({"messages": [USER, {**ANSWER, "content": None}]}, r"^messages\[1\]\.content: found null"),
    (
        {"messages": [USER, {"role": "tool", "content": "on"}, ANSWER]},
        r"^messages\[1\]\.tool_call_id: found nothing, .* no call of the answer before it waits",
    ),
    (
        {"messages": [*TRL[:2], {**TRL[2], "name": "fan"}, TRL[3]]},
        r"^messages\[2\]\.tool_call_id: found nothing, .* has the name 'fan' and waits",
    ),
    (
        {"messages": [*TRL[:3], TRL[2], TRL[3]]},
        r"^messages\[3\]\.tool_call_id: found nothing",
    ),
    ({"messages": [*TRL[:2], {"role": "tool"}, TRL[3]]}, r"^messages\[2\]\.content: found nothing"),
    (
        {"messages": [*TRL[:2], {**TRL[2], "weight": 1}, TRL[3]]},
        r"^messages\[2\]\.weight: found one on a message of the role tool",
    ),
    (broken(arguments={"a": f"x{END}y"}), r"^messages\[1\]\.content: found '.*' inside, which"),
    (
        {"conversations": [said("human", "a"), said("function_call", "light()")]},
        r"^conversations\[1\]\.value: expected JSON",
    ),
    (
        {"conversations": [said("human", "a"), said("function_call", {"name": "f"})]},
        r"arguments: found null, expected an object, or its JSON \(messages are made of conv",
    ),
]


@pytest.mark.parametrize(("row", "message"), WRONG)
def test_what_is_wrong_with_tools_is_told_by_its_name(row: Row, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        served("qwen").encode(row)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}"
        "{% if m.tool_calls %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
        "{% for m in messages if not m.tool_calls %}{{ m.role + ': ' + m.content }}{% endfor %}",
        chat_templates.QWEN.replace("in message.tool_calls %}", "in message.tool_calls[:1] %}"),
    ],
)
def test_a_template_that_does_not_write_calls_is_refused(template: str) -> None:
    calls = [{"function": {"name": name, "arguments": {}}} for name in ("light", "clock")]
    row = {"messages": [USER, {"role": "assistant", "tool_calls": calls}]}
    with pytest.raises(DataError, match=r"^messages\[1\]\.tool_calls: .* does not write the call"):
        served(template).encode(row)
