from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.admin.harness import Admin, administering


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Admin]:
    async with administering(tmp_path) as running:
        yield running
