"""Bodies have a bounded room, of which no tenant has the last."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from server.live.bodies import Bodies
from tests.unit.server.harness import Server

steps = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60), st.booleans()), max_size=60)


@given(steps)
def test_others_have_room_whatever_one_does(taken: list[tuple[str, int, bool]]) -> None:
    bodies, held = Bodies(100), list[tuple[str, int]]()
    for tenant, num_bytes, gives_back in taken:
        mine = sum(size for name, size in held if name == tenant)
        free = 100 - sum(size for _, size in held) - num_bytes
        assert bodies.take(tenant, num_bytes) == (mine + num_bytes <= free)
        if mine + num_bytes <= free:
            held.append((tenant, num_bytes))
        assert bodies.num_bytes == sum(size for _, size in held)
        if len({name for name, _ in held}) < 3 and held:
            assert bodies.num_bytes < 100  # whoever holds nothing finds some
        if gives_back and held:
            bodies.give_back(*held.pop(0))
    for holding in held:
        bodies.give_back(*holding)
    assert bodies._held == {}


async def test_a_body_is_held_until_its_answer_has_ended(server: Server) -> None:
    bodies = server.services.bodies
    assert bodies.max_bytes == server.services.settings.room_for_bodies
    asked = asyncio.ensure_future(server.complete(prompt="x" * 200, max_tokens=5))
    while not asked.done():
        await asyncio.sleep(0)
        if bodies.num_bytes:
            break
    assert bodies.num_bytes > 200
    assert (await asked).status_code == 200
    assert bodies.num_bytes == 0


async def test_a_body_that_finds_no_room_is_told_to_come_later(server: Server) -> None:
    bodies = server.services.bodies
    assert bodies.take("another", bodies.max_bytes // 2)
    bodies._held["one more"] = bodies.max_bytes // 2 - 100
    refused = await server.complete(prompt="x" * 500)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")
    assert refused.headers["retry-after"] == "1"
    assert bodies.num_bytes == bodies.max_bytes - 100 - bodies.max_bytes % 2
    bodies._held.clear()
    await server.expect_good_request()
    assert bodies.num_bytes == 0
