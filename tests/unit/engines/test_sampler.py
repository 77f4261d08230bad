"""The sampler against what the parameters say, with random logits."""

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch

from remix_runtime.contracts import GenerationRequest, SamplingParams
from remix_runtime.engines.completion import Completion
from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.embedded.sampler import Sample, sample
from tests.engines import NoText

V = 50

Law = dict[int, float]
"""The chance of each token."""


class Fixed(random.Random):
    """Gives the same number always."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self._number = number

    def random(self) -> float:
        return self._number


def job_of(prompt: tuple[int, ...] = (1, 2), **params: Any) -> Job:
    request = GenerationRequest(
        request_id="r",
        prompt_token_ids=prompt,
        params=SamplingParams(max_tokens=10, **params),
    )
    return Job(request, Completion(request, NoText(), ()))


def draws(logits_V: torch.Tensor, count: int = 3000, **params: Any) -> Counter[int]:
    """`count` tokens drawn by one request."""
    item = job_of(seed=7, **params)
    rows = logits_V.expand(count, -1)
    return Counter(result.token_id for result in good(sample(rows, [item] * count)))


def good(results: list[Sample | Exception]) -> list[Sample]:
    assert all(isinstance(result, Sample) for result in results), results
    return results  # type: ignore[return-value]


def one(logits_V: torch.Tensor, item: Job) -> int:
    return good(sample(logits_V.unsqueeze(0), [item]))[0].token_id


def law(logits_V: torch.Tensor, kept: list[int] | None = None) -> dict[int, float]:
    ids = list(range(len(logits_V))) if kept is None else kept
    weights = {i: math.exp(float(logits_V[i])) for i in ids}
    return {i: w / sum(weights.values()) for i, w in weights.items()}


def assert_follows(counts: Counter[int], expected: dict[int, float]) -> None:
    total = sum(counts.values())
    assert set(counts) <= {i for i, p in expected.items() if p > 0}
    for token_id, p in expected.items():
        error = 5 * math.sqrt(p * (1 - p) / total) + 5 / total  # few draws: Poisson, not normal
        assert abs(counts[token_id] / total - p) <= error, token_id


def random_logits() -> torch.Tensor:
    return torch.randn(V) * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_greedy_takes_the_first_of_equal_logits(dtype: torch.dtype) -> None:
    logits_V = torch.zeros(V, dtype=dtype)
    logits_V[[7, 3, 30]] = 2.0
    assert one(logits_V, job_of(temperature=0.0)) == 3
    of_every_second = torch.stack((logits_V, torch.full_like(logits_V, 9.0)), dim=1)[:, 0]
    assert one(of_every_second, job_of(temperature=0.0)) == 3


def test_temperature_one_follows_the_softmax() -> None:
    logits_V = random_logits()
    assert_follows(draws(logits_V), law(logits_V))


def test_temperature_sharpens() -> None:
    logits_V = random_logits()
    assert_follows(draws(logits_V, temperature=0.5), law(logits_V / 0.5))


def test_a_tiny_temperature_is_greedy_and_finite() -> None:
    logits_V = random_logits()
    assert set(draws(logits_V, count=20, temperature=1e-6)) == {int(logits_V.argmax())}


@pytest.mark.parametrize("k", [1, 4, V, V + 10])
def test_top_k(k: int) -> None:
    logits_V = random_logits()
    kept = torch.topk(logits_V, min(k, V)).indices.tolist()
    assert_follows(draws(logits_V, top_k=k), law(logits_V, kept))


@pytest.mark.parametrize("top_p", [0.01, 0.6, 0.95])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float) -> None:
    logits_V = random_logits()
    kept, mass = [], 0.0
    for token_id, p in sorted(law(logits_V).items(), key=lambda item: -item[1]):
        if mass < top_p:
            kept.append(token_id)
        mass += p
    assert_follows(draws(logits_V, top_p=top_p), law(logits_V, kept))


def test_top_p_over_a_flat_vocabulary_larger_than_the_first_guess() -> None:
    logits_V = torch.zeros(3000)
    counts = draws(logits_V, count=400, top_p=0.99)
    assert max(counts) > 1024
    assert max(counts) < 2971


def test_min_p() -> None:
    logits_V = random_logits()
    probs = law(logits_V)
    kept = [i for i, p in probs.items() if p >= 0.2 * max(probs.values())]
    assert_follows(draws(logits_V, min_p=0.2), law(logits_V, kept))


def test_top_k_and_top_p_together_renormalise_in_between() -> None:
    logits_V = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1]))
    # After top-k 2 the masses are 4/7 and 3/7, so 0.5 is reached by the first alone.
    assert set(draws(logits_V, count=100, top_k=2, top_p=0.5)) == {0}
    assert set(draws(logits_V, count=300, top_k=2, top_p=0.6)) == {0, 1}


def test_logit_bias_moves_the_greedy_choice() -> None:
    logits_V = random_logits()
    best, other = torch.topk(logits_V, 2).indices.tolist()
    assert one(logits_V, job_of(temperature=0.0, logit_bias={best: -100.0})) == other


def test_repetition_penalty_covers_the_prompt_and_both_signs() -> None:
    logits_V = torch.full((V,), -3.0)
    logits_V[[1, 2, 5]] = torch.tensor([4.0, -1.0, 3.0])
    assert one(logits_V, job_of(prompt=(1,), temperature=0.0)) == 1
    assert one(logits_V, job_of(prompt=(1,), temperature=0.0, repetition_penalty=2.0)) == 5
    logits_V[[1, 5]] = -2.0
    # -1 penalised twofold is -2, level with two others: the lowest id wins.
    assert one(logits_V, job_of(prompt=(2,), temperature=0.0, repetition_penalty=2.0)) == 1


def test_presence_and_frequency_count_generated_tokens_only() -> None:
    logits_V = torch.full((V,), -9.0)
    logits_V[[1, 2, 3]] = torch.tensor([2.0, 1.5, 1.0])
    item = job_of(prompt=(1, 1, 1), temperature=0.0, frequency_penalty=0.3)
    assert one(logits_V, item) == 1
    item.append(1)
    item.append(1)
    assert one(logits_V, item) == 2
    item = job_of(prompt=(3,), temperature=0.0, presence_penalty=0.7)
    item.append(1)
    item.append(1)
    assert one(logits_V, item) == 2


def test_a_seed_gives_the_same_tokens_in_any_batch() -> None:
    rows = torch.randn(5, 12, V)
    alone = job_of(seed=3)
    together = job_of(seed=3)
    others = [job_of(seed=i) for i in range(4)]
    first, second = [], []
    for step in rows.unbind(1):
        first.append(one(step[2], alone))
        batch = [*others[:2], together, *others[2:]]
        second.append(good(sample(step, batch))[2].token_id)
    assert first == second


def test_logprobs_are_of_the_raw_logits() -> None:
    logits_V = random_logits()
    item = job_of(temperature=0.0, logprobs=3, logit_bias={4: 100.0})
    result = good(sample(logits_V.unsqueeze(0), [item]))[0]
    expected = torch.log_softmax(logits_V, -1)
    assert result.token_id == 4
    assert result.logprobs is not None
    assert result.logprobs.chosen.logprob == pytest.approx(float(expected[4]), abs=1e-5)
    assert [t.token_id for t in result.logprobs.top] == torch.topk(expected, 3).indices.tolist()


def test_a_row_with_nan_fails_alone() -> None:
    logits_SV = torch.stack([random_logits() for _ in range(3)])
    logits_SV[1, 17] = math.nan
    results = sample(logits_SV, [job_of(temperature=0.0) for _ in range(3)])
    assert isinstance(results[1], ArithmeticError)
    assert isinstance(results[0], Sample)
    assert isinstance(results[2], Sample)
    assert results[2].token_id == int(logits_SV[2].argmax())


def kept(logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> Law:
    """What each token may be drawn with, by vLLM's order of rules, in plain Python."""
    top = max(logits)
    weights = [math.exp((z - top) / temperature) for z in logits]
    weights = [w if w >= min_p else 0.0 for w in weights]
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    if top_k > 0:
        order = order[:top_k]
    total = math.fsum(weights[i] for i in order)
    before, some = 0.0, []
    for i in order:
        if before < top_p * total:
            some.append(i)
        before += weights[i]
    mass = math.fsum(weights[i] for i in some)
    return {i: weights[i] / mass for i in some if weights[i]}


@pytest.mark.parametrize("vocab", [50, 64, 1500, 5000])
@pytest.mark.parametrize("spread", [0.0, 0.02, 1.0, 6.0])
def test_a_draw_is_where_the_cumulative_chances_pass_the_random_number(
    vocab: int, spread: float
) -> None:
    """In the order of the chances where some are cut off, else of the ids."""
    rng = random.Random(vocab + int(100 * spread))
    for _ in range(25):
        rules = {
            "temperature": rng.choice([0.3, 1.0, 1.7]),
            "top_k": rng.choice([0, 0, 1, 7, 40, vocab + 5]),
            "top_p": rng.choice([1.0, 1.0, 0.95, 0.5, 0.01]),
            "min_p": rng.choice([0.0, 0.0, 0.02, 0.9]),
        }
        logits_V = spread * torch.randn(vocab, dtype=torch.float64).float()
        chances = kept([float(z) for z in logits_V], **rules)
        is_sorted = 0 < rules["top_k"] < vocab or rules["top_p"] < 1.0
        order = chances if is_sorted else sorted(chances)
        u, passed = rng.random(), 0.0
        for expected in order:
            passed += chances[expected]
            if passed > u:
                break
        if min(abs(passed - u), abs(passed - chances[expected] - u)) < 1e-9:
            continue  # either of two may be drawn
        item = job_of(seed=1, **rules)
        item.rng = Fixed(u)
        assert one(logits_V, item) == expected, rules


@pytest.mark.parametrize("u", [0.0, math.nextafter(1.0, 0.0)])
def test_what_has_no_chance_is_not_drawn_at_the_ends(u: float) -> None:
    logits_V = torch.full((200,), -math.inf)
    logits_V[70:130] = torch.randn(60)
    for rules in ({}, {"top_p": 0.9}, {"top_k": 150}, {"min_p": 0.1}):
        item = job_of(seed=1, **rules)
        item.rng = Fixed(u)
        assert 70 <= one(logits_V, item) < 130


def test_the_logits_stay_as_they_are() -> None:
    logits_V = torch.randn(V, dtype=torch.float64)
    before = logits_V.clone()
    one(logits_V, job_of(seed=3))
    assert torch.equal(logits_V, before)
