"""Sets over HTTP: ETags, preconditions, dry runs, refusals, rollback."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from server.tenancy.records import AdapterRecord
from tests.unit.admin.harness import API, Admin
from tests.unit.server.test_bad_input import check_error
from tests.unit.tenancy.samples import digest as digest_of

SET = f"{API}/tenants/acme/set"


@pytest.fixture
async def digests(admin: Admin) -> list[str]:
    await admin.add_tenant()
    return [await admin.add_adapter(seed) for seed in range(3)]


async def served(admin: Admin, key: str) -> dict[str, str]:
    """What a tenant's clients see."""
    async with admin.as_tenant(key) as client:
        models = (await client.get("/v1/models")).json()["data"]
    return {model["id"]: model["root"] for model in models}


async def test_put_and_rollback(admin: Admin, digests: list[str]) -> None:
    a, b, c = digests
    key = await admin.add_key()
    empty = await admin.client.get(SET)
    assert empty.headers["etag"] == '"0"'
    assert (empty.json()["revision"], empty.json()["adapters"]) == (0, {})

    first = await admin.put_set({"x": a, "y": b}, if_match='"0"')
    assert (first.status_code, first.headers["etag"]) == (200, '"1"')
    assert await served(admin, key) == {"x": a, "y": b}

    second = await admin.put_set({"x": c, "z": b}, if_match='"1"')
    diff = second.json()
    assert second.headers["etag"] == '"2"'
    assert (diff["added"], diff["changed"], diff["removed"]) == (["z"], ["x"], ["y"])
    assert (diff["before"]["revision"], diff["after"]["revision"]) == (1, 2)
    assert diff["before"]["adapters"] == {"x": a, "y": b}
    assert not diff["dry_run"]
    assert await served(admin, key) == {"x": c, "z": b}

    current = await admin.client.get(SET)
    assert current.headers["etag"] == '"2"'
    assert current.json()["live_revision"] == 2
    assert current.json()["adapters"] == {"x": c, "z": b}

    back = await admin.client.post(
        f"{SET}/rollback", json={"revision": 1}, headers={"If-Match": '"2"'}
    )
    assert (back.status_code, back.headers["etag"]) == (200, '"3"')
    assert back.json()["after"]["rolled_back_from"] == 1
    assert await served(admin, key) == {"x": a, "y": b}

    history = (await admin.client.get(f"{SET}/revisions")).json()["data"]
    assert [(item["revision"], item["rolled_back_from"]) for item in history] == [
        (3, 1),
        (2, None),
        (1, None),
    ]
    (newest,) = (await admin.client.get(f"{SET}/revisions?limit=1")).json()["data"]
    assert newest == history[0]


async def test_stale_changes_are_412_and_change_nothing(admin: Admin, digests: list[str]) -> None:
    a, b, _ = digests
    await admin.put_set({"x": a})
    stale = await admin.put_set({"x": b}, if_match='"0"')
    assert check_error(stale, 412)["code"] == "stale_revision"
    assert stale.headers["etag"] == '"1"'
    dry = await admin.put_set({"x": b}, if_match='"0"', dry_run=True)
    check_error(dry, 412)
    back = await admin.client.post(
        f"{SET}/rollback", json={"revision": 0}, headers={"If-Match": '"7"'}
    )
    check_error(back, 412)
    assert (await admin.client.get(SET)).json()["adapters"] == {"x": a}


async def test_of_many_changes_of_one_revision_one_wins(admin: Admin, digests: list[str]) -> None:
    answers = await asyncio.gather(
        *(admin.put_set({f"name-{i}": digests[i % 3]}, if_match='"0"') for i in range(6))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 5
    (winner,) = [answer for answer in answers if answer.status_code == 200]
    current = await admin.client.get(SET)
    assert current.headers["etag"] == winner.headers["etag"] == '"1"'
    assert current.json()["adapters"] == winner.json()["after"]["adapters"]


@pytest.mark.parametrize("if_match", [None, "*"])
async def test_any_revision_will_do(admin: Admin, digests: list[str], if_match: str | None) -> None:
    for revision, digest in enumerate(digests, start=1):
        answer = await admin.put_set({"x": digest}, if_match=if_match)
        assert answer.headers["etag"] == f'"{revision}"'


@pytest.mark.parametrize(
    "if_match",
    [
        *('W/"0"', "0", "'0'", '"0', '"00"', '"-1"', '"abc"', '""', "", '"0", "1"', "**"),
        *('"99999999999"', '"0" ', ' "0"', '"٠"'.encode()),
    ],
)
async def test_malformed_preconditions(
    admin: Admin, digests: list[str], if_match: str | bytes
) -> None:
    headers = httpx.Headers(
        [(b"If-Match", if_match if isinstance(if_match, bytes) else if_match.encode())]
    )
    for method, url, body in (
        ("PUT", SET, {"adapters": {"x": digests[0]}}),
        ("POST", f"{SET}/rollback", {"revision": 0}),
    ):
        answer = await admin.client.request(method, url, json=body, headers=headers)
        assert check_error(answer, 400)["param"] == "If-Match"
    assert (await admin.client.get(SET)).headers["etag"] == '"0"'


async def test_two_preconditions_are_none(admin: Admin, digests: list[str]) -> None:
    headers = httpx.Headers([("If-Match", '"0"'), ("If-Match", '"1"')])
    body = {"adapters": {"x": digests[0]}}
    check_error(await admin.client.put(SET, json=body, headers=headers), 400)


async def test_the_same_set_again_succeeds_and_writes_nothing(
    admin: Admin, digests: list[str]
) -> None:
    first = await admin.put_set({"x": digests[0]}, if_match='"0"')
    # As after a lost answer: the same request, whose precondition is stale by now.
    again = await admin.put_set({"x": digests[0]}, if_match='"0"')
    assert (again.status_code, again.headers["etag"]) == (200, first.headers["etag"])
    diff = again.json()
    assert diff["added"] == diff["changed"] == diff["removed"] == []
    assert len((await admin.client.get(f"{SET}/revisions")).json()["data"]) == 1


async def test_a_dry_run_tells_the_diff_and_changes_nothing(
    admin: Admin, digests: list[str]
) -> None:
    a, b, _ = digests
    key = await admin.add_key()
    await admin.put_set({"x": a})
    rows = (await admin.client.get(f"{API}/audit")).json()
    dry = await admin.put_set({"x": b, "y": a}, dry_run=True)
    diff = dry.json()
    assert (dry.status_code, dry.headers["etag"]) == (200, '"1"')
    assert (diff["added"], diff["changed"], diff["removed"]) == (["y"], ["x"], [])
    assert diff["dry_run"]
    assert diff["after"]["adapters"] == {"x": b, "y": a}
    assert await served(admin, key) == {"x": a}
    assert (await admin.client.get(f"{API}/audit")).json() == rows


@pytest.mark.parametrize("dry_run", [False, True])
async def test_a_bad_adapter_is_422_with_reasons(
    admin: Admin, digests: list[str], dry_run: bool
) -> None:
    a, b, c = digests
    key = await admin.add_key()
    await admin.put_set({"x": a})
    admin.engine.refused = {b}
    answer = await admin.put_set({"x": c, "bad": b, "also": b}, dry_run=dry_run)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "bad_set")
    assert error["reasons"] == dict.fromkeys(("bad", "also"), "replayed to other routes")
    assert "bad: replayed to other routes" in error["message"]
    assert await served(admin, key) == {"x": a}
    assert (await admin.client.get(SET)).headers["etag"] == '"1"'
    admin.engine.refused = set()
    assert (await admin.put_set({"x": c, "bad": b, "also": b})).status_code == 200


async def test_digests_that_nobody_imported_are_422(admin: Admin, digests: list[str]) -> None:
    unknown = digest_of("unknown")
    answer = await admin.put_set({"x": digests[0], "y": unknown})
    error = answer.json()["error"]
    assert answer.status_code == 422
    assert list(error["reasons"]) == ["y"]
    assert (await admin.client.get(SET)).json()["adapters"] == {}


async def test_an_adapter_whose_files_are_gone_is_422(admin: Admin, digests: list[str]) -> None:
    lost = AdapterRecord(digest=digest_of("lost"), source="/nowhere", num_bytes=1)
    await admin.services.directory.add_adapter(lost, actor="test")
    answer = await admin.put_set({"x": lost.digest})
    assert (answer.status_code, list(answer.json()["error"]["reasons"])) == (422, ["x"])


@pytest.mark.parametrize(
    "body",
    [
        *({}, {"adapters": None}, {"adapters": []}, {"adapters": {"x": None}}),
        *({"adapters": {"x": "a" * 63}}, {"adapters": {"x": "A" * 64}}, {"adapters": {"x": 1}}),
        *({"adapters": {"": "a" * 64}}, {"adapters": {"a/b": "a" * 64}}, {"adapter": {}}),
        {"adapters": {"x" * 100_000: "a" * 64}},
        {"adapters": {"x\n": "a" * 64}},
        {"adapters": {f"n{i}": "a" * 64 for i in range(1001)}},
    ],
)
async def test_bad_sets(admin: Admin, digests: list[str], body: Any) -> None:
    check_error(await admin.client.put(SET, json=body), 400)
    assert (await admin.client.get(SET)).headers["etag"] == '"0"'


async def test_wrong_queries(admin: Admin, digests: list[str]) -> None:
    check_error(await admin.client.put(f"{SET}?dry_run=perhaps", json={"adapters": {}}), 400)
    for limit in ("0", "1001", "x", str(1 << 70)):
        check_error(await admin.client.get(f"{SET}/revisions?limit={limit}"), 400)


@pytest.mark.parametrize("revision", [-1, 1 << 31, 10**30, "1", 1.0, None])
async def test_malformed_rollbacks(admin: Admin, digests: list[str], revision: Any) -> None:
    answer = await admin.client.post(f"{SET}/rollback", json={"revision": revision})
    check_error(answer, 400)


async def test_rollback_to_what_never_was(admin: Admin, digests: list[str]) -> None:
    await admin.put_set({"x": digests[0]})
    check_error(await admin.client.post(f"{SET}/rollback", json={"revision": 9}), 404)
    empty = await admin.client.post(f"{SET}/rollback", json={"revision": 0})
    assert empty.json()["removed"] == ["x"]


async def test_sets_of_unknown_tenants(admin: Admin) -> None:
    check_error(await admin.put_set({}, tenant="nobody"), 404)
    answer = await admin.client.post(f"{API}/tenants/nobody/set/rollback", json={"revision": 0})
    check_error(answer, 404)


async def test_the_base_models_name_is_not_taken(admin: Admin, digests: list[str]) -> None:
    base = admin.engine.model.name
    answer = await admin.put_set({base: digests[0]})
    assert (answer.status_code, list(answer.json()["error"]["reasons"])) == (422, [base])
