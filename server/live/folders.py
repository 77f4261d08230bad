"""Finds the folder of a registered adapter: in this server's store, or fetched into it."""

from __future__ import annotations

import logging
from pathlib import Path

from server.store import AdapterStore, UnknownDigestError
from server.tenancy.directory import Directory

log = logging.getLogger(__name__)


class Folders:
    """Finds folders by digest.

    Servers that share a database need not share a disk: what another one imported is imported here
    from the same source, and must have the same digest.
    """

    def __init__(self, directory: Directory, store: AdapterStore) -> None:
        self._directory = directory
        self._store = store

    async def __call__(self, digest: str) -> Path:
        """The folder of a digest. Asks the database only for what is not in the store, so that cold
        adapters are served without it. Raises `AdapterNotFoundError` for what is not registered
        either, `StoreError`."""
        try:
            return self._store.folder(digest)
        except UnknownDigestError:
            record = await self._directory.adapter(digest)
        log.info("adapter %s is not in this store; importing %s", digest, record.source)
        stored = await self._store.import_from(record.source, is_served=True)
        if stored.digest != digest:
            raise UnknownDigestError(
                f"{record.source}: found adapter {stored.digest}, expected {digest}, which was "
                "imported from there and is not in this server's store"
            )
        return stored.folder

    async def repair(self, digest: str) -> bool:
        """Has an adapter imported again whose folder is damaged or gone; a damaged one goes into
        quarantine first. False, and no change, where the folder is as it was imported. Raises as a
        call does."""
        try:
            damage = await self._store.set_aside(digest)
        except UnknownDigestError:
            damage = "its folder is gone"
        if damage is None:
            return False
        log.error("adapter %s is damaged in the store, and is imported again: %s", digest, damage)
        await self(digest)
        log.warning("adapter %s is whole again", digest)
        return True
