"""By keyboard alone, for screen readers, in light and dark, and on a narrow screen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.system.dashboard.dashboard import (
    Dashboard,
    canaries_answer,
    routing_answer,
    training_answer,
)
from tests.system.dashboard.served import KEY, Served

pytestmark = pytest.mark.system


@pytest.fixture
def views(dashboard: Dashboard, server: Served) -> dict[str, str]:
    """Every view of the dashboard, with its title."""
    digest = server.ask("GET", "adapters")["data"][0]["digest"]
    routing = routing_answer(4, 8, ("up_proj", "down_proj"))
    dashboard.answer(f"adapters/{digest}/routing", routing)
    dashboard.answer(f"adapters/{digest}/training", training_answer())
    dashboard.answer("tenants/acme/canary", canaries_answer(digest))
    return {
        "#/tenants": "Tenants",
        "#/tenants/acme": "Tenant acme",
        "#/tenants/acme/set": "Adapter set of acme",
        "#/adapters": "Adapters",
        f"#/adapters/{digest}": "pirate",
        "#/playground": "Playground",
        "#/audit": "Audit",
    }


def each(dashboard: Dashboard, views: dict[str, str]) -> Iterator[str]:
    """Goes to the sign-in and then to every view."""
    dashboard.open()
    yield "sign-in"
    dashboard.sign_in()
    dashboard.wait_for("Tenants")
    for view, title in views.items():
        dashboard.go("#/nowhere", "Not found")
        dashboard.go(view, title)
        open_parts(dashboard, title)
        yield view


def open_parts(dashboard: Dashboard, title: str) -> None:
    """Opens what a view hides at first: dialogs come last, over all else."""
    page = dashboard.page
    if title == "Tenant acme":
        dashboard.button("Create a key").click()
        expect(page.get_by_label("The new key")).to_be_focused()
        page.get_by_label("Requests per minute").fill("0")
        dashboard.expected.append("400")
        dashboard.button("Save the quota").click()
        expect(page.get_by_label("Requests per minute")).to_be_focused()
    elif title == "Adapter set of acme":
        dashboard.button("Remove poet").click()
        dashboard.button("Dry run").click()
        expect(page.get_by_text("Dry run: every adapter")).to_be_visible()
    elif title == "Playground":
        page.get_by_label("Tenant").fill("acme")
        page.get_by_label("Prompt").fill("Hello")
        page.get_by_label("Most tokens").fill("5")
        expect(page.get_by_label("pirate")).to_be_checked()
        dashboard.button("Ask").click()
        expect(dashboard.status).to_contain_text("ended")
    elif title == "Tenants":
        dashboard.button("Delete acme").click()
        expect(page.get_by_role("dialog")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(dashboard: Dashboard, views: dict[str, str], scheme: str) -> None:
    dashboard.page.emulate_media(color_scheme=scheme)
    for view in each(dashboard, views):
        found = Axe().run(dashboard.page).response["violations"]
        told = [(rule["id"], [node["html"] for node in rule["nodes"]][:3]) for rule in found]
        assert told == [], view
        close_dialog(dashboard.page)


def close_dialog(page: Page) -> None:
    if page.get_by_role("dialog").count():
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)


def test_light_and_dark_differ(dashboard: Dashboard) -> None:
    shown = set()
    for scheme in ("light", "dark"):
        dashboard.page.emulate_media(color_scheme=scheme)
        dashboard.open()
        shown.add(dashboard.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(shown) == 2


def test_nothing_is_cut_off_at_360_pixels(dashboard: Dashboard, views: dict[str, str]) -> None:
    dashboard.page.set_viewport_size({"width": 360, "height": 700})
    for view in each(dashboard, views):
        width = dashboard.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 360, view
        close_dialog(dashboard.page)


def test_nothing_moves_for_those_who_want_it_so(dashboard: Dashboard) -> None:
    dashboard.page.emulate_media(reduced_motion="reduce")
    dashboard.enter("#/tenants", "Tenants")
    moving = dashboard.page.evaluate(
        """[...document.querySelectorAll("*")].filter(element => {
            const style = getComputedStyle(element);
            return style.transitionDuration !== "0s" || style.animationName !== "none";
        }).length"""
    )
    assert moving == 0


def test_a_whole_journey_by_keyboard(dashboard: Dashboard, server: Served) -> None:
    page = dashboard.page
    dashboard.open()
    expect(page.get_by_label("Admin key")).to_be_focused()
    page.keyboard.type(KEY)
    dashboard.press("Enter")
    dashboard.wait_for("Tenants")

    dashboard.tab_to(page.get_by_label("New tenant"))
    page.keyboard.type("hooli")
    dashboard.press("Enter")
    expect(dashboard.status).to_have_text("Tenant hooli was created.")
    dashboard.tab_to(page.get_by_role("link", name="Set of hooli"))
    dashboard.press("Enter")
    dashboard.wait_for("Adapter set of hooli")

    dashboard.tab_to(dashboard.button("Add a row"))
    dashboard.press("Enter")
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    page.keyboard.type("bard")
    dashboard.press("Tab")
    page.keyboard.type("poet")
    expect(page.get_by_role("listitem").filter(has=page.get_by_label("Adapter"))).to_contain_text(
        "2 of them per token"
    )
    dashboard.tab_to(dashboard.button("Swap"))
    dashboard.press("Enter")
    expect(page.get_by_text("Revision 1 is live")).to_be_visible()
    expect(dashboard.button("Swap")).to_be_focused()
    assert set(server.ask("GET", "tenants/hooli/set")["adapters"]) == {"bard"}

    page.keyboard.press("Shift+Tab")
    dashboard.go("#/tenants", "Tenants")
    delete = dashboard.button("Delete hooli")
    dashboard.tab_to(delete)
    dashboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    dashboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(delete).to_be_focused()
    # The browser tells of the end a moment after it hides the dialog; no person is faster.
    expect(delete).not_to_have_attribute("aria-disabled", "true")
    dashboard.press("Enter")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    dashboard.press("Tab")
    expect(dialog.get_by_role("button", name="Delete hooli")).to_be_focused()
    dashboard.press("Enter")
    expect(dashboard.status).to_have_text("Tenant hooli was deleted.")
    expect(dashboard.heading).to_be_focused()

    # The way past the menu, from the top.
    page.reload()
    page.evaluate("document.activeElement.blur()")
    dashboard.tab_to(page.get_by_role("link", name="Skip to the content"))
    dashboard.press("Enter")
    expect(page.locator("main")).to_be_focused()


def test_landmarks_headings_and_news_for_a_screen_reader(
    dashboard: Dashboard, views: dict[str, str]
) -> None:
    page = dashboard.page
    for view in each(dashboard, views):
        close_dialog(page)
        for landmark in ("banner", "main"):
            expect(page.get_by_role(landmark)).to_have_count(1)
        expect(page.get_by_role("status")).to_have_count(1)
        shown = page.get_by_role("heading", level=1)
        assert len([h for h in shown.all() if h.is_visible()]) == 1, view
        if view != "sign-in":
            expect(page.get_by_role("navigation", name="Views")).to_be_visible()
            assert page.title().startswith(views[view])
