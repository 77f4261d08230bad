"""Adapters that are sent and fetched file by file, for who shares no disk with the server."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from server.store import uploads
from tests.unit.admin.harness import API, Admin, administering

BINARY = {"Content-Type": "application/octet-stream"}
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


async def sent(admin: Admin, folder: Path, digest: str) -> None:
    for name in (CONFIG, TENSORS):
        content = (folder / name).read_bytes()
        path = f"{API}/uploads/{digest}/{name}"
        answer = await admin.client.put(path, content=content, headers=BINARY)
        assert answer.status_code == 204, answer.text


async def digest_of(admin: Admin, seed: int) -> tuple[Path, str]:
    """An adapter's folder and digest; the server has it no more."""
    digest = await admin.add_adapter(seed)
    await admin.client.delete(f"{API}/adapters/{digest}")
    shutil.rmtree(admin.services.store.folder(digest))
    return admin.root / admin.adapter_folder(seed), digest


async def imported(admin: Admin, digest: str) -> tuple[int, str]:
    answer = await admin.client.post(f"{API}/adapters", json={"source": f"upload://{digest}"})
    return answer.status_code, answer.text


def waiting(admin: Admin) -> list[str]:
    return sorted(os.listdir(admin.services.store._root / "uploads"))


async def test_an_adapter_is_sent_imported_and_fetched_with_the_same_bytes(admin: Admin) -> None:
    folder, digest = await digest_of(admin, 1)
    await sent(admin, folder, digest)
    await sent(admin, folder, digest)  # again, after a lost answer
    status, text = await imported(admin, digest)
    assert (status, json.loads(text)["source"]) == (201, f"upload://{digest}")
    assert waiting(admin) == []
    assert (await imported(admin, digest))[0] == 200  # again, after a lost answer
    listed = (await admin.client.get(f"{API}/adapters/{digest}/files")).json()["data"]
    assert {file["name"] for file in listed} >= {CONFIG, TENSORS}
    for file in listed:
        answer = await admin.client.get(f"{API}/adapters/{digest}/files/{file['name']}")
        assert answer.content == (folder / file["name"]).read_bytes()
        assert len(answer.content) == file["size"]


async def test_what_is_sent_is_examined_like_any_other(admin: Admin) -> None:
    folder, digest = await digest_of(admin, 1)
    await sent(admin, folder, digest)
    broken = b"\xff" * 100
    path = f"{API}/uploads/{digest}/{TENSORS}"
    await admin.client.put(path, content=broken, headers=BINARY)
    status, text = await imported(admin, digest)
    assert (status, "adapter_rejected" in text) == (422, True)
    assert waiting(admin) == []  # it lies in quarantine, and takes no place of an upload


async def test_another_adapter_than_its_address_says_is_refused(admin: Admin) -> None:
    folder, _ = await digest_of(admin, 1)
    await sent(admin, folder, "d" * 64)
    status, text = await imported(admin, "d" * 64)
    assert status == 422
    assert "expected dddd" in text
    assert (await admin.client.get(f"{API}/adapters")).json()["data"] == []
    assert waiting(admin) == []


async def test_what_cannot_be_sent(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    async def status(path: str, content: Any = b"x", **headers: str) -> int:
        answer = await admin.client.put(
            f"{API}/uploads/{path}", content=content, headers={**BINARY, **headers}
        )
        return answer.status_code

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"

    digest = "d" * 64
    assert await status(f"{digest}/pytorch_model.bin") == 404
    assert await status(f"{digest}/..%2f..%2fx") == 404
    assert await status(f"../{CONFIG}") == 404
    assert await status(f"D/{CONFIG}") == 422
    assert await status(f"{digest}/{CONFIG}", chunks()) == 411
    assert await status(f"{digest}/{CONFIG}", **{"Content-Type": "text/plain"}) == 415
    assert await status(f"{digest}/{CONFIG}", b"x" * (1 << 22)) == 422
    assert waiting(admin) == []
    monkeypatch.setattr(uploads, "MAX_UPLOADS", 1)
    assert await status(f"{digest}/{CONFIG}") == 204
    assert await status(f"{'e' * 64}/{CONFIG}") == 507
    assert await status(f"{digest}/{CONFIG}") == 204
    # One that nobody imported makes room after a day.
    old = time.time() - uploads.KEEP_SECONDS
    os.utime(admin.services.store._root / "uploads" / digest, (old, old))
    assert await status(f"{'e' * 64}/{CONFIG}") == 204
    assert waiting(admin) == ["e" * 64]


async def test_a_disk_that_fills_up_while_a_file_comes_is_told_and_nothing_is_left(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(uploads, "_write", full)
    path = f"{API}/uploads/{'d' * 64}/{CONFIG}"
    answer = await admin.client.put(path, content=b"x", headers=BINARY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "store_full")
    assert waiting(admin) == []


async def test_what_was_never_sent_or_is_no_file_of_an_adapter(admin: Admin) -> None:
    digest = await admin.add_adapter()
    assert (await imported(admin, "d" * 64))[0] == 422
    for path in (f"{'d' * 64}/files", f"{digest}/files/x", f"{digest}/files/..%2flock"):
        assert (await admin.client.get(f"{API}/adapters/{path}")).status_code == 404


async def test_a_server_tells_what_it_is(tmp_path: Path) -> None:
    async with administering(tmp_path) as admin:
        shown = (await admin.client.get(f"{API}/server")).json()
    assert (shown["base"], shown["base_fingerprint"]) == ("fake-base", None)
