"""The tasks that share quotas: killed, failing and hanging, each is seen in time and well again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from remix_runtime.watch import Watch
from server.live import leasing
from server.live.leasing import QUOTAS_TASK, Lender
from server.tenancy.database import Database
from server.tenancy.errors import DatabaseUnavailableError
from server.tenancy.leases import Exchanged, Leases, Reports
from tests.clocks import FakeClock
from tests.unit.live.test_watched import hung, kill, retried
from tests.unit.server.harness import eventually


class Pools(Leases):
    """Exchanges with nobody, and has troubles."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.trouble: str | None = None
        self.exchanges = 0
        self.is_hanging = False

    async def exchange(self, server: str, reports: Reports, *, enters: bool) -> Exchanged:
        if self.trouble == "failing":
            raise DatabaseUnavailableError("it is away")
        if self.trouble == "hanging":
            self.is_hanging = True
            await asyncio.Event().wait()
        self.exchanges += 1
        return Exchanged({}, 2)

    async def leave(self, server: str, reports: Reports) -> None:
        pass


@pytest.mark.parametrize("trouble", ["killed", "failing", "hanging"])
async def test_sharing_comes_back(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leasing, "REPORT_SECONDS", 0.01)
    clock, database = FakeClock(), Database(f"sqlite:///{tmp_path}/remix.db")
    watch, pools = Watch(clock), Pools(database)
    lender = Lender(pools, watch)
    await lender.start()
    renewing = lender._tasks[0]
    await eventually(lambda: pools.exchanges > 2)
    assert lender.servers == 2
    if trouble == "killed":
        kill("Lender._renew")
    else:
        pools.trouble = trouble
        if trouble == "hanging":
            await eventually(lambda: pools.is_hanging)
            await hung(clock, lambda: lender._is_broken and QUOTAS_TASK in watch.failing)
        else:
            await retried(clock, renewing, lambda: QUOTAS_TASK in watch.failing)
        assert lender._is_broken, "requests wait for nothing"
        pools.trouble = None
    before = pools.exchanges
    await retried(clock, renewing, lambda: pools.exchanges > before and not watch.failing)
    await lender.stop()
    await watch.stop()
    await database.close()
