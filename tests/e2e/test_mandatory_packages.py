"""`remix serve` runs on the mandatory packages alone: no extra's package is imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from remix_runtime.adapter.checkpoint import write_checkpoint
from tests.models import random_checkpoint, save_tiny_base, tiny_model

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
REMIX = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None  # as if it were not installed
from remix_runtime.cli import main
main()
"""


def brought_by(requirements: Iterable[str]) -> set[str]:
    """The packages that an installation of `requirements` has here."""
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {e for n, e in found if n == name}:
            found.add((name, extra))
            waiting += [
                inner
                for inner in map(Requirement, requires(name) or ())
                if inner.marker is None or inner.marker.evaluate({"extra": extra})
            ]
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def not_mandatory() -> list[str]:
    """Modules of all other packages that are installed here."""
    dependencies = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    mandatory = brought_by(dependencies) | {"remix-serve"}
    return sorted(
        module
        for module, owners in packages_distributions().items()
        if mandatory.isdisjoint(map(canonicalize_name, owners))
    )


@contextmanager
def serving(hidden: Iterable[str], *options: str) -> Iterator[str]:
    """The URL of a server in whose process the `hidden` modules cannot be imported."""
    process = subprocess.Popen(
        [sys.executable, "-c", REMIX, ",".join(hidden), "serve", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "REMIX_ADMIN_KEY": "the-key-of-the-operator"},
    )
    try:
        assert process.stdout is not None
        words = process.stdout.readline().replace(",", "").split()
        if not words:
            raise AssertionError(process.communicate()[1])
        yield next(word for word in words if word.startswith("http"))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 0


def test_other_packages_are_hidden(not_mandatory: list[str]) -> None:
    extras = {"matplotlib", "tensorboard", "peft", "gguf", "accelerate", "openai", "psycopg"}
    assert extras <= set(not_mandatory)
    assert {"torch", "transformers", "fastapi", "remix_runtime"}.isdisjoint(not_mandatory)


def test_adapters_are_served(not_mandatory: list[str], tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "tiny")
    checkpoint = random_checkpoint(tiny_model("llama"))
    write_checkpoint(tmp_path / "good", checkpoint.config, checkpoint.layers, readme="random")
    options = ("--base", str(base), "--adapter", f"good={tmp_path / 'good'}", "--threads", "1")
    with serving(not_mandatory, *options) as url:
        request = urllib.request.Request(
            f"{url}/v1/completions",
            data=json.dumps({"model": "good", "prompt": "a", "max_tokens": 4}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] > 0


def test_tenants_are_served(not_mandatory: list[str], tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "tiny")
    options = ("--base", str(base), "--data-dir", str(tmp_path / "data"), "--admin-port", "0")
    with (
        serving(not_mandatory, *options, "--threads", "1") as url,
        urllib.request.urlopen(f"{url}/ready", timeout=60) as answer,
    ):
        assert answer.status == 200
