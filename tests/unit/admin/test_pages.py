"""Lists come in pages: each item once, in the list's order, and the last page says so."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from sqlalchemy import insert

from remix_runtime.admin_api import _PAGE
from remix_runtime.admin_api import Admin as AdminClient
from server.tenancy import tables
from server.tenancy.records import MAX_ADAPTERS, now
from tests.unit.admin.harness import API, KEY, Admin
from tests.unit.server.test_bad_input import check_error
from tests.unit.server.turns import LONGEST_TURN, ask, longest_turn

LISTS = {
    "/tenants": "after=id",
    "/tenants/acme/keys": "after=id",
    "/tenants/acme/set/revisions": "before=revision",
    "/adapters": "after=digest",
    "/audit": "before=id",
}


@pytest.fixture
async def full(admin: Admin) -> Admin:
    """Five of everything, in the order of no field."""
    for name in ("Zoo", "acme", "b-1", "b.1", "b"):
        await admin.add_tenant(name)
        await admin.add_key("acme") if name != "Zoo" else None
    await admin.add_key("acme")
    digests = [await admin.add_adapter(seed) for seed in range(5)]
    for digest in digests:
        body = {"adapters": {"x": digest}}
        answer = await admin.client.put(f"{API}/tenants/acme/set", json=body)
        assert answer.is_success
    return admin


async def whole(admin: Admin, path: str) -> list[dict[str, Any]]:
    answer = (await admin.client.get(f"{API}{path}")).raise_for_status().json()
    assert answer["has_more"] is False
    items: list[dict[str, Any]] = answer["data"]
    return items


@pytest.mark.parametrize("path", LISTS)
async def test_pages(full: Admin, path: str) -> None:
    parameter, field = LISTS[path].split("=")
    items = await whole(full, path)
    assert len(items) >= 5
    for limit in (1, 2, len(items)):
        found: list[dict[str, Any]] = []
        query: dict[str, Any] = {"limit": limit}
        more = True
        while more:
            page = (await full.client.get(f"{API}{path}", params=query)).raise_for_status().json()
            more = page["has_more"]
            assert len(page["data"]) == (limit if more else len(items) - len(found))
            found += page["data"]
            query[parameter] = found[-1][field]
        assert found == items
        last = (await full.client.get(f"{API}{path}", params=query)).json()
        assert last == {"data": [], "has_more": False}


@pytest.mark.parametrize("path", LISTS)
async def test_pages_have_a_limit(full: Admin, path: str) -> None:
    for limit in ("0", "1001", "x"):
        check_error(await full.client.get(f"{API}{path}?limit={limit}"), 400)
    if LISTS[path].startswith("before"):
        check_error(await full.client.get(f"{API}{path}?before=0"), 400)


@pytest.mark.parametrize(
    ("path", "after", "status"),
    [
        ("/tenants", "a b", 400),
        ("/tenants/acme/keys", "nobody", 404),
        ("/tenants/b/keys", "a key of acme", 404),
        ("/adapters", "0" * 64, 404),
        ("/adapters", "0" * 65, 400),
    ],
)
async def test_pages_after_nothing(full: Admin, path: str, after: str, status: int) -> None:
    if after == "a key of acme":
        after = (await whole(full, "/tenants/acme/keys"))[0]["id"]
    check_error(await full.client.get(f"{API}{path}", params={"after": after}), status)


async def test_adapters_name_their_tenants(full: Admin) -> None:
    body = {"adapters": {"y": (await whole(full, "/adapters"))[4]["digest"]}}
    assert (await full.client.put(f"{API}/tenants/b/set", json=body)).is_success
    named = [adapter["tenants"] for adapter in await whole(full, "/adapters")]
    assert named == [[], [], [], [], ["acme", "b"]]


@pytest.mark.parametrize("most", [None, 1, _PAGE, _PAGE + 1, 3 * _PAGE])
def test_clients_follow_the_pages(most: int | None) -> None:
    everything = [{"id": number} for number in range(2 * _PAGE + 5)]

    def answer(request: httpx.Request) -> httpx.Response:
        asked = request.url.params
        begin, limit = int(asked.get("after", -1)) + 1, int(asked["limit"])
        assert asked["kind"] == "x"
        assert 1 <= limit <= _PAGE
        end = begin + limit
        return httpx.Response(
            200, json={"data": everything[begin:end], "has_more": end < len(everything)}
        )

    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://x") as client:
        found = AdminClient(client).pages("/things", "after=id", most=most, kind="x")
    assert found["data"] == everything[:most]
    assert found["has_more"] == (len(found["data"]) < len(everything))


@pytest.fixture
async def huge(admin: Admin) -> Admin:
    """A hundred sets of as many adapters as there may be, of a hundred tenants, and of one."""
    # It would load all of them, which are nowhere.
    await admin.services.follower.stop()
    adapters = {f"adapter-{number}": f"{number:064x}" for number in range(MAX_ADAPTERS)}
    common = {"created": now(), "actor": "x", "rolled_back_from": None}
    revisions = [
        {"tenant": tenant, "revision": revision, "adapters": adapters, **common}
        for tenant, revision in (
            *(("t0", number) for number in range(1, 101)),
            *((f"t{number}", 1) for number in range(1, 100)),
        )
    ]
    names = [{"id": f"t{number}", "created": now()} for number in range(100)]
    records = [
        {"digest": digest, "created": now(), "source": "x", "num_bytes": 1, "description": {}}
        for digest in list(adapters.values())[:100]
    ]
    rows = [
        {"at": now(), "actor": "x", "action": "set.put", "tenant": "t0", "detail": adapters}
    ] * 100
    async with admin.services.directory._database.write() as connection:
        await connection.execute(insert(tables.tenants), names)
        await connection.execute(insert(tables.adapters), records)
        await connection.execute(insert(tables.set_revisions), revisions)
        await connection.execute(insert(tables.audit), rows)
    admin.services.follower.snapshot = await admin.services.directory.snapshot()
    return admin


@pytest.mark.parametrize(
    ("path", "limit", "size"),
    [
        ("/tenants/t0/set/revisions", 100, 5_000_000),
        ("/audit", 100, 5_000_000),
        ("/adapters", 100, 50_000),
    ],
)
async def test_no_list_takes_a_long_turn(huge: Admin, path: str, limit: int, size: int) -> None:
    key = ((b"authorization", f"Bearer {KEY}".encode()),)
    query = f"limit={limit}".encode()

    async def work() -> None:
        status, num_bytes = await ask(
            huge.app, f"{API}{path}", method="GET", query=query, headers=key
        )
        assert status == 200
        assert num_bytes > size

    await work()
    assert await longest_turn(work) <= LONGEST_TURN


async def test_a_copy_of_all_sets_takes_no_long_turn(huge: Admin) -> None:
    directory = huge.services.directory
    held = huge.services.follower.snapshot

    async def work() -> None:
        assert len((await directory.snapshot()).tenants) == 100

    assert await longest_turn(work) <= LONGEST_TURN
    # What is held is not read again.
    await directory.create_tenant("one-more", actor="x")
    again = await directory.snapshot(held)
    assert all(again.tenants[name].set is state.set for name, state in held.tenants.items())
    assert again.tenants["one-more"].set.revision == 0
