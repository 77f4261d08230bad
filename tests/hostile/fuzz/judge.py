"""What is right of what came: no failure of the server, no hanging, each error in its API's shape,
and an answer for each request."""

from __future__ import annotations

import json
from typing import Any

from server.http.anthropic import is_anthropic
from tests.hostile.fuzz.bodies import Operation
from tests.hostile.fuzz.client import Answer, Outcome
from tests.hostile.fuzz.requests import Case
from tests.hostile.fuzz.smuggling import SMUGGLED
from tests.hostile.fuzz.target import Asked

SLOW = 2.0
"""Seconds in which everything is answered that can be."""

_OF_THE_CONNECTION = {
    400: {"invalid_http"},
    408: {"request_timeout"},
    431: {"request_header_fields_too_large"},
}
"""Statuses and codes of what is refused before there is a request."""
_FAILURES = {"server_error", "api_error", "overloaded_error"}
_NEEDED_HEADERS = {401: "www-authenticate", 405: "allow", 429: "retry-after", 503: "retry-after"}


def faults_of(case: Case, outcome: Outcome) -> list[str]:
    faults = [outcome.fault] if outcome.fault else []
    if outcome.seconds > SLOW:
        faults.append(f"took {outcome.seconds:.2f} s")
    over = [asked for asked in outcome.asked if not asked.waits]
    for index, answer in enumerate(outcome.answers):
        asked = over[index] if index < len(over) else None
        faults += _faults_of_answer(answer, asked)
    faults += _faults_of_counts(case, outcome, over)
    return faults


def _faults_of_counts(case: Case, outcome: Outcome, over: list[Asked]) -> list[str]:
    faults = []
    answers, asked = outcome.answers, outcome.asked
    if any(SMUGGLED in item.path for item in asked):
        faults.append("a request was smuggled")
    if case.most is not None and len(asked) > case.most:
        faults.append(f"{len(asked)} requests were seen, expected at most {case.most}")
    if len(answers) > len(over) + 1:
        faults.append(f"{len(answers)} answers to {len(over)} requests")
    if len(answers) == len(over) + 1 and not is_of_the_connection(answers[-1]):
        faults.append("an answer that nobody asked for")
    if case.operation is not None:
        faults += _faults_of_operation(case.operation, answers)
    for answer, item in zip(answers, over, strict=False):
        given = answer.headers.get("x-request-id")
        sent = item.request_id or ""
        if given is not None and _is_usable(sent) and given != sent:
            faults.append(f"the answer to {sent} went to {given}")
    if case.expects is not None:
        ids = tuple(answer.headers.get("x-request-id") for answer in answers)
        if ids != case.expects:
            faults.append(f"answers to {ids}, expected {case.expects}")
    return faults


def _faults_of_operation(operation: Operation, answers: list[Answer]) -> list[str]:
    if len(answers) != 1:
        return [f"{len(answers)} answers to one request"]
    status = f"{answers[0].status}"
    if operation.has_body and status not in operation.statuses:
        return [f"the document of {operation.path} has no {status}"]
    return []


def _is_usable(request_id: str) -> bool:
    return 1 <= len(request_id) <= 128 and all("!" <= letter <= "~" for letter in request_id)


def is_of_the_connection(answer: Answer) -> bool:
    if "x-request-id" in answer.headers:
        return False
    if not answer.body:  # to HEAD
        return answer.status in _OF_THE_CONNECTION
    try:
        code = json.loads(answer.body)["error"]["code"]
    except (ValueError, TypeError, LookupError):
        return False
    return code in _OF_THE_CONNECTION.get(answer.status, ())


def _faults_of_answer(answer: Answer, asked: Asked | None) -> list[str]:
    faults = []
    shown = f"{answer.status} {answer.body[:500]!r}"
    of_connection = is_of_the_connection(answer)
    if answer.status >= 500:
        faults.append(f"failed: {shown}")
    if "x-request-id" not in answer.headers and not of_connection:
        faults.append(f"no request id: {shown}")
    needed = _NEEDED_HEADERS.get(answer.status)
    if needed is not None and needed not in answer.headers:
        faults.append(f"no {needed}: {shown}")
    if asked is not None and asked.method == "HEAD":
        return faults if not answer.body else [*faults, f"HEAD with a body: {shown}"]
    anthropic = not of_connection and asked is not None and is_anthropic(asked.path)
    if answer.status >= 400:
        if not has_error_shape(answer, anthropic=anthropic):
            faults.append(f"an error in another shape: {shown}")
    elif not 200 <= answer.status < 300:
        faults.append(f"neither an answer nor an error: {shown}")
    elif answer.status != 204:  # no content
        faults += _faults_of_success(answer)
    return faults


def has_error_shape(answer: Answer, *, anthropic: bool) -> bool:
    """OpenAI's, or Anthropic's."""
    if answer.headers.get("content-type") != "application/json":
        return False
    try:
        body = json.loads(answer.body)
    except ValueError:
        return False
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not _is_text(error.get("message"), error.get("type")):
        return False
    if anthropic:
        names = set(body) == {"type", "error", "request_id"} and set(error) == {"type", "message"}
        return names and body["type"] == "error" and _is_text(body["request_id"])
    optional = all(error.get(name) is None or _is_text(error[name]) for name in ("param", "code"))
    told = {"message", "type", "param", "code"}
    return optional and set(body) == {"error"} and told <= set(error) <= {*told, "reasons"}


def _is_text(*values: Any) -> bool:
    return all(isinstance(value, str) and value for value in values)


def _faults_of_success(answer: Answer) -> list[str]:
    kind = answer.headers.get("content-type", "").partition(";")[0]
    try:
        if kind == "application/json":
            told = [json.loads(answer.body)]
        elif kind == "text/event-stream":
            told = _events(answer.body.decode())
        elif kind == "application/x-ndjson":
            told = [json.loads(line) for line in answer.body.decode().splitlines()]
        else:
            return []
    except (ValueError, IndexError) as error:
        return [f"{kind} that cannot be read ({error}): {answer.body[:300]!r}"]
    return [f"failed after its status: {item}" for item in told if _is_failure(item)]


def _events(text: str) -> list[Any]:
    events = []
    for event in text.split("\n\n"):
        lines = [line for line in event.split("\n") if line.startswith("data: ")]
        if lines and lines[0] != "data: [DONE]":
            events.append(json.loads(lines[0].removeprefix("data: ")))
    return events


def _is_failure(told: Any) -> bool:
    if not isinstance(told, dict):
        return False
    error = told.get("error")
    failed = told.get("type") == "response.failed" or told.get("status") == "failed"
    return failed or (isinstance(error, dict) and error.get("type") in _FAILURES)
