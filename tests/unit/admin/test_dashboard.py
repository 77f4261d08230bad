"""The dashboard's files: open to everybody, the same for all, and complete."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import urljoin

import httpx
import pytest

from server.admin import dashboard
from tests.unit.admin.harness import API, Admin

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
ATTACKS = (
    "/web/../app.py",
    "/web/%2e%2e/app.py",
    "/web/..%2fapp.py",
    "/web//main.js",
    "/web/",
    "/web",
    "/web/nothing.js",
    "/web/main.js/",
    "/web/main.js%00",
    "/web/MAIN.js",
    "/web/index.html",
    "/index.html",
    "//",
)


async def fetch(admin: Admin, path: str, **headers: str) -> httpx.Response:
    """Without the key, and by the letter."""
    return await admin.send_by_the_letter("GET", path, headers)


async def test_files_need_no_key_and_run_nothing_of_others(admin: Admin) -> None:
    assert {"/", "/web/main.js", "/web/style.css"} < dashboard.PATHS
    for path in dashboard.PATHS:
        answer = await fetch(admin, path)
        assert answer.status_code == 200
        kind = "html" if path == "/" else path.rpartition(".")[2]
        assert answer.headers["content-type"].startswith(TYPES[kind])
        policy = dict(
            part.strip().split(" ", 1)
            for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy.pop("default-src") == "'none'"
        assert policy.pop("require-trusted-types-for") == "'script'"
        assert set(policy.values()) == {"'self'", "'none'"}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


async def test_files_are_asked_for_again_by_their_etag(admin: Admin) -> None:
    first = await fetch(admin, "/web/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = await fetch(admin, "/web/main.js", **{"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    other = await fetch(admin, "/", **{"If-None-Match": first.headers["etag"]})
    assert other.status_code == 200


@pytest.mark.parametrize("path", ATTACKS)
async def test_nothing_else_is_open(admin: Admin, path: str) -> None:
    assert (await fetch(admin, path)).status_code == 401


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_files_are_only_read(admin: Admin, method: str) -> None:
    assert (await admin.client.request(method, "/")).status_code == 405


async def test_data_needs_the_key_still(admin: Admin) -> None:
    for path in (f"{API}/tenants", "/metrics", "/openapi.json"):
        assert (await fetch(admin, path)).status_code == 401


class References(HTMLParser):
    """What a page refers to; anything inline is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert "style" not in given
        assert not any(name.startswith("on") for name in given)
        assert tag != "style"
        assert tag != "script" or "src" in given
        for name in ("src", "href"):
            if name in given and not (given[name] or "").startswith("#"):
                self.found.append(given[name] or "")


async def test_every_file_that_is_named_is_there_and_every_file_is_named(admin: Admin) -> None:
    page = References()
    page.feed((await fetch(admin, "/")).text)
    named = {urljoin("/", reference) for reference in page.found}
    unread = {path for path in named if path.endswith(".js")}
    while unread:
        path = unread.pop()
        text = (await fetch(admin, path)).text
        imports = re.findall(r'^import [^;"]* from "([^"]+)";', text, re.MULTILINE)
        found = {urljoin(path, reference) for reference in imports}
        unread |= found - named
        named |= found
    assert named == dashboard.PATHS - {"/"}


async def test_no_script_makes_markup_of_text_or_asks_elsewhere(admin: Admin) -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|https?://"
    )
    for path in dashboard.PATHS:
        text = (await fetch(admin, path)).text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(forbidden, text), path


async def test_what_the_scripts_ask_for_exists(admin: Admin) -> None:
    """Paths of the API, and names of metrics, as the scripts write them."""
    documented = set((await admin.client.get("/openapi.json")).json()["paths"])
    templates = {re.sub(r"\{\w+\}", "{}", path) for path in documented}
    texts = {path: (await fetch(admin, path)).text for path in dashboard.PATHS}
    metrics = (await admin.client.get("/metrics")).text
    for name in re.findall(r'"(remix_\w+)"', texts["/web/traffic.js"]):
        assert re.sub(r"_(total|bucket)$", "", name) in metrics, name
    asked = set()
    for text in texts.values():
        for given in re.findall(
            r"""["`]((?:tenants|adapters|audit|quarantine)[\w/?$(){}.=&-]*)["`]""", text
        ):
            path = re.sub(r"\$\{[^}]*\}", "{}", given.partition("?")[0])
            asked.add(f"{API}/{path}")
    assert len(asked) >= 9
    assert asked <= templates
