"""JSON schemas that no finite value can meet: those that require themselves.

A grammar is compiled without a look at whether an answer could ever end. Here a schema *ends* if
there may be a finite value for it; one that cannot be judged ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

_MAX_STEPS = 100_000
"""A schema that takes more of them is let through."""


def require_finite(text: str) -> None:
    """Raises `ValueError` for a schema whose every value would have no end."""
    try:
        root = json.loads(text)
    except RecursionError:
        raise ValueError("the schema is nested too deeply") from None
    # A definition mostly refers to those behind it.
    references = list(dict.fromkeys(_references(root)))[::-1]
    targets = {ref: _target(root, ref) for ref in references}
    judge = _Judge()
    while not judge.ends(root):
        found = len(judge.ending)
        judge.ending.update(ref for ref, schema in targets.items() if judge.ends(schema))
        if len(judge.ending) == found:
            raise ValueError("the schema requires itself without an end: no value can meet it")


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(ref := node.get("$ref"), str):
            yield ref
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _references(child)


def _target(root: Any, ref: str) -> Any:
    """What a reference names; True, which anything meets, where that is not known here."""
    if not ref.startswith("#"):
        return True
    node = root
    for part in ref[1:].split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and name in node:
            node = node[name]
        elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        else:
            return True
    return node


class _Judge:
    """Says whether a schema ends if the references of `ending` do."""

    def __init__(self) -> None:
        self.ending: set[str] = set()
        self._steps = 0

    def ends(self, schema: Any) -> bool:
        self._steps += 1
        if not isinstance(schema, dict) or self._steps > _MAX_STEPS:
            return True
        if "$ref" in schema and schema["$ref"] not in self.ending:
            return False
        if not all(map(self.ends, _list(schema, "allOf"))):
            return False
        for key in ("anyOf", "oneOf"):
            choices = _list(schema, key)
            if choices and not any(map(self.ends, choices)):
                return False
        kinds = schema.get("type")
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not isinstance(kinds, list) or "const" in schema or "enum" in schema:
            return True
        return any(self._kind_ends(kind, schema) for kind in kinds)

    def _kind_ends(self, kind: Any, schema: dict[str, Any]) -> bool:
        match kind:
            case "object":
                properties = schema.get("properties")
                known = properties if isinstance(properties, dict) else {}
                rest = schema.get("additionalProperties", True)
                names = [name for name in _list(schema, "required") if isinstance(name, str)]
                return all(self.ends(known.get(name, rest)) for name in names)
            case "array":
                least = schema.get("minItems", 0)
                if not isinstance(least, int):
                    return True
                first = _list(schema, "prefixItems")
                rest_ends = least <= len(first) or self.ends(schema.get("items", True))
                return rest_ends and all(map(self.ends, first[:least]))
            case _:
                return True


def _list(schema: dict[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []
