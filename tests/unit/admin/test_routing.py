"""After every change through the admin API this server acts on it."""

from __future__ import annotations

import pytest
from fastapi.routing import iter_route_contexts

from server.admin.routing import AdminRoute
from tests.unit.admin.harness import API, Admin


async def test_every_route_that_changes_something_refreshes(admin: Admin) -> None:
    routes = [context.original_route for context in iter_route_contexts(admin.app.routes)]
    changing = [
        route
        for route in routes
        if not getattr(route, "methods", {}) <= {"GET", "HEAD"}
        and not route.path.endswith("/chat/completions")  # it asks a model
    ]
    assert len(changing) >= 11
    assert [route for route in changing if not isinstance(route, AdminRoute)] == []


async def test_a_change_is_followed_by_one_refresh_and_a_failure_by_none(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh = admin.services.follower.refresh
    refreshed = 0

    async def counted() -> None:
        nonlocal refreshed
        refreshed += 1
        await refresh()

    monkeypatch.setattr(admin.services.follower, "refresh", counted)
    for status, expected in ((201, 1), (409, 1)):
        answer = await admin.client.post(f"{API}/tenants", json={"id": "acme"})
        assert (answer.status_code, refreshed) == (status, expected)
    await admin.client.get(f"{API}/tenants")
    assert refreshed == 1
