from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.otlp import Collector, collecting
from tests.unit.server.harness import Server, serving


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found
