"""Who a key stands for: what is known, what is asked of the database, and for how long."""

from __future__ import annotations

import asyncio

import pytest

from server.live import access as live_access
from server.live.access import SINGLE_USER, SingleUserAccess, TenantAccess, is_key
from server.tenancy.errors import DatabaseUnavailableError
from server.tenancy.records import Quota, SetRevision, now
from server.tenancy.snapshot import Snapshot, TenantState

SET = SetRevision(
    tenant="acme", revision=0, adapters={}, created=now(), actor="test", rolled_back_from=None
)


class Copy(Snapshot):
    def authenticate(self, secret: str) -> str | None:
        return {"old": "acme"}.get(secret)


class Follower:
    """A copy of the directory that is as old as a test wants."""

    def __init__(self, quota: Quota) -> None:
        self.snapshot = Copy(
            change=1,
            tenants={"acme": TenantState(set=SET, quota=quota)},
            keys={},
        )
        self.age_seconds = 0.0
        self.refreshed = 0

    async def refresh(self) -> None:
        self.refreshed += 1


class Directory:
    """Knows one key more than the copy."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.running = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def authenticate(self, secret: str) -> str | None:
        self.asked.append(secret)
        self.running += 1
        try:
            await self.answers.wait()
        finally:
            self.running -= 1
        return {"new": "acme"}.get(secret)


@pytest.fixture
def follower() -> Follower:
    return Follower(Quota(max_concurrent=7))


@pytest.fixture
def directory() -> Directory:
    return Directory()


@pytest.fixture
def access(directory: Directory, follower: Follower) -> TenantAccess:
    return TenantAccess(directory, follower, grace_seconds=300)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "same"),
    [("sesame", True), ("Sesame", False), ("sesam", False), ("", False), (None, False)],
)
def test_keys_are_compared_to_the_letter(given: str | None, same: bool) -> None:
    assert is_key(given, "sesame") is same
    assert not is_key("\xff", "sesame"), "a byte of a header that is no text"
    assert is_key(None, ""), "no header is an empty one"


async def test_a_single_user_has_one_key_or_none() -> None:
    for access, key, tenant in (
        (SingleUserAccess("sesame"), "sesame", SINGLE_USER),
        (SingleUserAccess("sesame"), "other", None),
        (SingleUserAccess("sesame"), None, None),
        (SingleUserAccess(None), None, SINGLE_USER),
        (SingleUserAccess(None), "any", SINGLE_USER),
    ):
        assert await access.tenant_of(key) == tenant
        assert access.quota(SINGLE_USER) == Quota(may_use_base=True)
        assert access.knows_keys is True


async def test_a_key_of_the_copy_touches_no_database(
    access: TenantAccess, directory: Directory
) -> None:
    assert await access.tenant_of("old") == "acme"
    assert await access.tenant_of(None) is None
    assert directory.asked == []


async def test_a_key_that_only_the_database_knows_is_asked_for_and_then_in_the_copy(
    access: TenantAccess, directory: Directory, follower: Follower
) -> None:
    assert await access.tenant_of("new") == "acme"
    assert follower.refreshed == 1
    assert await access.tenant_of("guess") is None
    assert follower.refreshed == 1, "a guess reads the copy again for nobody"
    assert directory.asked == ["new", "guess"]


@pytest.mark.parametrize(("age", "is_known"), [(0, True), (300, True), (300.001, False)])
async def test_the_copy_is_good_for_the_grace_time_and_no_longer(
    access: TenantAccess, follower: Follower, age: float, is_known: bool
) -> None:
    follower.age_seconds = age
    assert access.knows_keys is is_known
    if is_known:
        assert await access.tenant_of("old") == "acme"
    else:
        with pytest.raises(DatabaseUnavailableError, match=r"^no key could .* for 300 s$"):
            await access.tenant_of("old")
    assert await access.tenant_of("new") == "acme", "the database itself is asked for others"


def test_a_quota_is_the_copys_and_what_is_not_there_has_none(access: TenantAccess) -> None:
    assert access.quota("acme") == Quota(max_concurrent=7)
    assert access.quota("deleted") == Quota()


async def test_guesses_take_a_few_connections_at_a_time(
    access: TenantAccess, directory: Directory
) -> None:
    directory.answers.clear()
    guesses = [asyncio.create_task(access.tenant_of(f"guess-{i}")) for i in range(9)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert directory.running == live_access._UNKNOWN_KEYS_AT_ONCE == 4
    directory.answers.set()
    assert await asyncio.gather(*guesses) == [None] * 9
    assert len(directory.asked) == 9


async def test_a_database_that_does_not_answer_is_unavailable(
    access: TenantAccess, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_access, "_LOOK_UP_SECONDS", 0.01)
    directory.answers.clear()
    async with asyncio.timeout(20):
        with pytest.raises(DatabaseUnavailableError, match=r"^the database is too slow"):
            await access.tenant_of("new")
    assert directory.running == 0
