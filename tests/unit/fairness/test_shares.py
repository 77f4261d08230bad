"""Places are shared: alone a tenant has all, and nobody is refused because of others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remix_runtime.fairness.shares import Shares, most_held


def filled(shares: Shares, tenant: str) -> int:
    count = 0
    while shares.take(tenant):
        count += 1
    return count


def test_a_tenant_alone_has_all_places_and_no_more() -> None:
    shares = Shares(10)
    assert filled(shares, "a") == 10
    shares.give_back("a")
    assert filled(shares, "a") == 1


@pytest.mark.parametrize("places", [1, 7, 288])
def test_one_that_fills_all_is_refused_and_others_are_not(places: int) -> None:
    shares = Shares(places)
    filled(shares, "loud")
    for number in range(2, 12):
        assert filled(shares, f"quiet{number}") == max(1, places // number)
        assert not shares.take("loud")


def test_what_is_over_the_share_comes_back_before_more_is_taken() -> None:
    shares = Shares(10)
    filled(shares, "loud")
    filled(shares, "quiet")
    for _ in range(5):
        assert not shares.take("loud")
        shares.give_back("loud")
    assert not shares.take("loud"), "all places are held"
    shares.give_back("quiet")
    assert shares.take("loud"), "what is free is anybody's"


MOVES = st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=200)


@given(st.integers(1, 30), MOVES)
def test_below_its_share_a_tenant_is_let_in_and_the_sum_has_a_bound(
    places: int, moves: list[tuple[int, bool]]
) -> None:
    shares = Shares(places)
    held = dict.fromkeys(range(6), 0)
    for number, takes in moves:
        tenant = str(number)
        if takes:
            active = sum(count > 0 for other, count in held.items() if other != number) + 1
            total = sum(held.values())
            may = total < places or held[number] < max(1, places // active)
            assert shares.has_place(tenant) == may
            assert shares.take(tenant) == may
            held[number] += may
        elif held[number]:
            shares.give_back(tenant)
            held[number] -= 1
        assert shares.held(tenant) == held[number]
        assert sum(held.values()) <= most_held(places, 6)
