"""`/`: one page, nothing from elsewhere, and what it reads exists."""

from __future__ import annotations

import base64
import hashlib
import re

from tests.unit.server.harness import Server


async def test_page_loads_nothing_from_elsewhere(server: Server) -> None:
    response = await server.client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert not re.search(r"https?://|src=|@import|<link|innerHTML|\bon\w+=", response.text)
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for element in ("script", "style"):
        (content,) = re.findall(f"<{element}>(.*?)</{element}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy


async def test_page_reads_metrics_that_exist(server: Server) -> None:
    page = (await server.client.get("/")).text
    metrics = (await server.client.get("/metrics")).text
    names = set(re.findall(r"m\.(remix_\w+)", page))
    assert len(names) == 6
    for name in names:
        assert re.search(rf"^{name} \d", metrics, re.MULTILINE), name
