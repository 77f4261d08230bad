"""Names of a row's fields, as an option of a command gives them."""

from __future__ import annotations

from remix_runtime.errors import ConfigError


def columns_of(text: str) -> dict[str, str]:
    """`a=b,c=d` as a mapping. Raises `ConfigError`."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise ConfigError(f"columns: found {text!r}, expected pairs as in prompt=question")
    return {name: value for name, _, value in pairs}
