"""Whatever others wrote is text on the page, and nothing of it runs."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from playwright.sync_api import Route, expect

from tests.system.dashboard.dashboard import Dashboard, routing_answer, training_answer
from tests.system.dashboard.served import Served

pytestmark = pytest.mark.system

EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'`${7*7}{{7*7}}\u202etxt"
DIGEST = "ab" * 32
WHEN = "2026-11-29T12:00:00Z"


def adapter(source: str) -> dict[str, object]:
    return {
        "digest": DIGEST,
        "source": source,
        "num_bytes": 1,
        "created": WHEN,
        "description": {"num_experts": 2, "top_k": EVIL, "r": 1, "target_modules": [EVIL]},
        "tenants": [EVIL],
        "replica": None,
    }


def assert_is_text(dashboard: Dashboard, *, times: int = 1) -> None:
    """The text is shown as it is, and made no element."""
    expect(dashboard.page.get_by_text(EVIL).first).to_be_visible()
    assert (dashboard.page.locator("#view").text_content() or "").count(EVIL) >= times
    made = dashboard.page.locator("img, script:not([src='web/main.js']), iframe, [onerror]")
    assert made.count() == 0


def test_names_of_tenants_adapters_and_who_changed_what(dashboard: Dashboard) -> None:
    rows = {"data": [{"id": EVIL, "created": WHEN}], "has_more": False}
    dashboard.answer("tenants?limit=100", rows)
    dashboard.answer("adapters?*", {"data": [adapter(EVIL)], "has_more": False})
    refused = {"id": "1", "at": WHEN, "source": EVIL, "error": EVIL, "reason": EVIL}
    dashboard.answer("quarantine", {"data": [refused]})
    change = {"id": 1, "at": WHEN, "actor": EVIL, "action": EVIL, "tenant": EVIL}
    change["detail"] = {EVIL: EVIL}
    dashboard.answer("audit*", {"data": [change], "has_more": False})
    dashboard.enter("#/tenants", "Tenants")
    assert_is_text(dashboard, times=3)
    dashboard.go("#/adapters", "Adapters")
    assert_is_text(dashboard, times=3)
    dashboard.go("#/audit", "Audit")
    assert_is_text(dashboard, times=3)


def test_an_adapter_and_what_it_says_of_itself(dashboard: Dashboard) -> None:
    routing = routing_answer(1, 4, (EVIL.replace(".", ""),))
    dashboard.answer(f"adapters/{DIGEST}", adapter(EVIL))
    dashboard.answer(f"adapters/{DIGEST}/routing", {**routing, "flags": [EVIL]})
    curves = {**training_answer(5)["curves"], EVIL: [1, 2, 3, 4, 5]}
    dashboard.answer(f"adapters/{DIGEST}/training", {"curves": curves})
    dashboard.enter(f"#/adapters/{DIGEST}", EVIL.rpartition("/")[2])
    assert_is_text(dashboard, times=6)


def test_a_set_its_revisions_and_the_reasons_of_a_refusal(dashboard: Dashboard) -> None:
    dashboard.expected.append("422")
    revision = {
        "tenant": "acme",
        "created": WHEN,
        "actor": EVIL,
        "rolled_back_from": None,
        "live_revision": 2,
    }
    newest = {**revision, "revision": 2, "adapters": {EVIL: DIGEST, "constructor": DIGEST}}
    older = {**revision, "revision": 1, "adapters": {"toString": DIGEST}}
    dashboard.answer("tenants/acme/set", newest)
    dashboard.answer("tenants/acme/set/revisions*", {"data": [newest, older], "has_more": False})
    dashboard.answer("adapters?*", {"data": [adapter(EVIL)], "has_more": False})
    dashboard.enter("#/tenants/acme/set", "Adapter set of acme")
    dashboard.button("Show the difference").click()
    # Names of what every object has are names as any other.
    names = dashboard.column("From revision 1 to 2")
    assert sorted(names) == sorted([EVIL, "constructor", "toString"])
    assert_is_text(dashboard, times=3)
    reasons = {EVIL: EVIL, "constructor": EVIL, "another": EVIL}
    error = {"message": EVIL, "type": "x", "code": "bad_set", "reasons": reasons}
    dashboard.answer("tenants/acme/set?dry_run=true", {"error": error}, status=422)
    dashboard.button("Dry run").click()
    expect(dashboard.page.locator("[aria-invalid]")).to_have_count(2)
    assert_is_text(dashboard, times=6)


def test_errors_of_the_api(dashboard: Dashboard) -> None:
    dashboard.expected.append("400")
    dashboard.enter("#/tenants", "Tenants")
    dashboard.answer("tenants", {"error": {"message": EVIL, "param": "id"}}, status=400)
    dashboard.page.get_by_label("New tenant").fill("x")
    dashboard.button("Create").click()
    assert_is_text(dashboard)


def test_answers_of_models(dashboard: Dashboard, server: Served) -> None:
    def fulfil(route: Route) -> None:
        delta = {"choices": [{"index": 0, "delta": {"content": EVIL}}], "system_fingerprint": EVIL}
        end = {"choices": [], "usage": {"completion_tokens": 3}}
        text = "".join(f"data: {json.dumps(part)}\n\n" for part in (delta, end))
        route.fulfill(content_type="text/event-stream", body=f": hold on\n\n{text}data: [DONE]\n\n")

    ask_hostile(dashboard, fulfil)
    assert_is_text(dashboard, times=2)
    expect(dashboard.page.get_by_role("article").locator("pre")).to_have_text(EVIL)
    expect(dashboard.page.get_by_role("article")).to_contain_text("3 tokens")


def test_errors_in_the_middle_of_an_answer(dashboard: Dashboard) -> None:
    def fulfil(route: Route) -> None:
        error = {"error": {"message": EVIL}}
        route.fulfill(content_type="text/event-stream", body=f"data: {json.dumps(error)}\n\n")

    ask_hostile(dashboard, fulfil)
    assert_is_text(dashboard)
    expect(dashboard.page.get_by_role("article")).to_contain_text("No token came.")


def ask_hostile(dashboard: Dashboard, fulfil: Callable[[Route], None]) -> None:
    """Asks a model with a hostile name, whose answer `fulfil` makes."""
    page = dashboard.page
    dashboard.answer("tenants/acme/models", {"data": [{"id": EVIL}]})
    page.route("**/tenants/acme/chat/completions", fulfil)
    dashboard.enter("#/playground", "Playground")
    page.get_by_label("Tenant").fill("acme")
    page.get_by_label("Prompt").fill("Hello")
    expect(page.get_by_label(EVIL)).to_be_checked()
    dashboard.button("Ask").click()
    expect(dashboard.status).to_have_text("1 answer ended.")


def test_the_policy_lets_no_text_become_markup(dashboard: Dashboard) -> None:
    """The second wall, if a script of ours ever got it wrong."""
    dashboard.expected += ["Trusted", "Content Security Policy", "Content-Security-Policy"]
    dashboard.enter("#/tenants", "Tenants")
    refused = dashboard.page.evaluate(
        """html => {
            try {
                document.getElementById("view").innerHTML = html;
            } catch (error) {
                return error.name;
            }
        }""",
        EVIL,
    )
    assert refused == "TypeError"
    assert dashboard.page.evaluate("fetch('https://example.org').catch(error => error.name)") == (
        "TypeError"
    )
    dashboard.foreign.clear()  # it was asked for, and never sent
