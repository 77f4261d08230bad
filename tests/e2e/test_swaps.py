"""Swaps under load on a served embedded engine: nothing fails, no answer mixes versions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.tenants.storm import Report
from benchmarks.tenants.swaps import run
from tests.models import save_tiny_base


async def storm(base: Path, **size: int) -> Report:
    report = await run(save_tiny_base(base), **size, rest_seconds=0.2)
    assert report.failed == []
    assert report.mixed == []
    assert report.unexpected == []
    return report


async def test_swaps_rollbacks_and_races_under_load(tmp_path: Path) -> None:
    report = await storm(tmp_path / "base", swaps=40, bad=6, rollbacks=5, races=5)
    # 4 tenants roll back; of 4 racers one wins.
    assert report.swaps == Counter({200: 34 + 4 * 5 + 5, 422: 6, 412: 3 * 5})
    assert report.answers > 100
    assert min(len(report.beside), len(report.quiet)) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_thousand_swaps(tmp_path: Path) -> None:
    report = await storm(tmp_path / "base", swaps=1000, bad=100, rollbacks=50, races=25)
    assert report.swaps[422] == 100
