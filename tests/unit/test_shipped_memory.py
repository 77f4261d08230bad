"""The numbers of memory in the shipped files add up within the limits there."""

from __future__ import annotations

import re

import pytest

from server import budget
from server.options import engine_options
from tests.chart import pod, served_by
from tests.deployed import Served
from tests.unit.test_deployment import SINGLE, TENANTS, compose


def in_bytes(text: str) -> int:
    """As `6Gi` or `4g` say it."""
    ((number, unit),) = re.findall(r"^(\d+)([GM])i?$", text.upper().replace("I", ""))
    return int(number) << {"G": 30, "M": 20}[unit]


def memory_of(name: str) -> int:
    """The limit that a container is shipped with, less what its file systems in memory may take. A
    name without an ending is of the chart's values."""
    if not name.endswith(".yaml"):
        _, container = pod(name)
        return in_bytes(container["resources"]["limits"]["memory"])
    services = [compose(file)["services"]["remix"] for file in ("compose.yaml", name)]
    limit = [in_bytes(service["mem_limit"]) for service in services if "mem_limit" in service][-1]
    tmpfs = re.findall(r"size=(\w+)", " ".join(services[0]["tmpfs"]))
    assert tmpfs
    return limit - sum(map(in_bytes, tmpfs))


@pytest.mark.parametrize(
    ("served", "name"),
    [
        (SINGLE, "compose.yaml"),
        (TENANTS, "compose.tenants.yaml"),
        *((served_by(name), name) for name in ("", "single-user", "postgresql")),
    ],
)
def test_shipped_numbers_add_up_within_the_shipped_limit(
    served: Served, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the demo's base, and without a number that would be made smaller."""
    head = 49152 * 576  # the embedding's numbers, in panels of its own
    monkeypatch.setattr(budget, "_weight_bytes", lambda *_: 2 * (134_515_008 + head))
    options = {field: served.options[field] for field in engine_options()}
    parts = budget.parts_of("embedded", "base", options, served.settings(monkeypatch))
    assert all(part.least is None for part in parts)
    assert sum(part.num_bytes for part in parts) <= memory_of(name)
