"""Servers that share a database converge; a restart has the same sets, without loading them."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from remix_runtime import watch
from remix_runtime.contracts import AdapterInfo
from remix_runtime.engines.fake import FakeEngine
from remix_runtime.errors import AdapterUnavailableError, CapacityError
from server.live.sets import UnknownModelError
from server.tenancy import changes, sets
from server.tenancy.records import AdapterRecord, Quota
from tests.unit.live.crash import TENANT, node
from tests.unit.server.harness import eventually
from tests.unit.store.conftest import write_adapter


async def full(folder: Path, digest: str | None = None) -> AdapterInfo:
    raise CapacityError("no room")


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    folders = [tmp_path / f"adapter-{seed}" for seed in range(3)]
    for seed, folder in enumerate(folders):
        write_adapter(folder, seed=seed)
    return [str(folder) for folder in folders]


async def test_what_one_server_swaps_the_others_serve(
    url: str, tmp_path: Path, sources: list[str]
) -> None:
    """Each has a store of its own; PostgreSQL tells at once, long before the poll."""
    poll_seconds = 0.1 if url.startswith("sqlite") else 3600.0
    async with (
        node(url, tmp_path / "one", poll_seconds=poll_seconds) as one,
        node(url, tmp_path / "two", poll_seconds=poll_seconds) as two,
    ):
        await one.directory.create_tenant(TENANT, actor="test")
        digests = [await one.add(source) for source in sources]
        for digest in digests:
            await one.swaps.put(TENANT, {"x": digest, "y": digests[0]}, expected=None, actor="t")
        await eventually(lambda: two.sets.live(TENANT).revision == 3)
        assert two.sets.live(TENANT).adapters == {"x": digests[2], "y": digests[0]}
        assert two.adapters.load_seconds(digests[2]) is not None  # before it was live
        assert two.follower.set_lag() == {}

        key = await one.directory.create_key(TENANT, actor="test")
        await one.directory.set_quota(TENANT, Quota(max_concurrent=3), actor="test")
        await eventually(lambda: two.follower.snapshot.authenticate(key.secret) == TENANT)
        await eventually(
            lambda: two.follower.snapshot.tenants[TENANT].quota == Quota(max_concurrent=3)
        )
        await one.directory.revoke_key(key.id, actor="test")
        await eventually(lambda: two.follower.snapshot.authenticate(key.secret) is None)
        await one.directory.delete_tenant(TENANT, actor="test")
        await eventually(lambda: TENANT not in two.sets.all)
        await two.adapters.settle()
        assert two.adapters.digests == set()


async def test_a_change_is_read_once(
    url: str, tmp_path: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who changed something refresh at the same time as the feed that tells of it."""
    called: Counter[str] = Counter()

    def count(module: ModuleType, name: str) -> None:
        function = getattr(module, name)

        async def counted(connection: AsyncConnection, *args: Any, **kwargs: Any) -> Any:
            called[name] += 1
            return await function(connection, *args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    async with node(url, tmp_path / "store", poll_seconds=0.02) as server:
        await server.directory.create_tenant(TENANT, actor="test")
        digest = await server.add(sources[0])
        await server.follower.refresh()
        count(sets, "newest_of_all")  # of a whole reading
        count(changes, "newest_change")  # of a look by the feed
        for revision in (1, 2, 3):
            called.clear()
            adapters = {f"x{revision}": digest}
            await server.swaps.put(TENANT, adapters, expected=None, actor="test")
            await asyncio.gather(*(server.follower.refresh() for _ in range(3)))
            assert server.follower.snapshot.tenants[TENANT].set.revision == revision
            seen = called["newest_change"]
            await eventually(lambda seen=seen: called["newest_change"] > seen + 1)
            assert called["newest_of_all"] == 1


async def test_the_old_set_serves_until_the_new_one_can(
    url: str, tmp_path: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.02)
    async with (
        node(url, tmp_path / "one") as one,
        node(url, tmp_path / "two") as two,
    ):
        await one.directory.create_tenant(TENANT, actor="test")
        old, new, newest = [await one.add(source) for source in sources]
        await one.swaps.put(TENANT, {"x": old}, expected=None, actor="test")
        await eventually(lambda: two.sets.live(TENANT).revision == 1)
        tries = 0
        load = two.engine.load_adapter

        async def full(folder: Path, digest: str | None = None) -> AdapterInfo:
            nonlocal tries
            tries += 1
            raise CapacityError("no room")

        monkeypatch.setattr(two.engine, "load_adapter", full)
        await one.swaps.put(TENANT, {"x": new}, expected=None, actor="test")
        await eventually(lambda: tries > 2)
        assert two.sets.live(TENANT).adapters == {"x": old}
        assert two.follower.set_lag() == {TENANT: (1, 2)}
        assert (await two.adapters.load(old)).digest == old
        # A newer set takes the place of the one that cannot be loaded.
        await one.swaps.put(TENANT, {"x": newest}, expected=None, actor="test")
        await eventually(lambda: two.follower.set_lag() == {TENANT: (1, 3)})
        monkeypatch.setattr(two.engine, "load_adapter", load)
        await eventually(lambda: two.sets.live(TENANT).adapters == {"x": newest})
        await two.adapters.settle()
        assert two.adapters.digests == {newest}


@pytest.mark.parametrize("emptied", [True, False])
async def test_a_set_that_is_not_wanted_any_more_holds_nothing(
    url: str, tmp_path: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch, emptied: bool
) -> None:
    """A server that cannot load a set gives up on it when a newer one is live: emptied elsewhere,
    or put on this server."""
    async with node(url, tmp_path / "one") as one, node(url, tmp_path / "two") as two:
        await one.directory.create_tenant(TENANT, actor="test")
        old, good, bad = [await one.add(source) for source in sources]
        with two.adapters.pinned([old]):
            await two.adapters.load(old)
            monkeypatch.setattr(two.engine, "load_adapter", full)
            await one.swaps.put(TENANT, {"x": good, "y": bad}, expected=None, actor="test")
            await eventually(lambda: two.adapters.pins(bad) == 1)
            wanted = {} if emptied else {"x": old}
            await (one if emptied else two).swaps.put(TENANT, wanted, expected=1, actor="test")
            await eventually(lambda: two.adapters.pins(bad) == 0)
        await two.adapters.settle()
        assert two.sets.live(TENANT).revision == 2
        assert two.adapters.digests == set(wanted.values())


async def test_a_load_that_fails_as_it_is_given_up_is_not_tried_again(
    url: str, tmp_path: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer set is live in the very turn of the event loop in which the load fails."""
    async with node(url, tmp_path / "one") as one, node(url, tmp_path / "two") as two:
        await one.directory.create_tenant(TENANT, actor="test")
        bad = await one.add(sources[0])
        before = await one.directory.current_set(TENANT)
        wanted = replace(before, revision=1, adapters={"x": bad})
        tries = 0

        async def load(digest: str, tenant: str) -> AdapterInfo:
            nonlocal tries
            tries += 1
            two.follower.make_live(replace(wanted, revision=2, adapters={}))
            raise CapacityError("no room")

        monkeypatch.setattr(two.adapters, "load", load)
        monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.0)
        two.follower.make_live(wanted)
        await eventually(lambda: two.adapters.pins(bad) == 0 and tries > 0)
        assert (tries, two.sets.live(TENANT).revision) == (1, 2)


async def test_a_restart_loads_nothing_until_it_is_used(
    url: str, tmp_path: Path, sources: list[str]
) -> None:
    tenants = [f"tenant-{number}" for number in range(20)]
    async with node(url, tmp_path / "store") as server:
        digests = [await server.add(source) for source in sources]
        for number, tenant in enumerate(tenants):
            await server.directory.create_tenant(tenant, actor="test")
            adapters = {"x": digests[number % 3]}
            await server.swaps.put(tenant, adapters, expected=None, actor="test")
    async with node(url, tmp_path / "store") as server:
        for number, tenant in enumerate(tenants):
            assert server.sets.live(tenant).adapters == {"x": digests[number % 3]}
            assert server.sets.live(tenant).revision == 1
        assert server.engine.stats().adapters_loaded == 0
        await asyncio.gather(*(server.adapters.load_for_request(digests[0]) for _ in range(9)))
        assert {state.digest for state in await server.engine.adapter_states()} == {digests[0]}


async def test_an_adapter_that_its_source_no_longer_has_is_refused(
    url: str, tmp_path: Path, sources: list[str]
) -> None:
    """A server without the folder imports it from where it came from; another adapter there is
    not taken for it."""
    from server.store import UnknownDigestError

    async with node(url, tmp_path / "one") as one, node(url, tmp_path / "two") as two:
        digest = await one.add(sources[0])
        with two.adapters.pinned([digest]):
            await two.adapters.load(digest)
            assert two.store.digests() == [digest]
        other = AdapterRecord(digest="0" * 64, source=sources[1], num_bytes=1)
        await one.directory.add_adapter(other, actor="test")
        with (
            two.adapters.pinned([other.digest]),
            pytest.raises(UnknownDigestError, match=f"expected {other.digest}"),
        ):
            await two.adapters.load(other.digest)
        await two.adapters.settle()


async def test_an_adapter_that_is_gone_everywhere_is_unavailable(url: str, tmp_path: Path) -> None:
    """Another server has taken it out and deleted it; this one's live set is a moment behind."""
    async with node(url, tmp_path / "store") as server:
        with server.adapters.pinned(["0" * 64]), pytest.raises(AdapterUnavailableError):
            await server.adapters.load_for_request("0" * 64)
        await server.adapters.settle()


async def test_unknown_names_of_known_tenants(url: str, tmp_path: Path) -> None:
    async with node(url, tmp_path / "store") as server:
        await server.directory.create_tenant(TENANT, actor="test")
        await server.follower.refresh()
        assert TENANT in server.sets.all
        with pytest.raises(UnknownModelError):
            server.sets.resolve(TENANT, "x", may_use_base=False)


def test_the_fake_engine_takes_real_adapters(sources: list[str]) -> None:
    """These tests rest on it: digests must be those of the store."""
    from remix_runtime.adapter.checkpoint import read_checkpoint

    async def load() -> str:
        engine = FakeEngine()
        await engine.start()
        return (await engine.load_adapter(Path(sources[0]))).digest

    assert asyncio.run(load()) == read_checkpoint(Path(sources[0])).digest
