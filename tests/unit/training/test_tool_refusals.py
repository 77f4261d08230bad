"""Rows whose tools or calls are wrong, or that a template does not write, are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from remix_runtime.errors import DataError
from tests.tokenizers import END
from tests.unit.server import chat_templates
from tests.unit.training.served import Row
from tests.unit.training.tool_chats import ANSWER, LIGHT, SCHEMA, TRL, USER, said, served


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
