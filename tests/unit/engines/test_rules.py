"""The rules of a request over its logits, against plain arithmetic on lists."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from llguidance import LLMatcher
from numpy.typing import NDArray

from remix_runtime.contracts import (
    GenerationRequest,
    Grammar,
    GrammarKind,
    ModelInfo,
    SamplingParams,
)
from remix_runtime.engines.bad_words import MAX_SEQUENCES, MAX_TOKENS, BadWords, bad_word_ids
from remix_runtime.engines.completion import Completion
from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.embedded.sampler import Sample, sample
from remix_runtime.engines.fake_model import ByteTokenizer, byte_grammar_tokenizer
from remix_runtime.engines.grammar import Matcher, compiled
from remix_runtime.errors import InvalidRequestError
from tests.engines import NoText

V, ENDS = 257, (256,)


def job_of(
    bad_words: BadWords = (),
    matcher: Matcher | None = None,
    prompt: Sequence[int] = (1, 2),
    **params: Any,
) -> Job:
    request = GenerationRequest(
        request_id="r",
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(**{"max_tokens": 30, "temperature": 0.0} | params),
    )
    completion = Completion(request, NoText(), ENDS, matcher)
    return Job(request, completion, end_token_ids=ENDS, bad_words=bad_words)


def plainly(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    bad_words: BadWords,
) -> list[float]:
    """vLLM's order, token by token."""
    out = list(logits)
    counts = Counter(output)
    for i in range(len(out)):
        if params.allowed_token_ids and i not in params.allowed_token_ids:
            out[i] = -math.inf
        for word in bad_words:
            begun = tuple(output[len(output) - len(word) + 1 :]) if len(word) > 1 else ()
            if word[-1] == i and begun == word[:-1]:
                out[i] = -math.inf
        if len(output) < params.min_tokens and i in (*ENDS, *params.stop_token_ids):
            out[i] = -math.inf
        out[i] += params.logit_bias.get(i, 0.0)
        if i in (*prompt, *output):
            penalty = params.repetition_penalty
            out[i] = out[i] / penalty if out[i] > 0 else out[i] * penalty
        out[i] -= params.frequency_penalty * counts[i]
        out[i] -= params.presence_penalty * (counts[i] > 0)
    return out


SOME: Mapping[str, Any] = {
    "allowed_token_ids": tuple(range(0, V, 3)),
    "min_tokens": 4,
    "stop_token_ids": (3, 6),
    "logit_bias": {3: 2.0, 9: -1.5, 256: 4.0},
    "repetition_penalty": 1.4,
    "frequency_penalty": 0.3,
    "presence_penalty": -0.7,
}
WORDS: BadWords = ((6,), (9, 12), (9, 12, 15), (12, 12))


@pytest.mark.parametrize("names", [(name,) for name in SOME] + [tuple(SOME), ()])
@pytest.mark.parametrize("bad_words", [(), WORDS])
def test_the_rules_are_those_of_plain_arithmetic(
    names: tuple[str, ...], bad_words: BadWords
) -> None:
    params = {name: SOME[name] for name in names}
    job = job_of(bad_words, prompt=(9, 9, 30), **params)
    generator, draw = torch.Generator().manual_seed(len(names)), random.Random(1)
    for _ in range(8):
        logits_V = 3 * torch.randn(V, generator=generator)
        before = logits_V.clone()
        found = job.ruled(logits_V)
        output = job.tokens[3:]
        expected = plainly(logits_V.tolist(), job.params, (9, 9, 30), output, bad_words)
        assert torch.equal(logits_V, before)
        torch.testing.assert_close(found, torch.tensor(expected))
        job.append(draw.choice([9, 12, 12, 15, 256]))


class Sliced(list[int]):
    """Tokens that tell how many of them were looked at together."""

    longest = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if isinstance(key, slice):
            self.longest = max(self.longest, len(found))
        return found


def test_a_token_costs_the_same_however_many_came_before() -> None:
    job = job_of(WORDS, prompt=(9,) * 50, **SOME)
    job.tokens = tokens = Sliced(job.tokens)
    for count in range(200):
        job.ruled(torch.zeros(V))
        job.append((12, 9)[count % 2])
    assert tokens.longest <= max(map(len, WORDS))


def test_choices_of_a_request_share_the_mask_of_the_tokens_that_it_allows() -> None:
    """Sixty-four choices would make it sixty-four times in one step."""
    masks, allowed = [], tuple(range(0, V, 2))
    for bad_words in ((), (), ((6,),)):
        job = job_of(bad_words, allowed_token_ids=allowed)
        found = job.ruled(torch.zeros(V))
        assert torch.isfinite(found).sum() == len(allowed) - len(bad_words)
        assert job._rules is not None
        masks.append(job._rules._never_V)
    assert masks[0] is masks[1]


def test_a_request_without_rules_gets_the_very_logits() -> None:
    logits_V = torch.randn(V)
    assert job_of().ruled(logits_V) is logits_V
    early = job_of(min_tokens=1)
    assert early.ruled(logits_V) is not logits_V
    early.append(5)
    assert early.ruled(logits_V) is logits_V


def test_where_nothing_is_left_to_draw_the_request_fails_alone() -> None:
    """Two allowed tokens, each of which the other forbids."""
    for temperature in (0.0, 1.0):
        params = {"allowed_token_ids": (5, 6), "temperature": temperature}
        stuck = job_of(((5, 6), (5, 5)), **params)
        stuck.append(5)
        rows = torch.randn(2, V)
        failed, fine = sample(rows, [stuck, job_of()])
        assert isinstance(failed, ValueError)
        assert isinstance(fine, Sample)


# -- grammars in the sampler --------------------------------------------------------------------


def grammar_job(text: str, **params: Any) -> Job:
    grammar = Grammar(kind=GrammarKind.REGEX, text=text)
    return job_of(matcher=Matcher(compiled(grammar, byte_grammar_tokenizer())), **params)


def run(job: Job, rows: Sequence[torch.Tensor], beside: Sequence[Job] = ()) -> list[int]:
    """The tokens that a job draws from rows of logits, other jobs before it in the batch."""
    tokens = []
    for row in rows:
        batch = torch.stack([*(torch.roll(row, 1) for _ in beside), row])
        *_, result = sample(batch, [*beside, job])
        assert isinstance(result, Sample), result
        tokens.append(result.token_id)
        job.append(result.token_id)
        if job.completion.take((result.token_id,)).finish_reason is not None:
            break
    return tokens


def logits(seed: int, count: int = 24) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(V, generator=generator) for _ in range(count)]


PATTERNS = ["[a-f]{3,8}", "(ab|cde)+f", "[^x]{4}x?"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_masked_tokens_are_those_of_a_plain_mask(pattern: str, temperature: float) -> None:
    for seed in range(4):
        rows = logits(seed)
        # A twin whose logits are masked by hand before an unruled sampler sees them.
        params = {"temperature": temperature, "seed": seed, "top_k": 9, "top_p": 0.8, "min_p": 0.01}
        source = LLMatcher.grammar_from_regex(pattern)
        twin, reference = job_of(**params), LLMatcher(byte_grammar_tokenizer(), source)
        expected = []
        for row in rows:
            if reference.is_stopped():
                break
            mask = torch.tensor([bool(byte) for byte in reference.compute_logit_bias()])
            (result,) = sample(row.masked_fill(~mask, -math.inf).unsqueeze(0), [twin])
            assert isinstance(result, Sample), result
            expected.append(result.token_id)
            reference.consume_token(result.token_id)
        alone = run(grammar_job(pattern, **params), rows)
        assert alone == expected
        crowd = [job_of(temperature=1.0, seed=5), grammar_job("[0-9]+", max_tokens=99)]
        assert run(grammar_job(pattern, **params), rows, crowd) == alone


def test_a_greedy_token_that_fits_needs_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [torch.zeros(V) for _ in range(4)]
    for row, byte in zip(rows, b"abaZ", strict=True):
        row[byte] = 5.0
    masks: list[int] = []
    whole = Matcher.mask

    def mask(self: Matcher, size: int) -> NDArray[np.bool_]:
        masks.append(size)
        return whole(self, size)

    monkeypatch.setattr(Matcher, "mask", mask)
    assert bytes(run(grammar_job("[ab]{3}[A-Z]"), rows)) == b"abaZ"
    assert not masks
    rows[1][ord("a")], rows[1][ord("Q")] = 4.0, 9.0
    assert bytes(run(grammar_job("[ab]{3}[A-Z]"), rows)) == b"abaZ"
    assert len(masks) == 1


def test_a_bias_cannot_break_the_grammar() -> None:
    job = grammar_job("[ab]{2,9}", logit_bias={256: 100.0, ord("z"): 100.0}, ignore_eos=True)
    tokens = run(job, logits(1))
    assert set(tokens[:2]) <= set(b"ab")
    assert tokens[2:] == [256]


# -- bad words ----------------------------------------------------------------------------------

MODEL = ModelInfo(name="m", max_model_len=99, vocab_size=V, eos_token_ids=ENDS, max_requests=9)


class Words(ByteTokenizer):
    """Some words are one token, with and without a space before them."""

    def encode(self, text: str, *, add_special_tokens: bool, **_: Any) -> list[int]:
        known = {"cat": [200], " cat": [201], "dogs": [202, 203], " dogs": [204], "s": [205]}
        return known.get(text) or super().encode(text, add_special_tokens=add_special_tokens)


def ids_of(*words: str, **params: Any) -> BadWords:
    made = SamplingParams(max_tokens=9, bad_words=words, **params)
    return bad_word_ids(made, Words(), MODEL)


def test_a_word_is_banned_with_a_space_before_it_where_that_is_another_word_of_its_length() -> None:
    assert ids_of("cat", "cat") == ((200,), (201,))
    assert ids_of("  cat") == ((200,), (201,))
    assert ids_of("dogs", "ab") == ((202, 203), (97, 98))
    assert ids_of() == ()


def test_a_word_of_tokens_that_the_model_does_not_have_needs_no_ban() -> None:
    small = replace(MODEL, vocab_size=203)
    made = SamplingParams(max_tokens=9, bad_words=("cat", "dogs"))
    assert bad_word_ids(made, Words(), small) == ((200,), (201,))


def test_words_are_spelled_once_for_all_choices_of_a_request() -> None:
    class Counting(Words):
        texts: ClassVar[list[str]] = []

        def encode(self, text: str, *, add_special_tokens: bool, **_: Any) -> list[int]:
            self.texts.append(text)
            return super().encode(text, add_special_tokens=add_special_tokens)

    tokenizer = Counting()
    for seed in range(3):
        made = SamplingParams(max_tokens=9, bad_words=("cat", "dogs"), seed=seed)
        assert bad_word_ids(made, tokenizer, MODEL) == ((200,), (201,), (202, 203))
    assert sorted(tokenizer.texts) == [" cat", " dogs", "cat", "dogs"]


@pytest.mark.parametrize(
    ("words", "params", "param"),
    [
        (["  "], {}, "bad_words"),
        ([str(i) for i in range(MAX_SEQUENCES + 1)], {}, "bad_words"),
        (["x" * (MAX_TOKENS + 1)], {}, "bad_words"),
        (["x" * 10**6], {}, "bad_words"),
        (["cat"], {"allowed_token_ids": (200, 201)}, "allowed_token_ids"),
        ([], {"allowed_token_ids": (256, 7), "stop_token_ids": (7,), "min_tokens": 1},
         "allowed_token_ids"),
        ([], {"stop_token_ids": tuple(range(V)), "min_tokens": 1}, "stop_token_ids"),
    ],
)  # fmt: skip
def test_words_without_tokens_too_many_or_all_that_is_allowed_are_refused(
    words: list[str], params: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ids_of(*words, **params)
    assert caught.value.param == param
    assert len(str(caught.value)) < 300
