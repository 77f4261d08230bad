"""vLLM's log-probabilities in our words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from remix_runtime.contracts import TokenLogprob
from remix_runtime.engines.vllm.job import NewTokens, logprobs_of


@dataclass
class Found:
    logprob: float
    rank: int


def test_the_chosen_token_is_among_the_top_only_by_its_rank() -> None:
    found = {7: Found(-3.0, 5), 9: Found(-0.1, 1), 4: Found(-0.5, 2), 3: Found(-0.5, 2)}
    new = NewTokens([7], [found])
    told = logprobs_of(new, 2)
    assert told is not None
    assert told[0].chosen == TokenLogprob(token_id=7, logprob=-3.0)
    assert [top.token_id for top in told[0].top] == [9, 3]
    none_on_top = logprobs_of(new, 0)
    assert none_on_top is not None
    assert none_on_top[0].top == ()


def test_what_is_not_wanted_is_not_told() -> None:
    assert logprobs_of(NewTokens([7], [{7: Found(-3.0, 1)}]), None) is None
    assert logprobs_of(NewTokens([7], None), 2) is None


def test_tokens_that_a_grammar_does_not_allow_are_not_told() -> None:
    """vLLM gives them no probability at all."""
    found = {7: Found(-0.1, 1), 9: Found(-math.inf, 2), 4: Found(-math.inf, 3)}
    told = logprobs_of(NewTokens([7], [found]), 3)
    assert told is not None
    assert [top.token_id for top in told[0].top] == [7]
