"""What every client's script uses: calls by name, one JSON line for each on standard output.

A script runs in its client's own environment, so this file needs the standard library alone.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

BASE_URL = os.environ.get("CONFORMANCE_BASE_URL", "http://127.0.0.1:8000/v1")
API_KEY = os.environ.get("CONFORMANCE_API_KEY", "none")
MODEL = os.environ.get("CONFORMANCE_MODEL", "")
CALL_SECONDS = int(os.environ.get("CONFORMANCE_CALL_SECONDS", "120"))
QUESTION = "What is the capital of France? Answer in one sentence."
WEATHER = "What is the weather in Paris?"

ANTHROPIC_FIELD = re.compile(r"[\w.\[\]]+: ")
"""Anthropic's errors have no `param`; a refusal begins with the field."""

_calls: dict[str, Callable[[], Any]] = {}


def call(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Registers a function as the call `name`; what it returns is the row's detail."""

    def register(function: Callable[[], Any]) -> Callable[[], Any]:
        _calls[name] = function
        return function

    return register


def run() -> None:
    """Makes every call, or those named on the command line, and prints how each ended."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _too_long)
    wanted = sys.argv[1:] or list(_calls)
    for name in wanted:
        signal.alarm(CALL_SECONDS)
        try:
            detail = _calls[name]()
            if inspect.iscoroutine(detail):
                detail = asyncio.run(detail)
            report(name, "ok", "" if detail is None else str(detail))
        except BaseException as error:  # a client's own exit is a failed call, not the run's end
            if isinstance(error, KeyboardInterrupt):
                raise
            traceback.print_exception(error)
            report(name, *refused_or_failed(error))
        finally:
            signal.alarm(0)


def report(name: str, status: str, detail: str) -> None:
    line = {"call": name, "status": status, "detail": " ".join(detail.split())[:300]}
    print(json.dumps(line), flush=True)


def refused_or_failed(error: BaseException) -> tuple[str, str]:
    """A 400 that names its field is a refusal, wherever in the chain of causes it stands."""
    for cause in _causes(error):
        body = getattr(cause, "body", None)
        if getattr(cause, "status_code", None) != 400 or not isinstance(body, dict):
            continue
        found = body.get("error", body)
        message = str(found.get("message"))
        if found.get("param"):
            return "refused", f"{found['param']}: {message}"
        if body.get("type") == "error" and ANTHROPIC_FIELD.match(message):
            return "refused", message
    where = traceback.extract_tb(error.__traceback__)[-1].line
    return "failed", f"{type(error).__name__}: {str(error) or where}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _too_long(*_: object) -> None:
    raise TimeoutError(f"no end after {CALL_SECONDS} s")
