from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from server.tenancy import Directory
from server.tenancy.errors import (
    AdapterNotFoundError,
    InvalidValueError,
    ReferencedError,
    TenantExistsError,
    UnknownKeyError,
    UnknownTenantError,
)
from server.tenancy.records import AdapterRecord, Quota
from tests.unit.tenancy.samples import digest, live_digests, record, with_tenant


async def test_everything_is_there_after_a_restart(url: str) -> None:
    first = await Directory.open(url)
    await with_tenant(first, "a")
    key = await first.create_key("acme", actor="test")
    await first.set_quota("acme", Quota(max_concurrent=3, may_use_base=True), actor="test")
    await first.put_set("acme", {"style": digest("a")}, expected=0, actor="test")
    written = (
        await first.tenants(),
        await first.keys("acme"),
        await first.quota("acme"),
        await first.adapters(),
        await first.current_sets(),
        await first.audit(limit=100),
    )
    await first.close()
    second = await Directory.open(url)
    read = (
        await second.tenants(),
        await second.keys("acme"),
        await second.quota("acme"),
        await second.adapters(),
        await second.current_sets(),
        await second.audit(limit=100),
    )
    assert read == written
    assert await second.authenticate(key.secret) == "acme"
    await second.close()


async def test_tenants_are_listed_by_id_with_the_moment_they_were_made(
    directory: Directory,
) -> None:
    before = datetime.now(UTC)
    for tenant in ("b", "B", "a.1", "a-1", "a_1"):
        await directory.create_tenant(tenant, actor="test")
    tenants = await directory.tenants()
    assert [tenant.id for tenant in tenants] == ["B", "a-1", "a.1", "a_1", "b"]
    assert all(before <= item.created <= datetime.now(UTC) for item in tenants)
    assert all(item.created.utcoffset() == timedelta(0) for item in tenants)


@pytest.mark.parametrize("tenant", ["", "-a", ".", "a b", "a/b", "é", "a" * 65, "a\n", "a\0"])
async def test_tenant_ids_that_are_refused(directory: Directory, tenant: str) -> None:
    with pytest.raises(InvalidValueError, match="tenant: found"):
        await directory.create_tenant(tenant, actor="test")
    assert await directory.tenants() == []


async def test_a_tenant_exists_once(directory: Directory) -> None:
    await directory.create_tenant("a" * 64, actor="test")
    with pytest.raises(TenantExistsError):
        await directory.create_tenant("a" * 64, actor="test")
    assert len(await directory.audit(limit=10)) == 1


async def test_a_deleted_tenant_takes_its_keys_quota_and_set_along(directory: Directory) -> None:
    await with_tenant(directory, "a")
    key = await directory.create_key("acme", actor="test")
    await directory.set_quota("acme", Quota(may_use_base=True), actor="test")
    await directory.put_set("acme", {"style": digest("a")}, expected=0, actor="test")
    await directory.delete_tenant("acme", actor="test")
    assert await directory.tenants() == []
    assert await directory.authenticate(key.secret) is None
    assert await live_digests(directory) == set()
    assert await directory.current_sets() == {}
    await directory.delete_adapter(digest("a"), actor="test")
    actions = [row.action for row in await directory.audit(tenant="acme", limit=10)]
    assert actions == ["tenant.delete", "set.put", "quota.set", "key.create", "tenant.create"]


async def test_a_tenant_that_is_made_again_inherits_nothing_but_its_revision_number(
    directory: Directory,
) -> None:
    await with_tenant(directory, "a")
    await directory.create_key("acme", actor="test")
    await directory.set_quota("acme", Quota(may_use_base=True), actor="test")
    await directory.put_set("acme", {"style": digest("a")}, expected=0, actor="test")
    await directory.delete_tenant("acme", actor="test")
    await directory.create_tenant("acme", actor="test")
    current = await directory.current_set("acme")
    assert (current.revision, current.adapters) == (2, {})
    assert await directory.quota("acme") == Quota()
    assert await directory.keys("acme") == []
    assert [item.revision for item in await directory.revisions("acme", limit=9)] == [2]


async def test_unknown_tenants_are_refused_by_every_method(directory: Directory) -> None:
    await with_tenant(directory, tenant="gone")
    await directory.delete_tenant("gone", actor="test")
    for tenant in ("gone", "never", "x' OR 1=1 --", "a\0b", "\ud800"):
        for call in (
            directory.delete_tenant(tenant, actor="test"),
            directory.create_key(tenant, actor="test"),
            directory.keys(tenant),
            directory.quota(tenant),
            directory.set_quota(tenant, Quota(), actor="test"),
            directory.current_set(tenant),
            directory.revisions(tenant, limit=1),
            directory.put_set(tenant, {}, expected=None, actor="test"),
            directory.rollback_set(tenant, 0, expected=None, actor="test"),
        ):
            with pytest.raises(UnknownTenantError):
                await call


async def test_a_key_opens_its_own_tenant_until_it_is_revoked(directory: Directory) -> None:
    await directory.create_tenant("a", actor="test")
    await directory.create_tenant("b", actor="test")
    keys = {tenant: await directory.create_key(tenant, actor="test") for tenant in "ab"}
    spare = await directory.create_key("a", actor="test")
    assert [await directory.authenticate(key.secret) for key in keys.values()] == ["a", "b"]
    await directory.revoke_key(keys["a"].id, actor="test")
    assert await directory.authenticate(keys["a"].secret) is None
    assert await directory.authenticate(spare.secret) == "a"
    assert await directory.authenticate(keys["b"].secret) == "b"
    (first, second) = await directory.keys("a")
    assert first.revoked is not None
    assert second.revoked is None
    assert second.prefix == spare.secret[:11]


async def test_revoking_twice_is_one_change_and_an_unknown_key_none(directory: Directory) -> None:
    await directory.create_tenant("a", actor="test")
    key = await directory.create_key("a", actor="test")
    await directory.revoke_key(key.id, actor="test")
    (before,) = await directory.keys("a")
    await directory.revoke_key(key.id, actor="test")
    assert await directory.keys("a") == [before]
    for key_id in ("0" * 16, "\0"):
        with pytest.raises(UnknownKeyError):
            await directory.revoke_key(key_id, actor="test")
    actions = [row.action for row in await directory.audit(limit=10)]
    assert actions == ["key.revoke", "key.create", "tenant.create"]


async def test_keys_that_are_close_or_strange_open_nothing(directory: Directory) -> None:
    await directory.create_tenant("a", actor="test")
    secret = (await directory.create_key("a", actor="test")).secret
    other = (await directory.create_key("a", actor="test")).secret
    last = "A" if secret[-1] != "A" else "B"
    for guess in (
        "",
        secret[:-1],
        secret + "A",
        secret + "\n",
        secret[:-1] + last,
        secret[:12] + other[12:],
        secret.upper(),
        f" {secret}",
        "rk-%-%",
        "rk-\0",
        "\ud800",
        "ключ",
    ):
        assert await directory.authenticate(guess) is None


async def test_two_keys_with_one_prefix_are_told_apart(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A key's id, then its prefix.
    numbers = iter(("1", "0" * 8, "2", "0" * 8))
    monkeypatch.setattr("secrets.token_hex", lambda size: next(numbers))
    keys = {}
    for tenant in ("a", "b"):
        await directory.create_tenant(tenant, actor="test")
        keys[tenant] = await directory.create_key(tenant, actor="test")
    assert keys["a"].secret[:11] == keys["b"].secret[:11]
    for tenant, key in keys.items():
        assert await directory.authenticate(key.secret) == tenant


async def test_secrets_are_in_no_table_and_in_no_repr(directory: Directory) -> None:
    await directory.create_tenant("a", actor="test")
    key = await directory.create_key("a", actor="test")
    assert key.secret not in repr(key)
    random_part = key.secret[12:]
    stored = ""
    async with directory._database.read() as connection:
        for table in ("api_keys", "audit", "tenants"):
            rows = await connection.exec_driver_sql(f"SELECT * FROM {table}")
            stored += repr(rows.all())
    assert key.id in stored
    assert random_part not in stored


async def test_quotas_start_unlimited_without_the_base(directory: Directory) -> None:
    await directory.create_tenant("a", actor="test")
    assert await directory.quota("a") == Quota(may_use_base=False)
    wanted = Quota(requests_per_minute=60, tokens_per_minute=10**10, may_use_base=True)
    for _ in range(2):
        await directory.set_quota("a", wanted, actor="ops")
    assert await directory.quota("a") == wanted
    newest, created = await directory.audit(tenant="a", limit=10)
    assert created.action == "tenant.create"
    assert (newest.actor, newest.action) == ("ops", "quota.set")
    assert newest.detail["tokens_per_minute"] == 10**10
    await directory.set_quota("a", Quota(), actor="ops")
    assert await directory.quota("a") == Quota()


@pytest.mark.parametrize("limit", [0, -1, 10**12 + 1])
def test_limits_that_are_refused(limit: int) -> None:
    with pytest.raises(InvalidValueError, match="tokens_per_minute"):
        Quota(tokens_per_minute=limit)


async def test_an_adapter_is_recorded_once(directory: Directory) -> None:
    adapter = AdapterRecord(
        digest=digest("a"),
        source="s3://bucket/grün/a",
        num_bytes=2**40,
        description={"r": 8, "modules": ["q_proj", "\0", "\ud800"]},
    )
    assert await directory.add_adapter(adapter, actor="test") == adapter
    again = AdapterRecord(digest=digest("a"), source="elsewhere", num_bytes=1)
    assert await directory.add_adapter(again, actor="test") == adapter
    await directory.add_adapter(record("b"), actor="test")
    assert await directory.adapter(digest("a")) == adapter
    assert [item.digest for item in await directory.adapters()] == [digest("a"), digest("b")]
    assert [row.action for row in await directory.audit(limit=9)] == ["adapter.add"] * 2


async def test_an_adapter_goes_when_no_newest_set_names_it(directory: Directory) -> None:
    await with_tenant(directory, "a", "b")
    await with_tenant(directory, tenant="other")
    await directory.put_set("acme", {"x": digest("a")}, expected=0, actor="test")
    await directory.put_set("other", {"y": digest("a")}, expected=0, actor="test")
    assert await live_digests(directory) == {digest("a")}
    with pytest.raises(ReferencedError, match="acme, other") as refused:
        await directory.delete_adapter(digest("a"), actor="test")
    assert refused.value.tenants == ("acme", "other")
    await directory.put_set("acme", {"x": digest("b")}, expected=1, actor="test")
    with pytest.raises(ReferencedError):
        await directory.delete_adapter(digest("a"), actor="test")
    await directory.put_set("other", {}, expected=1, actor="test")
    await directory.delete_adapter(digest("a"), actor="test")
    assert [item.digest for item in await directory.adapters()] == [digest("b")]
    for call in (
        directory.adapter("\0"),
        directory.adapter(digest("a")),
        directory.delete_adapter(digest("a"), actor="test"),
    ):
        with pytest.raises(AdapterNotFoundError):
            await call


@pytest.mark.parametrize(
    ("field", "value"),
    [("digest", "A" * 64), ("digest", "a" * 63), ("source", ""), ("source", "a\0")],
)
def test_adapter_records_that_are_refused(field: str, value: str) -> None:
    given = {"digest": digest("a"), "source": "here"} | {field: value}
    with pytest.raises(InvalidValueError, match=field):
        AdapterRecord(**given, num_bytes=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("actor", ["", "a\nb", "\ud800", "x" * 2049])
async def test_a_change_without_a_proper_actor_does_not_happen(
    directory: Directory, actor: str
) -> None:
    with pytest.raises(InvalidValueError, match="actor"):
        await directory.create_tenant("a", actor=actor)
    assert await directory.tenants() == []


async def test_the_audit_is_read_in_pages(directory: Directory) -> None:
    for number in range(5):
        await directory.create_tenant(f"t{number}", actor=f"actor {number}")
    first = await directory.audit(limit=2)
    second = await directory.audit(limit=9, before=first[-1].id)
    told = [(row.tenant, row.actor) for row in [*first, *second]]
    assert told == [(f"t{number}", f"actor {number}") for number in (4, 3, 2, 1, 0)]
    assert [row.tenant for row in await directory.audit(tenant="t3", limit=9)] == ["t3"]
