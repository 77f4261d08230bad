"""JSON for clients that read by lines."""

from __future__ import annotations

_BREAKS = (("\u2028", "\\u2028"), ("\u2029", "\\u2029"), ("\x85", "\\u0085"))


def one_line(document: str) -> str:
    """A JSON document as one line to everybody. JSON escapes ASCII's line breaks; Python's
    `splitlines`, and clients by it, break at Unicode's too."""
    if not document.isascii():
        for character, escape in _BREAKS:
            document = document.replace(character, escape)
    return document
