from __future__ import annotations

import pytest

from server.tenancy import Directory
from server.tenancy.errors import (
    InvalidValueError,
    StaleRevisionError,
    UnknownAdapterError,
    UnknownRevisionError,
)
from tests.unit.tenancy.samples import check_history, digest, live_digests, with_tenant

A, B = {"style": digest("a")}, {"style": digest("b"), "tone": digest("a")}


async def test_a_set_starts_empty_and_every_put_is_a_revision(directory: Directory) -> None:
    await with_tenant(directory, "a", "b")
    (tenant,) = await directory.tenants()
    start = await directory.current_set("acme")
    assert (start.revision, start.adapters, start.created) == (0, {}, tenant.created)
    first = await directory.put_set("acme", A, expected=0, actor="ann")
    second = await directory.put_set("acme", B, expected=None, actor="bob")
    assert (first.revision, first.adapters, first.actor) == (1, A, "ann")
    assert (second.revision, second.adapters, second.actor) == (2, B, "bob")
    assert await directory.current_set("acme") == second
    assert await directory.revisions("acme", limit=9) == [second, first]
    assert await directory.revisions("acme", limit=1) == [second]
    assert await live_digests(directory) == {digest("a"), digest("b")}
    assert await check_history(directory, "acme") == 2


@pytest.mark.parametrize("expected", [0, 2, -1])
async def test_a_stale_put_changes_nothing(directory: Directory, expected: int) -> None:
    await with_tenant(directory, "a", "b")
    first = await directory.put_set("acme", A, expected=0, actor="test")
    with pytest.raises(StaleRevisionError) as stale:
        await directory.put_set("acme", B, expected=expected, actor="test")
    assert (stale.value.found, stale.value.expected) == (1, expected)
    assert await directory.current_set("acme") == first
    assert await check_history(directory, "acme") == 1


@pytest.mark.parametrize("expected", [0, 1, None])
async def test_the_same_put_again_is_the_same_revision(
    directory: Directory, expected: int | None
) -> None:
    await with_tenant(directory, "a", "b")
    first = await directory.put_set("acme", B, expected=0, actor="test")
    turned = dict(reversed(B.items()))
    assert await directory.put_set("acme", turned, expected=expected, actor="other") == first
    assert await check_history(directory, "acme") == 1


async def test_a_set_with_an_unknown_digest_is_refused_whole(directory: Directory) -> None:
    await with_tenant(directory, "a")
    with pytest.raises(UnknownAdapterError) as refused:
        await directory.put_set("acme", B, expected=0, actor="test")
    assert refused.value.adapters == {"style": digest("b")}
    assert await check_history(directory, "acme") == 0


@pytest.mark.parametrize(
    "adapters", [{"": digest("a")}, {"a/b": digest("a")}, {"a": "latest"}, {"a": ""}]
)
async def test_malformed_sets_are_refused(directory: Directory, adapters: dict[str, str]) -> None:
    await with_tenant(directory, "a")
    with pytest.raises(InvalidValueError, match="adapters"):
        await directory.put_set("acme", adapters, expected=0, actor="test")


async def test_a_set_has_a_thousand_adapters_at_most(directory: Directory) -> None:
    await with_tenant(directory, "a")
    adapters = {f"name{number}": digest("a") for number in range(1000)}
    put = await directory.put_set("acme", adapters, expected=0, actor="test")
    assert put.adapters == adapters
    with pytest.raises(InvalidValueError, match="1001 adapters"):
        await directory.put_set("acme", adapters | {"more": digest("a")}, expected=1, actor="test")
    assert await check_history(directory, "acme") == 1


async def test_a_rollback_is_a_new_revision_with_old_entries(directory: Directory) -> None:
    await with_tenant(directory, "a", "b")
    await directory.put_set("acme", A, expected=0, actor="test")
    await directory.put_set("acme", B, expected=1, actor="test")
    third = await directory.rollback_set("acme", 1, expected=2, actor="ops")
    assert (third.revision, third.adapters, third.rolled_back_from) == (3, A, 1)
    assert await directory.rollback_set("acme", 1, expected=2, actor="ops") == third
    empty = await directory.rollback_set("acme", 0, expected=3, actor="ops")
    assert (empty.revision, empty.adapters) == (4, {})
    assert (await directory.audit(tenant="acme", limit=1))[0].detail == {
        "revision": 4,
        "adapters": {},
        "rolled_back_from": 0,
    }
    with pytest.raises(StaleRevisionError):
        await directory.rollback_set("acme", 2, expected=3, actor="ops")
    for revision in (5, -1):
        with pytest.raises(UnknownRevisionError):
            await directory.rollback_set("acme", revision, expected=4, actor="ops")
    assert await check_history(directory, "acme") == 4


async def test_a_rollback_to_a_deleted_adapter_is_refused(directory: Directory) -> None:
    await with_tenant(directory, "a", "b")
    await directory.put_set("acme", A, expected=0, actor="test")
    await directory.put_set("acme", {}, expected=1, actor="test")
    await directory.delete_adapter(digest("a"), actor="test")
    with pytest.raises(UnknownAdapterError):
        await directory.rollback_set("acme", 1, expected=2, actor="test")
    assert await check_history(directory, "acme") == 2


async def test_a_name_means_something_else_in_each_tenant(directory: Directory) -> None:
    await with_tenant(directory, "a", "b")
    await with_tenant(directory, tenant="other")
    await with_tenant(directory, tenant="empty")
    mine = await directory.put_set("acme", {"style": digest("a")}, expected=0, actor="test")
    theirs = await directory.put_set("other", {"style": digest("b")}, expected=0, actor="test")
    sets = await directory.current_sets()
    assert sets == {
        "acme": mine,
        "empty": await directory.current_set("empty"),
        "other": theirs,
    }
