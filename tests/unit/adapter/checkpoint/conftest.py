from __future__ import annotations

from pathlib import Path

import pytest

from remix_runtime.adapter.checkpoint import write_checkpoint
from tests.unit.adapter.checkpoint.adapters import CONFIG, make_layers, make_parity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A valid adapter folder with a parity file."""
    path = tmp_path / "adapter"
    write_checkpoint(path, CONFIG, make_layers(), readme="# test\n", parity=make_parity())
    return path
