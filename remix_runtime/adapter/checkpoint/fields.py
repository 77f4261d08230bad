"""Reads fields of `adapter_config.json`: errors say name, what was found, what was expected."""

from __future__ import annotations

import re
from collections.abc import Mapping

from remix_runtime.adapter.checkpoint.strict_json import show
from remix_runtime.errors import CheckpointFormatError

CONFIG_FILE = "adapter_config.json"

_MAX_TEXT = 1024
_MODULE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")

Fields = Mapping[str, object]


def wrong(fields: Fields, name: str, expected: str) -> CheckpointFormatError:
    found = show(fields[name]) if name in fields else "nothing"
    return CheckpointFormatError(f"{CONFIG_FILE}: {name}: found {found}, expected {expected}")


def integer(fields: Fields, name: str, low: int, high: int) -> int:
    value = fields[name]
    expected = str(low) if low == high else f"an integer from {low} to {high}"
    # bool is an int in Python, not in JSON.
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise wrong(fields, name, expected)
    return value


def number(fields: Fields, name: str, high: float) -> float:
    """A number above 0 and at most `high`."""
    value = fields[name]
    # Compared before float(): Python compares integers of any size, but converts only some.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= high:
        raise wrong(fields, name, f"a number above 0 and at most {high:g}")
    return float(value)


def text(fields: Fields, name: str) -> str:
    value = fields[name]
    # isprintable also keeps out NUL, line ends and lone surrogates.
    if not isinstance(value, str) or not value.isprintable() or len(value) > _MAX_TEXT:
        raise wrong(fields, name, f"printable text of at most {_MAX_TEXT} characters")
    return value


def module_names(fields: Fields, name: str, low: int, limit: int) -> tuple[str, ...]:
    """`low` to `limit` names of modules, in their order."""
    value = fields[name]
    if not isinstance(value, list) or not low <= len(value) <= limit:
        raise wrong(fields, name, f"a list of {low} to {limit} module names")
    names: list[str] = []
    for item in value:
        if not isinstance(item, str) or len(item) > _MAX_TEXT or not _MODULE.fullmatch(item):
            raise CheckpointFormatError(
                f"{CONFIG_FILE}: {name}: found {show(item)}, expected a module name of "
                "letters, digits, underscores and dots"
            )
        names.append(item)
    if len(set(names)) != len(names):
        raise wrong(fields, name, "every name once")
    return tuple(names)


def take_peft_fields(fields: dict[str, object]) -> str | None:
    """Removes the fields that PEFT writes for every kind of adapter from those that are not null;
    returns `revision`."""
    if "auto_mapping" in fields:  # it would name Python classes to import
        raise wrong(fields, "auto_mapping", 'null, as PEFT writes it with task_type "CAUSAL_LM"')
    if not isinstance(fields.get("inference_mode", True), bool):
        raise wrong(fields, "inference_mode", "true, false or null")
    if not isinstance(fields.get("peft_version", ""), str):
        raise wrong(fields, "peft_version", "text or null")
    revision = text(fields, "revision") if "revision" in fields else None
    for name in ("inference_mode", "peft_version", "revision"):
        fields.pop(name, None)
    return revision
