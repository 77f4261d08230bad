"""YAML files that people write: one mapping, read without surprises."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from remix_runtime.errors import ConfigError


def read_mapping(path: Path, *, expected: str) -> dict[Any, Any]:
    """The mapping of `expected` (a word for errors) in a file. Raises `ConfigError`, also for a key
    that stands twice, of which YAML readers silently take the last."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe one
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = str(error).replace("\n", " ")
        raise ConfigError(f"{path}: found no valid YAML, expected {expected}: {problem}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: found {type(found).__name__}, expected a mapping of {expected}")
    return found


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"found the key {key!r} twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)
