"""The canaries of a set: what was seen of them, and their end by hand."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.system.dashboard.dashboard import Dashboard, canaries_answer
from tests.system.dashboard.served import Served

pytestmark = pytest.mark.system

VIEW, TITLE = "#/tenants/acme/set", "Adapter set of acme"
SEEN = "What was seen of pirate"
LAST = "The last canary of each name"


def begin(server: Served, name: str, share: float) -> str:
    """With the adapter that no name has. Returns the canary's digest."""
    digest: str = server.ask("GET", "adapters")["data"][3]["digest"]
    server.ask("PUT", "tenants/acme/canary", {"name": name, "digest": digest, "share": share})
    return digest


def ask(server: Served, model: str) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": model, "messages": messages, "max_tokens": 3}
    server.ask("POST", "tenants/acme/chat/completions", body)


def test_a_canary_from_its_first_requests_to_its_end_by_hand(
    dashboard: Dashboard, server: Served
) -> None:
    page = dashboard.page
    digest = begin(server, "pirate", 1)
    for _ in range(3):
        ask(server, "pirate")
    dashboard.enter(VIEW, TITLE)
    card = page.get_by_role("article").filter(has=page.get_by_role("heading", name="pirate"))
    expect(card).to_contain_text("gets 100 % of the requests")
    expect(card).to_contain_text("It waits for: 3 of 200 requests.")
    expect(card.get_by_role("link", name="chef")).to_have_attribute("href", f"#/adapters/{digest}")
    canary, live = dashboard.cells(SEEN)
    assert (canary[:3], live[:3]) == (["Canary", "3", "0"], ["Live adapter", "0", "0"])
    assert all("s" in time for time in canary[3:])
    assert live[3:] == ["–"] * 4

    end = dashboard.button("End the canary of pirate")
    end.focus()
    ask(server, "pirate")
    expect(card).to_contain_text("4 of 200 requests", timeout=20_000)
    expect(end).to_be_focused()  # though the figures are newer
    end.click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    [told] = server.ask("GET", "tenants/acme/canary")["data"]
    assert told["state"] == "running"
    end.click()
    page.get_by_role("dialog").get_by_role("button", name="End it").click()
    expect(dashboard.status).to_have_text("The canary of pirate is rolled back.")
    expect(dashboard.heading).to_be_focused()
    [told] = server.ask("GET", "tenants/acme/canary")["data"]
    assert (told["state"], told["reason"]) == ("rolled_back", "by hand")
    expect(end).to_have_count(0)
    [row] = dashboard.cells(LAST)
    assert (row[0], row[2]) == ("pirate", "rolled back")
    assert row[4:] == ["by hand", "0 of 4", "0 of 0"]


def test_one_that_ends_by_itself_is_seen_to_end(dashboard: Dashboard, server: Served) -> None:
    """It may have changed the set: the revisions are read again."""
    digest = server.ask("GET", "adapters")["data"][3]["digest"]
    running = canaries_answer(digest)["data"][:1]
    dashboard.answer("tenants/acme/canary", {"data": running})
    dashboard.enter(VIEW, TITLE)
    expect(dashboard.button("End the canary of pirate")).to_be_visible()
    before = len(dashboard.column("Revisions of acme"))
    set_ = server.ask("GET", "tenants/acme/set")["adapters"]
    server.ask("PUT", "tenants/acme/set", {"adapters": {**set_, "pirate": digest}})
    ended = [{**running[0], "state": "promoted", "ended": "2026-11-29T13:00:00Z", "reason": "kept"}]
    dashboard.answer("tenants/acme/canary", {"data": ended})
    table = dashboard.page.get_by_role("table", name=LAST, exact=True)
    expect(table).to_contain_text("promoted", timeout=20_000)
    expect(dashboard.button("End the canary of pirate")).to_have_count(0)
    expect(
        dashboard.page.get_by_role("table", name="Revisions of acme").locator("tbody tr")
    ).to_have_count(before + 1)
