"""Gets this server its part of quotas that several servers on one PostgreSQL share.

One watched task exchanges what is held for what is wanted, every second and whenever a request
lacks something; another one hears when other servers lack something. Most requests find what they
need in this server's stock; the others wait for one exchange. While the database does not answer
the leases run out, and then this server counts alone, with an equal part of each limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence

from remix_runtime.errors import RemixError
from remix_runtime.watch import Watch, Watched
from server.live.buckets import REPORT_SECONDS, Standing
from server.live.usage import LeasedUsage, Usage
from server.tenancy.changes import Bell
from server.tenancy.errors import LeaseLostError
from server.tenancy.leases import CHANNEL, LEASE_SECONDS, Leases

log = logging.getLogger(__name__)

QUOTAS_TASK = "quotas"
"""Name of the watched tasks."""
SIGN_SECONDS = 30.0
"""Seconds of silence after which they count as hanging."""
WAIT_SECONDS = 0.5
"""Seconds that a request waits for what other servers have, or the database."""
_GAP_SECONDS = 0.01
"""Seconds between two exchanges: what is asked for meanwhile is asked for together."""
_AT_ONCE = 200
"""Tenants of one exchange."""
_LAST_PAUSE_SECONDS = 5.0
_HEAR_SECONDS = 10.0


class Lender:
    """The `Supply` of quotas that are shared."""

    def __init__(
        self, leases: Leases, watch: Watch, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._leases = leases
        self._watch = watch
        self._clock = clock
        self._standing = Standing(until=clock())
        self._poke = asyncio.Event()
        self._is_broken = False
        self._last = clock()
        self._tasks: list[Watched] = []
        self.tenants: dict[str, Usage] = {}
        """What they use here."""

    @property
    def servers(self) -> int:
        """How many servers share the quotas; 0 while this one does not know."""
        return self._standing.servers if self._clock() < self._standing.until else 0

    async def start(self) -> None:
        """Raises `DatabaseUnavailableError`."""
        await self._exchange()
        for work, what in (
            (self._renew, "sharing quotas with other servers"),
            (self._hear, "hearing what quotas other servers need"),
        ):
            self._tasks.append(
                self._watch.start(
                    QUOTAS_TASK,
                    work,
                    what=what,
                    due_seconds=SIGN_SECONDS,
                    last_pause_seconds=_LAST_PAUSE_SECONDS,
                )
            )

    async def stop(self) -> None:
        """Gives everything back, if the database takes it."""
        for task in self._tasks:
            await task.stop()
        now, server = self._clock(), self._standing.server
        if now >= self._standing.until:
            return
        reports = {}
        for tenant, usage in self._shared():
            usage.recalled = True
            reports[tenant] = usage.report(server, now)
        self._standing.until = now
        with contextlib.suppress(RemixError):  # it runs out by itself
            await self._leases.leave(server, reports)

    def usage(self) -> Usage:
        return LeasedUsage(self._standing, self._clock())

    async def more(self, usage: Usage, name: str, amount: int, since: float) -> bool:
        assert isinstance(usage, LeasedUsage)
        now = self._clock()
        if self._is_broken or now >= self._standing.until or not usage.may_have(name, amount, now):
            return False
        if usage.reported < since:  # then this need was not in the last report
            self._poke.set()
        usage.waiting[name] += amount
        try:
            async with asyncio.timeout(since + WAIT_SECONDS - now):
                await usage.answered.wait()
        except TimeoutError:
            usage.not_had(name, amount, self._clock())
            return False
        finally:
            usage.waiting[name] -= amount
        return True

    async def _renew(self, task: Watched) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_SECONDS):
                    await self._poke.wait()
            gap = self._last + _GAP_SECONDS - self._clock()
            if gap > 0:
                await asyncio.sleep(gap)
            try:
                await self._exchange()
            except LeaseLostError as error:
                log.warning("%s: its part of quotas begins anew", error)
                self._standing.until = self._clock()
            except BaseException:
                self._is_broken = True
                for _, usage in self._shared():
                    usage.wake()
                raise
            task.beat()

    async def _exchange(self) -> None:
        self._poke.clear()
        self._last = now = self._clock()
        server = self._standing.server
        due = [(tenant, usage) for tenant, usage in self._shared() if usage.due(now)]
        if now >= self._standing.until:
            server, due = secrets.token_hex(8), self._shared()
        for start in range(0, max(len(due), 1), _AT_ONCE):
            await self._exchange_some(server, due[start : start + _AT_ONCE], self._clock())
        self._is_broken = False

    async def _exchange_some(
        self, server: str, some: Sequence[tuple[str, LeasedUsage]], now: float
    ) -> None:
        reports = {tenant: usage.report(server, now) for tenant, usage in some}
        standing = self._standing
        done = await self._leases.exchange(server, reports, enters=server != standing.server)
        standing.server, standing.until = server, now + LEASE_SECONDS
        standing.servers = done.servers
        for tenant, usage in some:
            usage.take(reports[tenant], done.answers.get(tenant, {}), now)

    async def _hear(self, task: Watched) -> None:
        bell = Bell(self._leases.database, CHANNEL)
        try:
            while True:
                await bell.arm()
                if not self._is_broken:
                    bell.tell()
                task.beat(_HEAR_SECONDS + SIGN_SECONDS)
                for told in await bell.wait(_HEAR_SECONDS):
                    self._heard(*told.split(" "))
        finally:
            await bell.close()

    def _heard(self, server: str, tenant: str) -> None:
        usage = self.tenants.get(tenant)
        if server != self._standing.server and isinstance(usage, LeasedUsage):
            usage.recalled = True
            self._poke.set()

    def _shared(self) -> list[tuple[str, LeasedUsage]]:
        return [
            (name, item) for name, item in self.tenants.items() if isinstance(item, LeasedUsage)
        ]
