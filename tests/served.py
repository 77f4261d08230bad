"""`remix serve` as a process of its own, for tests of what only a whole process shows."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

REMIX = (sys.executable, "-c", "from remix_runtime.cli import main; main()")
ADMIN_KEY = "the-key-of-the-operator-of-this-test"
FAKE = ("--engine", "fake", "--max-running", "64", "--max-waiting", "64")
START_SECONDS = 300


@dataclass
class Served:
    process: asyncio.subprocess.Process
    url: str
    admin_url: str | None
    log: Path

    async def end(self, number: int = signal.SIGTERM) -> int:
        """The exit code."""
        self.process.send_signal(number)
        return await self.process.wait()

    async def admin(self, method: str, path: str, **kwargs: Any) -> Any:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        async with httpx.AsyncClient(base_url=str(self.admin_url), timeout=60) as client:
            answer = await client.request(method, f"/admin/v1{path}", headers=headers, **kwargs)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    async def tenant(self, name: str, **quota: Any) -> str:
        """A new tenant's key."""
        await self.admin("POST", "/tenants", json={"id": name})
        await self.admin("PUT", f"/tenants/{name}/quota", json={"may_use_base": True, **quota})
        return str((await self.admin("POST", f"/tenants/{name}/keys"))["secret"])

    def client(self, key: str | None = None) -> httpx.AsyncClient:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=120, limits=limits)


@asynccontextmanager
async def served(log: Path, *options: str) -> AsyncIterator[Served]:
    """A server that is ready, on free ports; killed at the end if it still runs. `log` gets what it
    writes to stderr."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "REMIX_ADMIN_KEY": ADMIN_KEY}
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(*REMIX, "serve", "--port", "0", *options),
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=env,
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            line = (await process.stdout.readline()).decode()
        assert line.startswith("Serving "), f"{line!r}; see {log}"
        words = line.replace(",", " ").split()
        urls = [word for word in words if word.startswith("http://")]
        yield Served(process, urls[0], urls[1] if len(urls) > 1 else None, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def tenants(data: Path, *options: str) -> tuple[str, ...]:
    """Options of a server with tenants."""
    return ("--data-dir", str(data), "--admin-port", "0", *options)
