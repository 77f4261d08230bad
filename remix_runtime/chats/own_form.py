"""Tools for chat templates that know nothing of them: told in the system message, with calls and
results as text. The form is that of Hermes and Qwen, which most models have seen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]


def tell_of_tools(tools: Iterable[Mapping[str, Any]]) -> str:
    """What the model is told."""
    listed = "\n".join(_json(tool) for tool in tools)
    return (
        "# Tools\n\n"
        "You can call functions to help with what the user asks. These are the functions, each a "
        f"JSON object in a line:\n<tools>\n{listed}\n</tools>\n\n"
        "To call a function, write its name and its arguments as a JSON object between "
        "<tool_call> and </tool_call>, once for each call:\n"
        '<tool_call>\n{"name": "the function\'s name", "arguments": {"a parameter": "its value"}}\n'
        "</tool_call>\n"
        "You will get what a function returns between <tool_response> and </tool_response>."
    )


def into_system(messages: Sequence[Message], text: str) -> list[Message]:
    """`text` at the end of the system message, or as one."""
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    return _joined(messages, 0, f"{messages[0]['content']}\n\n{text}")


def into_user(messages: Sequence[Message], text: str) -> list[Message]:
    """`text` before the first user message, for templates that refuse a system message."""
    at = next((i for i, message in enumerate(messages) if message["role"] == "user"), 0)
    return _joined(messages, at, f"{text}\n\n{messages[at]['content']}")


def calls_as_text(messages: Iterable[Message]) -> list[Message]:
    """Earlier calls in the text of the answers that had them."""
    return [_with_calls(message) if message.get("tool_calls") else message for message in messages]


def results_as_text(messages: Iterable[Message]) -> list[Message]:
    """Results as user messages, those that follow each other as one."""
    written: list[Message] = []
    follows = False
    for message in messages:
        if message["role"] != "tool":
            written.append(message)
            follows = False
            continue
        text = f"<tool_response>\n{message['content']}\n</tool_response>"
        if follows:
            text = f"{written.pop()['content']}\n{text}"
        written.append({"role": "user", "content": text})
        follows = True
    return written


def _with_calls(message: Message) -> Message:
    calls = (
        {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        for call in message["tool_calls"]
    )
    texts = [f"<tool_call>\n{_json(call)}\n</tool_call>" for call in calls]
    if message["content"]:
        texts.insert(0, message["content"])
    others = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**others, "content": "\n".join(texts)}


def _joined(messages: Sequence[Message], at: int, content: str) -> list[Message]:
    return [*messages[:at], {**messages[at], "content": content}, *messages[at + 1 :]]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
