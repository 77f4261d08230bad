"""Canaries over HTTP: their share of requests, how they are promoted, rolled back and ended."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from remix_runtime import watch
from remix_runtime.adapter.load import judge
from server.tenancy.errors import DatabaseUnavailableError
from tests.unit.admin.canaries.harness import PATH, QUICK, SLOW, Server, begin


async def ends_counted(server: Server) -> dict[tuple[str, str], float]:
    """What `/metrics` counts, by outcome and decision. All that may be counted has a series."""
    found = {}
    text = (await server.admin.get("/metrics")).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "remix_canaries_ended_total":
                found[sample.labels["outcome"], sample.labels["decision"]] = sample.value
    assert len(found) == 3
    return {key: count for key, count in found.items() if count}


async def test_a_share_of_the_users_gets_it_and_each_stays_on_its_side(server: Server) -> None:
    live, new = await server.adapter(0), await begin(server, share=0.25)
    first = await server.digests_of(80)
    assert set(first) == {live, new}
    assert 8 <= first.count(new) <= 32
    assert await server.digests_of(80) == first
    assert (server.seen.canary.requests, server.seen.live.requests) == (
        2 * first.count(new),
        2 * first.count(live),
    )


async def test_it_is_promoted_within_the_bounds_as_a_revision_like_any_other(
    server: Server,
) -> None:
    new = await begin(server, **QUICK)
    await server.digests_of(60)
    ended = await server.ended()
    assert (ended["state"], ended["digest"]) == ("promoted", new)
    assert "within the bounds" in ended["reason"]
    assert ended["figures"]["canary"]["requests"] >= 20
    shown = await server.succeed("GET", "/tenants/acme/set")
    assert (shown["adapters"], shown["revision"], shown["live_revision"]) == ({"x": new}, 2, 2)
    assert set(await server.digests_of(10)) == {new}
    assert await ends_counted(server) == {("promoted", "automatic"): 1}
    await server.succeed("POST", "/tenants/acme/set/rollback", json={"revision": 1})


async def test_a_slow_one_is_rolled_back(server: Server) -> None:
    await begin(server, **SLOW)
    for _ in range(40):
        server.seen.live.first.add(0.1)
        server.seen.canary.first.add(1.0)
    ended = await server.ended()
    assert ended["state"] == "rolled_back"
    assert "first token: 40 of 40 requests took longer than" in ended["reason"]
    assert await ends_counted(server) == {("rolled_back", "automatic"): 1}


async def test_one_that_was_stopped_is_rolled_back_though_its_figures_are_good_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait that was counted as if it ended may come to nothing while the database is away."""
    monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.01)
    live, _ = await server.adapter(0), await begin(server, share=1.0)
    canaries = server.apps.admin.state.services.directory.canaries
    seen, end = server.seen, canaries.end

    async def away(*_: object, **__: object) -> None:
        seen.canary.requests = seen.canary.failures = 0
        monkeypatch.setattr(canaries, "end", end)
        raise DatabaseUnavailableError("away")

    monkeypatch.setattr(canaries, "end", away)
    seen.canary.requests = seen.canary.failures = 10
    ended = await server.ended()
    assert (ended["state"], ended["reason"][:27]) == ("rolled_back", "10 of 10 requests failed, 0")
    assert set(await server.digests_of(2)) == {live}


async def test_by_hand_it_ends_at_once_and_a_second_time_changes_nothing(server: Server) -> None:
    live, _ = await server.adapter(0), await begin(server, **SLOW)
    ended = await server.succeed("DELETE", f"{PATH}?name=x")
    assert (ended["state"], ended["reason"]) == ("rolled_back", "by hand")
    assert set(await server.digests_of(10)) == {live}
    assert await server.succeed("DELETE", f"{PATH}?name=x") == ended
    rows = (await server.succeed("GET", "/audit?tenant=acme&limit=1"))["data"]
    assert (rows[0]["action"], rows[0]["actor"]) == ("canary.rolled_back", "admin")
    assert await ends_counted(server) == {("rolled_back", "by_hand"): 1}


async def test_a_change_of_the_set_ends_it(server: Server) -> None:
    third, _ = await server.adapter(2), await begin(server, **SLOW)
    await server.put("acme", {"x": third})
    assert (await server.canary())["state"] == "superseded"
    assert set(await server.digests_of(10)) == {third}


async def test_what_is_refused(server: Server) -> None:
    live, new = await server.adapter(0), await server.adapter(1)

    async def status(method: str = "PUT", path: str = PATH, **body: Any) -> int:
        given = {"name": "x", "digest": new, **body} if method == "PUT" else None
        answer = await server.admin.request(method, f"/admin/v1{path}", json=given)
        assert answer.json()["error"]["message"]
        return answer.status_code

    assert await status(digest=live) == 409
    assert await status(name="z") == 409
    assert await status(digest="d" * 64) == 422
    assert await status(digest="d") == await status(name="a/b") == 400
    assert await status(share=0) == await status(share=1.1) == await status(other=1) == 400
    assert await status(max_token_ratio=0.9) == await status(bake_requests=0) == 400
    assert await status(path="/tenants/nobody/canary") == 404
    assert await status("GET", "/tenants/nobody/canary") == 404
    assert await status("DELETE", f"{PATH}?name=x") == 404
    assert await status("DELETE") == 400
    server.engine.refused.add(new)
    assert await status() == 422
    assert (await server.succeed("GET", PATH))["data"] == []


async def test_a_dry_run_loads_it_and_changes_nothing_and_the_same_again_is_no_change(
    server: Server,
) -> None:
    body = {"name": "x", "digest": await server.adapter(1), **SLOW}
    answers = [
        await server.admin.put(f"/admin/v1{PATH}{query}", json=body)
        for query in ("?dry_run=true", "", "", "?dry_run=true")
    ]
    assert [answer.status_code for answer in answers] == [200, 201, 200, 200]
    assert len({answer.json()["id"] for answer in answers[1:]}) == 1
    rows = (await server.succeed("GET", "/audit?tenant=acme"))["data"]
    assert [row["action"] for row in rows].count("canary.begin") == 1


async def test_series_by_arm_are_there_while_it_runs(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(server, share=0.25)
    await server.digests_of(20)

    async def series() -> list[str]:
        text = (await server.admin.get("/metrics")).text
        return [line for line in text.splitlines() if line.startswith("remix_canary_")]

    arms = {f'{{adapter="x",arm="{arm}",tenant="acme"}}' for arm in ("canary", "live")}
    found = await series()
    for name in ("requests_total", "failures_total", "first_token_seconds", "token_seconds"):
        labels = {line.split(" ")[0].removeprefix(f"remix_canary_{name}") for line in found}
        assert arms <= labels, name
    assert 'remix_canary_share{adapter="x",tenant="acme"} 0.25' in found
    # Its routing beside that of the live adapter, which has the name's other series.
    live, new = await server.adapter(0), await server.adapter(1)
    judged = {
        live: judge({"m": [5000, 5000, 5000, 5000]}, k=2),
        new: judge({"m": [0, 0, 9000, 9000]}, k=2),
    }
    monkeypatch.setattr(server.services.routing, "_latest", judged)
    text = (await server.admin.get("/metrics")).text
    for of, experts, collapsed in (("adapter", 4.0, 0.0), ("canary", 2.0, 1.0)):
        name = 'adapter="x",'
        assert f'remix_{of}_effective_experts{{{name}tenant="acme"}} {experts}\n' in text
        flag = f'remix_{of}_routing_flag{{{name}flag="collapsed",tenant="acme"}} {collapsed}\n'
        assert flag in text
    await server.succeed("DELETE", f"{PATH}?name=x")
    assert await series() == []
