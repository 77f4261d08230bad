"""Processes that work on a store until they are killed. Imported by a fork server, so that a round
costs no start of Python and PyTorch."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from server.store import AdapterStore, RejectedAdapterError
from server.store import download as download_module
from tests.unit.store.web import TO_TESTS

_STEPS = {
    "open",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.truncate",
    "os.utime",
}


def work(root: str, sources: Sequence[str], started: Connection) -> None:
    """Imports the sources and collects garbage, over and over."""
    download_module.CHUNK_BYTES = 256
    started.send(True)
    while True:
        store = AdapterStore(Path(root), policy=TO_TESTS)
        asyncio.run(_round(store, sources))
        store.close()


async def _round(store: AdapterStore, sources: Sequence[str]) -> None:
    results = await asyncio.gather(*map(store.import_from, sources), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, RejectedAdapterError):
            raise result
    await store.collect_garbage(set(), min_age_seconds=0)


def work_to_step(root: str, source: str, collect: bool, step: int, counted: Connection) -> None:
    """One import, and perhaps a collection of everything, killed before the file system is touched
    for the `step`-th time. Sends how often that was, where it comes to its end."""
    steps = 0

    def count(event: str, args: tuple[object, ...]) -> None:
        nonlocal steps
        if event not in _STEPS or not (
            str(args[0]).startswith(root) or event in ("os.remove", "os.rmdir")
        ):
            return
        if steps == step:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1

    sys.addaudithook(count)
    store = AdapterStore(Path(root), policy=TO_TESTS)
    with suppress(RejectedAdapterError):
        asyncio.run(store.import_from(source))
    if collect:
        asyncio.run(store.collect_garbage(set(), min_age_seconds=0))
    store.close()
    counted.send(steps)
