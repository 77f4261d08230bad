"""Log lines that name their request, and the one line that tells of it when it has ended.

Standard library only: logging begins before anything else is imported.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that the running task works for."""

access = logging.getLogger("server.access")

_PLAIN = re.compile(r"[!#-<>-~]{1,200}")
"""Nothing of it could end a line, a field or a value."""
_MAX_VALUE = 200


class _StderrHandler(logging.Handler):
    """Writes to what stderr is at that moment: beside a spinner, lines go above it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)


def configure_logging(level: str) -> None:
    """Writes to stderr what the project's rooms log from `level` on, and warnings of others."""
    handler = _StderrHandler()
    handler.addFilter(_name_request)
    logging.basicConfig(
        format="%(levelname)s: %(name)s: %(request)s%(message)s", handlers=[handler]
    )
    for room in ("server", "remix_runtime"):
        logging.getLogger(room).setLevel(level.upper())


def _name_request(record: logging.LogRecord) -> bool:
    request = REQUEST_ID.get()
    record.request = "" if request is None else f"[{request}] "
    return True


def access_line(
    method: str, path: bytes, status: str, fields: Mapping[str, str | int | float | None]
) -> str:
    """The line of a request, `name=value` for each field that is known. Times are in seconds."""
    line = [_value(method), _value(path.decode("latin-1")), status]
    for name, value in fields.items():
        if value is not None:
            shown = f"{value:.4f}" if isinstance(value, float) else _value(str(value))
            line.append(f"{name}={shown}")
    return " ".join(line)


def _value(text: str) -> str:
    """`text` as it is, or quoted where it could be taken for more than one value of one line."""
    if _PLAIN.fullmatch(text):
        return text
    return json.dumps(text[:_MAX_VALUE]).replace("\x7f", "\\u007f")
