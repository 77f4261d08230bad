"""An environment for each client, made once and kept under .conformance/ in the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conformance.clients import SCRIPTS, Client

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".conformance"


def prepare(client: Client) -> list[str]:
    """Installs what is not yet there; returns the command that runs the client's script."""
    script = SCRIPTS / client.script
    if not client.packages:
        return [sys.executable, str(script)]
    folder = KEPT / client.name
    installed = folder / ".installed"
    if not installed.is_file() or installed.read_text() != "\n".join(client.packages):
        shutil.rmtree(folder, ignore_errors=True)
        make = npm if script.suffix == ".mjs" else uv
        make(folder, client.packages)
        installed.write_text("\n".join(client.packages))
    if script.suffix == ".mjs":
        # Node looks for packages from where a script lies.
        for module in SCRIPTS.glob("*.mjs"):
            shutil.copy(module, folder)
        return [str(folder / "node_modules/.bin/node"), str(folder / script.name)]
    return [str(folder / "bin" / "python"), str(script)]


def uv(folder: Path, packages: tuple[str, ...]) -> None:
    beside = Path(sys.executable).with_name("uv")
    program = str(beside) if beside.is_file() else "uv"
    environment = ["--python", str(folder / "bin" / "python")]
    subprocess.run([program, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    subprocess.run([program, "pip", "install", "--quiet", *environment, *packages], check=True)


def npm(folder: Path, packages: tuple[str, ...]) -> None:
    folder.mkdir(parents=True)
    (folder / "package.json").write_text('{"private": true}\n')
    subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--no-fund", *packages], cwd=folder, check=True
    )
