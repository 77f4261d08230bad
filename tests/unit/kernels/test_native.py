"""Building and loading the C library."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
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


def test_the_folder_above_is_this_users_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = native.cache_folder()
    if not folder.is_relative_to(tmp_path):
        pytest.skip("the cache folder of this system does not follow XDG_CACHE_HOME")
    above = folder.parent
    assert above.stat().st_mode & 0o777 == 0o700
    above.chmod(0o775)  # as an older version left it where the umask is 002
    assert native.cache_folder() == folder
    assert above.stat().st_mode & 0o777 == 0o700
    stat = Path.stat

    def of_others(path: Path, **options: bool) -> os.stat_result:
        found = stat(path, **options)
        if path != above:
            return found
        return os.stat_result((*found[:4], found.st_uid + 1, *found[5:]))

    monkeypatch.setattr(Path, "stat", of_others)
    assert not native.cache_folder().is_relative_to(tmp_path)
    assert "compiled at each start" in caplog.text


def build_one(folder: Path, value: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library whose one function returns `value`."""
    sources = folder.with_name(f"{folder.name}-sources")
    sources.mkdir()
    (sources / "one.c").write_text(f"""
        __attribute__((visibility("default"))) int remix_one(void) {{ return {value}; }}
    """)
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(native, "SOURCES", sources)
        return native.build(folder)


def test_what_was_looked_at_is_what_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The folder above is one that others may write in, and somebody puts another in its place."""
    ours = build_one(tmp_path / "kernels", 1, monkeypatch)
    theirs = build_one(tmp_path / "theirs", 2, monkeypatch)
    theirs.rename(theirs.with_name(ours.name))
    look = os.fstat

    def look_and_swap(fd: int) -> os.stat_result:
        if (tmp_path / "theirs").exists():
            (tmp_path / "kernels").rename(tmp_path / "away")
            (tmp_path / "theirs").rename(tmp_path / "kernels")
        return look(fd)

    monkeypatch.setattr(os, "fstat", look_and_swap)
    assert native.load(ours).remix_one() == 1
    monkeypatch.undo()
    assert native.load(ours).remix_one() == 2


@pytest.mark.parametrize("wrong", ["others may write", "of another user", "a link"])
def test_a_library_that_others_may_have_written_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str
) -> None:
    path = build_one(tmp_path / "kernels", 1, monkeypatch)
    if wrong == "others may write":
        path.chmod(0o722)
    elif wrong == "a link":
        path.rename(tmp_path / "real.so")
        path.symlink_to(tmp_path / "real.so")
    else:
        monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(OSError, match=r"others may have written|Too many levels"):
        native.load(path)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "a page of it": lambda data: data[:4096],
    "without its last byte": lambda data: data[:-1],
    "its tail never came to the disk": lambda data: data[:4096] + bytes(len(data) - 4096),
    "one bit": lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
    "longer": lambda data: data + b"\0",
    "of an older version": lambda data: data[: -native._SEAL_BYTES],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_never_loaded_and_compiled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "kernels"
    path = build_one(folder, 1, monkeypatch)
    good = path.read_bytes()
    path.write_bytes(DAMAGES[damage](good))
    with pytest.raises(OSError, match="damaged"):
        native.load(path)
    (folder / "remix-0.123.tmp").touch()  # a build was killed
    monkeypatch.setattr(native, "SOURCES", tmp_path / "kernels-sources")
    assert native.build(folder) == path
    assert "is damaged and is compiled again" in caplog.text
    assert native.load(path).remix_one() == 1
    assert sorted(found.name for found in folder.iterdir()) == ["build.lock", path.name]
    written = path.stat().st_mtime_ns
    native.build(folder)
    assert path.stat().st_mtime_ns == written


def test_a_library_is_on_the_disk_before_it_has_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without that a power failure leaves the name and none of the bytes."""
    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def watched_sync(fd: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        sync(fd)

    def watched_rename(path: Path, target: Path) -> Path:
        done.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    build_one(tmp_path / "kernels", 1, monkeypatch)
    assert done == ["file", "rename", "folder"]


def test_the_umask_lets_nobody_else_write_a_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        path = build_one(tmp_path / "kernels", 1, monkeypatch)
    finally:
        os.umask(before)
    assert native.load(path).remix_one() == 1


def test_loads_in_a_new_process() -> None:
    code = "from remix_runtime.kernels import native; assert native.lib() is not None"
    environment = os.environ | {"PYTHONPATH": str(Path(kernels.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
