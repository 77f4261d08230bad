"""What `make gpu-pack` packs comes out again where its pieces arrive, whole or not at all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.gpu import pack
from benchmarks.gpu.unpack import SUFFIX
from remix_runtime.errors import ConfigError

ROOT = Path(pack.__file__).parents[2]


def unpack(folder: Path, site: Path) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu.unpack", str(folder), "--site", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_pieces_come_together_again_when_all_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, pieces, site = (tmp_path / name for name in ("content", "pieces", "site"))
    (content / "package").mkdir(parents=True)
    (content / "package" / "module.py").write_bytes(random := os.urandom(100_000))
    pieces.mkdir()
    monkeypatch.setattr(pack, "PIECE", 40_000)
    made = pack.cut(content, pieces / f"core{SUFFIX}")
    assert [piece.name for piece in made] == [f"core{SUFFIX}.{i}of3" for i in (1, 2, 3)]
    assert all(piece.stat().st_size <= 40_000 for piece in made)
    made[1].rename(tmp_path / made[1].name)
    assert "core: 2 of 3 pieces are here" in unpack(pieces, site)
    assert not list(site.iterdir())
    (tmp_path / made[1].name).rename(made[1])
    assert f"PYTHONPATH={site}" in unpack(pieces, site)
    assert (site / "package" / "module.py").read_bytes() == random


def test_a_folder_without_pieces_is_one_line(tmp_path: Path) -> None:
    text = unpack(tmp_path, tmp_path / "site").strip()
    assert text.startswith(f"error: {tmp_path}: found no pieces, expected")
    assert "\n" not in text


def test_every_package_has_one_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(pack.subprocess, "run", lambda command, check: commands.append(command))
    for names in pack.PACKAGES.values():
        pack.install(names, tmp_path)
        wanted = [word for word in commands[-1] if "==" in word]
        assert [word.partition("==")[0] for word in wanted] == list(names)
        assert all(re.fullmatch(r"[\w.-]+==\d[\w.+]*", word) for word in wanted), wanted


@pytest.mark.parametrize(("option", "value"), [("--sets", "core,cuda"), ("--bases", "Llama")])
def test_a_wrong_name_packs_nothing(option: str, value: str, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(pack.main)
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "out"), option, value])
    assert isinstance(result.exception, ConfigError)
    assert value.split(",")[-1] in str(result.exception)
    assert not (tmp_path / "out").exists()
