from __future__ import annotations

import asyncio
import hmac

import pytest

from server.tenancy import Directory, keys, snapshot
from server.tenancy.records import Quota
from tests.unit.tenancy.samples import digest, with_tenant


async def test_a_snapshot_is_what_the_single_calls_tell(directory: Directory) -> None:
    empty = await directory.snapshot()
    assert (empty.change, empty.tenants, empty.keys) == (0, {}, {})
    await with_tenant(directory, "a")
    await with_tenant(directory, tenant="b")
    await with_tenant(directory, tenant="B")
    await with_tenant(directory, tenant="gone")
    await directory.put_set("acme", {"style": digest("a")}, expected=0, actor="test")
    await directory.put_set("acme", {"other": digest("a")}, expected=1, actor="test")
    await directory.set_quota("b", Quota(max_concurrent=3, may_use_base=True), actor="test")
    await directory.set_quota("gone", Quota(max_concurrent=4), actor="test")
    await directory.delete_tenant("gone", actor="test")
    taken = await directory.snapshot()
    assert list(taken.tenants) == ["B", "acme", "b"]
    assert {name: state.set for name, state in taken.tenants.items()} == (
        await directory.current_sets()
    )
    assert taken.tenants["acme"].set.revision == 2
    for name, state in taken.tenants.items():
        assert state.quota == await directory.quota(name)
    assert taken.tenants["b"].quota.max_concurrent == 3
    assert taken.change == (await directory.audit(limit=1))[0].id > 0


async def test_a_held_snapshot_is_kept_until_something_changes(directory: Directory) -> None:
    await with_tenant(directory)
    held = await directory.snapshot()
    assert await directory.snapshot(held) is held
    await directory.set_quota("acme", Quota(max_concurrent=3), actor="test")
    newer = await directory.snapshot(held)
    assert newer == await directory.snapshot() != held
    assert await directory.snapshot(newer) is newer


async def test_a_snapshot_knows_the_keys_that_the_directory_knows(directory: Directory) -> None:
    await with_tenant(directory)
    await with_tenant(directory, tenant="gone")
    valid = await directory.create_key("acme", actor="test")
    revoked = await directory.create_key("acme", actor="test")
    orphan = await directory.create_key("gone", actor="test")
    before = await directory.snapshot()
    await directory.revoke_key(revoked.id, actor="test")
    await directory.delete_tenant("gone", actor="test")
    after = await directory.snapshot()
    given = [valid.secret, revoked.secret, orphan.secret, valid.secret[:-1] + "!"]
    given += [valid.secret[:12] + "A" * 43, valid.secret + "\n", "", "rk-", "\ud800", "\0"]
    nothing = [None] * 7
    assert [before.authenticate(secret) for secret in given] == ["acme", "acme", "gone", *nothing]
    assert [after.authenticate(secret) for secret in given] == ["acme", None, None, *nothing]
    assert [await directory.authenticate(secret) for secret in given] == [
        after.authenticate(secret) for secret in given
    ]


async def test_of_two_keys_with_one_prefix_each_finds_its_tenant(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_tenant(directory, tenant="a")
    await with_tenant(directory, tenant="b")
    secrets = [f"rk-00000000-{letter * 43}" for letter in "ab"]
    coming = iter(secrets)
    monkeypatch.setattr(keys, "new_secret", lambda: next(coming))
    for tenant in "ab":
        await directory.create_key(tenant, actor="test")
    taken = await directory.snapshot()
    assert [taken.authenticate(secret) for secret in secrets] == ["a", "b"]
    assert not any(
        secret in repr(taken) or keys.hash_of(secret) in repr(taken) for secret in secrets
    )


async def test_keys_are_compared_in_constant_time(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_tenant(directory)
    key = await directory.create_key("acme", actor="test")
    taken = await directory.snapshot()
    compared = []

    def compare(given: str, stored: str) -> bool:
        compared.append((given, stored))
        return given == stored

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert taken.authenticate(key.secret) == "acme"
    assert compared == [(keys.hash_of(key.secret), keys.hash_of(key.secret))]


async def test_a_snapshot_is_of_one_moment(
    url: str, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes commit between its first look and the others."""
    await with_tenant(directory, "a")
    other = await Directory.open(url)
    looked, go_on = asyncio.Event(), asyncio.Event()
    first_look = snapshot.newest_change

    async def look_and_wait(connection: object) -> int:
        change = await first_look(connection)  # type: ignore[arg-type]
        looked.set()
        await go_on.wait()
        return change

    monkeypatch.setattr(snapshot, "newest_change", look_and_wait)
    taking = asyncio.ensure_future(directory.snapshot())
    await looked.wait()
    await other.create_tenant("late", actor="test")
    await other.put_set("acme", {"late": digest("a")}, expected=0, actor="test")
    await other.set_quota("acme", Quota(max_concurrent=1), actor="test")
    key = await other.create_key("acme", actor="test")
    go_on.set()
    taken = await taking
    monkeypatch.undo()
    assert list(taken.tenants) == ["acme"]
    assert (taken.tenants["acme"].set.revision, taken.tenants["acme"].quota) == (0, Quota())
    assert taken.authenticate(key.secret) is None
    newest = (await directory.audit(limit=1))[0].id
    assert taken.change == newest - 4
    later = await directory.snapshot()
    assert (later.change, later.authenticate(key.secret)) == (newest, "acme")
    await other.close()
