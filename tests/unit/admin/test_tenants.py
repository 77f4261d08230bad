"""Tenants, keys, quotas and the audit over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from server.tenancy.errors import DatabaseUnavailableError
from tests.unit.admin.harness import API, Admin
from tests.unit.server.test_bad_input import check_error


async def test_life_of_a_tenant(admin: Admin) -> None:
    created = await admin.client.post(f"{API}/tenants", json={"id": "acme"})
    assert created.status_code == 201
    assert created.json()["id"] == "acme"
    await admin.add_tenant("zoo")
    listed = (await admin.client.get(f"{API}/tenants")).json()["data"]
    assert [item["id"] for item in listed] == ["acme", "zoo"]
    assert (await admin.client.get(f"{API}/tenants/acme")).json() == created.json()

    again = await admin.client.post(f"{API}/tenants", json={"id": "acme"})
    assert check_error(again, 409)["code"] == "conflict"

    key = await admin.add_key("acme")
    async with admin.as_tenant(key) as client:
        assert (await client.get("/v1/models")).status_code == 200
        gone = await admin.client.delete(f"{API}/tenants/acme")
        assert (gone.status_code, gone.content) == (204, b"")
        assert (await client.get("/v1/models")).status_code == 401
    check_error(await admin.client.delete(f"{API}/tenants/acme"), 404)
    check_error(await admin.client.get(f"{API}/tenants/acme"), 404)


@pytest.mark.parametrize(
    "body",
    [
        *({}, {"id": ""}, {"id": "a b"}, {"id": "-a"}, {"id": "a" * 65}, {"id": 1}, {"id": None}),
        *([], {"id": "acme", "more": 1}, {"id": "acme\n"}, {"id": "a\0"}, {"id": "../a"}),
    ],
)
async def test_bad_tenants(admin: Admin, body: Any) -> None:
    check_error(await admin.client.post(f"{API}/tenants", json=body), 400)
    assert (await admin.client.get(f"{API}/tenants")).json()["data"] == []


async def test_bodies_are_read_by_the_letter(admin: Admin) -> None:
    async def post(content: bytes, content_type: str = "application/json") -> Any:
        headers = {"Content-Type": content_type}
        return await admin.client.post(f"{API}/tenants", content=content, headers=headers)

    assert check_error(await post(b'{"id": '), 400)["code"] == "invalid_json"
    check_error(await post(b'{"id": "acme"}', "text/plain"), 415)
    check_error(await post(b" " * (4 << 20) + b'{"id": "acme"}'), 413)
    assert (await admin.client.get(f"{API}/tenants")).json()["data"] == []


async def test_keys_are_shown_once(admin: Admin) -> None:
    await admin.add_tenant()
    made = await admin.client.post(f"{API}/tenants/acme/keys")
    assert made.status_code == 201
    key = made.json()
    listed = await admin.client.get(f"{API}/tenants/acme/keys")
    assert key["secret"] not in listed.text
    (shown,) = listed.json()["data"]
    assert shown["id"] == key["id"]
    assert key["secret"].startswith(shown["prefix"])
    assert shown["revoked"] is None

    async with admin.as_tenant(key["secret"]) as client:
        assert (await client.get("/v1/models")).status_code == 200
        for _ in range(2):  # again is fine
            revoked = await admin.client.delete(f"{API}/tenants/acme/keys/{key['id']}")
            assert revoked.status_code == 204
        assert (await client.get("/v1/models")).status_code == 401
    (shown,) = (await admin.client.get(f"{API}/tenants/acme/keys")).json()["data"]
    assert shown["revoked"] is not None


async def test_a_key_is_revoked_under_its_own_tenant_only(admin: Admin) -> None:
    for tenant in ("acme", "zoo"):
        await admin.add_tenant(tenant)
    secret = await admin.add_key("acme")
    (key,) = (await admin.client.get(f"{API}/tenants/acme/keys")).json()["data"]
    check_error(await admin.client.delete(f"{API}/tenants/zoo/keys/{key['id']}"), 404)
    check_error(await admin.client.delete(f"{API}/tenants/acme/keys/nope"), 404)
    async with admin.as_tenant(secret) as client:
        assert (await client.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("path", ["keys", "quota", "set", "set/revisions"])
@pytest.mark.parametrize("tenant", ["nobody", "%00", "a%20b", "%F0%9F%8C%8D", "a%0Ab"])
async def test_unknown_tenants(admin: Admin, path: str, tenant: str) -> None:
    error = check_error(await admin.client.get(f"{API}/tenants/{tenant}/{path}"), 404)
    assert error["code"] == "not_found"


async def test_quota_is_replaced_and_holds_at_once(admin: Admin) -> None:
    await admin.add_tenant()
    url = f"{API}/tenants/acme/quota"
    default = (await admin.client.get(url)).json()
    assert default == {
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "max_concurrent": None,
        "may_use_base": False,
    }
    key = await admin.add_key()
    base = admin.engine.model.name
    async with admin.as_tenant(key) as client:
        body = {"model": base, "prompt": "a", "max_tokens": 1}
        check_error(await client.post("/v1/completions", json=body), 404)
        wanted = {**default, "requests_per_minute": 1, "may_use_base": True}
        put = await admin.client.put(url, json={"requests_per_minute": 1, "may_use_base": True})
        assert (put.status_code, put.json()) == (200, wanted)
        assert (await admin.client.get(url)).json() == wanted
        assert (await client.post("/v1/completions", json=body)).status_code == 200
    live = admin.services.follower.snapshot.tenants["acme"].quota
    assert live.requests_per_minute == 1
    assert (await admin.client.put(url, json={})).json() == default
    check_error(await admin.client.put(f"{API}/tenants/nobody/quota", json={}), 404)


@pytest.mark.parametrize(
    "body",
    [
        *({"max_concurrent": 0}, {"max_concurrent": -1}, {"tokens_per_minute": 1.5}),
        *({"requests_per_minute": "6"}, {"requests_per_minute": 10**13}, {"may_use_base": 1}),
        *({"may_use_base": None}, {"requests_per_hour": 1}, []),
    ],
)
async def test_bad_quotas(admin: Admin, body: Any) -> None:
    await admin.add_tenant()
    check_error(await admin.client.put(f"{API}/tenants/acme/quota", json=body), 400)


async def test_audit_pages(admin: Admin) -> None:
    await admin.add_tenant("acme")
    await admin.add_tenant("zoo")
    await admin.add_key("acme")
    await admin.client.delete(f"{API}/tenants/acme")

    async def rows(**query: Any) -> list[dict[str, Any]]:
        answer = await admin.client.get(f"{API}/audit", params=query)
        data: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
        return data

    everything = await rows()
    assert [(row["action"], row["tenant"]) for row in everything] == [
        ("tenant.delete", "acme"),
        ("key.create", "acme"),
        ("tenant.create", "zoo"),
        ("tenant.create", "acme"),
    ]
    assert {row["actor"] for row in everything} == {"admin"}
    assert await rows(limit=1, before=everything[1]["id"]) == [everything[2]]
    assert await rows(tenant="zoo") == [everything[2]]
    assert await rows(tenant="nobody") == []
    for query in ("limit=0", "limit=1001", "before=0", f"before={1 << 63}", "tenant=a%20b"):
        check_error(await admin.client.get(f"{API}/audit?{query}"), 400)


async def test_metrics_are_here(admin: Admin) -> None:
    answer = await admin.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "remix_set_swaps_total" in answer.text


async def test_without_the_database_it_is_503(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_: object, **__: object) -> None:
        raise DatabaseUnavailableError("postgresql://remix@db is down", retry_after=3)

    await admin.add_tenant()
    for name in ("tenants", "create_tenant", "current_set"):
        monkeypatch.setattr(admin.services.directory, name, down)
    for answer in (
        await admin.client.get(f"{API}/tenants"),
        await admin.client.post(f"{API}/tenants", json={"id": "zoo"}),
        await admin.put_set({}),
    ):
        error = check_error(answer, 503)
        assert answer.headers["retry-after"] == "3"
        assert "postgresql" not in error["message"]
