"""A good base, made once, and copies of it to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.models import save_tiny_base


@pytest.fixture(scope="session")
def good_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("good") / "base")


@pytest.fixture
def base(good_base: Path, tmp_path: Path) -> Path:
    """A copy of the good base."""
    return Path(shutil.copytree(good_base, tmp_path / "base"))
