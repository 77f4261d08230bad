"""`remix serve` with three tenants on a base, as a process whose memory can be seen."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx


@dataclass(slots=True)
class Served:
    """A server, and the keys of its tenants."""

    process: subprocess.Popen[str]
    port: int
    admin: httpx.Client
    log: Path
    keys: dict[str, str] = field(default_factory=dict)

    def add_tenant(self, name: str, adapters: Mapping[str, Path], **quota: Any) -> None:
        """With a key, the adapters in the folders, and the quota."""
        self._ask("POST", "tenants", {"id": name})
        digests = {
            given: self._ask("POST", "adapters", {"source": str(folder)})["digest"]
            for given, folder in adapters.items()
        }
        self._ask("PUT", f"tenants/{name}/set", {"adapters": digests})
        self._ask("PUT", f"tenants/{name}/quota", quota)
        self.keys[name] = self._ask("POST", f"tenants/{name}/keys")["secret"]

    def metrics(self, *names: str) -> list[float]:
        """The sums of series, over all labels."""
        text = self.admin.get("/metrics").raise_for_status().text
        return [
            sum(map(float, re.findall(rf"^remix_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))
            for name in names
        ]

    @property
    def resident_bytes(self) -> int:
        return self._status("VmRSS")

    @property
    def most_resident_bytes(self) -> int:
        """Since it began, or since `forget_most`."""
        return self._status("VmHWM")

    def forget_most(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    @property
    def stated_bytes(self) -> int:
        """The most memory that the server itself says it may take."""
        found = re.search(r"memory in MiB: (.*);", self.log.read_text())
        assert found, "the server states no sum"
        return sum(int(part.split()[-1]) for part in found[1].split(", ")) << 20

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split(f"{name}:")[1].split()[0]) << 10

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.admin.request(method, f"/admin/v1/{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json()


@contextmanager
def serving(
    base: Path, folder: Path, import_root: Path, options: Sequence[str]
) -> Iterator[Served]:
    """Its data and its log are in `folder`."""
    key, log = secrets.token_hex(16), folder / "server.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from remix_runtime.cli import main; main()", "serve"),
                *("--base", str(base), "--data-dir", str(folder / "data")),
                *("--import-root", str(import_root), "--port", "0", "--admin-port", "0"),
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "REMIX_ADMIN_KEY": key},
        )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        ports = [int(port) for port in re.findall(r"http://[^\s:]+:(\d+)", first)]
        assert len(ports) == 2, f"the server did not start: {log.read_text()[-2000:]}"
        headers = {"Authorization": f"Bearer {key}"}
        url = f"http://127.0.0.1:{ports[1]}"
        with httpx.Client(base_url=url, headers=headers, timeout=300) as admin:
            yield Served(process, ports[0], admin, log)
    finally:
        process.terminate()
        process.communicate()
