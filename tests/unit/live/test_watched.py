"""The follower, the loads of sets and the collector: killed, failing and hanging, each is seen in
time and well again without a restart. No copy counts as confirmed that was not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import update

from remix_runtime.watch import TELL_SECONDS, Watch, Watched
from server.live import garbage
from server.live.access import TenantAccess
from server.live.follower import DIRECTORY_TASK, LOAD_SECONDS, LOOK_SECONDS, SETS_TASK
from server.live.garbage import COLLECT_SECONDS, GARBAGE_TASK, INTERVAL_SECONDS, GarbageCollector
from server.tenancy import Directory, tables
from server.tenancy.changes import record
from server.tenancy.errors import DatabaseUnavailableError
from server.tenancy.records import now
from tests.clocks import FakeClock, settle
from tests.unit.live.crash import TENANT, Node, node
from tests.unit.server.harness import eventually
from tests.unit.store.conftest import write_adapter

GRACE = 300.0
POLL = 0.01
TROUBLES = ["killed", "failing", "hanging"]


def kill(function: str) -> None:
    """Cancels a task as somebody might who is not the watch."""
    names = {task: getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()}
    tasks = [task for task, name in names.items() if name == function]
    assert len(tasks) == 1
    tasks[0].cancel()


class Trouble:
    """Takes the place of a function until it is `over`; the calls before are counted."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: object, name: str, how: str) -> None:
        self.calls = 0
        self.function = getattr(owner, name)
        self._how: str | None = how
        self._may_go_on = asyncio.Event()
        patch.setattr(owner, name, self)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._how is not None:
            self.calls += 1
            if self._how == "failing":
                raise OSError("too many open files")
            await self._may_go_on.wait()
        return await self.function(*args, **kwargs)

    def over(self) -> None:
        self._how = None
        self._may_go_on.set()


async def retried(
    clock: FakeClock, task: Watched | None, condition: Callable[[], bool], step: float = 1.0
) -> None:
    """Until it is so, the clock goes on, but only while the task rests between two tries: what the
    database takes is no time of this clock."""
    assert task is not None
    while not condition():
        await eventually(lambda: condition() or task._task is None)
        if not condition():
            await clock.advance(step)


async def hung(clock: FakeClock, condition: Callable[[], bool], step: float = 1.0) -> None:
    """The same for a task that does nothing."""
    for _ in range(10_000):
        if condition():
            return
        await clock.advance(step)
    raise AssertionError("it never was so")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def watch(clock: FakeClock) -> Watch:
    return Watch(clock)


@pytest.fixture
async def server(url: str, tmp_path: Path, watch: Watch) -> AsyncIterator[Node]:
    async with node(url, tmp_path / "store", poll_seconds=POLL, watch=watch) as server:
        await server.directory.create_tenant(TENANT, actor="test")
        await server.follower.refresh()
        yield server


@pytest.fixture
async def here(tmp_path: Path, watch: Watch) -> AsyncIterator[Node]:
    url = f"sqlite:///{tmp_path}/remix.db"
    async with node(url, tmp_path / "store", poll_seconds=POLL, watch=watch) as server:
        await server.directory.create_tenant(TENANT, actor="test")
        await server.follower.refresh()
        yield server


@pytest.fixture
async def still(here: Node) -> Node:
    """Its follower looks only when it is told to: by the clock of a test it would hang."""
    assert here.follower._following is not None
    await here.follower._following.stop()
    return here


async def back(directory: Directory, table: str) -> None:
    async with directory._database.write() as connection:
        await connection.exec_driver_sql(f"ALTER TABLE away RENAME TO {table}")


@pytest.mark.parametrize("table", ["audit", "api_keys"])
async def test_a_table_that_is_away_ends_no_follower_and_confirms_nothing(
    url: str, table: str, server: Node, clock: FakeClock, watch: Watch
) -> None:
    """A key is revoked in the moment in which the table goes away."""
    access = TenantAccess(server.directory, server.follower, grace_seconds=GRACE)
    key = await server.directory.create_key(TENANT, actor="test")
    await server.follower.refresh()
    other = await Directory.open(url)
    async with other._database.write() as connection:
        await connection.execute(update(tables.api_keys).values(revoked=now()))
        await record(connection, "test", "key.revoke", TENANT)
        await connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO away")
    confirmed = clock.now - server.follower.age_seconds

    following = server.follower._following
    await retried(clock, following, lambda: DIRECTORY_TASK in watch.failing)
    assert clock.now - confirmed <= TELL_SECONDS
    assert access.knows_keys
    assert await access.tenant_of(key.secret) == TENANT  # as is said of a database that is away
    await retried(clock, following, lambda: not access.knows_keys)
    assert clock.now - confirmed <= GRACE + 1
    with pytest.raises(DatabaseUnavailableError):
        await access.tenant_of(key.secret)

    await back(other, table)
    await other.close()
    await retried(clock, following, lambda: not watch.failing and access.knows_keys)
    assert await access.tenant_of(key.secret) is None


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_the_follower_comes_back(
    trouble: str, here: Node, clock: FakeClock, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = TenantAccess(here.directory, here.follower, grace_seconds=GRACE)
    following = here.follower._following
    if trouble == "killed":
        kill("Follower._follow")
        await eventually(lambda: following is not None and following._task is None)
    else:
        async with here.follower._turn:  # no snapshot is being read that could have the key
            broken = Trouble(monkeypatch, here.directory, "snapshot", trouble)
        key = await here.directory.create_key(TENANT, actor="test")
        await eventually(lambda: broken.calls > 0)
        since = clock.now
        if trouble == "hanging":
            await hung(clock, lambda: watch.failing == (DIRECTORY_TASK,))
            assert clock.now - since <= POLL + LOOK_SECONDS + 1
            await hung(clock, lambda: not access.knows_keys)
        else:
            await retried(clock, following, lambda: watch.failing == (DIRECTORY_TASK,))
            assert clock.now - since <= TELL_SECONDS
            await retried(clock, following, lambda: not access.knows_keys)
        broken.over()
        follower = here.follower
        await retried(
            clock, following, lambda: follower.snapshot.authenticate(key.secret) == TENANT
        )
    await here.directory.create_tenant("later", actor="test")
    await retried(clock, following, lambda: "later" in here.follower.snapshot.tenants)
    await retried(clock, following, lambda: watch.failing == ())
    assert access.knows_keys


async def test_a_set_that_was_not_made_live_is_not_forgotten(
    here: Node, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy has the change already when something fails; the other tenants' sets go on."""
    await here.directory.create_tenant("zebra", actor="test")
    await here.follower.refresh()
    flip, failing = here.sets.flip, True

    def fail(tenant: str, revision: int, adapters: dict[str, str]) -> bool:
        if tenant == TENANT and revision == 1 and failing:
            raise OSError("no room")
        return flip(tenant, revision, adapters)

    monkeypatch.setattr(here.sets, "flip", fail)
    write_adapter(here.store._root.parent / "adapter")
    digest = await here.add(str(here.store._root.parent / "adapter"))
    with here.adapters.pinned([digest]):
        await here.adapters.load(digest)
        for tenant in (TENANT, "zebra"):
            await here.directory.put_set(tenant, {"x": digest}, expected=0, actor="test")
        following = here.follower._following
        await retried(clock, following, lambda: here.sets.live("zebra").revision == 1)
        assert here.follower.set_lag() == {TENANT: (0, 1)}
        failing = False
        await retried(clock, following, lambda: here.sets.live(TENANT).revision == 1)


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_a_set_is_tried_again_whatever_it_meets(
    trouble: str,
    still: Node,
    clock: FakeClock,
    watch: Watch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_adapter(tmp_path / "adapter")
    digest = await still.add(str(tmp_path / "adapter"))
    how = "hanging" if trouble == "killed" else trouble
    broken = Trouble(monkeypatch, still.engine, "load_adapter", how)
    await still.directory.put_set(TENANT, {"x": digest}, expected=0, actor="test")
    await still.follower.refresh()
    await eventually(lambda: broken.calls > 0)
    if trouble == "killed":
        kill("Follower._load")
    assert watch.failing == ()
    since = clock.now
    await hung(clock, lambda: watch.failing == (SETS_TASK,))
    assert clock.now - since <= (LOAD_SECONDS if trouble == "hanging" else TELL_SECONDS)
    await clock.advance(3600)
    assert watch.failing == (SETS_TASK,)
    assert still.follower.set_lag() == {TENANT: (0, 1)}
    assert still.adapters.pins(digest) == 1
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if line.startswith("loading revision 1 of")]) == 1

    broken.over()
    task = still.follower._loading[TENANT].task
    await retried(clock, task, lambda: still.sets.live(TENANT).revision == 1)
    await settle()
    assert (watch.failing, still.adapters.pins(digest)) == ((), 1)


async def test_a_tenant_that_is_deleted_while_its_set_fails_leaves_nothing(
    still: Node, clock: FakeClock, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(tmp_path / "adapter")
    digest = await still.add(str(tmp_path / "adapter"))
    broken = Trouble(monkeypatch, still.engine, "load_adapter", "failing")
    await still.directory.put_set(TENANT, {"x": digest}, expected=0, actor="test")
    await still.follower.refresh()
    await eventually(lambda: broken.calls > 0)
    await hung(clock, lambda: watch.failing == (SETS_TASK,))
    await still.directory.delete_tenant(TENANT, actor="test")
    await still.follower.refresh()
    assert TENANT not in still.sets.all
    await settle()
    calls = broken.calls
    await clock.advance(600)
    assert (broken.calls, watch.failing) == (calls, ())
    await still.adapters.settle()
    assert still.adapters.digests == set()


async def test_a_set_that_became_live_by_other_means_is_loaded_no_more(
    still: Node, clock: FakeClock, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(tmp_path / "adapter")
    digest = await still.add(str(tmp_path / "adapter"))
    wanted = replace(await still.directory.current_set(TENANT), revision=1, adapters={"x": digest})
    broken = Trouble(monkeypatch, still.adapters, "load", "hanging")
    still.follower.make_live(wanted)
    await settle()
    assert broken.calls == 1
    await broken.function(digest)
    assert still.follower.make_live(wanted)
    await settle()
    assert still.adapters.pins(digest) == 1
    await clock.advance(2 * LOAD_SECONDS)
    assert (broken.calls, watch.failing) == (1, ())


class Collector:
    """A collector on stubs. `how` says what the store does."""

    def __init__(self) -> None:
        self.how = "well"
        self.at_once = self.most_at_once = self.collected = 0
        self.may_go_on = asyncio.Event()
        directory: Any = SimpleNamespace(digests=self._digests)
        store: Any = SimpleNamespace(collect_garbage=self._collect)
        adapters: Any = SimpleNamespace(digests=set())
        self.collector = GarbageCollector(directory, store, adapters)

    async def _digests(self) -> set[str]:
        return set()

    async def _collect(self, keep: set[str], *, min_age_seconds: float) -> list[str]:
        assert min_age_seconds == garbage.MIN_AGE_SECONDS
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.how == "failing":
                raise OSError("I/O error")
            if self.how == "hanging":
                await self.may_go_on.wait()
        finally:
            self.at_once -= 1
        self.collected += 1
        return []


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_the_collector_comes_back(trouble: str, clock: FakeClock, watch: Watch) -> None:
    stub = Collector()
    stub.collector.start(watch)
    await clock.advance(2 * INTERVAL_SECONDS)
    assert (stub.collected, watch.failing) == (3, ())
    stub.how = trouble
    if trouble == "killed":
        kill("GarbageCollector._collect_for_ever")
        await clock.advance(TELL_SECONDS)
    else:
        await clock.advance(INTERVAL_SECONDS - 1)
        assert watch.failing == ()
        await clock.advance(1 + (COLLECT_SECONDS if trouble == "hanging" else TELL_SECONDS))
        assert watch.failing == (GARBAGE_TASK,)
        await clock.advance(24 * INTERVAL_SECONDS)
        assert watch.failing == (GARBAGE_TASK,)
        assert stub.collected == 3
    assert stub.most_at_once == 1  # or each would hold a thread of the store
    stub.how = "well"
    stub.may_go_on.set()
    await clock.advance(COLLECT_SECONDS)
    collected = stub.collected
    assert (collected > 3, watch.failing) == (True, ())
    await clock.advance(INTERVAL_SECONDS)
    assert stub.collected == collected + 1
    await stub.collector.stop()
    await clock.advance(24 * INTERVAL_SECONDS)
    assert stub.collected == collected + 1
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_collector_ends_while_it_hangs(clock: FakeClock, watch: Watch) -> None:
    stub = Collector()
    stub.how = "hanging"
    stub.collector.start(watch)
    await settle()
    assert stub.at_once == 1
    await stub.collector.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_the_stated_times() -> None:
    """As the documents state them."""
    assert (TELL_SECONDS, LOOK_SECONDS, LOAD_SECONDS, COLLECT_SECONDS) == (30, 30, 600, 600)
