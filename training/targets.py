"""Which linears a run adapts: names as PEFT has them, all of them, or a pattern for whole names."""

from __future__ import annotations

import re
from typing import Any

from remix_runtime.adapter.checkpoint.types import BaseShapes
from remix_runtime.errors import ConfigError

ALL = "all-linear"
_EXAMPLE = r".*\.[qv]_proj"


def as_targets(value: Any) -> Any:
    """A setting as a list: text is `all-linear` or a pattern, which then stands between slashes, as
    no module's name does. Raises `ValueError`."""
    if not isinstance(value, str):
        return value
    if value == ALL:
        return (ALL,)
    expected = f"a list of names, {ALL}, or a pattern for whole names, as {_EXAMPLE}"
    if re.fullmatch(r"[\w.]*", value):  # a name; as a pattern it would match nothing
        raise ValueError(expected)
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{expected}: {error}") from None
    return (f"/{value}/",)


def are_names(targets: tuple[str, ...]) -> bool:
    """Whether nothing has to be resolved."""
    return targets != (ALL,) and not _pattern(targets)


def resolved(targets: tuple[str, ...], shapes: BaseShapes) -> tuple[str, ...]:
    """The names that a checkpoint states, for a base with linears of these shapes. Raises
    `ConfigError` for a pattern that matches none."""
    last = sorted({name.rpartition(".")[2] for name in shapes})
    if targets == (ALL,):
        return tuple(last)
    if not (pattern := _pattern(targets)):
        return targets
    names = tuple(name for name in sorted(shapes) if re.fullmatch(pattern, name))
    if not names:
        raise ConfigError(
            f"target_modules: found the pattern {pattern!r}, which matches no whole name of a "
            f"linear layer, as {min(shapes, default='none')}; they end in {', '.join(last)}"
        )
    return names


def _pattern(targets: tuple[str, ...]) -> str:
    first = targets[0]
    return first[1:-1] if len(targets) == 1 and first[0] == first[-1] == "/" else ""
