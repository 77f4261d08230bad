"""Canaries that are looked at often, and a server with none so far."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.live import canary_keeper
from tests.unit.admin.canaries.harness import Server, acme, serving


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary_keeper, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(canary_keeper, "REPORT_SECONDS", 0.0)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as made:
        await acme(made)
        yield made
