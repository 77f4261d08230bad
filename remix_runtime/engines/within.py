"""Tokenizes no more of a text than could matter: what cannot fit is not read to its end."""

from __future__ import annotations

from collections.abc import Callable

_CHARS_PER_TOKEN = 4
"""So many are tried at first; texts have about as many."""
_GROWTH = 4
_FEW_CHARS = 1 << 13
_SEAM = 64
"""Where a text is cut, a few tokens may be others than in the whole text."""


def encode_within(
    encode: Callable[[str], list[int]], text: str, at_most: int | None, *, keep_end: bool = False
) -> list[int]:
    """The tokens of a text. Of one that has more than `at_most` it is enough that as many are found
    and some more, at its start or, for `keep_end`, at its end."""
    if at_most is None:
        return encode(text)
    size = max(_FEW_CHARS, _CHARS_PER_TOKEN * at_most)
    while size < len(text):
        ids = encode(text[-size:] if keep_end else text[:size])
        if len(ids) > at_most + _SEAM:
            return ids
        size *= _GROWTH
    return encode(text)
