"""Proposes the next tokens of a request out of its own text. Pure Python, no tensors.

Text often repeats what stands before it: a value out of the prompt, a line of code, a key of JSON.
The newest tokens are looked for in the prompt and the answer, and what followed them there is
proposed to follow again; and before that, what a grammar leaves no choice of. Where the newest one
is new, as a key of JSON is, those before it are looked for: what followed another one in its place
may follow it, too. A step computes proposals beside the newest token, and they are kept as far as
they are what is drawn anyway.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

MAX_ROWS = 8
"""Rows of a step that are nearly free: reading the weights takes the time. Eight take 1.3 times as
long as one (SmolLM2-135M, two cores), twelve 1.7 times, and 13 twice as long."""
READ_TOKENS = 4096
"""Tokens that are read into the index in one step; reading takes less than a microsecond each."""
LONGEST = 16
"""Longer agreement than this says no more."""
_TRIES = 32
"""Places that are compared in one search."""
_WORTH = 0.1
"""A proposal is made if its chance is at least this: about what its row takes of a step."""
_LENGTHS = (1, 2, 4, 8)
"""Agreement as long as each of these has a chance of its own, and none at all has one."""
_CHANCES = (0.3, 0.2, 0.4, 0.6, 0.8)
"""At first, by the length of agreement."""
_BEFORE_ANOTHER = 3
"""Tokens before a new one that have to agree."""
_RATE = 0.05
"""How much of a chance is the newest guess."""


class TextIndex:
    """Where each token of a growing text stood before: four bytes a token."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        self._before = array("i")
        """For each place, the last one before it with the same token; -1 where there is none."""

    def read(self, tokens: Sequence[int]) -> bool:
        """Reads on in a text that has only grown, `READ_TOKENS` at most. Returns whether all of it
        is read."""
        begin = len(self._before)
        for place in range(begin, min(len(tokens), begin + READ_TOKENS)):
            token_id = tokens[place]
            self._before.append(self._last.get(token_id, -1))
            self._last[token_id] = place
        return len(self._before) == len(tokens)

    def find(self, tokens: Sequence[int], *, but: int = 0) -> tuple[int, int]:
        """The earlier place that agrees with the end of the text, all of which is read, but for its
        newest `but` tokens: as far behind the agreement as these, and its length, 0 for none. The
        longest of the nearest `_TRIES` places, the nearest of equal ones."""
        end = len(tokens) - 1 - but
        found, longest = -1, 0
        place = self._before[end] if end >= 0 else -1
        for _ in range(_TRIES):
            if place < 0 or longest == LONGEST:
                break
            length, most = 1, min(LONGEST, place + 1)
            while length < most and tokens[place - length] == tokens[end - length]:
                length += 1
            if length > longest:
                found, longest = place, length
            place = self._before[place]
        return found + but, longest


class Proposer:
    """Proposes for one request, as much as its proposals have come true so far.

    There is always a guess, of one token at least, which is compared with what came: so the chances
    stay true, at no cost, where nothing is proposed. `forced` gives the next tokens where something
    else than the text says what they are.
    """

    def __init__(self, forced: Callable[[], tuple[int, ...]] = tuple) -> None:
        self._forced = forced
        self._index = TextIndex()
        self._chances = list(_CHANCES)
        self._guess: list[int] = []
        self._guessed_at = 0
        """Tokens of the text before the guess."""
        self._agreed = 0
        """The agreement that the guess came from: none where the newest token was another one."""

    def propose(self, tokens: Sequence[int], at_most: int) -> tuple[int, ...]:
        """At most so many tokens that may follow `tokens`, which only grow from call to call."""
        self._learn(tokens)
        self._guess = []
        if forced := self._forced()[:at_most]:
            return forced
        if not self._index.read(tokens):
            return ()
        place, self._agreed = self._index.find(tokens)
        if not self._agreed:
            place, before = self._index.find(tokens, but=1)
            if before < _BEFORE_ANOTHER:
                return ()
        count, chance = 0, 1.0
        while count < at_most:
            chance *= self._chances[_kind(self._agreed + count)]
            if chance < _WORTH:
                break
            count += 1
        # What followed may reach into the guess itself, in a text that has become periodic.
        period = len(tokens) - 1 - place
        self._guess = [tokens[place + 1 + i % period] for i in range(max(count, 1))]
        self._guessed_at = len(tokens)
        return tuple(self._guess[:count])

    def _learn(self, tokens: Sequence[int]) -> None:
        """Compares the last guess with what came, up to the first difference."""
        came = tokens[self._guessed_at : self._guessed_at + len(self._guess)]
        for i, (guessed, token_id) in enumerate(zip(self._guess, came, strict=False)):
            kind = _kind(self._agreed + i)
            self._chances[kind] += _RATE * ((guessed == token_id) - self._chances[kind])
            if guessed != token_id:
                break


def _kind(agreed: int) -> int:
    """Which of the chances holds for an agreement of so many tokens."""
    return sum(agreed >= length for length in _LENGTHS)
