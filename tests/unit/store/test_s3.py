"""From S3, as a server process that is not ours plays it (moto's), through a proxy that counts."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from server.store import AdapterStore, SourceError, SourceUnavailableError, StoreError
from server.store import download as download_module
from tests.unit.adapter.checkpoint.adapters import TENSOR_FILE
from tests.unit.store.conftest import contents, import_to_the_half, leftovers, write_adapter
from tests.unit.store.web import Proxy, Reply

CHUNK = 512
SECRET = "inside-information"


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if match := re.search(r"Running on (http://127\.0\.0\.1:\d+)", line):
                break
        else:
            pytest.fail("moto's server did not start")
        yield match[1]
        process.kill()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "CHUNK_BYTES", CHUNK)


@pytest.fixture
def s3(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What the environment of a deployment says: where S3 is, and with which key."""
    proxy = Proxy(moto)
    for name, value in {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    yield proxy
    proxy.close()


def upload(folder: Path, to: str, proxy: Proxy) -> None:
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    fs.makedirs(to.partition("/")[0], exist_ok=True)
    for name, data in contents(folder).items():
        fs.pipe_file(f"{to}/{name}", data)
    proxy.served.clear()


async def test_import(store: AdapterStore, s3: Proxy, adapter: Path) -> None:
    upload(adapter, "bucket/team/pirate", s3)
    stored = await store.import_from("s3://bucket/team/pirate")
    assert contents(stored.folder) == contents(adapter)
    assert stored.source == "s3://bucket/team/pirate"
    total = len((adapter / TENSOR_FILE).read_bytes())
    assert sum(served.sent for served in s3.bodies(TENSOR_FILE)) == total


@pytest.mark.usefixtures("small_chunks")
async def test_stopped_import_continues_where_it_was(
    store: AdapterStore, root: Path, s3: Proxy, adapter: Path
) -> None:
    upload(adapter, "bucket/stopped", s3)
    have = await import_to_the_half(store, root, "s3://bucket/stopped", adapter)
    size = (adapter / TENSOR_FILE).stat().st_size

    s3.served.clear()
    stored = await store.import_from("s3://bucket/stopped")
    assert contents(stored.folder) == contents(adapter)
    served = s3.bodies(TENSOR_FILE)
    assert served[0].range == f"bytes={have}-{min(have + CHUNK, size) - 1}"
    assert sum(answer.sent for answer in served) == size - have
    assert [answer.path for answer in s3.bodies("README.md")] == []


@pytest.mark.usefixtures("small_chunks")
async def test_object_replaced_in_the_middle_is_never_mixed(
    store: AdapterStore, root: Path, s3: Proxy, adapter: Path, tmp_path: Path
) -> None:
    upload(adapter, "bucket/replaced", s3)
    digest = write_adapter(tmp_path / "new", seed=1)
    parts = 0

    def before(path: str) -> None:
        nonlocal parts
        parts += TENSOR_FILE in path
        if parts == 3:
            s3.before = None
            upload(tmp_path / "new", "bucket/replaced", s3)

    s3.before = before
    stored = await store.import_from("s3://bucket/replaced")
    assert stored.digest == digest
    assert contents(stored.folder) == contents(tmp_path / "new")
    assert store.digests() == [digest]
    assert (leftovers(root), store.quarantined()) == ([], [])


async def test_missing_bucket_and_missing_object(
    store: AdapterStore, s3: Proxy, adapter: Path
) -> None:
    for source in ("s3://nowhere/adapter", "s3://bucket"):
        with pytest.raises(SourceError):
            await store.import_from(source)


@pytest.mark.parametrize("status", [400, 403, 404, 500])
async def test_errors_say_nothing_of_what_was_answered(
    store: AdapterStore, s3: Proxy, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    body = f"<Error><Code>{SECRET}</Code><Message>{SECRET}</Message></Error>".encode()
    monkeypatch.setattr(s3, "reply", lambda *_: Reply(status, {"x-amz-request-id": SECRET}, body))
    with pytest.raises(StoreError) as told:
        await store.import_from("s3://bucket/adapter")
    assert SECRET not in str(told.value)


async def test_server_that_fails(store: AdapterStore, s3: Proxy) -> None:
    s3.down = True
    with pytest.raises(SourceUnavailableError):
        await store.import_from("s3://bucket/adapter")
