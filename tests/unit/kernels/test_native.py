"""Building and loading the C library."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from remix_runtime import kernels
from remix_runtime.kernels import native
from remix_runtime.kernels.torch_path import TorchLinear, TorchMixtureTable


@pytest.fixture
def fresh() -> Iterator[None]:
    """`native.lib()` decides anew inside the test and after it."""
    native.lib.cache_clear()
    yield
    native.lib.cache_clear()


def test_one_openmp_runtime() -> None:
    """Ours and PyTorch's thread pools are one."""
    assert native.lib() is not None
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    mapped = {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line}
    assert len(mapped) == 1


@pytest.mark.usefixtures("fresh")
def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIX_NATIVE", "0")
    assert native.lib() is None
    assert isinstance(kernels.make_linear(torch.randn(4, 4)), TorchLinear)
    assert isinstance(kernels.make_table(2, 4, 4), TorchMixtureTable)


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_one_warning_names_the_fix(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with caplog.at_level(logging.WARNING):
        assert native.lib() is None
        assert native.lib() is None
    assert len(caplog.records) == 1
    assert "install a C compiler" in caplog.text
    assert isinstance(kernels.make_linear(torch.randn(4, 4)), TorchLinear)


@pytest.mark.usefixtures("fresh")
def test_a_failing_compiler_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho no OpenMP here >&2; exit 1\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(native, "cache_folder", lambda: tmp_path)
    with caplog.at_level(logging.WARNING):
        assert native.lib() is None
    assert "no OpenMP here" in caplog.text
    assert not list(tmp_path.glob("*.so"))


def test_two_builds_at_once_compile_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    (tmp_path / "one.c").write_text("int remix_one(void) { return 1; }\n")
    compiled: list[Path] = []
    run = subprocess.run

    def counting(command: list[str], **options: object) -> object:
        if "-o" in command:
            compiled.append(Path(command[command.index("-o") + 1]))
        return run(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(native.subprocess, "run", counting)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(native.build, [tmp_path, tmp_path]))
    assert paths[0] == paths[1] == next(tmp_path.glob("*.so"))
    assert len(compiled) == 1
    (tmp_path / "one.c").write_text("int remix_one(void) { return 2; }\n")
    assert native.build(tmp_path) != paths[0]


def test_the_cache_folder_is_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = native.cache_folder()
    if not folder.is_relative_to(tmp_path):
        pytest.skip("the cache folder of this system does not follow XDG_CACHE_HOME")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)  # others could put a library there
    other = native.cache_folder()
    assert other != folder
    assert other.stat().st_mode & 0o777 == 0o700


def test_loads_in_a_new_process() -> None:
    code = "from remix_runtime.kernels import native; assert native.lib() is not None"
    environment = os.environ | {"PYTHONPATH": str(Path(kernels.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
