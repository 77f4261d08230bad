"""The messages of a chat as its template has to get them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from remix_runtime.chats import own_form
from remix_runtime.chats.families import Family
from remix_runtime.chats.reads import TemplateReads

Message = Mapping[str, Any]


def prepare_messages(
    messages: Sequence[Message], reads: TemplateReads, family: Family
) -> list[Message]:
    """Calls and results that the template does not read become text; results come in the order of
    their calls, for templates that show no ids."""
    prepared = _in_order(_named(messages))
    if family.short_ids:
        prepared = [_with_short_ids(message) for message in prepared]
    if not reads.calls:
        prepared = own_form.calls_as_text(prepared)
    if not reads.results:
        prepared = own_form.results_as_text(prepared)
    return prepared


def _named(messages: Iterable[Message]) -> list[Message]:
    """Results with the names of what was called, which some templates read."""
    names: dict[str, str] = {}
    named = []
    for message in messages:
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
        name = names.get(message.get("tool_call_id", ""))
        named.append({"name": name, **message} if name else message)
    return named


def _in_order(messages: Sequence[Message]) -> list[Message]:
    """Results that follow each other in the order of their calls."""
    ordered: list[Message] = []
    order: dict[str, int] = {}
    results: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            results.append(message)
            continue
        ordered += sorted(results, key=lambda result: order.get(result["tool_call_id"], len(order)))
        results = []
        order = {call["id"]: i for i, call in enumerate(message.get("tool_calls", ()))}
        ordered.append(message)
    return ordered + sorted(
        results, key=lambda result: order.get(result["tool_call_id"], len(order))
    )


def _with_short_ids(message: Message) -> Message:
    """Mistral's templates refuse ids of other servers: theirs have nine letters and digits."""
    changed = dict(message)
    if "tool_call_id" in changed:
        changed["tool_call_id"] = _short(changed["tool_call_id"])
    if "tool_calls" in changed:
        calls = changed["tool_calls"]
        changed["tool_calls"] = [{**call, "id": _short(call["id"])} for call in calls]
    return changed


def _short(call_id: str) -> str:
    if re.fullmatch(r"[a-zA-Z0-9]{9}", call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]
