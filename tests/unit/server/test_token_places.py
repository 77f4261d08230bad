"""Log-probabilities rebuild prompts and answers with the tokenizers of every family."""

from __future__ import annotations

import ast
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remix_runtime.contracts import (
    GenerationRequest,
    PositionLogprobs,
    SamplingParams,
    TokenLogprob,
)
from remix_runtime.engines.completion import Completion
from remix_runtime.engines.fake_model import ByteTokenizer
from remix_runtime.engines.spelling import Spelling
from server.api.token_texts import Placement, TokenTexts, place_prompt
from tests.tokenizers import BOS, EXACT, FAMILIES, tokenizer_of


class FamilyTokenizer(Spelling, ByteTokenizer):
    """What the engine makes of a tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool, **_: Any) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ids


def read(token: str) -> bytes:
    if token.startswith("bytes:"):
        parsed: bytes = ast.literal_eval(f"b'{token.removeprefix('bytes:')}'")
        return parsed
    return token.encode()


TEXTS = st.text(st.sampled_from("the cat  sat\n.é🌍ß東")) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0▁"), max_size=20
)
"""Without the letter that SentencePiece writes for a space, and cannot tell from one."""


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts(family: str, bos: bool) -> None:
    tokenizer = FamilyTokenizer(tokenizer_of(family, bos=bos))
    texts = TokenTexts(tokenizer)

    @settings(max_examples=30)
    @given(TEXTS)
    def check(text: str) -> None:
        ids = tokenizer.encode(text, add_special_tokens=True)
        placed = place_prompt(texts, ids, text)
        offsets = [offset for _, offset in placed]
        assert len(placed) == len(ids)
        assert all(a <= b for a, b in pairwise([0, *offsets, len(text)]))
        if family in EXACT:
            names = [name for name, _ in placed][bos:]
            assert b"".join(map(read, names)) == text.encode()
            for name, (here, there) in zip(
                names, pairwise([*offsets[bos:], len(text)]), strict=True
            ):
                assert name.startswith("bytes:") or text[here:there] == name
            assert not bos or placed[0] == (BOS, 0)

    check()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers(family: str, skip: bool) -> None:
    """Any tokens at all, as a model may write them, with a stop string and without."""
    tokenizer = FamilyTokenizer(tokenizer_of(family))
    texts = TokenTexts(tokenizer)
    tokens = st.integers(0, len(tokenizer._tokenizer) - 1)

    @settings(max_examples=30)
    @given(
        prompt=st.lists(tokens, min_size=1, max_size=5),
        answer=st.lists(tokens, min_size=1, max_size=12),
        stop=st.sampled_from([(), ("e",), ("th", "\n"), ("🌍",)]),
    )
    def check(prompt: list[int], answer: list[int], stop: tuple[str, ...]) -> None:
        request = GenerationRequest(
            request_id="a",
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(
                max_tokens=len(answer), stop=stop, skip_special_tokens=skip, logprobs=0
            ),
        )
        completion, placement = Completion(request, tokenizer, ()), Placement(texts, request)
        text, placed, positions = "", [], []
        for token_id in answer:
            position = PositionLogprobs(chosen=TokenLogprob(token_id=token_id, logprob=-1), top=())
            event = completion.take((token_id,), (position,))
            text += event.text
            positions.append(position)
            ended = event.finish_reason is not None
            out = placement.push(event.text, event.logprobs, ended=ended)
            assert ended or all(token.offset < len(text) for token in out)
            placed += out
            if ended:
                break
        offsets = [token.offset for token in placed]
        assert [token.position for token in placed] == positions
        assert all(a <= b for a, b in pairwise([0, *offsets, len(text)]))
        whole = Placement(texts, request).push(text, positions, ended=True)
        assert [token.offset for token in whole] == offsets
        said = [token for token in placed if placement.is_said(token)]
        if not stop and not tokenizer.decode(prompt).endswith("\ufffd"):
            names = [texts.of_placed(token) for token in said]
            assert b"".join(map(read, names)).decode(errors="replace") == text
            ends = pairwise([*(token.offset for token in said), len(text)])
            for name, (here, there) in zip(names, ends, strict=True):
                assert name.startswith("bytes:") or text[here:there] == name

    check()


def test_a_mark_that_is_text_at_the_beginning_alone() -> None:
    """WordPiece's `##nd` goes on with a word, and stands as it is where there is none."""
    tokenizer = FamilyTokenizer(tokenizer_of("wordpiece"))
    tokens = {text: i for i, text in enumerate(map(tokenizer.token_text, range(200)))}
    marked = next(i for text, i in tokens.items() if text.startswith("##"))
    special = next(iter(tokenizer.special_tokens.values()))
    for prompt in ([special], [tokens["the"]]):
        params = SamplingParams(max_tokens=1, logprobs=0)
        request = GenerationRequest(request_id="a", prompt_token_ids=tuple(prompt), params=params)
        text = Completion(request, tokenizer, ()).take((marked,)).text
        position = PositionLogprobs(chosen=TokenLogprob(token_id=marked, logprob=-1), top=())
        texts = TokenTexts(tokenizer)
        [placed] = Placement(texts, request).push(text, [position], ended=True)
        assert texts.of_placed(placed) == text
        assert text.startswith("##") == (prompt == [special])
