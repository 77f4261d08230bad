"""Keys while the database is well, down and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.live.access import TenantAccess
from server.tenancy.errors import DatabaseUnavailableError
from tests.postgres import postgres_server
from tests.unit.live.crash import TENANT, node
from tests.unit.server.harness import eventually
from tests.unit.store.conftest import write_adapter

UNKNOWN = "rk-00000000-" + "A" * 43


async def test_keys_of_this_moment(url: str, tmp_path: Path) -> None:
    async with (
        node(url, tmp_path / "one") as one,
        # It never looks by itself in the time of this test.
        node(url, tmp_path / "two", poll_seconds=60) as two,
    ):
        access = TenantAccess(two.directory, two.follower, grace_seconds=300)
        await one.directory.create_tenant(TENANT, actor="test")
        key = await one.directory.create_key(TENANT, actor="test")
        assert await access.tenant_of(key.secret) == TENANT
        for wrong in (None, "", "x", UNKNOWN, key.secret[:-1], key.secret + "A", key.id, "ü"):
            assert await access.tenant_of(wrong) is None
        assert not access.quota(TENANT).may_use_base
        await one.directory.revoke_key(key.id, actor="test")
        await two.follower.refresh()
        assert await access.tenant_of(key.secret) is None


async def test_known_keys_outlive_the_database_for_the_grace_time(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter")
    with postgres_server() as server:
        async with node(server.fresh_database(), tmp_path / "store") as one:
            await one.directory.create_tenant(TENANT, actor="test")
            key = await one.directory.create_key(TENANT, actor="test")
            digest = await one.add(str(tmp_path / "adapter"))
            await one.swaps.put(TENANT, {"x": digest}, expected=None, actor="test")
            await one.follower.refresh()
            access = TenantAccess(one.directory, one.follower, grace_seconds=300)
            impatient = TenantAccess(one.directory, one.follower, grace_seconds=0)

            server.stop()
            assert await access.tenant_of(key.secret) == TENANT
            with pytest.raises(DatabaseUnavailableError):
                await access.tenant_of(UNKNOWN)
            with pytest.raises(DatabaseUnavailableError):
                await impatient.tenant_of(key.secret)
            with pytest.raises(DatabaseUnavailableError):
                await one.swaps.put(TENANT, {}, expected=None, actor="test")
            assert one.sets.live(TENANT).adapters == {"x": digest}
            down = one.follower.age_seconds

            server.start()
            await eventually(lambda: one.follower.age_seconds < down)
            assert await access.tenant_of(UNKNOWN) is None
            assert await access.tenant_of(key.secret) == TENANT
            result = await one.swaps.put(TENANT, {"y": digest}, expected=1, actor="test")
            assert result.after.revision == 2
            assert len(await one.directory.revisions(TENANT, limit=9)) == 2


async def test_cold_adapters_are_loaded_without_the_database(tmp_path: Path) -> None:
    """After a restart nothing is loaded, and the store has all that it takes."""
    write_adapter(tmp_path / "adapter")
    with postgres_server() as server:
        url = server.fresh_database()
        async with node(url, tmp_path / "store") as one:
            await one.directory.create_tenant(TENANT, actor="test")
            digest = await one.add(str(tmp_path / "adapter"))
            await one.swaps.put(TENANT, {"x": digest}, expected=None, actor="test")
        async with node(url, tmp_path / "store") as one:
            server.stop()
            assert one.adapters.load_seconds(digest) is None
            await one.adapters.load_for_request(digest)
            assert one.adapters.load_seconds(digest) is not None
            server.start()
