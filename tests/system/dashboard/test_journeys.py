"""Whole journeys through the dashboard, on a real server with a fake engine."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import expect

from tests.system.dashboard.dashboard import Dashboard
from tests.system.dashboard.served import KEY, Served

pytestmark = pytest.mark.system

SET = "#/tenants/acme/set"
SET_TITLE = "Adapter set of acme"


def test_a_wrong_key_is_refused_and_a_good_one_leads_where_the_address_says(
    dashboard: Dashboard,
) -> None:
    dashboard.expected.append("401")
    dashboard.open("#/audit")
    expect(dashboard.page.get_by_role("navigation")).to_be_hidden()
    dashboard.sign_in("wrong")
    expect(dashboard.page.get_by_role("alert")).to_contain_text("The server refused this key")
    expect(dashboard.page.get_by_label("Admin key")).to_be_focused()
    dashboard.sign_in("with spaces")
    expect(dashboard.page.get_by_role("alert")).to_contain_text("no key")
    dashboard.sign_in()
    dashboard.wait_for("Audit")
    assert dashboard.page.title() == "Audit – remix-serve admin"
    current = dashboard.page.locator("nav [aria-current]")
    expect(current).to_have_text("Audit")


def test_the_key_is_nowhere_but_in_memory(dashboard: Dashboard) -> None:
    sent = []
    dashboard.page.on("request", lambda request: sent.append((request.url, request.headers)))
    dashboard.enter("#/tenants", "Tenants")
    assert dashboard.page.evaluate("[sessionStorage.length, localStorage.length]") == [0, 0]
    assert dashboard.page.context.cookies() == []
    assert dashboard.page.get_by_label("Admin key").input_value() == ""
    assert not any(KEY in url for url, _ in sent)
    assert any(headers.get("authorization") == f"Bearer {KEY}" for _, headers in sent)
    dashboard.page.reload()
    expect(dashboard.page.get_by_label("Admin key")).to_be_visible()
    dashboard.sign_in()
    dashboard.wait_for("Tenants")
    dashboard.button("Sign out").click()
    expect(dashboard.page.get_by_label("Admin key")).to_be_focused()
    assert dashboard.page.locator("#view").inner_text() == ""


def test_a_key_that_is_no_longer_good_brings_the_sign_in_back(dashboard: Dashboard) -> None:
    dashboard.expected.append("401")
    dashboard.enter("#/tenants", "Tenants")
    dashboard.answer("audit*", {"error": {"message": "No valid API key"}}, status=401)
    dashboard.page.get_by_role("link", name="Audit").click()
    expect(dashboard.page.get_by_role("alert")).to_contain_text("no longer takes this key")
    dashboard.page.unroute_all()
    dashboard.sign_in()
    dashboard.wait_for("Audit")


def test_a_tenant_from_its_birth_to_its_end(dashboard: Dashboard, server: Served) -> None:
    page = dashboard.page
    dashboard.expected += ["409", "400"]
    dashboard.enter("#/tenants", "Tenants")
    name = page.get_by_label("New tenant")
    for wrong, text in (("acme", "acme"), ("bad name", "match pattern")):
        name.fill(wrong)
        dashboard.button("Create").click()
        expect(name).to_have_attribute("aria-invalid", "true")
        expect(page.locator(f"#{name.get_attribute('id')}-error")).to_contain_text(text)
    name.fill("globex")
    dashboard.button("Create").click()
    expect(dashboard.status).to_have_text("Tenant globex was created.")
    page.get_by_role("link", name="globex", exact=True).click()
    dashboard.wait_for("Tenant globex")

    dashboard.button("Create a key").click()
    secret = page.get_by_label("The new key").input_value()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    dashboard.button("Copy").click()
    expect(dashboard.status).to_have_text("The key was copied.")
    assert page.evaluate("navigator.clipboard.readText()") == secret
    (listed,) = server.ask("GET", "tenants/globex/keys")["data"]
    assert secret.startswith(listed["prefix"])
    page.get_by_role("button", name=f"Revoke {listed['prefix']}").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(dashboard.status).to_contain_text("was revoked")
    assert server.ask("GET", "tenants/globex/keys")["data"][0]["revoked"] is not None

    requests = page.get_by_label("Requests per minute")
    requests.fill("0")
    dashboard.button("Save the quota").click()
    expect(requests).to_be_focused()
    expect(page.get_by_text("greater than or equal to 1")).to_be_visible()
    requests.fill("60")
    page.get_by_label("May use the base model").check()
    dashboard.button("Save the quota").click()
    expect(dashboard.status).to_contain_text("The quota was saved")
    quota = server.ask("GET", "tenants/globex/quota")
    assert (quota["requests_per_minute"], quota["tokens_per_minute"]) == (60, None)
    assert quota["may_use_base"] is True
    requests.fill("")
    dashboard.button("Save the quota").click()
    expect(page.locator("form[aria-disabled]")).to_have_count(0)
    assert server.ask("GET", "tenants/globex/quota")["requests_per_minute"] is None

    dashboard.go("#/tenants", "Tenants")
    dashboard.button("Delete globex").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert server.ask("GET", "tenants/globex")["id"] == "globex"
    dashboard.button("Delete globex").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete globex").click()
    expect(dashboard.status).to_have_text("Tenant globex was deleted.")
    assert dashboard.column("Tenants") == ["acme"]

    dashboard.go("#/audit", "Audit")
    page.get_by_label("Of one tenant").fill("globex")
    dashboard.button("Show").click()
    expect(page.get_by_role("table", name="Changes of globex", exact=True)).to_be_visible()
    actions = dashboard.column("Changes of globex", 2)
    assert actions[0] == "tenant.delete"
    assert actions[-1] == "tenant.create"
    assert {"key.create", "key.revoke", "quota.set"} <= set(actions)


def test_a_question_ends_with_its_view(dashboard: Dashboard, server: Served) -> None:
    dashboard.enter("#/tenants", "Tenants")
    dashboard.go("#/adapters", "Adapters")
    dialog = dashboard.page.get_by_role("dialog")
    row = dashboard.page.get_by_role("row", name=re.compile("^pirate"))
    row.get_by_role("button").click()
    expect(dialog).to_be_visible()
    dashboard.page.go_back()
    dashboard.wait_for("Tenants")
    expect(dialog).to_have_count(0)
    assert "pirate" in str(listed(server))
    # The view before has its question again, and takes an answer.
    dashboard.page.go_forward()
    dashboard.wait_for("Adapters")
    row.get_by_role("button").click()
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_have_count(0)


def test_imports_show_their_end_and_refusals_their_reason(
    dashboard: Dashboard, server: Served
) -> None:
    page = dashboard.page
    dashboard.enter("#/adapters", "Adapters")
    assert [name.split()[0] for name in dashboard.column("Imported adapters")] == [
        "pirate", "lawyer", "poet", "chef",
    ]  # fmt: skip
    source = page.get_by_label("Import an adapter from")
    source.fill("empty")
    dashboard.button("Import").click()
    expect(source).to_have_attribute("aria-invalid", "true")
    source.fill("spare")
    dashboard.button("Import").click()
    expect(dashboard.status).to_contain_text("spare was imported")
    rows = dashboard.cells("Imported adapters")
    assert rows[-1][0].startswith("spare")
    assert rows[-1][1] == "nobody"
    assert rows[0][1:3] == ["acme", "host"]

    page.get_by_role("row", name=re.compile("^spare")).get_by_role("button").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(dashboard.status).to_contain_text("was deleted")
    assert len(server.ask("GET", "adapters")["data"]) == 4
    # One in use is not deleted, and the dialog says why.
    dashboard.expected.append("409")
    page.get_by_role("row", name=re.compile("^pirate")).get_by_role("button").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("acme")


def test_a_set_is_tried_swapped_and_rolled_back(dashboard: Dashboard, server: Served) -> None:
    page = dashboard.page
    digests = {item["source"].rsplit("/")[-1]: item["digest"] for item in listed(server)}
    server.add_tenant("initech", {"first": digests["pirate"], "second": digests["lawyer"]})
    dashboard.enter("#/tenants/initech/set", "Adapter set of initech")
    rows = page.get_by_role("listitem").filter(has=page.get_by_label("Name", exact=True))
    expect(rows).to_have_count(2)
    rows.nth(0).get_by_label("Adapter").fill(digests["poet"][:10])
    expect(rows.nth(0)).to_contain_text("2 of them per token")
    dashboard.button("Remove second").click()
    dashboard.button("Add a row").click()
    rows.nth(1).get_by_label("Name", exact=True).fill("third")
    dashboard.button("Dry run").click()
    expect(rows.nth(1).get_by_label("Adapter")).to_have_attribute("aria-invalid", "true")
    rows.nth(1).get_by_label("Adapter").fill(f"chef · {digests['chef'][:12]}")
    dashboard.button("Dry run").click()
    caption = "What a swap would change"
    expect(page.get_by_role("table", name=caption)).to_be_visible()
    assert [row[:2] for row in dashboard.cells(caption)] == [
        ["first", "± changed"], ["second", "− removed"], ["third", "+ added"],
    ]  # fmt: skip
    assert server.ask("GET", "tenants/initech/set")["revision"] == 1
    dashboard.picture("set")

    dashboard.button("Swap").click()
    expect(page.get_by_text("Revision 2 is live")).to_be_visible()
    assert server.ask("GET", "tenants/initech/set")["adapters"] == {
        "first": digests["poet"],
        "third": digests["chef"],
    }
    assert dashboard.column("Revisions of initech")[:2] == ["2", "1"]

    dashboard.button("Show the difference").click()
    assert dashboard.column("From revision 1 to 2", 1) == ["± changed", "− removed", "+ added"]
    page.get_by_label("From revision", exact=True).select_option("2")
    page.get_by_label("to revision", exact=True).select_option("1")
    dashboard.button("Show the difference").click()
    assert dashboard.column("From revision 2 to 1", 1) == ["± changed", "+ added", "− removed"]

    dashboard.button("Roll back to 1").click()
    expect(page.get_by_role("dialog")).to_contain_text("second")
    dashboard.button("Roll back").click()
    expect(dashboard.status).to_contain_text("Revision 3 has the adapters of revision 1")
    assert server.ask("GET", "tenants/initech/set")["adapters"] == {
        "first": digests["pirate"],
        "second": digests["lawyer"],
    }
    expect(rows).to_have_count(2)


def test_who_was_slower_sees_what_changed_and_keeps_the_rows(
    dashboard: Dashboard, server: Served
) -> None:
    page = dashboard.page
    dashboard.expected.append("412")
    dashboard.enter(SET, SET_TITLE)
    before = server.ask("GET", "tenants/acme/set")
    names = page.get_by_label("Name", exact=True)
    names.first.fill("captain")
    others = {**before["adapters"], "extra": before["adapters"]["poet"]}
    server.ask("PUT", "tenants/acme/set", {"adapters": others})
    dashboard.button("Swap").click()
    conflict = page.get_by_role("group", name="Conflict")
    expect(conflict).to_contain_text("Somebody else changed this set")
    expect(conflict).to_contain_text("extra")
    expect(conflict.get_by_role("heading")).to_be_focused()
    assert names.first.input_value() == "captain"
    assert server.ask("GET", "tenants/acme/set")["adapters"] == others
    dashboard.button("Keep my rows").click()
    dashboard.button("Swap").click()
    expect(page.get_by_text(f"Revision {before['revision'] + 2} is live")).to_be_visible()
    mine = server.ask("GET", "tenants/acme/set")["adapters"]
    assert set(mine) == {"captain", "lawyer", "poet"}
    # The other way on: what the other one made.
    names.first.fill("mine")
    server.ask("PUT", "tenants/acme/set", {"adapters": before["adapters"]})
    dashboard.button("Swap").click()
    page.get_by_role("button", name=re.compile("Take revision")).click()
    assert [item.input_value() for item in names.all()] == list(before["adapters"])


def test_an_adapter_that_cannot_be_served_is_told_at_its_row(dashboard: Dashboard) -> None:
    dashboard.expected.append("422")
    dashboard.enter(SET, SET_TITLE)
    row = dashboard.page.get_by_role("listitem").filter(
        has=dashboard.page.get_by_label("Name", exact=True)
    )
    row.nth(1).get_by_label("Adapter").fill("ab" * 32)
    dashboard.button("Dry run").click()
    expect(row.nth(1)).to_contain_text("no adapter with the digest")
    expect(row.nth(1).get_by_label("Adapter")).to_be_focused()
    expect(row.nth(0).get_by_label("Adapter")).not_to_have_attribute("aria-invalid", "true")
    dashboard.button("Discard my changes").click()
    expect(row.nth(1)).not_to_contain_text("no adapter with the digest")


def test_the_playground_asks_three_adapters_at_once(dashboard: Dashboard, server: Served) -> None:
    page = dashboard.page
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    server.add_tenant("umbrella", server.ask("GET", "tenants/acme/set")["adapters"])
    dashboard.enter("#/playground", "Playground")
    page.get_by_label("Tenant").fill("umbrella")
    page.get_by_label("Prompt").focus()
    for model in ("pirate", "lawyer", "poet"):
        expect(page.get_by_label(model)).to_be_checked()
    page.get_by_label("Prompt").fill("What is the sea?")
    page.get_by_label("Most tokens").fill("60")
    dashboard.button("Ask").click()
    answers = page.get_by_role("article")
    expect(answers).to_have_count(3)
    expect(dashboard.status).to_have_text("3 answers ended.")
    assert sum(url.endswith("/tenants/umbrella/chat/completions") for url in asked) == 3
    for model, answer in zip(("pirate", "lawyer", "poet"), answers.all(), strict=True):
        assert answer.get_by_role("heading").inner_text() == model
        expect(answer).to_contain_text(re.compile(r"First token after .*, \d+ tokens, .*tokens/s"))
        given = server.ask(
            "POST",
            "tenants/umbrella/chat/completions",
            {
                "model": model,
                "messages": [{"role": "user", "content": "What is the sea?"}],
                "max_tokens": 60,
                "temperature": 0,
            },
        )
        text = given["choices"][0]["message"]["content"]
        assert answer.locator("pre").text_content() == text
    # It is the tenant's traffic, and the adapters' view has it.
    dashboard.go("#/adapters", "Adapters")
    requests = dict(zip("abcd", dashboard.column("Imported adapters", 4), strict=True))
    assert [float(requests[name]) >= 2 for name in "abc"] == [True] * 3


def test_the_playground_tells_what_a_quota_refuses_and_can_be_stopped(
    dashboard: Dashboard, server: Served
) -> None:
    page = dashboard.page
    dashboard.expected.append("429")
    adapters = server.ask("GET", "tenants/acme/set")["adapters"]
    server.add_tenant("tiny", adapters, requests_per_minute=1)
    dashboard.enter("#/playground", "Playground")
    page.get_by_label("Tenant").fill("tiny")
    page.get_by_label("Prompt").fill("Hello")
    page.get_by_label("Most tokens").fill("400")
    expect(page.get_by_label("poet")).to_be_checked()
    dashboard.button("Ask").click()
    expect(page.get_by_text("Rate limit reached for requests")).to_have_count(2)
    dashboard.button("Stop").click()
    expect(dashboard.status).to_have_text("3 answers ended.")
    page.get_by_label("Tenant").fill("nobody")
    dashboard.expected.append("404")
    page.get_by_label("Prompt").focus()
    expect(page.get_by_label("Tenant")).to_have_attribute("aria-invalid", "true")


def test_long_lists_come_page_by_page(dashboard: Dashboard) -> None:
    first, second = (
        {"data": [{"id": name, "created": "2026-11-29T12:00:00Z"}], "has_more": more}
        for name, more in (("a/b", True), ("c", False))
    )
    dashboard.answer("tenants?limit=100", first)
    dashboard.answer("tenants?limit=100&after=a%2Fb", second)
    dashboard.enter("#/tenants", "Tenants")
    assert dashboard.column("Tenants") == ["a/b"]
    dashboard.button("Show more").click()
    expect(dashboard.status).to_have_text("1 more shown.")
    assert dashboard.column("Tenants") == ["a/b", "c"]
    expect(dashboard.button("Show more")).to_be_hidden()


def test_what_cannot_be_shown_says_so(dashboard: Dashboard, server: Served) -> None:
    dashboard.expected += ["404", "500"]
    dashboard.enter("#/tenants/nobody", "Not found")
    expect(dashboard.page.get_by_role("alert").filter(has_text="nobody")).to_be_visible()
    for view in ("#/nowhere", "#/tenants/%E0%A4%A"):
        dashboard.go(view, "Not found")
    dashboard.answer("audit*", {"error": {"message": "The server had an error."}}, status=500)
    dashboard.go("#/audit", "This could not be shown")
    dashboard.page.unroute_all()
    dashboard.button("Try again").click()
    dashboard.wait_for("Audit")
    assert server.client.get("/").status_code == 200


def listed(server: Served) -> list[dict[str, str]]:
    found: list[dict[str, str]] = server.ask("GET", "adapters")["data"]
    return found


def test_the_files_need_no_key_and_data_does(server: Served) -> None:
    assert httpx.get(server.url).status_code == 200
    assert httpx.get(f"{server.url}/admin/v1/tenants").status_code == 401
