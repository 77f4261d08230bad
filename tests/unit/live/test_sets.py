"""The live sets: names resolve in one tenant's set only, and a set flips as a whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from server.live import sets as live_sets
from server.live.adapters import LiveAdapters
from server.live.sets import LiveSets, Target, UnknownModelError
from tests.unit.live.conftest import Shelf


@pytest.fixture
def sets(adapters: LiveAdapters) -> LiveSets:
    return LiveSets("base", adapters)


async def test_names_belong_to_tenants(sets: LiveSets, shelf: Shelf) -> None:
    ours, theirs = shelf.put("ours"), shelf.put("theirs")
    sets.flip("a", 1, {"pirate": ours})
    sets.flip("b", 1, {"pirate": theirs, "haiku": theirs})
    assert sets.resolve("a", "pirate", may_use_base=False) == Target("pirate", ours)
    assert sets.resolve("b", "pirate", may_use_base=False) == Target("pirate", theirs)
    messages = set()
    for name in ("haiku", theirs, "guess", "base"):
        with pytest.raises(UnknownModelError) as raised:
            sets.resolve("a", name, may_use_base=False)
        messages.add(str(raised.value).replace(repr(name), "NAME"))
    assert len(messages) == 1
    assert sets.resolve("a", "base", may_use_base=True) == Target("base", None)
    assert sets.targets("a", may_use_base=True) == [Target("base", None), Target("pirate", ours)]
    assert sets.targets("b", may_use_base=False) == [
        Target("pirate", theirs),
        Target("haiku", theirs),
    ]
    assert sets.targets("nobody", may_use_base=False) == []


async def test_a_flip_pins_the_new_and_frees_the_old(
    sets: LiveSets, adapters: LiveAdapters, shelf: Shelf
) -> None:
    old, new, both = shelf.put("old"), shelf.put("new"), shelf.put("both")
    sets.flip("a", 1, {"x": old, "y": both})
    sets.flip("b", 1, {"x": both})
    sets.flip("a", 2, {"x": new, "y": both})
    await adapters.settle()
    assert [adapters.pins(d) for d in (old, new, both)] == [0, 1, 2]
    sets.drop("a")
    await adapters.settle()
    assert adapters.digests == {both}
    with pytest.raises(UnknownModelError):
        sets.resolve("a", "x", may_use_base=False)


async def test_an_older_revision_never_comes_back(
    sets: LiveSets, adapters: LiveAdapters, shelf: Shelf
) -> None:
    old, new = shelf.put("old"), shelf.put("new")
    sets.flip("a", 2, {"x": new})
    sets.flip("a", 1, {"x": old})
    sets.flip("a", 2, {"x": old})
    assert sets.resolve("a", "x", may_use_base=False).digest == new
    assert sets.live("a").revision == 2
    await adapters.settle()
    assert adapters.digests == {new}


async def test_a_flip_tells_whether_the_revision_is_newer(sets: LiveSets, shelf: Shelf) -> None:
    digest = shelf.put("pirate")
    assert not sets.flip("a", 0, {}), "the empty set that a new tenant has"
    assert list(sets.all) == ["a"]
    assert sets.flip("a", 1, {"x": digest})
    for older in (1, 0):
        assert not sets.flip("a", older, {})
    assert sets.flip("b", 3, {})
    assert {tenant: live.revision for tenant, live in sets.all.items()} == {"a": 1, "b": 3}


async def test_what_is_not_there_can_be_dropped(sets: LiveSets, adapters: LiveAdapters) -> None:
    sets.drop("nobody")
    assert adapters.digests == set()
    assert sets.all == {}


async def test_a_long_name_is_cut_in_the_refusal(sets: LiveSets) -> None:
    with pytest.raises(UnknownModelError) as raised:
        sets.resolve("a", "x" * 150, may_use_base=True)
    assert str(raised.value) == (
        f"The model '{'x' * 100}' does not exist or you do not have access to it."
    )


async def test_the_fingerprint_is_the_digest_or_the_bases_name(
    adapters: LiveAdapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_sets, "time", SimpleNamespace(time=lambda: 1234.5))
    sets = LiveSets("base", adapters)
    assert sets.started == 1234
    assert Target("pirate", "abc").fingerprint == "abc"
    assert Target("base", None).fingerprint == "base-base"
    sets.flip("a", 1, {})
    assert sets.live("a").since == 1234
    assert sets.live("nobody").since == 0
