"""Roles that the API has no name for: taken where the chat template writes their turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from remix_runtime.chats.history import Message
from remix_runtime.errors import InvalidRequestError
from server.api.wire.chat import ROLES


def require_turns(messages: Sequence[Message], show: Callable[[Sequence[Message]], str]) -> None:
    """Raises `InvalidRequestError` for the first message whose role is none of `ROLES` and that
    would be left out, or written as if its role had another name. `show` is the prompt as text."""
    others = [i for i, message in enumerate(messages) if message["role"] not in ROLES]
    if not others:
        return
    # Marks in the place of what was said: so little text costs nothing and takes no part.
    marked = [{**message, "content": _mark(i)} for i, message in enumerate(messages)]
    try:
        turns = _turns(show(marked), len(messages))
    except InvalidRequestError as error:
        raise _refused(others[0], str(error)) from error
    for i in others:
        if turns[i] is None:
            raise _refused(i, "this model's chat template leaves out messages of such a role")
        marked[i]["role"] += "x"
    try:
        renamed = _turns(show(marked), len(messages))
    except InvalidRequestError:
        return  # which tells the names apart
    for i in others:
        if turns[i] == renamed[i]:
            raise _refused(i, "this model's chat template does not tell such a role from others")


def _mark(index: int) -> str:
    return f"turn{index}x"


def _turns(text: str, count: int) -> list[str | None]:
    """What stands before each mark, after the one before it; None where there is no mark."""
    turns: list[str | None] = []
    begin = 0
    for mark in map(_mark, range(count)):
        end = text.find(mark, begin)
        turns.append(None if end < 0 else text[begin:end])
        begin = begin if end < 0 else end + len(mark)
    return turns


def _refused(index: int, reason: str) -> InvalidRequestError:
    param = f"messages[{index}].role"
    return InvalidRequestError(f"{param}: {reason}", param=param)
