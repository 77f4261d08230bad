"""Folders and files that others may not look into: made so, and closed where they are there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from remix_runtime.errors import ConfigError
from remix_runtime.private import private_file, private_folder
from server.store import AdapterStore
from tests.unit.server.tenants import tenant_serving


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize(("make", "wanted"), [(private_folder, 0o700), (private_file, 0o600)])
def test_made_and_closed(make: Callable[[Path], bool], wanted: int, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert make(tmp_path / "x")
    finally:
        os.umask(before)
    assert mode(tmp_path / "x") == wanted
    (tmp_path / "x").chmod(wanted | 0o2075)
    assert make(tmp_path / "x")
    assert mode(tmp_path / "x") & 0o777 == wanted


@pytest.mark.parametrize("make", [private_folder, private_file])
def test_what_belongs_to_another_user_stays_as_it_is(
    make: Callable[[Path], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "x")
    (tmp_path / "x").chmod(0o755)

    def refuse(self: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    assert not make(tmp_path / "x")


@pytest.mark.parametrize("before", [None, 0o755])
def test_the_folder_of_a_store(tmp_path: Path, before: int | None) -> None:
    root = tmp_path / "data" / "store"
    if before is not None:
        root.mkdir(parents=True)
        root.chmod(before)
    AdapterStore(root).close()
    assert mode(root) == 0o700


@pytest.mark.parametrize("before", [None, 0o755])
async def test_the_data_folder_of_a_server(tmp_path: Path, before: int | None) -> None:
    data = tmp_path / "data"
    if before is not None:
        data.mkdir()
        data.chmod(before)
    async with tenant_serving(tmp_path):
        assert mode(data) == mode(data / "store") == 0o700
        assert {mode(path) for path in data.iterdir() if path.is_file()} == {0o600}


async def test_a_data_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(ConfigError, match=r"^data_dir: .*data cannot be made: File exists"):
        async with tenant_serving(tmp_path):
            pytest.fail("it serves")
