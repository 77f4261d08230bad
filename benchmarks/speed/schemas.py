"""Random JSON schemas, each with a value that meets it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

_WORDS = ("name", "age", "street", "city", "tags", "price", "kind", "date", "owner", "notes", "id")

Sample = tuple[dict[str, Any], Any]


def random_schema(rng: random.Random) -> Sample:
    """An object of some fields, nested three deep at most."""
    return _object(rng, 3)


def endless_schema(rng: random.Random) -> dict[str, Any]:
    """A list of such objects that is longer than any answer."""
    return {"type": "array", "items": _object(rng, 1)[0], "minItems": 1000}


def _object(rng: random.Random, depth: int) -> Sample:
    names = rng.sample(_WORDS, rng.randint(2, 6))
    fields = {name: _any(rng, depth - 1) for name in names}
    schema = {
        "type": "object",
        "properties": {name: field for name, (field, _) in fields.items()},
        "required": names,
        "additionalProperties": False,
    }
    return schema, {name: value for name, (_, value) in fields.items()}


def _any(rng: random.Random, depth: int) -> Sample:
    kinds: list[Callable[[random.Random], Sample]] = [_string, _pattern, _number, _choice, _flag]
    if depth > 0:
        kinds += [lambda r: _object(r, depth), lambda r: _array(r, depth)]
    return rng.choice(kinds)(rng)


def _string(rng: random.Random) -> Sample:
    schema: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.5:
        schema["maxLength"] = rng.choice((20, 100, 400))
    return schema, " ".join(rng.choices(_WORDS, k=rng.randint(1, 4)))[:20]


def _pattern(rng: random.Random) -> Sample:
    return {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}, f"AB-{rng.randint(1000, 9999)}"


def _number(rng: random.Random) -> Sample:
    if rng.random() < 0.5:
        return {"type": "number"}, round(rng.uniform(-1000, 1000), 2)
    return {"type": "integer", "minimum": 0, "maximum": 150}, rng.randint(0, 150)


def _choice(rng: random.Random) -> Sample:
    options = rng.sample(_WORDS, 4)
    return {"enum": options}, rng.choice(options)


def _flag(rng: random.Random) -> Sample:
    return {"anyOf": [{"type": "boolean"}, {"type": "null"}]}, rng.choice((True, None))


def _array(rng: random.Random, depth: int) -> Sample:
    schema, value = _any(rng, depth - 1)
    return {"type": "array", "items": schema, "maxItems": 8}, [value] * rng.randint(0, 3)
