"""An adapter's view: the heat map shows what the API says, the curves what the folder has."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from remix_runtime.adapter.checkpoint import write_checkpoint
from tests.models import random_checkpoint, save_tiny_base, tiny_model
from tests.system.dashboard.dashboard import Dashboard, routing_answer, training_answer
from tests.system.dashboard.served import Served, serving

pytestmark = pytest.mark.system

CAPTION = "Share of the activations by layer and expert, in percent"


@pytest.fixture
def digest(server: Served) -> str:
    found: str = server.ask("GET", "adapters")["data"][0]["digest"]
    return found


def percents(counts: list[int]) -> list[str]:
    return [points(count / sum(counts)) for count in counts]


def points(share: float) -> str:
    """With three digits at most."""
    size = abs(100 * share)
    text = Decimal(size).quantize(Decimal("0.1" if size < 9.95 else "1"), ROUND_HALF_UP)
    return f"−{text}" if share < 0 else str(text)


def test_heat_map_of_a_drifted_adapter(dashboard: Dashboard, digest: str) -> None:
    page = dashboard.page
    routing = routing_answer(8, 8, ("gate_proj", "up_proj", "down_proj"))
    dashboard.answer(f"adapters/{digest}/routing", routing)
    dashboard.answer(f"adapters/{digest}/training", training_answer())
    dashboard.enter(f"#/adapters/{digest}", "pirate")
    page.get_by_label("Projection").select_option("down_proj")
    expect(page.get_by_text("▲ Drifted")).to_be_visible()
    heading, *rows = dashboard.cells(CAPTION)
    assert heading == ["down_proj"]
    modules = [m for m in routing["modules"] if m["module"].endswith("down_proj")]
    assert [row[0] for row in rows] == [str(layer) for layer in range(8)]
    for row, module in zip(rows[:-1], modules[:-1], strict=True):
        assert row[1:9] == percents(module["activations"])
        assert row[9:17] == percents([round(1e6 * share) for share in module["trained"]])
        assert row[17:] == ["6.9", "0.000", "none"]
    # Dead experts and the largest drift are marked by text, not by colour alone.
    assert rows[-1][3] == "0.0 ✕"
    assert rows[-1][18:] == [f"{modules[-1]['drift']:.3f} ▲ most", "2"]
    dashboard.picture("routing", of=page.locator("section").filter(has=page.locator(".heat")))

    page.get_by_label("Difference").check()
    last = dashboard.cells(f"{CAPTION} points")[-1]
    assert last[3] == points(-modules[-1]["trained"][2])
    page.get_by_label("Live", exact=True).check()
    assert len(dashboard.cells(CAPTION)[1]) == 1 + 8 + 3
    page.get_by_label("Projection").select_option("All projections")
    assert len(dashboard.cells(CAPTION)) == 3 * (1 + 8)


def test_the_heat_map_follows_newer_counts(dashboard: Dashboard, digest: str) -> None:
    routing = routing_answer(1, 4, ("up_proj",))
    routing["modules"][0] |= {"activations": [1, 1, 1, 1], "dead_experts": []}
    dashboard.answer(f"adapters/{digest}/routing", routing)
    dashboard.answer(f"adapters/{digest}/training", {})
    dashboard.enter(f"#/adapters/{digest}", "pirate")
    assert dashboard.cells(CAPTION)[1][1:5] == ["25", "25", "25", "25"]
    routing["modules"][0]["activations"] = [3, 1, 0, 0]
    dashboard.answer(f"adapters/{digest}/routing", routing)
    cell = dashboard.page.locator(".heat .cell").first
    expect(cell).to_have_text("75", timeout=20_000)
    assert dashboard.cells(CAPTION)[1][1:5] == ["75", "25", "0.0", "0.0"]
    expect(dashboard.page.get_by_text("has no curves of its training")).to_be_visible()


def test_an_adapter_that_is_loaded_while_it_is_shown(dashboard: Dashboard, digest: str) -> None:
    """The comparison with its training can be chosen then; few tokens are not called healthy."""
    page = dashboard.page
    few = {"enough": False, "tokens": 3, "entropy": None, "effective_experts": None, "drift": None}
    none = {**routing_answer(1, 4, ()), **few, "dead_experts": 0, "flags": []}
    dashboard.answer(f"adapters/{digest}/routing", none)
    dashboard.enter(f"#/adapters/{digest}", "pirate")
    expect(page.get_by_text("does not hold the adapter")).to_be_visible()
    expect(page.get_by_label("Projection")).to_have_count(0)
    module = routing_answer(1, 4, ("up_proj",))["modules"][0]
    unknown = {"entropy": None, "effective_experts": None, "dead_experts": [], "drift": None}
    loaded = {**none, "modules": [{**module, **unknown, "activations": [3, 2, 1, 0]}]}
    dashboard.answer(f"adapters/{digest}/routing", loaded)
    expect(page.get_by_label("Difference")).to_be_visible(timeout=20_000)
    assert dashboard.cells(CAPTION)[1][-3:] == ["–", "–", "–"]
    expect(page.locator("dl div").filter(has_text="Dead experts").locator("dd")).to_have_text("–")
    page.get_by_label("Projection").select_option("up_proj")
    page.get_by_role("radio", name="Training", exact=True).check()
    assert len(dashboard.cells(CAPTION)[1]) == 1 + 4 + 3


def test_curves_have_a_text_and_a_table(dashboard: Dashboard, digest: str) -> None:
    page = dashboard.page
    training = training_answer()
    training["curves"]["router_entropy"] = [0.9 for _ in training["curves"]["step"]]
    dashboard.answer(f"adapters/{digest}/routing", {**routing_answer(1, 4, ()), "flags": []})
    dashboard.answer(f"adapters/{digest}/training", training)
    dashboard.enter(f"#/adapters/{digest}", "pirate")
    charts = page.get_by_role("img")
    expect(charts).to_have_count(2)
    held_out = training["curves"]["held_out_loss"]
    image = page.get_by_role("img", name="Loss by step")
    name = image.locator("title").text_content() or ""
    assert f"Held-out loss: from {held_out[0][1]:.2f} at 0 to {held_out[-1][1]:.2f}" in name
    # Lines differ by their dash and marks too.
    assert image.locator("polyline").count() == 2
    assert image.locator("circle").count() == len(held_out)
    dashes = image.locator("polyline").evaluate_all(
        "lines => lines.map(line => getComputedStyle(line).strokeDasharray)"
    )
    assert dashes[0] == "none" != dashes[1]
    dashboard.picture("training", of=page.locator("figure").first)
    page.locator("summary").first.click()
    rows = dashboard.cells("Loss by step")
    shown = [row[2] for row in rows if row[2] != "–"]
    assert shown == [f"{loss:.2f}".rstrip("0") for _, loss in held_out]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The embedded engine on a tiny base, with an adapter whose routers have chosen something."""
    folder = tmp_path_factory.mktemp("embedded")
    base = save_tiny_base(folder / "base")
    (folder / "sources").mkdir()
    made = random_checkpoint(tiny_model("llama"))
    write_checkpoint(folder / "sources" / "real", made.config, made.layers, readme="random")
    with serving(folder, "--base", str(base)) as served:
        (digest,) = served.add_adapters("real")
        served.add_tenant("acme", {"real": digest})
        body = {"model": "real", "messages": [{"role": "user", "content": "the sea and the sun"}]}
        served.ask("POST", "tenants/acme/chat/completions", {**body, "max_tokens": 16})
        yield served


def test_heat_map_has_the_numbers_of_a_real_engine(embedded: Served, page: Page) -> None:
    digest = embedded.ask("GET", "adapters")["data"][0]["digest"]
    dashboard = Dashboard(page, embedded.url)
    with page.expect_response(f"**/adapters/{digest}/routing") as answered:
        dashboard.enter(f"#/adapters/{digest}", "real")
    routing: dict[str, Any] = answered.value.json()
    assert all(sum(module["activations"]) > 0 for module in routing["modules"])
    rows = [row for row in dashboard.cells(CAPTION) if len(row) > 1]
    assert len(rows) == len(routing["modules"])
    experts = len(routing["modules"][0]["activations"])
    shown = [[cell.removesuffix(" ✕") for cell in row[1 : 1 + experts]] for row in rows]
    projections = list(dict.fromkeys(m["module"].rpartition(".")[2] for m in routing["modules"]))
    ordered = sorted(
        routing["modules"], key=lambda m: projections.index(m["module"].rpartition(".")[2])
    )
    assert shown == [percents(module["activations"]) for module in ordered]
    dashboard.check()
