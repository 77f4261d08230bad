"""Every test that asks for `directory` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from server.tenancy import Directory


@pytest.fixture
async def directory(url: str) -> AsyncIterator[Directory]:
    opened = await Directory.open(url)
    yield opened
    await opened.close()
