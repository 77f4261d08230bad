"""A feature whose extra is not installed says so in one line, with the command that installs it."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from examples import demo
from remix_runtime.cli import run
from remix_runtime.errors import ConfigError
from remix_runtime.extras import require_extra

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[Requirement]] = {
    extra: [Requirement(text) for text in texts]
    for extra, texts in PROJECT["optional-dependencies"].items()
}
MISSING = re.compile(r"(.+): (\S+) is not installed; pip install 'remix-serve\[(\w+)\]'")


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Makes `package` look as if it were not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


def check_line(line: str, feature: str, package: str) -> None:
    """The line names both, and an extra that brings the package."""
    match = MISSING.fullmatch(line)
    assert match is not None, line
    assert match.groups()[:2] == (feature, package)
    assert package in [requirement.name for requirement in EXTRAS[match[3]]]


@pytest.mark.parametrize(
    ("command", "feature", "package"),
    [
        (["train", "recipe.yaml"], "remix train", "matplotlib"),
        (["train", "recipe.yaml"], "remix train", "tensorboard"),
        (["bench", "--base", "base"], "remix bench", "matplotlib"),
        (["demo-model", "--cache", "cache"], "demo model", "gguf"),
        (["demo-model", "--cache", "cache"], "demo model", "accelerate"),
        (["serve", "--base", "base", "--engine", "vllm", "--port", "0"], "engine", "vllm"),
        (["serve", "--base", "base", "--engine", "ray", "--port", "0"], "engine", "ray"),
    ],
)
def test_command_without_its_extra_ends_in_one_line(
    command: list[str],
    feature: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    hide(monkeypatch, package)
    assert run(command) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    check_line(err.removeprefix("error: ").rstrip("\n"), feature, package)
    assert list(tmp_path.iterdir()) == []


def test_peft_api_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "peft")
    for name in ("remix_runtime.interop.peft", "remix_runtime.interop"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ConfigError) as caught:
        importlib.import_module("remix_runtime.interop.peft")
    check_line(str(caught.value), "remix_runtime.interop", "peft")


def test_demo_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "openai")
    with pytest.raises(ConfigError) as caught:
        demo.main()
    check_line(str(caught.value), "make run", "openai")


def test_what_is_installed_is_not_missing() -> None:
    require_extra("this test", "dev", "pytest", "packaging")


def test_development_has_every_extra_that_tests_need() -> None:
    (own,) = [requirement for requirement in EXTRAS["dev"] if requirement.name == "remix-serve"]
    # Other engines to compare with: of gigabytes, or with an environment of their own. What
    # quantizes is large too: its tests are skipped without it. `make test-e2e` and
    # `make test-images` have their own extras.
    others = {"dev", "bench", "vllm", "quantize", "ray", "e2e", "images"}
    assert own.extras == EXTRAS.keys() - others
