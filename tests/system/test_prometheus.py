"""A real Prometheus that scrapes a loaded server, by our configuration and rules: every query of
the dashboard and every rule is answered, alerts fire as they should, promtool does not complain."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
import yaml

from remix_runtime.adapter.checkpoint import write_checkpoint
from tests.dashboards import RULES, Asked, for_prometheus, of_panels, of_variables, rules
from tests.models import random_checkpoint, save_tiny_base, tiny_model
from tests.system.processes import Process, eventually, prometheus, serving

pytestmark = pytest.mark.system

CLIENTS = 12
"""More than the server takes at once: some are refused."""


@dataclass
class Loaded:
    server: Process
    prometheus: Process

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an expression; fails if Prometheus cannot evaluate it."""
        answer = httpx.get(f"{self.prometheus.url}/api/v1/query", params={"query": expr}).json()
        assert answer["status"] == "success", (expr, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.prometheus.url}/api/v1/{path}").json()["data"]

    def firing(self) -> set[str]:
        found = self.get("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in found if alert["state"] == "firing"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    folder = tmp_path_factory.mktemp("loaded")
    base = save_tiny_base(folder / "tiny")
    checkpoint = random_checkpoint(tiny_model("llama"))
    write_checkpoint(folder / "good", checkpoint.config, checkpoint.layers, readme="random")
    options = ("--base", base, "--adapter", f"good={folder / 'good'}", "--threads", "1")
    bounds = ("--max-running", "4", "--max-waiting", "4")
    with serving(*options, *bounds, log=folder / "server.log") as server:
        stop, threads = Event(), []
        for client in range(CLIENTS):
            thread = Thread(target=load, args=(server.url, stop, client))
            thread.start()
            threads.append(thread)
        try:
            with prometheus(configuration(folder, server.url), folder) as scraping:
                yield Loaded(server, scraping)
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def load(url: str, stop: Event, client: int) -> None:
    """Requests of all kinds, good and bad, until it is stopped or the server is gone."""
    prompt = "A prompt that is the same for all requests of this client. " * 3
    body = {"model": ("tiny", "good")[client % 2], "prompt": prompt, "max_tokens": 16}
    with httpx.Client(base_url=url, timeout=60) as http:
        while not stop.wait(0.01):
            try:
                http.post("/v1/completions", json={**body, "stream": client % 3 == 0})
                if client == 0:
                    http.post("/v1/completions", json={**body, "model": "nobody"})
                    http.post("/v1/completions", json={**body, "temperature": 9})
            except httpx.TransportError:
                continue


def configuration(folder: Path, url: str) -> Path:
    """Ours, faster and with the server's address; the rules wait for nothing."""
    config = yaml.safe_load((RULES.parent / "prometheus.yaml").read_text())
    config["global"] = {
        "scrape_interval": "1s",
        "scrape_timeout": "1s",
        "evaluation_interval": "1s",
    }
    config["scrape_configs"][0]["static_configs"] = [{"targets": [url.removeprefix("http://")]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    impatient = re.sub(r"for: \w+", "for: 0s", RULES.read_text())
    (folder / "rules.yaml").write_text(impatient)
    return folder / "prometheus.yaml"


def test_the_server_is_scraped(loaded: Loaded) -> None:
    eventually(lambda: bool(loaded.query("rate(remix_generated_tokens_total[30s]) > 0")))
    [target] = loaded.get("targets?state=active")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert loaded.query("up")[0]["value"][1] == "1"


def may_be_empty(asked: Asked) -> bool:
    """Where no data is good news; the routing of few tokens has none, and without tenants there are
    no canaries."""
    has_none = re.search(r"remix_(adapter_(routing|effective|dead)|canary_)", asked.expr)
    return asked.expr.endswith("> 0") or has_none is not None


@pytest.mark.parametrize("asked", [*of_panels(), *of_variables()], ids=lambda asked: asked.where)
def test_every_panel_has_data_under_load(loaded: Loaded, asked: Asked) -> None:
    expr = for_prometheus(asked.expr, "30s")
    loaded.query(expr)
    if not may_be_empty(asked):
        eventually(lambda: bool(loaded.query(expr)))


def test_numbers_are_those_of_the_load(loaded: Loaded) -> None:
    """Not only some data: what clients saw is there."""

    def seen(label: str) -> set[str]:
        expr = f"sum by ({label}) (rate(remix_requests_total[30s])) > 0"
        return {series["metric"][label] for series in loaded.query(expr)}

    eventually(lambda: seen("status") >= {"200", "400", "404", "503"})
    assert seen("adapter") == {"tiny", "good", "other"}
    eventually(lambda: bool(loaded.query("remix_requests_running > 1")))
    eventually(lambda: bool(loaded.query("rate(remix_prefix_cache_hits_total[30s]) > 0")))


def test_every_rule_is_evaluated(loaded: Loaded) -> None:
    def states() -> dict[str, str]:
        groups = loaded.get("rules")["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    eventually(lambda: "unknown" not in states().values())
    names = {rule.get("alert") or rule["record"] for rule in rules()}
    assert states() == dict.fromkeys(names, "ok")
    for rule in rules():
        if "record" in rule and "quota" not in rule["record"]:  # nobody has one here
            eventually(lambda record=rule["record"]: bool(loaded.query(record)))


def test_promtool_has_no_complaint_about_our_own_metrics(loaded: Loaded) -> None:
    text = httpx.get(f"{loaded.server.url}/metrics").text
    command = ["promtool", "check", "metrics"]
    checked = subprocess.run(command, input=text, capture_output=True, text=True)
    complaints = (checked.stdout + checked.stderr).splitlines()
    # Series that routers look for have vLLM's names.
    own = [line for line in complaints if not re.match(r"vllm:\w+ metric names .* ':'", line)]
    assert own == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yaml"),
        ("check", "rules", "--lint-fatal", "rules.yaml"),
        ("test", "rules", "rules_test.yaml"),
    ],
    ids=" ".join,
)
def test_promtool_has_no_complaint_about_the_rules(arguments: tuple[str, ...]) -> None:
    checked = subprocess.run(
        ["promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alerts_fire(loaded: Loaded) -> None:
    """First of refused requests; then the server dies."""
    eventually(lambda: "RemixFailures" in loaded.firing())
    assert not loaded.firing() & {"RemixServerDown", "RemixEngineDead", "RemixTaskFailing"}
    loaded.server.popen.kill()
    eventually(lambda: "RemixServerDown" in loaded.firing())
