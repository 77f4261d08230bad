"""The fields of a row and of its messages: each is used, says nothing, or is refused by name.

A field that changes what a model is to learn must not be dropped in silence. Keys of a row that
nobody here knows are the user's own notes. A message's are not: a chat template might read them,
and the server gives it role, content, name, calls and their ids, so any other is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, cast

from remix_runtime.errors import DataError
from training.calls import checked_calls, give_ids
from training.values import kind_of, text_of

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
"""What a role is called in a template, which does not know OpenAI's newer name of the first."""

_TOOLS = "text is learned as it stands; tools stand beside messages"
_CALLS = "calls stand in messages of the assistant"
_OLD = "it has its newer form: tools, and tool_calls in messages"
_REQUEST = "it is a request's, and changes nothing that a model is shown"
_TEMPLATE = "a row is rendered as the server renders it, with the template's defaults"
_THOUGHTS = "write thoughts into content as the model is to write them: <think>…</think> …"
_TEXT = "only text is trained"
_PREFERENCE = "rows of preferences are not trained; give the answer to learn as the completion"
_LOSS = "what is learned is set by weight, 0 or 1, on a message of the assistant"
_SYSTEM = "begin messages with a message of the role system, or the prompt with this text"

_REFUSED_IN_ROWS = {
    **dict.fromkeys(("functions", "function_call"), _OLD),
    "tool_calls": _CALLS,
    **dict.fromkeys(("tool_choice", "parallel_tool_calls", "response_format"), _REQUEST),
    **dict.fromkeys(("documents", "chat_template", "chat_template_kwargs"), _TEMPLATE),
    **dict.fromkeys(("add_generation_prompt", "continue_final_message"), _TEMPLATE),
    **dict.fromkeys(("enable_thinking", "reasoning_effort"), _TEMPLATE),
    **dict.fromkeys(("thinking", "thought", "reasoning", "reasoning_content"), _THOUGHTS),
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), _TEXT),
    **dict.fromkeys(("chosen", "rejected"), _PREFERENCE),
    **dict.fromkeys(("weight", "weights", "sample_weight", "loss_weight"), _LOSS),
    **dict.fromkeys(("mask", "loss_mask", "loss", "train", "train_on_inputs"), _LOSS),
    **dict.fromkeys(("system", "system_prompt"), _SYSTEM),
    "suffix": "the middle of a text is not trained",
}
"""Known fields that change what a row means, and why they cannot be honoured."""

_REFUSED_IN_MESSAGES = {
    "function_call": _OLD,
    "tools": "they stand beside messages",
    "tool_calls": "only an answer of the assistant has calls",
    "tool_call_id": "only a result, a message of the role tool, has one",
    **dict.fromkeys(("thinking", "thought", "reasoning", "reasoning_content"), _THOUGHTS),
    **dict.fromkeys(("audio", "images", "image", "videos", "video"), _TEXT),
    **dict.fromkeys(("train", "mask", "loss", "loss_weight", "learn", "trainable"), _LOSS),
    "refusal": "write a refusal to be learned into content",
}
_NOTES = frozenset({"id", "metadata", "timestamp", "created_at", "source", "model", "language"})
"""Notes about a message, which change nothing."""

_NOTHING: dict[str, tuple[Any, ...]] = {
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "weight": (1,),
}
"""Values of a refused field that ask for nothing, besides null and whatever is empty."""


Kind = Literal["raw", "chat", "text"]
"""A row with prompt and completion, with messages, or with nothing but a text."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One checked message."""

    message: dict[str, Any]
    """Role, content, perhaps name, calls and their ids, as the server gives them to a template."""
    learned: bool
    """Whether it is an answer with a loss on it."""

    @property
    def content(self) -> str:
        content: str = self.message["content"]
        return content

    @property
    def functions(self) -> list[dict[str, Any]]:
        """Names and arguments of its calls."""
        return [call["function"] for call in self.message.get("tool_calls", ())]

    @property
    def said(self) -> str:
        """All text of the user's in it."""
        called = (json.dumps(function, ensure_ascii=False) for function in self.functions)
        return "\n".join((self.content, *called))


def check_row(row: dict[str, Any]) -> Kind:
    """What a row of our shape is. Raises `DataError` for a field that cannot be honoured."""
    for key, why in _REFUSED_IN_ROWS.items():
        if not _says_nothing(key, row.get(key)):
            raise DataError(f"{key}: found {kind_of(row[key])}, expected none; {why}")
    if isinstance(row.get("label"), bool):  # another label is a note
        raise DataError(f"label: found a boolean, expected none; {_PREFERENCE}")
    kind = _kind_of_row(row)
    if kind != "chat" and not _says_nothing("tools", row.get("tools")):
        raise DataError(f"tools: found {kind_of(row['tools'])}, expected none; {_TOOLS}")
    return kind


def _kind_of_row(row: dict[str, Any]) -> Kind:
    raw = any(row.get(key) is not None for key in ("prompt", "completion"))
    if raw and row.get("messages") is not None:
        raise DataError("expected prompt and completion, or messages; found both")
    if raw:
        return "raw"
    if row.get("messages") is not None:
        return "chat"
    if row.get("text") is not None:
        return "text"
    for kind, key in (("chat", "messages"), ("raw", "prompt"), ("raw", "completion")):
        if key in row:  # as null, which is told of where it is used
            return cast(Kind, kind)
    found = ", ".join(map(repr, list(row)[:8])) or "nothing"
    raise DataError(
        f"found {found:.200}, expected prompt and completion, or messages, conversations or text"
    )


def checked_turns(messages: Any) -> list[Turn]:
    """The messages of a chat, one at least with a loss on it. Raises `DataError`."""
    if not isinstance(messages, list) or not messages:
        raise DataError(f"messages: found {kind_of(messages)}, expected a list of turns")
    turns = [_checked_turn(message, f"messages[{i}]") for i, message in enumerate(messages)]
    if all(turn.message["role"] != "assistant" for turn in turns):
        raise DataError("messages: found no assistant turn, expected one to learn from")
    if not any(turn.learned for turn in turns):
        raise DataError("messages: found weight 0 on every assistant turn, expected one to learn")
    if turns[0].learned:
        raise DataError(
            "messages[0]: found an answer, expected a message before it: a server is never asked "
            "for a first message; give it weight 0 to have it as context only"
        )
    give_ids([turn.message for turn in turns])
    return turns


def _checked_turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise DataError(f"{where}: found {kind_of(message)}, expected an object")
    role = text_of(message, "role", f"{where}.role")
    if role not in ROLES:
        raise DataError(
            f"{where}.role: found {role!r:.100}, expected system, user, assistant or tool (or "
            "developer)"
        )
    of_role = {"assistant": "tool_calls", "tool": "tool_call_id"}.get(role)
    for key, value in message.items():
        if key in ("role", "content", "name", "weight", of_role) or key in _NOTES:
            continue
        if not _says_nothing(key, value):
            why = _REFUSED_IN_MESSAGES.get(key, "the chat template would not get it")
            raise DataError(f"{where}.{key:.100}: found {kind_of(value)}, expected none; {why}")
    learned = _weight(message, role, f"{where}.weight")
    turn: dict[str, Any] = {"role": ROLES[role], "content": ""}
    for key in ("name", "tool_call_id"):
        if message.get(key) not in (None, ""):
            turn[key] = text_of(message, key, f"{where}.{key}")
    given = message.get("tool_calls")
    calls = [] if given in (None, "", [], {}) else checked_calls(given, f"{where}.tool_calls")
    if calls:
        turn["tool_calls"] = calls
    if not calls or message.get("content") is not None:
        turn["content"] = _content(message, f"{where}.content")
    if learned and not (turn["content"] or calls):
        raise DataError(f"{where}.content: found an empty string, expected an answer")
    return Turn(turn, learned)


def _weight(message: dict[str, Any], role: str, where: str) -> bool:
    """Whether a message is learned: the weight of OpenAI's fine-tuning format."""
    weight = message.get("weight")
    if weight is None:
        return role == "assistant"
    if role != "assistant":
        raise DataError(f"{where}: found one on a message of the role {role}, expected none")
    if isinstance(weight, bool) or weight not in (0, 1):
        shown = weight if isinstance(weight, int | float) else kind_of(weight)
        raise DataError(f"{where}: found {shown!s:.100}, expected 0 or 1")
    return bool(weight)


def _content(message: dict[str, Any], where: str) -> str:
    """A message's text. Text parts are joined as the server joins them, one part a line."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return text_of(message, "content", where)
    if not parts:
        raise DataError(f"{where}: found an empty list, expected at least one part")
    for index, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise DataError(f"{where}[{index}]: expected {{type: text, text: …}}; {_TEXT}")
    return "\n".join(text_of(part, "text", f"{where}[{i}].text") for i, part in enumerate(parts))


def _says_nothing(key: str, value: Any) -> bool:
    return value in (None, "", [], {}) or (
        not isinstance(value, bool) and value in _NOTHING.get(key, ())
    )
