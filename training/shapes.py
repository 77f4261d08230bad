"""Rows of the shapes that other trainers document, as rows of ours.

| row | becomes |
|---|---|
| `prompt` and `completion`, text | as it is |
| `messages`, perhaps with `tools` | as it is |
| `prompt` and `completion`, lists of messages (TRL) | `messages`; answers in the prompt: no loss |
| `conversations` of `from` and `value`, perhaps with `system` and `tools` (ShareGPT) | `messages` |
| `text` and none of the others (language modelling) | as it is: all of it is learned |

ShareGPT's `function_call` is an answer with the calls that its text has as JSON, `observation` or
`tool` a result; its tools may be functions alone.

Nothing else of a row is changed; `fields.py` then looks at every field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remix_runtime.errors import DataError
from training.values import json_of, kind_of, text_of

_SHAREGPT = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


def in_our_shape(row: dict[str, Any]) -> dict[str, Any]:
    """The row with `prompt` and `completion` as text, with `messages`, or with `text`. Raises
    `DataError` that names the field."""
    if row.get("conversations") is not None:
        return _of_conversations(row)
    if any(isinstance(row.get(key), list) for key in ("prompt", "completion")):
        return _of_lists(row)
    return row


def renamed(row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row whose columns have our names: `columns` maps ours to those of the file. Raises
    `DataError` for a column that is not there."""
    found = {name: value for name, value in row.items() if name not in columns.values()}
    for ours, theirs in columns.items():
        if theirs not in row:
            have = ", ".join(map(repr, list(row)[:8])) or "nothing"
            raise DataError(f"columns: {ours}: found {have:.200}, expected the column {theirs!r}")
        found[ours] = row[theirs]
    return found


def _of_lists(row: dict[str, Any]) -> dict[str, Any]:
    """TRL's conversational prompt and completion: what is in the prompt is context."""
    for key in ("prompt", "completion"):
        if not isinstance(row.get(key), list):
            raise DataError(
                f"{key}: found {kind_of(row.get(key))}, expected a list of messages, as the other "
                "of prompt and completion is"
            )
    if row.get("messages") is not None:
        raise DataError("expected prompt and completion, or messages; found both")
    context = [
        {**message, "weight": 0}
        if isinstance(message, dict) and message.get("role") == "assistant"
        else message
        for message in row["prompt"]
    ]
    rest = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
    return {**rest, "messages": [*context, *row["completion"]]}


def _of_conversations(row: dict[str, Any]) -> dict[str, Any]:
    for key in ("prompt", "completion", "messages"):
        if row.get(key) is not None:
            raise DataError(f"expected conversations, or {key}; found both")
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"conversations: found {kind_of(turns)}, expected a list of turns")
    messages = [_of_turn(turn, f"conversations[{index}]") for index, turn in enumerate(turns)]
    rest = {key: value for key, value in row.items() if key != "conversations"}
    if rest.get("system") not in (None, ""):
        if messages and messages[0].get("role") == "system":
            raise DataError("system: found one, and another as the first turn; expected one")
        messages.insert(0, {"role": "system", "content": text_of(rest, "system", "system")})
    rest.pop("system", None)
    if rest.get("tools"):
        tools = json_of(rest["tools"], "tools")
        rest["tools"] = [*map(_of_function, tools)] if isinstance(tools, list) else tools
    return {**rest, "messages": messages}


def _of_turn(turn: Any, where: str) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise DataError(f"{where}: found {kind_of(turn)}, expected an object")
    if "from" not in turn:  # OpenAI's turns under ShareGPT's name
        if "role" in turn:
            return turn
        raise DataError(f"{where}.from: found nothing, expected who says it")
    sender = text_of(turn, "from", f"{where}.from")
    if sender not in _SHAREGPT:
        raise DataError(
            f"{where}.from: found {sender!r:.100}, expected system, human, gpt, function_call or "
            "observation"
        )
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    said = text_of(turn, "value", f"{where}.value")
    if sender != "function_call":
        return {**rest, "role": _SHAREGPT[sender], "content": said}
    called = json_of(said, f"{where}.value")
    calls = [*map(_of_function, called if isinstance(called, list) else [called])]
    return {**rest, "role": "assistant", "tool_calls": calls}


def _of_function(function: Any) -> Any:
    """OpenAI's tool, or call, of one that is a function alone."""
    alone = isinstance(function, dict) and "function" not in function
    return {"type": "function", "function": function} if alone else function
