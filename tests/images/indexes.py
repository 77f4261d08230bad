"""Where a build gets its packages from: what this machine's pip is told, told to pip and uv there.

Nothing of it is in what users run: it comes as read-only mounts, of which empty files are left.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
WHEELS = "/mnt"


@dataclass(frozen=True)
class Indexes:
    """`wheels`: a folder of this machine. `index`: an address, the public one by default."""

    wheels: Path | None = None
    index: str | None = None

    def options(self, folder: Path) -> list[str]:
        """For `buildah build`. Configurations of pip and uv are written to `folder`."""
        lines = ["native-tls = true"]
        pip = ["[global]", f"cert = {CERTIFICATES}"]
        volumes = []
        if CERTIFICATES.exists():  # a proxy of this machine may have a certificate of its own
            volumes.append(f"{CERTIFICATES}:{CERTIFICATES}:ro")
        if self.index is not None:
            pip.append(f"index-url = {self.index}")
            lines += ["[[index]]", f"url = {json.dumps(self.index)}", "default = true"]
        arguments = []
        if self.wheels is not None:
            lines.insert(0, f'find-links = ["{WHEELS}"]')
            volumes.append(f"{self.wheels}:{WHEELS}:ro")
            if any(self.wheels.glob("torch-*+cpu-*.whl")):  # then PyTorch's index is not needed
                default = self.index or "https://pypi.org/simple"
                arguments = ["--build-arg", f"TORCH_INDEX={default}"]
        for file, place, content in (
            ("uv.toml", "/etc/uv/uv.toml", lines),
            ("pip.conf", "/etc/pip.conf", pip),
        ):
            (folder / file).write_text("\n".join(content) + "\n")
            volumes.append(f"{folder / file}:{place}:ro")
        return [*arguments, *(text for volume in volumes for text in ("--volume", volume))]


def indexes_of_this_machine() -> Indexes:
    """As pip's configuration and environment say."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition("=")
        found[name.rpartition(".")[2]] = value.strip("'")
    folders = [Path(link) for link in found.get("find-links", "").split() if Path(link).is_dir()]
    return Indexes(wheels=folders[0] if folders else None, index=found.get("index-url"))
