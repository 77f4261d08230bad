"""What another thread or process removes while it is looked at is gone, and no error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.store.incoming import Incoming
from server.store.quarantine import Quarantine


def fill(folder: Path) -> Path:
    (folder / "files").mkdir(parents=True)
    for name in "abc":
        (folder / "files" / name).write_bytes(bytes(100))
    return folder


@pytest.fixture
def remove_when_looked_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """After the first look into the folder it is gone."""

    def remove(folder: Path) -> None:
        def looking(look: Callable[..., Any]) -> Callable[..., Any]:
            def look_and_remove(path: Any, *args: Any, **options: Any) -> Any:
                found = look(path, *args, **options)
                inside = isinstance(path, str | Path) and folder in Path(path).parents
                if inside and Path(path).is_relative_to(folder / "files"):
                    monkeypatch.undo()
                    shutil.rmtree(folder)
                return found

            return look_and_remove

        for name in ("stat", "lstat", "scandir"):
            monkeypatch.setattr(os, name, looking(getattr(os, name)))

    return remove


def test_a_trim_beside_another(
    tmp_path: Path, remove_when_looked_at: Callable[[Path], None]
) -> None:
    quarantine = Quarantine(tmp_path / "quarantine", max_entries=8, max_bytes=1 << 20)
    first = quarantine.put(fill(tmp_path / "1"), source="a", error=ValueError("x"))
    remove_when_looked_at(tmp_path / "quarantine" / first.id)
    second = quarantine.put(fill(tmp_path / "2"), source="b", error=ValueError("y"))
    assert [entry.id for entry in quarantine.entries()] == [second.id]


def test_a_sweep_beside_another(
    tmp_path: Path, remove_when_looked_at: Callable[[Path], None]
) -> None:
    incoming = Incoming(tmp_path)
    folder = fill(tmp_path / "resume-0-0")
    remove_when_looked_at(folder)
    incoming.sweep(max_age_seconds=3600)
    assert list(tmp_path.iterdir()) == []
