"""Where a request's `model` name becomes a pinned digest: the only place that does.

Now one set, fixed at start; a tenant's live set takes its place behind the same `resolve`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from remix_runtime.contracts import AdapterInfo, Engine
from remix_runtime.errors import ConfigError, RemixError

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Target:
    """What a model name stands for while one request runs."""

    name: str
    digest: str | None
    """None is the base model alone."""

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint` of the answers."""
        return self.digest or f"base-{self.name}"


class UnknownModelError(RemixError):
    """No model of this name is served to this client."""


class Registry:
    """Model names to targets."""

    def __init__(self, base_name: str, adapters: Mapping[str, AdapterInfo]) -> None:
        assert base_name not in adapters
        self.base_name = base_name
        self.adapters = dict(adapters)
        self.created = int(time.time())
        self._targets = {name: Target(name, info.digest) for name, info in adapters.items()}
        self._targets[base_name] = Target(base_name, None)

    def resolve(self, model: str) -> Target:
        """Raises `UnknownModelError`; an unknown name never falls back to the base."""
        try:
            return self._targets[model]
        except KeyError:
            raise UnknownModelError(
                f"The model {model[:100]!r} does not exist or you do not have access to it."
            ) from None

    @property
    def targets(self) -> Iterable[Target]:
        """The base first, then the adapters in the order they were given."""
        return [self._targets[name] for name in (self.base_name, *self.adapters)]


def parse_adapters(options: Iterable[str]) -> dict[str, Path]:
    """`NAME=DIR` options as a mapping. Raises `ConfigError` for a bad or repeated name."""
    folders: dict[str, Path] = {}
    for option in options:
        name, separator, folder = option.partition("=")
        if not separator or not folder:
            raise ConfigError(f"--adapter: found {option!r}, expected NAME=DIR")
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"--adapter: found the name {name!r}, expected up to 64 letters, digits, "
                "dots, dashes or underscores, the first a letter or digit"
            )
        if name in folders:
            raise ConfigError(f"--adapter: the name {name!r} is given twice")
        folders[name] = Path(folder)
    return folders


async def load_registry(engine: Engine, folders: Mapping[str, Path]) -> Registry:
    """Loads every adapter into the started engine. A refusal names the adapter."""
    base_name = engine.model.name
    if base_name in folders:
        raise ConfigError(
            f"adapter name {base_name!r} is the base model's name; choose another one"
        )
    adapters = {}
    for name, folder in folders.items():
        try:
            adapters[name] = await engine.load_adapter(folder)
        except RemixError as error:
            raise ConfigError(f"adapter {name!r} in {folder}: {error}") from error
        log.info("adapter %s is %s from %s", name, adapters[name].digest, folder)
    return Registry(base_name, adapters)
