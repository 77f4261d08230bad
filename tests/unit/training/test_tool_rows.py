"""Rows with tools: training sees what the server sees, and learns the calls that a template writes.

Templates are those that the server's tests have, with ends that the tests' tokenizers know.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remix_runtime.errors import DataError
from tests.tokenizers import END
from tests.unit.server import chat_templates
from tests.unit.training.conftest import MakeConfig, write_rows
from tests.unit.training.served import Row, Served, answers
from tests.unit.training.tool_chats import (
    ANSWER,
    CALLS_ALONE,
    CHATS,
    LIGHT,
    ONE_CALL,
    OSLO,
    SCHEMA,
    TEMPLATE,
    TOOLS,
    TRL,
    USER,
    call,
    calling,
    said,
    served,
)
from training.evaluation import compare_with_base
from training.run import run_training


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

FULL = [
    TRL[0],
    {**TRL[1], "content": "", "tool_calls": [call("x", "light", room="kitchen", level=None)]},
    {"role": "tool", "tool_call_id": "x", "name": "light", "content": "on"},
    TRL[3],
]


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
