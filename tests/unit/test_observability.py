"""The dashboard and the rules name only what the server exports; every alert says what to do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from remix_runtime.adapter.load import judge
from remix_runtime.contracts import TrainedLoad
from server.routing_series import routing_series
from tests.dashboards import (
    RULES,
    Asked,
    dashboard,
    of_panels,
    of_rules,
    of_variables,
    panels,
    rules,
)
from tests.unit.server.tenants import tenant_serving

OF_PROMETHEUS = {"job", "instance"}
"""Labels that a scrape adds."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The labels of every series of a server with tenants that has had requests."""
    text = asyncio.run(metrics_of_tenants(tmp_path_factory.mktemp("server")))
    found: dict[str, set[str]] = {}
    # Those of routing come with thousands of tokens.
    for family in (*text_string_to_metric_families(text), *series_of_routing()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def series_of_routing() -> Iterator[Metric]:
    tokens = 1_000_000
    trained = TrainedLoad(tokens=tokens, modules={"m": [tokens, 0]})
    judged = judge({"m": [0, tokens]}, k=1, trained=trained)
    for of in ("adapter", "canary"):
        yield from routing_series([("acme", "pirate", "a digest")], {"a digest": judged}, of=of)


async def metrics_of_tenants(folder: Path) -> str:
    async with tenant_serving(folder) as server:
        client = await server.tenant("acme", may_use_base=True)
        for other in ({}, {"model": "nobody"}, {"temperature": 9}):
            body = {"model": "fake-base", "prompt": "a", "max_tokens": 3, **other}
            await client.post("/v1/completions", json=body)
        live, other = await server.adapter(0), await server.adapter(1)
        await server.put("acme", {"pirate": live})
        canary = {"name": "pirate", "digest": other, "share": 1}
        (await server.admin.put("/admin/v1/tenants/acme/canary", json=canary)).raise_for_status()
        body = {"model": "pirate", "prompt": "a", "max_tokens": 3}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        return (await server.admin.get("/metrics")).text


@pytest.mark.parametrize(
    "asked", [*of_panels(), *of_rules(), *of_variables()], ids=lambda a: a.where
)
async def test_every_metric_and_label_is_exported(
    asked: Asked, exported: dict[str, set[str]]
) -> None:
    assert asked.selectors or asked.recorded
    assert asked.recorded <= {rule.get("record") for rule in rules()}
    labels: set[str] = set(OF_PROMETHEUS)
    for name, matched in asked.selectors:
        if name == "up":
            continue
        assert name in exported, asked.expr
        assert matched <= exported[name] | OF_PROMETHEUS, asked.expr
        labels |= exported[name]
    if asked.selectors:
        assert asked.grouped_by <= labels, asked.expr


def test_every_alert_says_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) > 15
    for alert in alerts:
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        for text in (alert["annotations"]["summary"], alert["annotations"]["runbook"]):
            assert re.fullmatch(r"\S.*\.", text), alert["alert"]
    names = [rule.get("alert") or rule["record"] for rule in rules()]
    assert len(set(names)) == len(names)


def test_every_alert_is_tested() -> None:
    tested = yaml.safe_load(RULES.with_name("rules_test.yaml").read_text(encoding="utf-8"))
    fires = {
        test["alertname"]
        for case in tested["tests"]
        for test in case["alert_rule_test"]
        if test["exp_alerts"]
    }
    assert {rule["alert"] for rule in rules() if "alert" in rule} == fires


def test_texts_of_alerts_use_labels_that_they_have() -> None:
    def names(texts: Iterable[str]) -> set[str]:
        return set(re.findall(r"\$labels\.(\w+)", " ".join(texts)))

    for rule, asked in zip(rules(), of_rules(), strict=True):
        used = names(rule.get("annotations", {}).values())
        by = asked.grouped_by
        for recorded in asked.recorded:
            [record] = [r for r in rules() if r.get("record") == recorded]
            by |= Asked(recorded, record["expr"]).grouped_by
        if by:
            assert used <= by, rule["alert"]
        else:
            assert used <= OF_PROMETHEUS


def test_panels_are_apart_and_have_ids_of_their_own() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert {panel["datasource"]["uid"] for panel in panels()} == {"${datasource}"}


def test_prometheus_reads_the_rules() -> None:
    folder = Path(RULES).parent
    config = yaml.safe_load((folder / "prometheus.yaml").read_text(encoding="utf-8"))
    assert [folder / name for name in config["rule_files"]] == [RULES]
    [job] = config["scrape_configs"]
    assert job["job_name"].startswith("remix")  # as the alert for a server that is down expects
