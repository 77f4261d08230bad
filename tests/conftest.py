"""Fixtures that several rooms' tests share."""

import gc
import os
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    # Triton's kernels are then tested in its interpreter. It reads this when it is imported, which
    # half of the tests' imports do.
    os.environ["TRITON_INTERPRET"] = "1"

import tests.forkserver  # noqa: F401 - every test's examinations are forked from it
from remix_runtime.kernels import attention, cpu, elementwise, native
from tests.postgres import PostgresServer, memory_folder, postgres_server

# No test depends on how fast the machine is.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


@pytest.fixture(scope="module", autouse=True)
def without_long_collections() -> None:
    """Lets the garbage collector leave out what is there: to look at a million objects takes it a
    second, or five on a busy machine, in which no test moves and time limits pass."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def without_native_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine without a C compiler: everything takes the PyTorch path."""
    caches = (cpu._functions, attention._native_attend, elementwise._native)
    monkeypatch.setattr(native, "lib", lambda: None)
    for cache in caches:
        cache.cache_clear()
    assert not cpu.available()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def ray_instance() -> Iterator[None]:
    """Ray for all tests of a run: it takes half a minute to start."""
    from tests.ray_engines import running_ray

    with running_ray(num_cpus=4):
        yield


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of an empty database; every test that asks for it runs on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        with TemporaryDirectory(prefix="remix-sqlite-", dir=memory_folder()) as folder:
            yield f"sqlite:///{folder}/directory.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    made = server.fresh_database()
    yield made
    server.drop(made)
