"""What the Grafana dashboard and the rules for Prometheus ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "remix-serve.json"

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r"\b((?:remix_|ALERTS|up\b)[\w]*)\s*(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)")
_GROUPING = re.compile(r"\b(?:by|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


@dataclass(frozen=True)
class Asked:
    """One expression, where it stands, and what it names."""

    where: str
    expr: str

    @property
    def selectors(self) -> list[tuple[str, set[str]]]:
        """Each metric with the labels it is asked for by. What the rules record is none."""
        bare = _STRING.sub('""', self.expr)
        return [
            (name, set(_MATCHER.findall(matchers))) for name, matchers in _SELECTOR.findall(bare)
        ]

    @property
    def grouped_by(self) -> set[str]:
        bare = _STRING.sub('""', self.expr)
        return set(re.findall(r"\w+", " ".join(_GROUPING.findall(bare))))

    @property
    def recorded(self) -> set[str]:
        return set(re.findall(r"\bremix:[\w:]+", self.expr))


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def of_rules() -> Iterator[Asked]:
    for rule in rules():
        yield Asked(rule.get("alert") or rule["record"], rule["expr"])


def of_panels() -> Iterator[Asked]:
    for panel in panels():
        for target in panel["targets"]:
            yield Asked(f"{panel['title']} {target['refId']}", target["expr"])


def of_variables() -> Iterator[Asked]:
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            query = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"])
            assert query is not None, variable["query"]
            yield Asked(variable["name"], f"count by ({query[2]}) ({query[1]})")


def for_prometheus(expr: str, interval: str) -> str:
    """As Grafana sends it where all is chosen."""
    expr = re.sub(r"\$(job|instance|tenant|adapter)\b", ".*", expr)
    return expr.replace("$__rate_interval", interval)
