"""Runs test files of other servers against this one, a row for each test: what they import of
their server is a stand-in, and the names of models and the key are replaced in their text."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
from calls import CALL_SECONDS, report


class StandIns(MetaPathFinder, Loader):
    """Any module of a package that is not installed: all its names are mocks but those given."""

    def __init__(self, package: str, names: Mapping[str, Any]) -> None:
        self.package = package
        self.names = names

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        inside = fullname == self.package or fullname.startswith(f"{self.package}.")
        return ModuleSpec(fullname, self, is_package=True) if inside else None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = lambda name: self.names.get(name, MagicMock(name=name))  # type: ignore[method-assign]


class Rows:
    """A plugin of pytest: a row for each test that ran, none for what does not ask the server."""

    def __init__(self, selected: str, names: Mapping[str, str]) -> None:
        self.selected = selected
        self.names = names

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [
            item
            for item in items
            if self.selected in item.nodeid and (item.cls or "client" in item.fixturenames)
        ]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and not report.failed:
            return
        with redirect_stdout(sys.__stdout__):
            name = report.nodeid.rpartition("::")[2]
            for served, shown in self.names.items():
                name = name.replace(served, shown)
            show(name, report)


def show(name: str, found: Any) -> None:
    if found.passed:
        report(name, "ok", "")
    elif found.skipped:
        report(name, "skipped", str(found.longrepr))
    else:
        crash = getattr(found.longrepr, "reprcrash", None)
        report(name, "failed", crash.message if crash else str(found.longrepr)[-300:])


def run_tests(
    files: list[Path],
    replaced: Mapping[str, str],
    *,
    selected: str = "",
    names: Mapping[str, str] | None = None,
) -> None:
    """Runs copies of `files` in a folder of their own; of their tests those that match `selected`.
    What is a key of `names` in a test's name is shown as its value."""
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            text = file.read_text()
            for old, new in replaced.items():
                text = text.replace(old, new)
            Path(folder, file.name).write_text(text)
        options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "--capture=no"]
        options += ["-o", "asyncio_mode=auto", f"--timeout={CALL_SECONDS}", f"--rootdir={folder}"]
        with redirect_stdout(sys.stderr):
            pytest.main([folder, *options], plugins=[Rows(selected, names or {})])
