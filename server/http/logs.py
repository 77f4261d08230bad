"""Log lines that name their request, as text or JSON, and the one that tells of its end.

Standard library only: logging begins before anything else is imported.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that the running task works for."""
TRACE_ID: ContextVar[str | None] = ContextVar("trace_id", default=None)
"""The id of that request's trace, 32 hexadecimal digits; None where there are no traces."""

access = logging.getLogger("server.access")

_PLAIN = re.compile(r"[!#-<>-~]{1,200}")
"""Nothing of it could end a line, a field or a value."""
_MAX_VALUE = 200
_WITH_HANDLERS = ("transformers", "huggingface_hub", "vllm")
"""Libraries that write their lines to stderr themselves."""


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """What the log tells of a request. Times are in seconds."""

    method: str
    path: bytes
    """Without the query: a key that somebody put there would stay in the log."""
    status: int | None
    """None where the client left before the answer began."""
    fields: Mapping[str, str | int | float | None]
    request_id: str
    trace_id: str | None

    @property
    def head(self) -> str:
        status = "disconnected" if self.status is None else str(self.status)
        return f"{_value(self.method)} {_value(self.path.decode('latin-1'))} {status}"

    def __str__(self) -> str:
        """The head, and `name=value` for each field that is known."""
        line = [self.head]
        ids = {"id": self.request_id, "trace": self.trace_id}
        for name, value in {**self.fields, **ids}.items():
            if value is not None:
                shown = f"{value:.4f}" if isinstance(value, float) else _value(str(value))
                line.append(f"{name}={shown}")
        return " ".join(line)

    def members(self) -> dict[str, object]:
        """Of the line as a JSON object. What is not known is left out, but for the status."""
        known = {name: value for name, value in self.fields.items() if value is not None}
        rounded = {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in known.items()
        }
        path = self.path.decode("latin-1")[:_MAX_VALUE]
        return {"method": self.method[:_MAX_VALUE], "path": path, "status": self.status, **rounded}


class _StderrHandler(logging.Handler):
    """Writes to what stderr is at that moment: beside a spinner, lines go above it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)


class _JsonFormatter(logging.Formatter):
    """Each line one JSON object in ASCII: no control character, no line break of Unicode's."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        end = record.msg if isinstance(record.msg, RequestEnd) else None
        ids = (REQUEST_ID.get(), TRACE_ID.get()) if end is None else (end.request_id, end.trace_id)
        members: dict[str, object] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage() if end is None else end.head,
        }
        named = zip(("request_id", "trace_id"), ids, strict=True)
        members |= {name: value for name, value in named if value is not None}
        if end is not None:
            members |= end.members()
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: _characters(value) for name, value in members.items()})


class _PassingLogger(logging.Logger):
    """Hands its lines on to the root's handler, whatever its library would do with them."""

    # What a library sets is not kept.
    propagate = property(lambda _: True, lambda *_: None)

    def addHandler(self, hdlr: logging.Handler) -> None:  # noqa: N802 - logging's name
        pass


def configure_logging(level: str, *, as_json: bool = False) -> None:
    """Writes to stderr what the project's rooms log from `level` on, and warnings of others.

    As JSON, so is what else would go there by itself: Python's warnings, failures of threads, lines
    of libraries that have a handler of their own.
    """
    handler = _StderrHandler()
    if as_json:
        handler.setFormatter(_JsonFormatter())
        logging.captureWarnings(True)
        threading.excepthook = _log_failed_thread
        for name in _WITH_HANDLERS:
            library = logging.getLogger(name)
            library.handlers.clear()
            library.__class__ = _PassingLogger
    else:
        handler.addFilter(_name_request)
        handler.setFormatter(logging.Formatter("%(levelname)s: %(name)s: %(request)s%(message)s"))
    logging.basicConfig(handlers=[handler])
    for room in ("server", "remix_runtime"):
        logging.getLogger(room).setLevel(level.upper())


def _name_request(record: logging.LogRecord) -> bool:
    request = REQUEST_ID.get()
    record.request = "" if request is None else f"[{request}] "
    return True


def _log_failed_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is None:
        return
    name = "a thread" if failed.thread is None else failed.thread.name
    error = (failed.exc_type, failed.exc_value, failed.exc_traceback)
    logging.getLogger("server").error("%s failed", name, exc_info=error)


def _characters(value: object) -> object:
    """A text without the halves of characters that JSON could not be read with everywhere."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "replace").decode("utf-8")
    return value


def _value(text: str) -> str:
    """`text` as it is, or quoted where it could be taken for more than one value of one line."""
    if _PLAIN.fullmatch(text):
        return text
    return json.dumps(text[:_MAX_VALUE]).replace("\x7f", "\\u007f")
