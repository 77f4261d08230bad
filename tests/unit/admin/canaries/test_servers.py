"""Canaries of several servers on one database, and of one that is started again."""

from __future__ import annotations

from pathlib import Path

from tests.unit.admin.canaries.harness import Server, acme, begin, serving
from tests.unit.server.harness import eventually


async def knows_both(server: Server) -> None:
    """It learns of the live set and of the canary one by one, in any order."""
    sets = server.services.sets
    await eventually(lambda: sets.canaries.find("acme", "x") is not None)
    await eventually(lambda: "x" in sets.live("acme").adapters)


async def test_two_servers_decide_by_what_both_have_seen(tmp_path: Path, url: str) -> None:
    """Neither has enough requests for itself."""
    async with serving(tmp_path, url, "a") as here, serving(tmp_path, url, "b") as there:
        await acme(here)
        there.key_of_acme = here.key_of_acme
        new = await begin(here, share=1.0, bake_seconds=0, bake_requests=24)
        await knows_both(there)
        await here.digests_of(12)
        assert (await here.canary())["waits_for"] == "12 of 24 requests"
        assert set(await there.digests_of(12)) == {new}
        for server in (here, there):
            ended = await server.ended()
            assert ended["state"] == "promoted"
            assert ended["figures"]["canary"]["requests"] == 24
        await eventually(lambda: there.services.sets.live("acme").adapters == {"x": new})


async def test_one_server_s_failures_are_the_other_s_too(tmp_path: Path, url: str) -> None:
    async with serving(tmp_path, url, "a") as here, serving(tmp_path, url, "b") as there:
        live, _ = await acme(here)
        there.key_of_acme = here.key_of_acme
        new = await begin(here, share=1.0)
        there.engine.broken[new] = RuntimeError("broken")
        await knows_both(there)
        assert set(await there.digests_of(6)) == {live}
        for server in (here, there):
            assert (await server.ended())["state"] == "rolled_back"
        assert set(await here.digests_of(3)) == {live}


async def test_one_that_another_server_cannot_load_is_rolled_back(tmp_path: Path, url: str) -> None:
    async with serving(tmp_path, url, "a") as here, serving(tmp_path, url, "b") as there:
        live, new = await acme(here)
        there.key_of_acme = here.key_of_acme
        there.engine.refused.add(new)
        await begin(here, share=1.0)
        ended = await here.ended()
        assert ended["state"] == "rolled_back"
        assert "a server cannot load it" in ended["reason"]
        await eventually(lambda: "x" in there.services.sets.live("acme").adapters)
        assert set(await there.digests_of(3)) == {live}


async def test_a_server_that_is_started_again_goes_on_with_what_it_had_seen(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        await acme(server)
        key = server.key_of_acme
        new = await begin(server, share=1.0, bake_seconds=0, bake_requests=20)
        await server.digests_of(15)
        reports = server.apps.admin.state.services.directory.canaries.reports
        (running,) = server.services.sets.canaries.all
        ident = running.record.id

        async def told() -> int:
            return sum(r["canary"]["requests"] for r in (await reports([ident]))[ident].values())

        while await told() < 15:
            pass
    async with serving(tmp_path) as server:
        server.key_of_acme = key
        assert (await server.canary())["figures"]["canary"]["requests"] == 15
        await eventually(lambda: server.services.sets.canaries.find("acme", "x") is not None)
        assert set(await server.digests_of(8)) == {new}
        ended = await server.ended()
        assert ended["state"] == "promoted"
        assert ended["figures"]["canary"]["requests"] >= 20
