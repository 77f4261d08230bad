"""Canaries in the database: begun, ended, promoted with the set in one transaction, superseded by a
change of the set, and there after a migration of an older release's database."""

from __future__ import annotations

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from server.tenancy import Directory
from server.tenancy.canary_rows import Canary, CanaryRules, Outcome
from server.tenancy.database import Database
from server.tenancy.errors import (
    CanaryError,
    InvalidValueError,
    ReferencedError,
    UnknownAdapterError,
    UnknownCanaryError,
    UnknownTenantError,
)
from server.tenancy.records import AdapterRecord

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
RULES = CanaryRules(bake_seconds=5, bake_requests=7)


@pytest.fixture
async def acme(directory: Directory) -> Directory:
    await directory.create_tenant("acme", actor="test")
    for digest in (A, B, C):
        record = AdapterRecord(digest=digest, source="s", num_bytes=1)
        await directory.add_adapter(record, actor="test")
    await directory.put_set("acme", {"x": A, "y": C}, expected=None, actor="test")
    return directory


async def begin(directory: Directory, digest: str = B, name: str = "x", **other: object) -> Canary:
    given = {"share": 0.25, "rules": RULES, "actor": "test", **other}
    return await directory.canaries.begin("acme", name, digest, **given)  # type: ignore[arg-type]


async def actions(directory: Directory) -> list[str]:
    return [row.action for row in await directory.audit(tenant="acme", limit=5)]


async def test_a_canary_is_remembered_and_is_in_every_copy_of_the_directory(
    acme: Directory, url: str
) -> None:
    begun = await begin(acme)
    other = await Directory.open(url)
    assert await other.canaries.newest("acme", "x") == begun
    assert (await other.snapshot()).tenants["acme"].canaries == {"x": begun}
    await other.close()
    assert (await actions(acme))[0] == "canary.begin"


async def test_the_same_again_is_the_same_and_another_one_is_refused(acme: Directory) -> None:
    begun = await begin(acme)
    assert await begin(acme) == begun
    with pytest.raises(CanaryError, match="runs already"):
        await begin(acme, share=0.5)
    with pytest.raises(CanaryError, match="runs already"):
        await begin(acme, C)
    assert (await actions(acme)).count("canary.begin") == 1


async def test_what_makes_no_canary(acme: Directory) -> None:
    for digest, name, reason in ((A, "x", "live already"), (B, "z", "has no z")):
        with pytest.raises(CanaryError, match=reason):
            await begin(acme, digest, name)
    with pytest.raises(UnknownAdapterError):
        await begin(acme, "d" * 64)
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(InvalidValueError, match="share"):
            await begin(acme, share=share)
    with pytest.raises(InvalidValueError, match="max_token_ratio"):
        CanaryRules(max_token_ratio=0.5)
    with pytest.raises(InvalidValueError, match="give_up_seconds"):
        CanaryRules(bake_seconds=10, give_up_seconds=5)
    with pytest.raises(UnknownTenantError):
        await acme.canaries.begin("nobody", "x", B, share=1, rules=RULES, actor="test")
    assert await acme.canaries.of_tenant("acme") == []


async def test_a_dry_run_writes_nothing(acme: Directory) -> None:
    assert (await begin(acme, dry_run=True)).digest == B
    assert await acme.canaries.of_tenant("acme") == []


async def test_promotion_and_the_set_s_revision_are_one_change(acme: Directory) -> None:
    begun = await begin(acme)
    before = await acme.snapshot()
    ended = await acme.canaries.end(
        begun, Outcome.PROMOTED, reason="good", figures={"n": 1}, actor="canary"
    )
    assert (ended.outcome, ended.reason, ended.figures) == (Outcome.PROMOTED, "good", {"n": 1})
    after = (await acme.snapshot(before)).tenants["acme"]
    assert (after.set.adapters, after.canaries) == ({"x": B, "y": C}, {})
    assert (after.set.revision, after.set.actor) == (2, "canary")
    assert (await actions(acme))[:2] == ["set.put", "canary.promoted"]
    # Again, by a server that did not hear of it: nothing more happens.
    again = await acme.canaries.end(
        begun, Outcome.ROLLED_BACK, reason="", figures={}, actor="canary"
    )
    assert again == ended
    assert (await acme.current_set("acme")).revision == 2


async def test_a_roll_back_leaves_the_set(acme: Directory) -> None:
    begun = await begin(acme)
    await acme.canaries.report(begun.id, "s1", {"n": 1})
    await acme.canaries.end(begun, Outcome.ROLLED_BACK, reason="bad", figures={}, actor="canary")
    assert (await acme.current_set("acme")).adapters == {"x": A, "y": C}
    assert (await acme.canaries.reports([begun.id])) == {begun.id: {}}
    assert (await begin(acme)).id != begun.id
    with pytest.raises(UnknownCanaryError):
        await acme.canaries.end(begun, Outcome.PROMOTED, reason="", figures={}, actor="canary")


@pytest.mark.parametrize(
    ("adapters", "outcome"),
    [
        ({"x": C, "y": C}, Outcome.SUPERSEDED),
        ({"y": C}, Outcome.SUPERSEDED),
        ({"x": B, "y": C}, Outcome.PROMOTED),
        ({"x": A}, None),
    ],
)
async def test_a_change_of_the_set_ends_the_canaries_of_the_names_that_it_touches(
    acme: Directory, adapters: dict[str, str], outcome: Outcome | None
) -> None:
    begun = await begin(acme)
    await acme.put_set("acme", adapters, expected=None, actor="test")
    assert (await acme.canaries.newest("acme", "x")).outcome == outcome
    assert (f"canary.{outcome}" in await actions(acme)) == (outcome is not None)
    assert ("x" in (await acme.snapshot()).tenants["acme"].canaries) == (outcome is None)
    assert begun.outcome is None


async def test_a_rollback_of_the_set_ends_it_too(acme: Directory) -> None:
    await begin(acme)
    await acme.rollback_set("acme", 0, expected=None, actor="test")
    assert (await acme.canaries.newest("acme", "x")).outcome is Outcome.SUPERSEDED


async def test_the_adapter_of_a_canary_cannot_be_deleted(acme: Directory) -> None:
    begun = await begin(acme)
    with pytest.raises(ReferencedError, match="acme"):
        await acme.delete_adapter(B, actor="test")
    await acme.canaries.end(begun, Outcome.ROLLED_BACK, reason="", figures={}, actor="test")
    await acme.delete_adapter(B, actor="test")


async def test_a_deleted_tenant_has_no_canary(acme: Directory) -> None:
    begun = await begin(acme)
    await acme.canaries.report(begun.id, "s1", {})
    await acme.delete_tenant("acme", actor="test")
    await acme.create_tenant("acme", actor="test")
    assert await acme.canaries.of_tenant("acme") == []
    assert await acme.canaries.reports([begun.id]) == {begun.id: {}}


async def test_a_database_of_the_first_release_is_migrated_with_all_that_it_holds(url: str) -> None:
    database = Database(url)

    def first_release(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", "server.tenancy:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")

    async with database.write(migrates=True) as connection:
        await connection.run_sync(first_release)
        for statement in (
            "INSERT INTO tenants (id, created) VALUES ('acme', '2026-01-01 00:00:00')",
            "INSERT INTO set_revisions (tenant, revision, entries, created, actor)"
            f" VALUES ('acme', 3, '{{\"x\": \"{A}\"}}', '2026-01-01 00:00:00', 'test')",
        ):
            await connection.exec_driver_sql(statement)
    await database.close()
    directory = await Directory.open(url)
    assert (await directory.current_set("acme")).adapters == {"x": A}
    await directory.add_adapter(AdapterRecord(digest=B, source="s", num_bytes=1), actor="test")
    assert (await begin(directory)).digest == B
    await directory.close()
