"""vLLM's endpoints: its answers, on sets that are remembered."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from server.live.swap import Swaps
from tests.unit.admin.harness import API, Admin
from tests.unit.server.tenants import BASE
from tests.unit.server.test_bad_input import check_error


async def load(admin: Admin, name: str, seed: int = 0, **more: Any) -> httpx.Response:
    query = {"tenant": more.pop("tenant")} if "tenant" in more else {}
    body = {"lora_name": name, "lora_path": admin.adapter_folder(seed), **more}
    return await admin.client.post("/v1/load_lora_adapter", json=body, params=query)


async def unload(admin: Admin, name: str, **query: Any) -> httpx.Response:
    body = {"lora_name": name}
    return await admin.client.post("/v1/unload_lora_adapter", json=body, params=query)


async def adapters_of(admin: Admin, tenant: str = "acme") -> dict[str, str]:
    found = (await admin.client.get(f"{API}/tenants/{tenant}/set")).json()
    assert found["live_revision"] == found["revision"]
    adapters: dict[str, str] = found["adapters"]
    return adapters


async def test_load_and_unload(admin: Admin) -> None:
    await admin.add_tenant()
    loaded = await load(admin, "pirate")
    assert loaded.text == "Success: LoRA adapter 'pirate' added successfully."
    assert (loaded.status_code, loaded.headers["content-type"]) == (
        200,
        "text/plain; charset=utf-8",
    )
    await load(admin, "haiku", 1)
    adapters = await adapters_of(admin)
    assert adapters == {"pirate": await admin.add_adapter(0), "haiku": await admin.add_adapter(1)}
    removed = await unload(admin, "pirate")
    assert removed.text == "Success: LoRA adapter 'pirate' removed successfully."
    assert list(await adapters_of(admin)) == ["haiku"]
    error = check_error(await unload(admin, "pirate"), 404)
    assert error["type"] == "NotFoundError"
    assert error["message"] == "The lora adapter 'pirate' cannot be found."


async def test_a_name_in_use(admin: Admin) -> None:
    await admin.add_tenant()
    await load(admin, "pirate", 0)
    before = await adapters_of(admin)
    for seed in (0, 1):  # the same adapter again is no exception
        error = check_error(await load(admin, "pirate", seed), 400)
        assert error["type"] == "InvalidUserInput"
        assert error["message"] == (
            "The lora adapter 'pirate' has already been loaded. If you want to load the adapter "
            "in place, set 'load_inplace' to True."
        )
    assert await adapters_of(admin) == before
    # Nothing was imported for what was refused.
    assert len((await admin.client.get(f"{API}/adapters")).json()["data"]) == 1
    assert (await load(admin, "pirate", 0, load_inplace=True)).status_code == 200
    assert (await load(admin, "pirate", 1, load_inplace=True)).status_code == 200
    assert await adapters_of(admin) == {"pirate": await admin.add_adapter(1)}
    found = await admin.client.get(f"{API}/tenants/acme/set")
    assert found.json()["revision"] == 2


async def test_the_name_of_the_base(admin: Admin) -> None:
    await admin.add_tenant()
    error = check_error(await load(admin, BASE), 400)
    assert error["type"] == "InvalidUserInput"
    assert error["message"] == f"The lora adapter '{BASE}' conflicts with a served base model."


async def test_a_path_without_an_adapter(admin: Admin) -> None:
    await admin.add_tenant()
    (admin.root / "empty").mkdir(parents=True)
    for path in ("empty", "nowhere"):
        body = {"lora_name": "pirate", "lora_path": path}
        error = check_error(await admin.client.post("/v1/load_lora_adapter", json=body), 404)
        assert error["type"] == "NotFoundError"
        assert error["message"] == f"Loading lora pirate failed: No adapter found for {path}"
    assert await adapters_of(admin) == {}


async def test_whose_set(admin: Admin) -> None:
    assert check_error(await load(admin, "pirate"), 400)["param"] == "tenant"
    for tenant in ("acme", "zoo"):
        await admin.add_tenant(tenant)
    for answer in (await load(admin, "pirate"), await unload(admin, "pirate")):
        assert check_error(answer, 400)["param"] == "tenant"
    assert (await load(admin, "pirate", tenant="zoo")).status_code == 200
    assert await adapters_of(admin, "acme") == {}
    assert list(await adapters_of(admin, "zoo")) == ["pirate"]
    check_error(await load(admin, "pirate", 5, tenant="nobody"), 404)
    check_error(await unload(admin, "pirate", tenant="nobody"), 404)
    # Nothing was imported for nobody.
    assert len((await admin.client.get(f"{API}/adapters")).json()["data"]) == 1


async def test_what_vllm_knows_and_we_do_not_is_ignored(admin: Admin) -> None:
    await admin.add_tenant()
    assert (await load(admin, "pirate", is_3d_lora_weight=False)).status_code == 200
    body = {"lora_name": "pirate", "lora_int_id": 7}
    answer = await admin.client.post("/v1/unload_lora_adapter", json=body)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        *({}, {"lora_name": "a"}, {"lora_path": "adapter-0"}, {"lora_name": "", "lora_path": "x"}),
        *({"lora_name": "a b", "lora_path": "x"}, {"lora_name": "a", "lora_path": ""}),
        {"lora_name": "a", "lora_path": "x", "load_inplace": "yes"},
    ],
)
async def test_malformed(admin: Admin, body: Any) -> None:
    await admin.add_tenant()
    check_error(await admin.client.post("/v1/load_lora_adapter", json=body), 400)


async def test_bad_adapters_leave_the_set(admin: Admin) -> None:
    await admin.add_tenant()
    await load(admin, "good", 0)
    before = await adapters_of(admin)
    admin.engine.refused = {await admin.add_adapter(1)}
    refused = await load(admin, "bad", 1)
    assert (refused.status_code, list(refused.json()["error"]["reasons"])) == (422, ["bad"])
    body = {"lora_name": "bad", "lora_path": "/etc"}
    check_error(await admin.client.post("/v1/load_lora_adapter", json=body), 422)
    assert await adapters_of(admin) == before


async def test_no_change_of_others_is_lost(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them read revision 0 before the first one writes."""
    await admin.add_tenant()
    digest = await admin.add_adapter(0)
    names = [f"name-{i}" for i in range(5)]
    everybody = asyncio.Barrier(len(names))
    put, stale = Swaps.put, 0

    async def put_together(self: Swaps, *args: Any, expected: int | None, **kwargs: Any) -> Any:
        nonlocal stale
        if expected == 0:
            await everybody.wait()
        else:
            stale += 1
        return await put(self, *args, expected=expected, **kwargs)

    monkeypatch.setattr(Swaps, "put", put_together)
    answers = await asyncio.gather(*(load(admin, name, 0) for name in names))
    assert [answer.status_code for answer in answers] == [200] * len(names)
    assert stale >= len(names) - 1
    assert await adapters_of(admin) == dict.fromkeys(names, digest)
