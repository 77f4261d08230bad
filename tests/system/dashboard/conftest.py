from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.system.dashboard.dashboard import Dashboard
from tests.system.dashboard.served import Served, serving
from tests.unit.store.conftest import write_adapter

SOURCES = ("pirate", "lawyer", "poet", "chef")
"""Imported already; `spare` beside them is not."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "chromium is not on the PATH (Debian: apt install chromium)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A fake engine, four imported adapters, and the tenant `acme` with three of them."""
    folder = tmp_path_factory.mktemp("server")
    write_sources(folder / "sources")
    with serving(folder, "--engine", "fake", "--token-seconds", "0.01") as served:
        pirate, lawyer, poet, _ = served.add_adapters(*SOURCES)
        served.add_tenant("acme", {"pirate": pirate, "lawyer": lawyer, "poet": poet})
        yield served


def write_sources(folder: Path) -> None:
    folder.mkdir()
    for seed, name in enumerate((*SOURCES, "spare")):
        write_adapter(folder / name, seed)
    (folder / "empty").mkdir()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(
        viewport={"width": 1200, "height": 900}, locale="en-GB", timezone_id="UTC"
    )
    context.set_default_timeout(15_000)
    yield context.new_page()
    context.close()


@pytest.fixture
def dashboard(server: Served, page: Page) -> Iterator[Dashboard]:
    """Not signed in. At the end nothing was asked of another origin, and the console has no error
    but what a test expects."""
    opened = Dashboard(page, server.url)
    yield opened
    opened.check()
