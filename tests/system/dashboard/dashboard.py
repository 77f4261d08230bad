"""The dashboard in a browser, in the words of a test."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import ConsoleMessage, Locator, Page, Request, Route, expect

from tests.system.dashboard.served import KEY

IMAGES = Path(__file__).parents[3] / "docs" / "images"
WRITES_IMAGES = "REMIX_DASHBOARD_IMAGES"
"""The environment variable with which the tests write the documents' pictures."""


class Dashboard:
    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.foreign: list[str] = []
        """Requests to other origins."""
        self.errors: list[str] = []
        """Of the page's scripts, and of its console."""
        self.expected: list[str] = []
        """Parts of console messages that the test provokes."""
        page.on("request", self._see_request)
        page.on("console", self._see_console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: self.errors.append(f"dialog: {dialog.message}"))

    def _see_request(self, request: Request) -> None:
        if not request.url.startswith(f"{self.url}/"):
            self.foreign.append(request.url)

    def _see_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def check(self) -> None:
        assert self.foreign == []
        unexpected = [e for e in self.errors if not any(part in e for part in self.expected)]
        assert unexpected == []

    # -- going about ----------------------------------------------------------------------------

    def open(self, view: str = "") -> None:
        self.page.goto(f"{self.url}/{view}")

    def sign_in(self, key: str = KEY) -> None:
        self.page.get_by_label("Admin key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()

    def enter(self, view: str, title: str) -> None:
        """Opens and signs in; waits for the view's title."""
        self.open(view)
        self.sign_in()
        self.wait_for(title)

    def go(self, view: str, title: str) -> None:
        """Within the page, as a link does."""
        self.page.evaluate("hash => { location.hash = hash; }", view)
        self.wait_for(title)

    def wait_for(self, title: str) -> None:
        expect(self.heading).to_have_text(title)
        expect(self.heading).to_be_focused()

    @property
    def heading(self) -> Locator:
        return self.page.locator("#view h1")

    @property
    def status(self) -> Locator:
        return self.page.get_by_role("status")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def answer(self, path: str, body: Any, *, status: int = 200) -> None:
        """Answers requests for a path of the API in the place of the server."""

        def fulfil(route: Route) -> None:
            route.fulfill(status=status, content_type="application/json", body=json.dumps(body))

        self.page.route(f"{self.url}/admin/v1/{path}", fulfil)

    # -- what is seen ---------------------------------------------------------------------------

    def cells(self, caption: str) -> list[list[str]]:
        """The texts of a table's body, row by row."""
        rows = self.page.get_by_role("table", name=caption, exact=True).locator("tbody tr")
        return [row.locator("th, td").all_inner_texts() for row in rows.all()]

    def column(self, caption: str, index: int = 0) -> list[str]:
        return [row[index] for row in self.cells(caption)]

    def picture(self, name: str, *, of: Locator | None = None) -> None:
        """Takes a picture. Only where `REMIX_DASHBOARD_IMAGES` is set it becomes the documents':
        times and digests differ from run to run, and no run leaves changes behind unasked."""
        self.page.evaluate(
            """() => {
                document.getElementById("status").textContent = "";
                const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
                while (texts.nextNode()) {
                    // Sources lie in a folder of the test.
                    const { data } = texts.currentNode;
                    texts.currentNode.data = data.replace(/\\S*\\/sources\\//, "/adapters/");
                }
            }"""
        )
        taken = self.page.screenshot(animations="disabled") if of is None else of.screenshot()
        image = Image.open(io.BytesIO(taken)).convert("RGB")
        assert image.width > 300
        assert len(image.getcolors(1 << 24) or ()) > 8, "nothing is to be seen"
        if os.environ.get(WRITES_IMAGES):
            IMAGES.mkdir(exist_ok=True)
            colours = image.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            colours.save(IMAGES / f"dashboard-{name}.png", optimize=True)

    # -- by keyboard ----------------------------------------------------------------------------

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def tab_to(self, target: Locator, *, most: int = 80) -> None:
        """Presses Tab until the target has the focus, which must be visible then."""
        for _ in range(most):
            self.press("Tab")
            if target.evaluate("element => element === document.activeElement"):
                outline = target.evaluate("element => getComputedStyle(element).outlineStyle")
                assert outline != "none", "the focus cannot be seen"
                return
        raise AssertionError(f"{most} tabs do not lead to {target}")


def routing_answer(layers: int, experts: int, projections: Sequence[str]) -> dict[str, Any]:
    """An answer of the API about an adapter whose routing drifted: the last projection's."""
    modules = []
    for layer in range(layers):
        for place, projection in enumerate(projections):
            weights = [1 + (7 * layer + 5 * place + 3 * e * e) % 11 for e in range(experts)]
            trained = [weight / sum(weights) for weight in weights]
            drifted = projection == projections[-1] and layer == layers - 1
            counts = [100 * weight for weight in (weights[::-1] if drifted else weights)]
            if drifted:
                counts[2] = 0
            total = sum(counts)
            drift = sum(abs(c / total - t) for c, t in zip(counts, trained, strict=True)) / 2
            modules.append(
                {
                    "module": f"model.layers.{layer}.mlp.{projection}",
                    "activations": counts,
                    "trained": trained,
                    "entropy": 0.93,
                    "effective_experts": 6.9,
                    "dead_experts": [2] if drifted else [],
                    "drift": round(drift, 4),
                }
            )
    return {
        "tokens": 184_320,
        "enough": True,
        "entropy": 0.93,
        "effective_experts": 6.9,
        "dead_experts": 1,
        "drift": 0.041,
        "flags": ["drifted"],
        "modules": modules,
    }


def training_answer(steps: int = 120) -> dict[str, Any]:
    step = list(range(0, 10 * steps, 10))
    loss = [1.2 + 1.9 / (1 + s / 90) + 0.06 * ((s // 10 * 37) % 7 - 3) / 3 for s in step]
    held_out = [[s, 1.35 + 1.8 / (1 + s / 110)] for s in step[::12]]
    return {"curves": {"step": step, "loss": loss, "held_out_loss": held_out}}


def canaries_answer(digest: str) -> dict[str, Any]:
    """One that runs, and one that was rolled back."""
    arm = {
        **{"requests": 120, "failures": 1},
        **{"first_token_median_seconds": 0.031, "first_token_p95_seconds": 0.12},
        **{"token_median_seconds": 0.0111, "token_p95_seconds": None},
    }
    running = {
        **{"name": "pirate", "id": "1", "digest": digest, "share": 0.1, "actor": "admin"},
        **{"state": "running", "created": "2026-11-29T12:00:00Z", "ended": None, "reason": ""},
        "waits_for": "120 of 200 requests",
        "figures": {"canary": arm, "live": {**arm, "requests": 1100, "failures": 0}},
    }
    over = {"state": "rolled_back", "ended": "2026-11-29T12:30:00Z", "reason": "by hand"}
    ended = {**running, "name": "poet", "id": "2", "waits_for": "", "figures": {}, **over}
    return {"data": [running, ended], "has_more": False}
