"""Serves one set of adapters, fixed at the start, on a server without tenants."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from remix_runtime.contracts import Engine
from remix_runtime.errors import ConfigError, RemixError
from server.live.access import SINGLE_USER
from server.live.adapters import LiveAdapters
from server.live.sets import LiveSets
from server.tenancy.errors import AdapterNotFoundError, InvalidValueError
from server.tenancy.records import check_name

log = logging.getLogger(__name__)


def parse_adapters(options: Iterable[str]) -> dict[str, Path]:
    """Reads `NAME=DIR` options. Raises `ConfigError` for a bad or repeated name."""
    folders: dict[str, Path] = {}
    for option in options:
        name, separator, folder = option.partition("=")
        if not separator or not folder:
            raise ConfigError(f"--adapter: found {option!r}, expected NAME=DIR")
        try:
            check_name("--adapter: name", name)
        except InvalidValueError as error:
            raise ConfigError(str(error)) from None
        if name in folders:
            raise ConfigError(f"--adapter: the name {name!r} is given twice")
        folders[name] = Path(folder)
    return folders


class GivenFolders:
    """The folders that were given at the start. They belong to whoever gave them, and the engine
    knows them."""

    async def __call__(self, digest: str) -> Path:
        raise AdapterNotFoundError(digest)

    async def repair(self, digest: str) -> bool:
        return False


async def load_single_set(
    engine: Engine, adapters: LiveAdapters, sets: LiveSets, folders: Mapping[str, Path]
) -> None:
    """Loads every adapter into the started engine. An error names the adapter."""
    if sets.base_name in folders:
        raise ConfigError(
            f"adapter name {sets.base_name!r} is the base model's name; choose another one"
        )
    digests = {}
    for name, folder in folders.items():
        log.info("loading adapter %s from %s", name, folder)
        try:
            info = await engine.load_adapter(folder)
        except RemixError as error:
            raise ConfigError(f"adapter {name!r} in {folder}: {error}") from error
        adapters.adopt(info)
        digests[name] = info.digest
        log.info("adapter %s is %s", name, info.digest)
    sets.flip(SINGLE_USER, 0, digests)
