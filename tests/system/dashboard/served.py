"""`remix serve` with tenants as a process, for a browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.system import processes

KEY = "the-key-of-the-operator"


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    """Of the admin API, and so of the dashboard."""
    client: httpx.Client
    """With the admin key."""

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        answer = self.client.request(method, f"/admin/v1/{path}", json=body, headers=headers)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def add_adapters(self, *sources: str) -> list[str]:
        """Their digests."""
        return [self.ask("POST", "adapters", {"source": source})["digest"] for source in sources]

    def add_tenant(self, tenant: str, adapters: dict[str, str], **quota: Any) -> None:
        self.ask("POST", "tenants", {"id": tenant})
        self.ask("PUT", f"tenants/{tenant}/set", {"adapters": adapters})
        if quota:
            self.ask("PUT", f"tenants/{tenant}/quota", quota)


@contextmanager
def serving(folder: Path, *options: str | Path) -> Iterator[Served]:
    """Adapters are imported from under `folder`/sources."""
    tenants = ("--data-dir", folder / "data", "--import-root", folder / "sources")
    with processes.serving(
        *(*tenants, "--admin-port", "0", *options),
        log=folder / "server.log",
        environment={"REMIX_ADMIN_KEY": KEY},
    ) as process:
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=process.url, headers=headers, timeout=120) as client:
            yield Served(process.url, client)
