"""Asks one request after the other, and looks after every few whether the server is as it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.hostile.fuzz import judge
from tests.hostile.fuzz.client import Answer, Outcome, converse
from tests.hostile.fuzz.requests import Case
from tests.hostile.fuzz.target import ADMIN, ADMIN_KEY, DATA, Target

BATCH = 200
ENOUGH = 10
"""Faults after which it ends."""
_TRIES = 3
"""Of what was slow: the machine may have been busy."""
_MOST_SHOWN = 20_000


def fuzz(target: Target, cases: Iterable[Case]) -> list[str]:
    """What is wrong, with the bytes that brought it about."""
    found: list[str] = []
    number = 0
    for number, case in enumerate(cases, start=1):
        found += _try(target, case)
        if number % BATCH == 0:
            found += _good_requests(target)
        if len(found) >= ENOUGH:
            return found
    assert number
    return [*found, *_good_requests(target)]


def _try(target: Target, case: Case) -> Iterator[str]:
    for tries_left in reversed(range(_TRIES)):
        outcome = converse(target, target.ports[case.server], case.pieces)
        is_slow = outcome.seconds > judge.SLOW and not outcome.fault
        if not (is_slow and tries_left):
            break
    faults = [*judge.faults_of(case, outcome), *_logged(target)]
    if faults:
        yield "\n".join([*faults, f"{case}"[:_MOST_SHOWN], *_shown(outcome)])


def _logged(target: Target) -> list[str]:
    lines, target.log.lines = target.log.lines, []
    return [f"logged: {line}" for line in lines]


def _shown(outcome: Outcome) -> list[str]:
    asked = [f"asked: {item}" for item in outcome.asked]
    return asked + [f"answered: {answer}"[:2000] for answer in outcome.answers]


def _good_requests(target: Target) -> list[str]:
    """Those of a tenant, one of which takes all its places, and the operator's; and nothing is
    running that nobody waits for."""
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    most = {"prompt": "Hello", "n": target.max_choices, "max_tokens": 1, "model": target.base}
    small = {"prompt": "a", "max_tokens": 1, "model": "x"}
    found = [
        *_not_good(target, DATA, "POST", "/v1/completions", most),
        *_not_good(target, DATA, "POST", "/v1/chat/completions", {**chat, "model": "y"}),
        *_not_good(target, DATA, "POST", "/v1/messages", {**chat, "model": "x"}),
        *_not_good(target, DATA, "POST", "/v1/completions", {**small, "stream": True}),
        *_not_good(target, DATA, "GET", "/ready"),
        *_not_good(target, ADMIN, "GET", "/admin/v1/tenants/acme/set"),
        *_not_good(target, ADMIN, "PUT", "/admin/v1/tenants/acme/set", _set_of(target)),
    ]
    return found + _wrong_numbers(target) + _logged(target)


def _set_of(target: Target) -> dict[str, Any]:
    return {"adapters": target.adapters}


def _not_good(
    target: Target, server: str, method: str, path: str, body: Any = None
) -> Iterator[str]:
    outcome, answer = _ask(target, server, method, path, body)
    if answer is None or answer.status != 200:
        yield f"{method} {path} is not good any more: {answer}, {outcome.fault}"


def _ask(
    target: Target, server: str, method: str, path: str, body: Any = None
) -> tuple[Outcome, Answer | None]:
    key = ADMIN_KEY if server == ADMIN else target.key
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    outcome = converse(target, target.ports[server], [head.encode() + b"\r\n" + content])
    return outcome, outcome.answers[0] if outcome.answers else None


def _wrong_numbers(target: Target) -> list[str]:
    """The server's own counts, where they are not those of the requests that it saw."""
    outcome, answer = _ask(target, ADMIN, "GET", "/metrics")
    if answer is None or answer.status != 200:
        return [f"/metrics is not good any more: {answer}, {outcome.fault}"]
    sums = {
        sample.name: 0.0
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            sums[sample.name] += sample.value
    expected = {
        "remix_requests_total": target.record.generating,
        "remix_requests_running": 0,
        "remix_requests_waiting": 0,
    }
    return [
        f"{name} is {sums.get(name)}, expected {value}"
        for name, value in expected.items()
        if sums.get(name) != value
    ]
