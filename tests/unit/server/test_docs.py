"""`/docs`: the whole document on a page that loads and runs nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from server.http.openapi import _type_of
from tests.unit.admin.harness import administering
from tests.unit.server.harness import Server, serving
from tests.unit.server.tenants import tenant_serving


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert name not in ("src", "style")
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(str(value))
            elif name == "href":
                self.links.append(str(value))

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_it_has_all_of_the_document(server: Server) -> None:
    answer = await server.client.get("/docs")
    page, document = Page(answer.text), server.app.openapi()
    for path, operations in document["paths"].items():
        assert path in page.text
        for operation in operations.values():
            assert operation["description"].split("\n")[0] in page.text
    for name, schema in document["components"]["schemas"].items():
        assert name in page.ids
        assert all(field in page.text for field in schema.get("properties", ()))
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= {*page.ids, "openapi.json"}
    assert not {"script", "link", "img", "iframe", "form"} & {*page.tags}
    assert "http" not in re.sub(r"</?\w[^>]*>", "", answer.text.partition("<body>")[0])


async def test_its_policy_lets_nothing_be_loaded(server: Server) -> None:
    policy = (await server.client.get("/docs")).headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "script" not in policy


async def test_who_may_see_it(tmp_path: Path) -> None:
    """Everybody who reaches a single user's server, as `/`; with tenants nobody without a key."""
    async with serving(tmp_path, api_key="sesame-open") as server:
        assert (await server.client.get("/docs")).status_code == 200
        assert (await server.client.get("/openapi.json")).status_code == 401
    async with tenant_serving(tmp_path) as tenants:
        assert (await (await tenants.client()).get("/docs")).status_code == 401
        assert (await (await tenants.tenant("acme")).get("/docs")).status_code == 200


async def test_the_admin_api_has_one(tmp_path: Path) -> None:
    async with administering(tmp_path) as admin:
        page = Page((await admin.client.get("/docs")).text)
        assert "/admin/v1/tenants/{tenant}/set" in page.text
        del admin.client.headers["Authorization"]  # as a browser, which has no key to send
        assert Page((await admin.client.get("/docs")).text).text == page.text
        assert (await admin.client.get("/openapi.json")).status_code == 401


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer", "minimum": 1.0, "exclusiveMaximum": 5}, "integer ≥ 1, &lt; 5"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string or null"),
        (
            {"type": "array", "items": {"$ref": "#/components/schemas/A"}},
            'list of <a href="#A">A</a>',
        ),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "object of number"),
        ({"enum": ["<a>", "b"]}, "<code>&lt;a&gt;</code> or <code>b</code>"),
        ({"const": "<x>"}, "<code>&#39;&lt;x&gt;&#39;</code>"),
        ({}, "anything"),
    ],
)
def test_types_in_words(schema: dict[str, object], text: str) -> None:
    assert _type_of(schema) == text
