"""SIGKILL at thousands of random moments of imports, swaps and writes to the directory: after each,
the store and the directory open, no half adapter is served, and no revision is lost that somebody
was told is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from server.tenancy import Directory
from tests.unit.adapter.checkpoint.adapters import edit_config
from tests.unit.live import test_crash as swaps
from tests.unit.store import test_crash as imports
from tests.unit.store.conftest import write_adapter
from tests.unit.tenancy import test_processes as directories

KILLS = int(os.environ.get("REMIX_HOSTILE_KILLS", "2000"))
"""Of all tests here together: swaps and writes are killed on both databases."""
EACH = max(1, KILLS // 5)

pytestmark = pytest.mark.timeout(24 * 3600)


def test_imports_and_collections(tmp_path: Path) -> None:
    adapter, bad = tmp_path / "adapter", tmp_path / "bad"
    write_adapter(adapter)
    shutil.copytree(adapter, bad)
    edit_config(bad, {"peft_type": "LORA"})
    imports.kill_at_random(tmp_path, adapter, bad, rounds=EACH)


def test_swaps(url: str, tmp_path: Path) -> None:
    swaps.kill_at_random(url, tmp_path, rounds=EACH)


async def test_writes_to_the_directory(url: str) -> None:
    directory = await Directory.open(url)
    try:
        await directories.kill_at_random(url, directory, rounds=EACH)
    finally:
        await directory.close()
