"""Whoever runs the server works on, too: sets are swapped, keys made, adapters imported and
deleted, garbage collected, and each call has an outcome that the faults of its time excuse."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tests.hostile.faults.injected import DIRECTORY, DISK

if TYPE_CHECKING:
    from tests.hostile.faults.trial import Trial

_SPARE = (100, 101)
"""Seeds of adapters that come and go, and are in no set."""


class Operator:
    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._chance = random.Random(f"{trial.seed}/operator")
        self._spare: dict[str, str] = {}
        """Digests by source."""

    async def work(self, done: asyncio.Event) -> None:
        folder = self._trial.server.folder
        for seed in _SPARE:
            self._trial.served.write_adapter(folder / f"adapter-{seed}", seed)
        calls = (self._swap, self._swap, self._swap, self._key, self._import, self._spare_one)
        while not done.is_set():
            await self._chance.choice((*calls, self._collect))()
            with suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), self._chance.uniform(0.02, 0.3))

    async def _swap(self) -> None:
        tenant = self._chance.choice("abc")
        adapters = self._trial.wanted(tenant, self._chance)
        await self._call("PUT", f"/tenants/{tenant}/set", json={"adapters": adapters})

    async def _key(self) -> None:
        tenant = self._chance.choice("abc")
        made = await self._call("POST", f"/tenants/{tenant}/keys")
        if made is not None:
            self._trial.keys[tenant] = [*self._trial.keys[tenant][-4:], made["secret"]]

    async def _import(self) -> None:
        """Again."""
        source = self._chance.choice(list(self._trial.sources.values()))
        await self._call("POST", "/adapters", json={"source": source})

    async def _spare_one(self) -> None:
        source = f"adapter-{self._chance.choice(_SPARE)}"
        if (digest := self._spare.pop(source, None)) is not None:
            await self._call("DELETE", f"/adapters/{digest}", also=(404,))
        elif (made := await self._call("POST", "/adapters", json={"source": source})) is not None:
            self._spare[source] = made["digest"]

    async def _collect(self) -> None:
        await self._call("POST", "/adapters/collect-garbage?min_age_seconds=60")

    async def _call(
        self, method: str, path: str, *, also: tuple[int, ...] = (), **kwargs: Any
    ) -> Any:
        """What a call returns; None where it fails for good reasons."""
        trial, since = self._trial, self._trial.moment()
        answer = await trial.patiently(
            trial.server.admin.request(method, f"/admin/v1{path}", **kwargs)
        )
        if answer.is_success:
            return answer.json() if answer.content else {}
        if answer.status_code in also:
            return None
        code = answer.json()["error"]["code"]
        is_full = trial.is_excused(DISK, since)
        is_damaged = any(trial.is_excused(digest, since) for digest in trial.digests)
        is_right = {
            DIRECTORY: is_full or trial.is_excused(DIRECTORY, since),
            DISK: is_full,
            "bad_set": is_damaged,
            "import_stopped": is_damaged,
            "model_unavailable": is_damaged,
        }.get(code, False)
        if not is_right:
            trial.judge.find("unexpected", f"{method} {path} {kwargs}: {answer.text}")
        return None
