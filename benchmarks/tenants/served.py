"""`remix serve` with tenants, in a process of its own, and one request of its clients."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

PROMPT = "Once upon a time"
NEW_TOKENS = 12


@asynccontextmanager
async def served(
    base: Path, data: Path, import_root: Path
) -> AsyncIterator[tuple[str, httpx.AsyncClient]]:
    """The URL of its API, and a client of the admin API."""
    key = secrets.token_hex(16)
    command = (sys.executable, "-c", "from remix_runtime.cli import main; main()", "serve")
    folders = {"--base": base, "--data-dir": data, "--import-root": import_root}
    process = await asyncio.create_subprocess_exec(
        *(*command, "--port", "0", "--admin-port", "0"),
        *(str(part) for option in folders.items() for part in option),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "REMIX_ADMIN_KEY": key},
    )
    assert process.stdout is not None
    try:
        first = (await process.stdout.readline()).decode()
        urls = [word.strip(",") for word in first.split() if word.startswith("http")]
        if len(urls) != 2:
            raise RuntimeError("the server did not start")
        async with client(urls[1], key) as admin:
            yield urls[0], admin
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def client(url: str, key: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=120)


def completion(name: str, *, stream: bool) -> dict[str, object]:
    """The body of the one greedy request that every client sends."""
    return {
        "model": name,
        "prompt": PROMPT,
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
    }
