"""Pages alone: none is lost, none is held twice by mistake, and the right ones leave first."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remix_runtime.engines.embedded.pages import PageKeys, PagePool

PAGE = 2


def keys_of(text: str, *owner: str | None) -> list[bytes]:
    tokens = [ord(letter) for letter in text]
    return PageKeys(*owner).first(len(tokens) // PAGE, tokens, PAGE)


def fill(pool: PagePool, text: str) -> list[int]:
    """Takes a text's pages, and lets them be found."""
    keys = keys_of(text)
    pages = pool.share(keys)
    more = pool.take(pool.pages_for(len(text)) - len(pages))
    assert more is not None
    pages += more
    for page, key in zip(pages, keys, strict=False):
        pool.keep(page, key)
    return pages


def found(pool: PagePool, text: str) -> int:
    """How many pages of a text are there."""
    keys = keys_of(text)
    pages = pool.share(keys)
    for page in pages:  # not through `give_back` with keys, which makes them recently used
        pool._holders[page] -= 1
        if not pool._holders[page]:
            pool._idle[page] = None
            pool._idle.move_to_end(page, last=False)
    return len(pages)


@pytest.mark.parametrize("count", [0, 3])
def test_a_pool_that_cannot_give_gives_nothing(count: int) -> None:
    pool = PagePool(2, PAGE)
    if count:
        assert pool.take(count) is None
    assert pool.num_free == 2


def test_a_key_stands_for_its_owner_and_all_tokens_up_to_it() -> None:
    texts = ["abcd", "abce", "xbcd", "cdab", "cd", "ab", ""]
    owners = [
        ("d", "t", "s"),
        (None, "t", "s"),
        ("d", "s", "t"),
        ("dt", "", "s"),
        ("d", "t", ""),
        ("", "t", "s"),
        ('d", "t', "", "s"),
    ]
    seen: dict[bytes, tuple[tuple[str | None, ...], str]] = {}
    for owner in owners:
        for text in texts:
            for number, key in enumerate(keys_of(text, *owner), 1):
                meant = (owner, text[: PAGE * number])
                assert seen.setdefault(key, meant) == meant
    begun = {text[:end] for text in texts for end in range(PAGE, len(text) + 1, PAGE)}
    assert len(seen) == len(owners) * len(begun)


def test_pages_are_shared_and_free_when_the_last_holder_goes() -> None:
    pool = PagePool(4, PAGE)
    first = fill(pool, "abcde")
    assert pool.num_needed(3, keys_of("abcd")) == 1
    second = fill(pool, "abcdx")
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert pool.num_free == 0
    pool.give_back(first, keys_of("abcd"))
    assert (pool.num_free, pool.num_idle) == (1, 0)
    pool.give_back(second, keys_of("abcd"))
    assert (pool.num_free, pool.num_idle) == (4, 2)
    with pytest.raises(AssertionError, match="more often"):
        pool.give_back(second)


def test_empty_pages_are_taken_first_then_those_unused_longest_and_last_pages_before_first() -> (
    None
):
    pool = PagePool(6, PAGE)
    old, new = fill(pool, "abcd"), fill(pool, "efgh")
    pool.give_back(old, keys_of("abcd"))
    pool.give_back(new, keys_of("efgh"))
    order = [pool.take(1) for _ in range(6)]
    assert order[2:] == [[old[1]], [old[0]], [new[1]], [new[0]]]


def test_being_used_again_makes_young() -> None:
    pool = PagePool(4, PAGE)
    for text in ("abcd", "efgh", "ab"):
        pool.give_back(fill(pool, text), keys_of(text))
    pool.take(3)
    assert [found(pool, text) for text in ("abcd", "efgh")] == [1, 0]


def test_two_that_compute_the_same_keep_their_own_and_one_is_found() -> None:
    pool = PagePool(4, PAGE)
    one, two = pool.take(1), pool.take(1)
    assert one is not None
    assert two is not None
    (key,) = keys_of("ab")
    pool.keep(one[0], key)
    pool.keep(two[0], key)
    pool.give_back(two, [key])
    assert pool.num_idle == 0
    assert pool.share([key]) == one
    pool.give_back(one, [key])
    pool.give_back(one, [key])
    assert pool.num_idle == 1


def test_a_page_is_found_after_its_first_copy_has_left() -> None:
    """The second copy takes its place, so that what follows it can still be found."""
    pool = PagePool(5, PAGE)
    one = fill(pool, "ab")
    two = pool.take(2)
    assert two is not None
    keys = keys_of("abcd")
    for page, key in zip(two, keys, strict=True):
        pool.keep(page, key)
    pool.give_back(one, keys[:1])
    rest = pool.take(3)  # the first copy among them
    assert rest is not None
    assert one[0] in rest
    assert pool.share(keys) == []
    pool.give_back(two, keys)
    assert pool.share(keys) == two


def test_the_copy_that_is_found_is_as_young_as_its_last_use() -> None:
    pool = PagePool(5, PAGE)
    keys = keys_of("abcd")
    one, two = pool.take(1), pool.take(2)
    assert one is not None
    assert two is not None
    pool.give_back(one, keys[:1])
    pool.give_back(two, keys)  # the first page's other copy, and what follows it
    assert (pool.num_idle, pool.num_free) == (2, 5)
    pool.take(4)  # all empty ones, and the oldest
    assert found(pool, "abcd") == 1


TEXTS = ["abababab", "ababac", "abcdef", "cd", "cdababab", "efefefefef"]
steps = st.lists(
    st.tuples(st.sampled_from(TEXTS), st.integers(0, 9), st.booleans()), min_size=1, max_size=40
)


@settings(max_examples=200)
@given(steps, st.integers(5, 12))
def test_whatever_is_held_and_given_back_each_page_is_in_one_place(
    given_steps: list[tuple[str, int, bool]], num_pages: int
) -> None:
    pool = PagePool(num_pages, PAGE)
    held: list[tuple[str, list[int], int]] = []
    for text, end, gives_back in given_steps:
        if gives_back and held:
            name, pages, computed = held.pop(end % len(held))
            keys = keys_of(name)
            pool.give_back(pages, keys[: max(computed, end % (len(keys) + 1))])
        else:
            keys, free = keys_of(text), pool.num_free
            need = pool.num_needed(len(text) // PAGE + 1, keys[:-1])
            if need <= free:
                pages = pool.share(keys[:-1])
                more = pool.take(len(text) // PAGE + 1 - len(pages))
                assert more is not None
                assert pool.num_free == free - need
                computed = max(len(pages), end % (len(keys) + 1))
                pages += more
                for page, key in zip(pages[:computed], keys[:computed], strict=True):
                    pool.keep(page, key)
                held.append((text, pages, computed))
        holders = [pages.count(p) for p in range(num_pages) for _, pages, _ in held]
        assert set(holders) <= {0, 1}
        count = [sum(p in pages for _, pages, _ in held) for p in range(num_pages)]
        assert count == pool._holders
        empty, idle = set(pool._empty), set(pool._idle)
        assert len(pool._empty) == len(empty)
        assert not empty & idle
        assert empty | idle == {p for p in range(num_pages) if not count[p]}
        assert all(pool._page_of[key] == p for p, key in enumerate(pool._key_of) if key is not None)
        assert len(pool._page_of) == sum(key is not None for key in pool._key_of)
        assert all((pool._key_of[p] is None) == (p in empty) for p in empty | idle)
        # Of an idle page all pages before it can be found, and none of them leaves before it.
        ages = {page: age for age, page in enumerate(pool._idle)}
        for text_ in TEXTS:
            keys = keys_of(text_)
            for number, key in enumerate(keys):
                page = pool._page_of.get(key)
                if page in ages:
                    for before in keys[:number]:
                        other = pool._page_of[before]
                        assert ages.get(other, num_pages) > ages[page]
