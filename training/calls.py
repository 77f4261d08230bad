"""Tools of a row, calls of them in its messages and the results, as a client would send them.

Tools, calls and arguments may be JSON or the text of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from remix_runtime.chats.prompt import TOOL_NAME, shown_tool
from remix_runtime.errors import DataError
from training.values import json_of, kind_of, text_of

_OF_CALLS = frozenset({"id", "type", "function", "index"})
_OF_FUNCTIONS = frozenset({"name", "arguments"})


def checked_tools(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The tools of a chat, as the server shows them: name, description and parameters of each.
    None with `tool_choice` none. Raises `DataError`."""
    value = row.get("tools")
    tools = [] if value in (None, "", [], {}) else json_of(value, "tools")
    if tools is not None and not isinstance(tools, list):
        raise DataError(f"tools: found {kind_of(tools)}, expected a list")
    shown = [_checked_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools or ())]
    names = [tool["function"]["name"] for tool in shown]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise DataError(f"tools[{index}].function.name: found {name!r} again, expected another")
    return [] if row.get("tool_choice") == "none" else shown


def checked_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """The calls of an answer, with an empty id where there is none. Raises `DataError`."""
    calls = json_of(value, where)
    if not isinstance(calls, list):
        raise DataError(f"{where}: found {kind_of(calls)}, expected a list")
    return [_checked_call(call, f"{where}[{index}]") for index, call in enumerate(calls)]


def give_ids(messages: Sequence[dict[str, Any]]) -> None:
    """Gives calls and results the ids that they lack, since every request has them. Results answer
    the calls before them in their order, or the first of the name that they have. Raises
    `DataError` for a result of no call."""
    waiting: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        if calls := message.get("tool_calls"):
            for number, call in enumerate(calls):
                call["id"] = call["id"] or _new_id(call, f"{index}.{number}")
            waiting = list(calls)
        if message["role"] != "tool":
            continue
        if not message.get("tool_call_id"):
            message["tool_call_id"] = _answered(waiting, message.get("name"), index)
        waiting = [call for call in waiting if call["id"] != message["tool_call_id"]]


def _answered(waiting: Sequence[dict[str, Any]], name: str | None, index: int) -> str:
    for call in waiting:
        if name in (None, call["function"]["name"]):
            found: str = call["id"]
            return found
    raise DataError(
        f"messages[{index}].tool_call_id: found nothing, expected the id of a call: no call of the "
        f"answer before it {'' if name is None else f'has the name {name!r:.100} and '}"
        "waits for a result"
    )


def _new_id(call: dict[str, Any], place: str) -> str:
    """Nine characters, as the server's: Mistral's templates refuse others."""
    text = f"{place} {json.dumps(call['function'])}"
    return hashlib.sha256(text.encode()).hexdigest()[:9]


def _checked_tool(tool: Any, where: str) -> dict[str, Any]:
    function = _function_of(tool, where)
    name = text_of(function, "name", f"{where}.function.name")
    if not re.fullmatch(TOOL_NAME, name):
        raise DataError(
            f"{where}.function.name: found {name!r:.150}, expected 1 to 128 letters, digits, _ and "
            "-, as the server does"
        )
    description = None
    if function.get("description") is not None:
        description = text_of(function, "description", f"{where}.function.description")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise DataError(
            f"{where}.function.parameters: found {kind_of(parameters)}, expected an object"
        )
    kind = (parameters or {}).get("type", "object")
    if kind != "object":
        raise DataError(f"{where}.function.parameters.type: found {kind!r:.100}, expected 'object'")
    return shown_tool(name, description, parameters)


def _checked_call(call: Any, where: str) -> dict[str, Any]:
    function = _function_of(call, where)
    for part, known, place in (
        (call, _OF_CALLS, where),
        (function, _OF_FUNCTIONS, f"{where}.function"),
    ):
        for key, value in part.items():
            if key not in known and value is not None:
                raise DataError(
                    f"{place}.{key:.100}: found {kind_of(value)}, expected none; the chat template "
                    "would not get it"
                )
    name = text_of(function, "name", f"{where}.function.name")
    if not name:
        raise DataError(f"{where}.function.name: found an empty string, expected a name")
    arguments = _arguments(function.get("arguments"), f"{where}.function.arguments")
    return {
        "id": text_of(call, "id", f"{where}.id") if call.get("id") is not None else "",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _arguments(value: Any, where: str) -> dict[str, Any]:
    """An object. Text is JSON; nothing but white space is no argument, as to the server."""
    if isinstance(value, str):
        value = json_of(value, where) if value.strip() else {}
    if not isinstance(value, dict):
        raise DataError(f"{where}: found {kind_of(value)}, expected an object, or its JSON")
    return value


def _function_of(value: Any, where: str) -> dict[str, Any]:
    """The function that a tool is, or that a call calls."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: found {kind_of(value)}, expected an object")
    if value.get("type") not in (None, "function"):
        raise DataError(f"{where}.type: found {value['type']!r:.100}, expected 'function'")
    function = value.get("function")
    if not isinstance(function, dict):
        raise DataError(
            f"{where}.function: found {kind_of(function)}, expected an object with its name"
        )
    return function
