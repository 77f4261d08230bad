"""Promises of the project's own files: the error tree, the room map, the budgets, the links."""

from __future__ import annotations

import inspect
import re
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from remix_runtime import errors
from server.tenancy import errors as tenancy

ROOT = Path(__file__).parents[2]
ROOMS = ("remix_runtime", "training", "server", "benchmarks")
SOURCES = [
    path
    for room in (*ROOMS, "examples")
    for path in sorted((ROOT / room).rglob("*"))
    if path.suffix in (".py", ".c", ".h", ".html") and "__pycache__" not in path.parts
]
MODULES = [path for path in SOURCES if path.name != "__init__.py"]
MAX_LINES = 400
MAKE_TARGETS = set(
    re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
)
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(("module", "root"), [(errors, "Exception"), (tenancy, "RemixError")])
def test_error_tree_in_the_docstring_is_the_real_tree(module: ModuleType, root: str) -> None:
    classes = {
        name: found
        for name, found in inspect.getmembers(module, inspect.isclass)
        if found.__module__ == module.__name__
    }
    assert module.__doc__ is not None
    parents: list[tuple[int, str]] = []
    documented: dict[str, str] = {}
    for line in module.__doc__.splitlines():
        match = re.match(r"^((?:│   |    )*)(├── |└── )?(\w+Error)\b", line)
        if match is None:
            continue
        depth = len(match[1]) // 4 + bool(match[2])
        parents = [(level, name) for level, name in parents if level < depth]
        documented[match[3]] = parents[-1][1] if parents else root
        parents.append((depth, match[3]))
    assert documented == {name: found.__bases__[0].__name__ for name, found in classes.items()}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_stay_small(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: split it along its seams"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_file_says_what_it_is(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith(('"""', "//", "<!doctype html>"))


def test_room_map_has_every_room_and_file_of_the_map_is_there() -> None:
    room_map = (ROOT / "docs" / "structures.md").read_text(encoding="utf-8")
    rooms = {path.parent for path in SOURCES if path.name == "__init__.py"}
    assert [relative(room) for room in sorted(rooms) if f"{room.name}/" not in room_map] == []
    named = re.findall(rf"`((?:{'|'.join((*ROOMS, 'examples'))})/[\w/.-]+\.\w+)`", room_map)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_documents_name_only_make_targets_that_exist(document: Path) -> None:
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z0-9-]*)", document.read_text(), re.MULTILINE))
    assert named <= MAKE_TARGETS


def test_readme_shows_the_main_targets_and_every_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in ("run", "test", "bench", "lint"):
        assert f"make {target}" in readme
    for command in project()["project"]["entry-points"]["remix.commands"]:
        assert f"`remix {command}" in readme


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text)
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_no_document_has_a_placeholder_left() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        found = re.findall(r"\b(?:TODO|TBD|FIXME|XXX)\b|<!--", text)
        assert found == [], relative(document)


def test_decisions_are_numbered_without_gaps() -> None:
    names = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert [name[:4] for name in names] == [f"{i + 1:04}" for i in range(len(names))]


def test_entry_points_lead_to_functions() -> None:
    for value in project()["project"]["entry-points"]["remix.commands"].values():
        module, function = value.split(":")
        source = (ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
        # A command, or a group of commands.
        assert re.search(rf"^(def {function}\(|{function} = typer)", source, re.MULTILINE), value


def test_torch_stays_below_the_versions_that_pull_cuda() -> None:
    dependencies = project()["project"]["dependencies"]
    assert "torch>=2.11,<2.13.1" in dependencies


def test_make_parses_and_explains_itself() -> None:
    shown = subprocess.run(["make", "-C", str(ROOT), "-s", "help"], capture_output=True, text=True)
    assert shown.returncode == 0
    for target in ("install", "run", "test", "lint", "bench"):
        assert f"make {target}" in shown.stdout


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
