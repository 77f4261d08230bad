"""The whole path of routing's flags: small adapters with a record of training, imported, served to
a tenant by the embedded engine, asked for over the admin API and scraped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.quality import routing_flags
from benchmarks.quality.routing_flags import Kind, Traffic, send, small_model, write_adapter
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from server.live import routing
from tests.models import save_tiny_base
from tests.unit.server.harness import eventually
from tests.unit.server.tenants import ADMIN_KEY, make_tenant_apps

API = "/admin/v1"
KINDS = {
    "healthy": Kind.HEALTHY,
    "sound": Kind.HEALTHY,
    "strange": Kind.OTHER_TRAFFIC,
    "shuffled": Kind.OTHER_ROUTER,
    "constant": Kind.COLLAPSED,
}
FLAGS = {
    "healthy": [],
    "sound": [],
    "strange": ["drifted"],
    "shuffled": ["drifted"],
    "constant": ["drifted", "collapsed"],
}
TEXTS = 6 * routing_flags.TEXTS_AT_ONCE
"""Nearly twice as many tokens as are needed."""


def flags_of(metrics: str) -> dict[str, list[str]]:
    """By adapter, of those that have series."""
    found: dict[str, list[str]] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == "remix_adapter_routing_flag":
                assert sample.labels["tenant"] == "acme"
                flags = found.setdefault(sample.labels["adapter"], [])
                if sample.value:
                    flags.append(sample.labels["flag"])
    return found


async def succeed(client: httpx.AsyncClient, method: str, path: str, body: Any = None) -> Any:
    answer = await client.request(method, f"{API}{path}", json=body)
    assert answer.is_success, answer.text
    return answer.json()


async def test_drifted_and_collapsed_adapters_are_flagged_and_healthy_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(routing_flags, "TRAINING_TOKENS", 4000)
    model = small_model(save_tiny_base(tmp_path / "base"), tmp_path / "model")
    vocab_size = model.config.vocab_size
    traffic = {name: Traffic(seed, vocab_size) for seed, name in enumerate(KINDS)}
    sources = tmp_path / "sources"
    for seed, (name, kind) in enumerate(KINDS.items()):
        write_adapter(sources / name, model, kind, seed, traffic[name])
    traffic["strange"] = Traffic(99, vocab_size)
    engine: Any = EmbeddedEngine(
        EmbeddedConfig(model=str(tmp_path / "model"), kv_cache_bytes=1 << 22)
    )
    apps, _ = make_tenant_apps(engine, tmp_path, sources)
    async with (
        apps.data.router.lifespan_context(apps.data),
        client_of(apps.admin, ADMIN_KEY) as admin,
    ):
        digests = {}
        for name in KINDS:
            imported = await succeed(admin, "POST", "/adapters", {"source": name})
            digests[name] = imported["digest"]
        await succeed(admin, "POST", "/tenants", {"id": "acme"})
        key = (await succeed(admin, "POST", "/tenants/acme/keys"))["secret"]
        await succeed(admin, "PUT", "/tenants/acme/set", {"adapters": digests})
        assert flags_of((await admin.get("/metrics")).text) == {}
        async with client_of(apps.data, key) as data:
            for _ in range(TEXTS // routing_flags.TEXTS_AT_ONCE):
                for name in KINDS:
                    await send(data, name, traffic[name])
        found = {
            name: await succeed(admin, "GET", f"/adapters/{digest}/routing")
            for name, digest in digests.items()
        }
        check(found)
        latest = apps.admin.state.services.routing.latest
        await eventually(
            lambda: all(d in latest and latest[d].tokens > 1000 for d in digests.values())
        )
        assert flags_of((await admin.get("/metrics")).text) == FLAGS
        await succeed(admin, "PUT", "/tenants/acme/set", {"adapters": {}})
        assert flags_of((await admin.get("/metrics")).text) == {}


def client_of(app: Any, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://test",
        headers={"Authorization": f"Bearer {key}"},
        timeout=120,
    )


def check(found: Mapping[str, Mapping[str, Any]]) -> None:
    assert {name: each["flags"] for name, each in found.items()} == FLAGS
    for each in found.values():
        assert each["enough"]
        assert len(each["modules"]) == 2 * 3
        for module in each["modules"]:
            assert sum(module["trained"]) == pytest.approx(1)
            assert sum(module["activations"]) == pytest.approx(2 * each["tokens"], rel=0.02)
    constant = found["constant"]
    assert constant["effective_experts"] == pytest.approx(2)
    assert constant["dead_experts"] == 6 * 6
    assert all(m["dead_experts"] == [2, 3, 4, 5, 6, 7] for m in constant["modules"])
