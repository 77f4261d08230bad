"""A trial: clients that ask and cut, phases of faults, and whoever runs the server at work; each
request must have one outcome, and one that is excused by a fault of its time."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

from server.live.access import TenantAccess
from server.store import AdapterStore
from server.tenancy import Directory
from tests.hostile.faults.clients import Client
from tests.hostile.faults.injected import FAULTS, prepare_database
from tests.hostile.faults.judge import Asked, Judge
from tests.hostile.faults.operating import Operator
from tests.hostile.faults.served import Served, add_tenant
from tests.hostile.faults.shapes import GOOD, Shape
from tests.hostile.faults.wire import HungError
from tests.unit.server.tenants import TenantServer

T = TypeVar("T")

CLIENTS = 16
HUNG_TICKS = 240
"""Half seconds of the event loop's own life after which a client has waited for too long: a process
that stands still does not count them."""

BASE = "base"
"""Stands for the base model in the lists below."""
SETS = {
    "a": {"style": (0, 1), "tone": (2,)},
    "b": {"style": (3, 1), "tone": (4,)},
    "c": {"style": (2, 5)},
}
"""By tenant and name, the seeds of the adapters that it may stand for."""
ADAPTERS = 6
JUDGE = "judge"
"""A tenant that has every adapter before and after the trial."""


class Trial:
    """Of `total` requests. `findings` should be empty at the end."""

    def __init__(self, served: Served, *, seed: int, total: int) -> None:
        self.served, self.seed = served, seed
        self.server: TenantServer = served.server
        self.database = served.database
        self.access: TenantAccess = served.server.services.access  # type: ignore[assignment]
        admin = served.server.apps.admin.state.services
        self.store: AdapterStore = admin.store
        self.directory: Directory = admin.directory
        self.disk_is_full = self.database_is_away = False
        self.injected = 0
        """Sequences that were made to fail."""
        self.damaged: set[str] = set()
        self.sources: dict[str, str] = {}
        """Where each adapter was imported from, by its digest."""
        self.digests: list[str] = []
        """By seed."""
        self.keys: dict[str, list[str]] = {}
        self.left = self.total = total
        """Requests that are not drawn yet."""
        self.cut_rate = 0.0
        self.judge = Judge(self, served.books)
        self._moments = itertools.count()
        self._excuses: Counter[str] = Counter()
        self._excused_until: dict[str, int] = {}
        self._ticks = 0
        self._waiting: dict[asyncio.Task[Any], int] = {}
        self._hung: set[asyncio.Task[Any]] = set()

    # -- excuses --------------------------------------------------------------------------------

    def moment(self) -> int:
        return next(self._moments)

    @contextmanager
    def excused(self, reason: str) -> Iterator[None]:
        self._excuses[reason] += 1
        try:
            yield
        finally:
            self._excuses[reason] -= 1
            self._excused_until[reason] = self.moment()

    def excuse(self, reason: str) -> None:
        """Until `heal`."""
        self._excuses[reason] = 1

    def is_excused(self, reason: str, since: int) -> bool:
        """Whether it held at any moment from `since` to now."""
        return self._excuses[reason] > 0 or self._excused_until.get(reason, -1) > since

    # -- patience -------------------------------------------------------------------------------

    async def patiently(self, work: Awaitable[T]) -> T:
        """Raises `HungError`."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting[task] = self._ticks
        try:
            return await work
        except asyncio.CancelledError:
            if task not in self._hung:
                raise
            self._hung.discard(task)
            task.uncancel()
            raise HungError from None
        finally:
            del self._waiting[task]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        begun = self._ticks
        while not condition():
            assert self._ticks - begun < HUNG_TICKS, f"seed {self.seed}: not yet: {what}"
            await asyncio.sleep(0.01)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self._ticks += 1
            for task, begun in self._waiting.items():
                if self._ticks - begun > HUNG_TICKS:
                    self._hung.add(task)
                    task.cancel()

    # -- the course of it -----------------------------------------------------------------------

    async def run(self) -> list[str]:
        """What was found."""
        async with self._ticking():
            await self._prepare()
            tasks, files = _tasks(), len(os.listdir("/proc/self/fd"))
            chance = random.Random(f"{self.seed}/phases")
            done = asyncio.Event()
            operator = asyncio.create_task(Operator(self).work(done))
            phases = asyncio.create_task(self._phases(chance, done))
            clients = (Client(self, number).work() for number in range(CLIENTS))
            try:
                await asyncio.gather(*clients)
            finally:
                self.left = 0
                done.set()
                await asyncio.gather(operator, phases)
            await self._heal()
            await self._ask_all()
            found = await self.served.books.disagreements(self.server, self.served.door)
            found += await self._of_store()
            if self.judge.outcomes.total() != self.judge.asked:
                found.append(f"lost: {self.judge.asked} asked, {self.judge.outcomes.total()} ended")
            if self.judge.outcomes["internal_error"] > self.injected:
                found.append(f"unexpected: more internal errors than {self.injected} faults")
            found += self._of_database()
            if more := await self._more_than(tasks):
                found.append(f"held: tasks {more}")
            if (now := len(os.listdir("/proc/self/fd"))) > files + 64:
                found.append(f"held: {now} files, {files} before")
            return found

    @asynccontextmanager
    async def _ticking(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.judge.find("unhandled", str(context)))
        ticking = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking
            loop.set_exception_handler(None)

    async def _prepare(self) -> None:
        """Imports the adapters and has each answer everything once."""
        prepare_database(self)
        for seed in range(ADAPTERS):
            self.served.write_adapter(self.server.folder / f"adapter-{seed}", seed)
            source = {"source": f"adapter-{seed}"}
            digest = (await self.server.succeed("POST", "/adapters", json=source))["digest"]
            self.digests.append(digest)
            self.sources[digest] = source["source"]
        for tenant in SETS:
            limit = 3 if tenant == "c" else None
            key = await add_tenant(
                self.served, tenant, may_use_base=tenant == "a", max_concurrent=limit
            )
            self.keys[tenant] = [key]
            await self.server.put(tenant, self.wanted(tenant, random.Random(0)))
        self.keys[JUDGE] = [await add_tenant(self.served, JUDGE, may_use_base=True)]
        await self._judge_has_all()
        await self.until(lambda: self.knows(JUDGE), "its keys are known")
        for shape, name in itertools.product(GOOD, (*self.digests, self.base)):
            await self.ask(JUDGE, name[:8] if name != self.base else name, shape)
        await self.server.put(JUDGE, {})

    async def _judge_has_all(self) -> None:
        await self.server.put(JUDGE, {digest[:8]: digest for digest in self.digests})

    @property
    def base(self) -> str:
        return str(self.server.engine.model.name)

    def knows(self, tenant: str) -> bool:
        snapshot = self.access._follower.snapshot
        return snapshot.authenticate(self.keys[tenant][0]) is not None

    def wanted(self, tenant: str, chance: random.Random) -> dict[str, str]:
        """A set of the tenant."""
        names = SETS[tenant].items()
        return {name: self.digests[chance.choice(seeds)] for name, seeds in names}

    def meanings(self, tenant: str, name: str) -> set[str]:
        """The fingerprints that an answer of this name may have."""
        if name == self.base:
            return {f"base-{self.base}"}
        if tenant == JUDGE:
            return {digest for digest in self.digests if digest.startswith(name)}
        return {self.digests[seed] for seed in SETS[tenant][name]}

    async def ask(self, tenant: str, name: str, shape: Shape) -> str:
        """The outcome of one request by a client without faults of its own."""
        asked = Asked.make(self, tenant, self.keys[tenant][0], name, shape)
        client = Client(self, -1)
        await client.ask_in_peace(asked)
        assert asked.outcome is not None
        return asked.outcome

    async def _phases(self, chance: random.Random, done: asyncio.Event) -> None:
        length = max(10, self.total // 150)
        while self.left > 0 and not done.is_set():
            faults = chance.sample(FAULTS, chance.choice((0, 1, 1, 2, 3)))
            goal = self.left - chance.randint(length // 2, length * 3 // 2)
            self.cut_rate = chance.choice((0.0, 0.1, 0.3, 0.6))
            self._pace(chance)
            async with AsyncExitStack() as stack:
                for fault in faults:
                    await stack.enter_async_context(fault(self, chance))
                while self.left > max(0, goal) and not done.is_set():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            await self._heal()

    def _pace(self, chance: random.Random) -> None:
        """Another speed of the fake engine, whose notes for tests are thrown away."""
        if (config := getattr(self.server.engine, "_config", None)) is None:
            return
        if hasattr(config, "token_seconds"):
            object.__setattr__(config, "token_seconds", chance.choice((0.0, 0.0, 0.001, 0.004)))
            self.server.engine.requests.clear()
            self.server.engine.aborted.clear()

    async def _heal(self) -> None:
        """Imports again what was damaged, as whoever runs the server does, until it is served."""
        healed, self.damaged = sorted(self.damaged), set()
        for digest in healed:
            source = {"source": self.sources[digest]}
            await self._until(lambda s=source: self._imports(s), f"{source} is imported again")
        now = self.moment()
        await self.until(lambda: all(a.since > now for a in self.judge.open), "what was asked ends")
        for tenant, name in [(t, n) for t, names in SETS.items() for n in names]:
            if healed:
                await self._until(lambda t=tenant, n=name: self._serves(t, n), f"{tenant}/{name}")
        entries = self.server.services.adapters._entries
        await self.until(
            lambda: not any(e.is_in_repair or e.refused_seconds for e in entries.values()),
            "no adapter is refused",
        )
        for digest in healed:
            self._excuses[digest] = 0
            self._excused_until[digest] = self.moment()

    async def _imports(self, source: dict[str, str]) -> bool:
        answer = await self.server.admin.post("/admin/v1/adapters", json=source)
        return answer.is_success  # or a repair at the same time has moved it

    async def _serves(self, tenant: str, name: str) -> bool:
        return await self.ask(tenant, name, GOOD[0]) == "complete"

    async def _until(self, attempt: Callable[[], Awaitable[bool]], what: str) -> None:
        begun = self._ticks
        while not await attempt():
            assert self._ticks - begun < HUNG_TICKS, f"seed {self.seed}: not yet: {what}"
            await asyncio.sleep(0.02)

    async def _ask_all(self) -> None:
        """The next good requests of every tenant, for each of its names, and of every adapter."""
        await self.until(lambda: not self.server.services.failing, "all tasks work")
        asks = [(t, n, s) for t, names in SETS.items() for n in names for s in GOOD]
        await self._judge_has_all()
        asks += [(JUDGE, digest[:8], shape) for digest in self.digests for shape in GOOD]
        for tenant, name, shape in asks:
            if (outcome := await self.ask(tenant, name, shape)) != "complete":
                self.judge.find("afterwards", f"{tenant}/{name} is answered with {outcome}")

    async def _more_than(self, before: Counter[str]) -> dict[str, int]:
        """Tasks that stay: others come and go all the time."""
        begun, more = self._ticks, _tasks() - before
        while more and self._ticks - begun < 2 * self.served.books.patience:
            await asyncio.sleep(0.01)
            more &= _tasks() - before
        return dict(more)

    def _of_database(self) -> list[str]:
        database = self.directory._database
        threads = sum(thread.is_alive() for thread in database._threads)
        pool: Any = database.engine.sync_engine.pool
        if threads <= (connections := pool.checkedin() + pool.checkedout()):
            return []
        return [f"held: {threads} threads for {connections} connections of the database"]

    async def _of_store(self) -> list[str]:
        damage = {digest: await self.store.set_aside(digest) for digest in self.sources}
        return [f"store: {digest} is damaged: {what}" for digest, what in damage.items() if what]


def _tasks() -> Counter[str]:
    """The tasks of the loop, by what they do."""
    names: dict[str, int] = defaultdict(int)
    for task in asyncio.all_tasks():
        names[getattr(task.get_coro(), "__qualname__", "?")] += 1
    return Counter(names)
