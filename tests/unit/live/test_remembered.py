"""What a server remembers of its answers is bounded, and each tenant's own."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from server.live.remembered import Memory, Remembered


def answer(answer_id: str, size: int = 10) -> Remembered:
    return Remembered(
        id=answer_id,
        answer="a" * size,
        context=("ä" * size,),
        output=((f"item-of-{answer_id}", "o" * size),),
    )


def test_the_oldest_is_forgotten_first_with_its_items() -> None:
    memory = Memory(max_answers=2)
    for answer_id in ("one", "two", "three"):
        memory.keep("a", answer(answer_id))
    assert memory.find("a", "one") is None
    assert memory.find_item("a", "item-of-one") is None
    assert memory.find("a", "two") == answer("two")
    assert memory.find_item("a", "item-of-three") == "o" * 10


def test_another_tenants_answer_is_nobodys() -> None:
    memory = Memory()
    memory.keep("a", answer("one"))
    assert memory.find("b", "one") is None
    assert memory.find_item("b", "item-of-one") is None
    assert not memory.forget("b", "one")
    assert memory.forget("a", "one")
    assert memory.find("a", "one") is None
    assert memory.num_bytes == 0


def test_who_has_most_makes_room_for_others() -> None:
    size = answer("x").num_bytes
    memory = Memory(max_bytes=4 * size)
    for answer_id in ("1", "2", "3", "4"):
        memory.keep("greedy", answer(answer_id))
    memory.keep("modest", answer("m"))
    assert memory.find("modest", "m") is not None
    assert [memory.find("greedy", i) is not None for i in "1234"] == [False, True, True, True]


def test_an_answer_over_the_bounds_is_not_kept() -> None:
    memory = Memory(max_tenant_bytes=answer("x").num_bytes)
    memory.keep("a", answer("small"))
    memory.keep("a", answer("large", size=11))
    assert memory.find("a", "large") is None
    assert memory.num_bytes == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(0, 40), st.booleans()),
        max_size=40,
    )
)
def test_bounds_hold_and_bytes_are_counted(steps: list[tuple[str, int, int, bool]]) -> None:
    memory = Memory(max_answers=3, max_tenant_bytes=200, max_bytes=300)
    kept: dict[str, list[Remembered]] = defaultdict(list)
    for number, (tenant, choice, size, forgets) in enumerate(steps):
        if forgets:
            known = kept[tenant]
            answer_id = known[choice % len(known)].id if known else "none"
            there = memory.find(tenant, answer_id) is not None
            assert memory.forget(tenant, answer_id) == there
        else:
            kept[tenant].append(answer(str(number), size))
            memory.keep(tenant, kept[tenant][-1])
        found = {name: [a for a in kept[name] if memory.find(name, a.id)] for name in "ab"}
        for name, answers in found.items():
            assert len(answers) <= 3
            assert sum(a.num_bytes for a in answers) <= 200
            for each in kept[name]:
                item = memory.find_item(name, f"item-of-{each.id}")
                assert (item is not None) == (each in answers)
        total = sum(a.num_bytes for answers in found.values() for a in answers)
        assert memory.num_bytes == total <= 300
