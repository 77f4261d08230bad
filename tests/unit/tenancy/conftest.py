"""Every test that asks for `url` or `directory` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from server.tenancy import Directory
from tests.postgres import PostgresServer, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/directory.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    made = server.fresh_database()
    yield made
    server.drop(made)


@pytest.fixture
async def directory(url: str) -> AsyncIterator[Directory]:
    opened = await Directory.open(url)
    yield opened
    await opened.close()
