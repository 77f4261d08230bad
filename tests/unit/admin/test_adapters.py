"""Adapters over HTTP: import, progress, inspection, deletion, garbage, quarantine."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.adapter.checkpoint import TrainingRecord, read_checkpoint
from remix_runtime.adapter.checkpoint.training_file import TRAINING_FILE
from remix_runtime.adapter.checkpoint.writer import put_training
from server.admin.routes.adapters import import_lines
from server.store import Progress, SourceUnavailableError
from tests.engines import complete, request
from tests.loras import write_lora
from tests.unit.adapter.checkpoint.adapters import edit_config
from tests.unit.admin.harness import API, Admin
from tests.unit.server.harness import eventually
from tests.unit.server.test_bad_input import check_error
from tests.unit.store.conftest import write_adapter
from tests.unit.tenancy.samples import digest as digest_of

URL = f"{API}/adapters"


async def post(admin: Admin, source: str) -> Any:
    return await admin.client.post(URL, json={"source": source})


async def test_import_is_201_and_again_200(admin: Admin) -> None:
    folder = admin.root / "pirate"
    digest = write_adapter(folder)
    first = await post(admin, "pirate")
    adapter = first.json()
    assert (first.status_code, adapter["digest"]) == (201, digest)
    assert adapter["source"] == str(folder)
    assert adapter["description"]["num_experts"] == 3
    assert (adapter["tenants"], adapter["replica"]) == ([], None)
    for source in (str(folder), f"file://{folder}", "./pirate", "pirate/../pirate"):
        again = await post(admin, source)
        assert (again.status_code, again.json()) == (200, adapter)
    assert (await admin.client.get(URL)).json() == {"data": [adapter], "has_more": False}
    assert (await admin.client.get(f"{URL}/{digest}")).json() == adapter


async def test_a_plain_lora_is_examined_and_served_beside_mixtures(admin: Admin) -> None:
    settings = {"r": 4, "lora_alpha": 24, "target_modules": ["down_proj", "q_proj"]}
    folder = write_lora(admin.root / "lora", "llama", settings)
    imported = await post(admin, "lora")
    assert imported.status_code == 201
    adapter = imported.json()
    assert adapter["digest"] == read_checkpoint(folder).digest
    assert (adapter["description"]["kind"], adapter["description"]["r"]) == ("LoRA", 4)
    await admin.add_tenant()
    members = {"plain": adapter["digest"], "mixture": await admin.add_adapter()}
    assert (await admin.put_set(members)).status_code == 200
    async with admin.as_tenant(await admin.add_key()) as client:
        for name, digest in members.items():
            answer = await client.post("/v1/completions", json={"model": name, "prompt": "Ahoy"})
            assert answer.status_code == 200
            assert digest in answer.json()["system_fingerprint"]
    edit_config(folder, {"use_dora": True})
    refused = check_error(await post(admin, "lora"), 422)
    assert "use_dora: found True" in refused["message"]


async def test_state_on_this_server(admin: Admin) -> None:
    digest = await admin.add_adapter()
    for tenant in ("acme", "zoo"):
        await admin.add_tenant(tenant)
        await admin.put_set({"x": digest}, tenant)
    adapter = (await admin.client.get(f"{URL}/{digest}")).json()
    assert adapter["tenants"] == ["acme", "zoo"]
    replica = adapter["replica"]
    assert replica["pins"] == 2
    assert replica["tier"] in ("host", "device", "disk")
    assert replica["load_seconds"] > 0
    await admin.client.delete(f"{API}/tenants/zoo")
    replica = (await admin.client.get(URL)).json()["data"][0]["replica"]
    assert replica["pins"] == 1
    await admin.put_set({})
    await admin.services.adapters.settle()
    assert (await admin.client.get(f"{URL}/{digest}")).json()["replica"] is None


NOTHING: dict[str, Any] = {
    "tokens": 0,
    "enough": False,
    "entropy": None,
    "effective_experts": None,
    "dead_experts": 0,
    "drift": None,
    "flags": [],
    "modules": [],
}


async def test_the_routing_of_recent_traffic_by_module(admin: Admin) -> None:
    digest = await admin.add_adapter()
    url = f"{URL}/{digest}/routing"
    assert (await admin.client.get(url)).json() == NOTHING, "it is not loaded"
    await admin.add_tenant()
    await admin.put_set({"x": digest})
    prompt = [1, 2, 3, 5, 7]
    await complete(admin.engine, request(prompt, digest, max_tokens=1))
    module = {
        "module": "fake",
        "activations": [sum(token % 2 == expert for token in prompt) for expert in range(2)],
        "trained": None,
        "entropy": None,
        "effective_experts": None,
        "dead_experts": [],
        "drift": None,
    }
    found = (await admin.client.get(url)).json()
    assert found == {**NOTHING, "tokens": 5, "modules": [module]}
    for _ in range(6):  # of odd tokens alone
        await complete(admin.engine, request([1] * 500, digest, max_tokens=1))
        found = (await admin.client.get(url)).json()
    assert found["enough"]
    assert found["flags"] == ["collapsed"]
    assert found["tokens"] == 2000
    assert found["dead_experts"] == 1
    assert found["modules"][0]["dead_experts"] == [0]
    assert found["effective_experts"] == pytest.approx(1, abs=0.05)
    await admin.put_set({})
    await admin.services.adapters.settle()
    assert (await admin.client.get(url)).json() == NOTHING
    unknown = digest_of("unknown")
    check_error(await admin.client.get(f"{URL}/{unknown}/routing"), 404)


async def test_the_curves_of_training(admin: Admin) -> None:
    folder = admin.root / "trained"
    write_adapter(folder)
    curves = {"step": [1, 2], "loss": [2.0, 1.5], "held_out_loss": [(2, 1.75)]}
    put_training(folder, TrainingRecord(curves=curves))
    digest = (await post(admin, "trained")).json()["digest"]
    assert (await admin.client.get(f"{URL}/{digest}/training")).json() == {
        "curves": {"step": [1, 2], "loss": [2.0, 1.5], "held_out_loss": [[2, 1.75]]}
    }
    bare = await admin.add_adapter(1)
    assert (await admin.client.get(f"{URL}/{bare}/training")).json() == {"curves": {}}
    check_error(await admin.client.get(f"{URL}/{digest_of('unknown')}/training"), 404)


async def test_a_record_of_training_that_is_wrong_is_refused_at_import(admin: Admin) -> None:
    folder = admin.root / "trained"
    write_adapter(folder)
    (folder / TRAINING_FILE).write_text('{"format_version": 1, "expert_load": {"tokens": -1}}')
    error = check_error(await post(admin, "trained"), 422)
    assert "training.json: expert_load.tokens: found -1" in error["message"]


async def test_import_with_progress(admin: Admin) -> None:
    source = admin.adapter_folder(0)
    for created in (True, False):
        async with admin.client.stream(
            "POST", URL, json={"source": source}, headers={"Accept": "application/x-ndjson"}
        ) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "application/x-ndjson"
            *steps, last = [json.loads(line) async for line in answer.aiter_lines()]
        done = [step["progress"]["done"] for step in steps]
        assert done == sorted(done)
        assert done[-1] == steps[-1]["progress"]["total"] == last["adapter"]["num_bytes"]
        assert last["created"] is created
        found = await admin.client.get(f"{URL}/{last['adapter']['digest']}")
        assert found.json() == last["adapter"]


async def test_failures_with_progress_are_the_last_line(admin: Admin) -> None:
    answer = await admin.client.post(
        URL, json={"source": "nowhere"}, headers={"Accept": "application/x-ndjson"}
    )
    *_, last = [json.loads(line) for line in answer.text.splitlines()]
    assert last["error"]["code"] == "source_refused"
    # What is wrong with the request itself is known before the first line.
    answer = await admin.client.post(
        URL, json={"source": ""}, headers={"Accept": "application/x-ndjson"}
    )
    check_error(answer, 400)


@pytest.mark.parametrize(
    "source",
    [
        *("..", "../data", "/", "/etc", "file:///etc", "link", "link/inside", "pirate/../../data"),
        *(
            "file://localhost/etc",
            "file:///",
            "file://",
            "ftp://host/x",
            "a\nb",
            "hf://x",
            "http://",
        ),
        *("gopher://x", "file://elsewhere/etc", "local::file:///etc", "http://u:p@host/x"),
    ],
)
async def test_refused_sources(admin: Admin, tmp_path: Path, source: str) -> None:
    write_adapter(tmp_path / "outside" / "inside")
    (admin.root / "link").symlink_to(tmp_path / "outside")
    assert check_error(await post(admin, source), 422)["code"] == "source_refused"
    assert (await admin.client.get(URL)).json()["data"] == []


@pytest.mark.parametrize(
    "body", [{}, {"source": None}, {"source": "x" * 3000}, {"source": "x", "force": True}, "x"]
)
async def test_malformed_imports(admin: Admin, body: Any) -> None:
    check_error(await admin.client.post(URL, json=body), 400)


async def test_what_is_no_adapter_goes_to_quarantine(admin: Admin) -> None:
    folder = admin.root / "broken"
    write_adapter(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    error = check_error(await post(admin, "broken"), 422)
    assert error["code"] == "adapter_rejected"
    (entry,) = (await admin.client.get(f"{API}/quarantine")).json()["data"]
    assert entry["source"] == str(folder)
    assert entry["reason"] in error["message"]
    assert (await admin.client.get(URL)).json()["data"] == []


async def test_a_source_that_fails_is_502(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(source: str, *, progress: object) -> None:
        raise SourceUnavailableError(f"{source}: reset by peer")

    monkeypatch.setattr(admin.services.store, "import_from", fail)
    assert check_error(await post(admin, "s3://x/y"), 502)["code"] == "source_unavailable"


async def test_delete(admin: Admin) -> None:
    await admin.add_tenant()
    digest = await admin.add_adapter()
    await admin.put_set({"x": digest})
    refused = await admin.client.delete(f"{URL}/{digest}")
    error = check_error(refused, 409)
    assert "acme" in error["message"]
    await admin.put_set({})
    gone = await admin.client.delete(f"{URL}/{digest}")
    assert (gone.status_code, gone.content) == (204, b"")
    check_error(await admin.client.delete(f"{URL}/{digest}"), 404)
    check_error(await admin.client.get(f"{URL}/{digest}"), 404)


@pytest.mark.parametrize("digest", [digest_of("x"), "x", "%00", "..%2F..", "A" * 64])
async def test_unknown_digests(admin: Admin, digest: str) -> None:
    for method in ("GET", "DELETE"):
        assert (await admin.client.request(method, f"{URL}/{digest}")).status_code == 404


async def test_garbage_is_what_nobody_refers_to(admin: Admin) -> None:
    await admin.add_tenant()
    used, kept, orphan, young = [await admin.add_adapter(seed) for seed in range(4)]
    await admin.put_set({"x": used})
    for digest in (orphan, young):
        assert (await admin.client.delete(f"{URL}/{digest}")).status_code == 204
    store = admin.services.store
    for digest in (used, kept, orphan):
        os.utime(store.folder(digest), (0, 0))
    answer = await admin.client.post(f"{URL}/collect-garbage")
    assert (answer.status_code, answer.json()) == (200, {"removed": [orphan]})
    assert set(store.digests()) == {used, kept, young}
    for age in ("0", "59", "-1", "nan", "inf", "x"):
        check_error(await admin.client.post(f"{URL}/collect-garbage?min_age_seconds={age}"), 400)


async def test_an_import_ends_with_its_client(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With progress: nobody would see its end."""
    ended = asyncio.Event()

    async def slow(source: str, *, progress: Any) -> None:
        progress(Progress(done=1, total=2))
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(admin.services.store, "import_from", slow)
    lines = import_lines(admin.services, "s3://x/y")
    assert json.loads(await anext(lines)) == {"progress": {"done": 1, "total": 2}}
    await lines.aclose()
    await eventually(ended.is_set)
