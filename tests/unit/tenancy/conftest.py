"""Every test that asks for `url` or `directory` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from tempfile import TemporaryDirectory

import pytest

from server.tenancy import Directory
from tests.postgres import PostgresServer, memory_folder, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of an empty database."""
    if request.param == "sqlite":
        with TemporaryDirectory(prefix="remix-sqlite-", dir=memory_folder()) as folder:
            yield f"sqlite:///{folder}/directory.db"
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
