"""The arithmetic of shared limits, against a plain account of what servers have used."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.tenancy.allocation import NEED_SECONDS, Answer, Pool, Report

SERVERS = ("a", "b", "c")


@dataclass
class Hands:
    """What one server really has. Reservations are kept as one sum."""

    level: float = 0.0
    open: float = 0.0


@dataclass
class World:
    limit: int
    refills: bool = True
    now: float = 1000.0
    alive: list[str] = field(default_factory=lambda: list(SERVERS))
    hands: dict[str, Hands] = field(default_factory=lambda: {name: Hands() for name in SERVERS})
    used: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = Pool.full(self.limit, self.now, refills=self.refills)

    def ask(self, server: str, need: float = 0, want: float = 0, keep: float = 0) -> Answer:
        mine = self.hands[server]
        back = max(mine.level - keep, 0) if mine.level > 0 else mine.level
        mine.level -= back
        report = Report(
            held=mine.level + mine.open, open=mine.open, back=back, need=need, want=want
        )
        # As the database keeps it.
        self.pool = Pool.load(self.pool.dump())
        answer = self.pool.exchange(
            server, report, limit=self.limit, alive=self.alive, now=self.now
        )
        lost = min(mine.open, answer.eroded)
        mine.open -= lost
        mine.level += answer.granted - (answer.eroded - lost)
        return answer

    def use(self, server: str, share: float) -> None:
        amount = max(self.hands[server].level, 0) * share
        self.hands[server].level -= amount
        self.used.append((self.now, amount))

    @property
    def total(self) -> float:
        """What may be used at this moment, of servers that may use it."""
        return self.pool.free + sum(
            self.hands[name].level + self.hands[name].open for name in self.alive
        )


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["wait", "need", "want", "use", "reserve", "settle", "give", "die", "back"]
        ),
        st.sampled_from(SERVERS),
        st.floats(0, 1),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(limit=st.integers(1, 1000), steps=STEPS)
def test_free_and_leased_units_are_never_more_than_the_limit(
    limit: int, steps: list[tuple[str, str, float]]
) -> None:
    world = World(limit)
    for step, server, share in steps:
        hands, may = world.hands[server], server in world.alive
        if step == "wait":
            world.now += share * 90
        elif step == "die" and len(world.alive) > 1 and may:
            world.alive.remove(server)
            world.hands[server] = Hands()
        elif step == "back" and not may:
            world.alive.append(server)
        elif not may:
            continue
        elif step == "need":
            world.ask(server, need=max(round(share * limit), 1), keep=hands.level)
        elif step == "want":
            world.ask(server, want=round(share * limit), keep=hands.level)
        elif step == "give":
            world.ask(server, keep=hands.level * share)
        elif step == "use":
            world.use(server, share)
        elif step == "reserve" and hands.level > 0:
            hands.open += hands.level * share
            hands.level -= hands.level * share
        elif step == "settle":
            used = hands.open * share
            hands.level += hands.open - used
            hands.open = 0
            world.used.append((world.now, used))
        assert world.total <= limit * (1 + 1e-9) + 1e-6
    for first, (began, _) in enumerate(world.used):
        total = 0.0
        for at, amount in world.used[first:]:
            total += amount
            assert total <= limit * (1 + (at - began) / 60) * (1 + 1e-9) + 1e-6


@settings(max_examples=200)
@given(limit=st.integers(1, 20), steps=STEPS)
def test_places_are_never_more_than_the_limit_whoever_holds_them(
    limit: int, steps: list[tuple[str, str, float]]
) -> None:
    """Of servers that may use them: one that is cut off goes on with what it runs."""
    pool = Pool.full(limit, 0.0, refills=False)
    held, alive = dict.fromkeys(SERVERS, 0), list(SERVERS)
    for number, (step, server, share) in enumerate(steps):
        if step == "die" and len(alive) > 1 and server in alive:
            alive.remove(server)
            held[server] = 0
        elif step == "back" and server not in alive:
            alive.append(server)
        elif server in alive:
            held[server] = round(held[server] * share) if step == "give" else held[server]
            need = max(round(share * limit), 1) if step == "need" else 0
            report = Report(held=held[server], need=need, want=3 if step == "want" else 0)
            now = number * 0.1
            answer = pool.exchange(server, report, limit=limit, alive=alive, now=now)
            held[server] += int(answer.granted)
        assert sum(held.values()) <= limit


def test_who_needs_gets_it_before_anybodys_stock_and_in_the_order_of_needing() -> None:
    world = World(10)
    assert world.ask("a", need=8).granted == 8
    assert world.ask("b", need=4).granted == 0
    assert world.ask("c", need=3).granted == 0
    answer = world.ask("a", want=8, keep=3)  # gives five back
    assert (answer.gave, answer.granted, answer.is_needed) == (5, 0, True)
    assert world.ask("c", need=3, want=5).granted == 3, "what b needs is kept for it"
    assert world.ask("b", need=4).granted == 4


def test_a_need_that_nobody_tells_again_is_forgotten() -> None:
    world = World(10)
    world.ask("a", need=10)
    world.ask("b", need=5)
    world.ask("a", keep=6)
    assert world.ask("a", want=9, keep=6).granted == 0
    world.now += NEED_SECONDS
    assert world.ask("a", want=9, keep=6).granted == 1


@pytest.mark.parametrize("limit", [1, 2, 3, 60])
def test_one_server_that_needs_all_gets_all_once_others_give_it_back(limit: int) -> None:
    world = World(limit)
    world.ask("a", want=limit)
    world.ask("b", want=limit)
    assert world.ask("c", need=limit).granted == (limit if limit < 3 else 0)
    world.ask("a")
    world.ask("b")
    world.ask("c", need=max(limit - world.hands["c"].level, 0), keep=limit)
    assert world.hands["c"].level == limit


def test_no_server_starves_while_others_fill_their_stock() -> None:
    """Each takes at most its part of what is free, so the next one finds some."""
    world = World(1000)
    for _ in range(50):
        world.ask("a", want=1000, keep=1000)
        world.use("a", 1.0)
        world.ask("b", want=1000, keep=1000)
        world.use("b", 1.0)
        world.now += 1
        assert world.ask("c", need=1).granted == 1
        world.use("c", 1.0)


def test_what_a_dead_server_held_comes_back_by_refill_only() -> None:
    world = World(60)
    assert world.ask("a", need=60).granted == 60
    world.alive.remove("a")
    assert world.ask("b", need=1).granted == 0
    world.now += 30
    assert world.ask("b", need=30).granted == 30
    assert world.ask("b", need=1, keep=30).granted == 0


def test_places_of_a_dead_server_are_free_at_once() -> None:
    world = World(2, refills=False)
    report = Report(held=0, need=2)
    pool = world.pool
    assert pool.exchange("a", report, limit=2, alive=["a", "b"], now=0).granted == 2
    assert pool.exchange("b", report, limit=2, alive=["a", "b"], now=0).granted == 0
    assert pool.exchange("b", report, limit=2, alive=["b"], now=0).granted == 2


def test_what_refills_takes_from_what_may_come_back() -> None:
    """As in the bucket of one server: a long answer does not keep its tenant from going on."""
    world = World(60)
    world.ask("a", need=60)
    world.hands["a"] = Hands(level=0, open=60)
    world.now += 40
    assert world.ask("a", need=40).granted == 40
    assert world.hands["a"] == Hands(level=40, open=20)


def test_what_refilled_while_others_exchanged_is_not_lost() -> None:
    world = World(60)
    world.ask("a", need=60)
    world.hands["a"] = Hands(level=0, open=60)
    world.ask("a")
    for _ in range(40):
        world.now += 1
        world.ask("b")
    assert world.ask("a").eroded == pytest.approx(40)
    assert world.ask("b", need=40).granted == 40


@pytest.mark.parametrize("jump", [-1e6, -3.0, 1e6])
def test_a_clock_that_jumps_fills_the_pool_at_most(jump: float) -> None:
    world = World(60)
    world.ask("a", need=60)
    world.use("a", 1.0)
    world.now += jump
    world.ask("a")
    assert world.total <= 60
    world.now += 30
    world.ask("a")
    assert world.total == pytest.approx(60 if jump > 0 else 30 if jump < -5 else 27)


def test_a_new_limit_leaves_used_what_was_used() -> None:
    world = World(10)
    world.ask("a", need=8)
    world.use("a", 1.0)
    world.limit = 20
    world.ask("a")
    assert world.pool.free == 12
    world.limit = 5
    world.ask("a")
    assert world.pool.free == 0


def test_what_was_used_alone_is_used() -> None:
    pool = Pool.full(60, 0.0, refills=True)
    report = Report(held=0, owed=20, need=50)
    assert pool.exchange("a", report, limit=60, alive=["a"], now=0).granted == 0
    assert pool.free == 40
