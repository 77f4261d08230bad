"""The next token of each job from its logits.

Rows are independent, so a request gets the same tokens in any batch. The order of the steps is
vLLM's: bias and penalties, temperature, min-p, top-k, top-p.

Shape suffixes: S jobs, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from remix_runtime.contracts import PositionLogprobs, SamplingParams, TokenLogprob
from remix_runtime.engines.embedded.job import Job

_NUCLEUS_GUESS = 1024
"""Top-p rarely needs more candidates than this; sorting the whole vocabulary is slow."""


@dataclass(frozen=True, slots=True)
class Sample:
    token_id: int
    logprobs: PositionLogprobs | None


def sample(logits_SV: Tensor, jobs: list[Job]) -> list[Sample | Exception]:
    """One sample per row; a row that fails gives its exception and spoils no other."""
    best_S1 = torch.argmax(logits_SV, dim=-1, keepdim=True)  # the first of equal values
    # argmax takes NaN for the largest, so the best logit tells whether a row is sound.
    finite = torch.isfinite(logits_SV.gather(1, best_S1)).flatten().tolist()
    best = best_S1.flatten().tolist()
    results: list[Sample | Exception] = []
    for row, job in enumerate(jobs):
        try:
            if not finite[row]:
                raise ArithmeticError("the model gave logits that are not finite")
            results.append(_sample_row(logits_SV[row], best[row], job))
        except Exception as error:
            results.append(error)
    return results


def _sample_row(logits_V: Tensor, best: int, job: Job) -> Sample:
    params = job.params
    token_id = best
    if _changes_logits(params):
        adjusted_V = _adjust(logits_V, job)
        token_id = int(torch.argmax(adjusted_V))
    else:
        adjusted_V = logits_V
    if params.temperature > 0:
        token_id = _draw(adjusted_V, params, job.rng.random())
    logprobs = None
    if params.logprobs is not None:
        logprobs = _logprobs(logits_V, token_id, params.logprobs)
    return Sample(token_id, logprobs)


def _changes_logits(params: SamplingParams) -> bool:
    return bool(
        params.logit_bias
        or params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1.0
    )


def _adjust(logits_V: Tensor, job: Job) -> Tensor:
    """Logit bias; repetition penalty over prompt and output; the other two over the output."""
    params = job.params
    logits_V = logits_V.float().clone()
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(job.tokens)), device=logits_V.device)
        values = logits_V[seen]
        penalty = params.repetition_penalty
        logits_V[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if job.generated_counts and (params.presence_penalty or params.frequency_penalty):
        ids = torch.tensor(list(job.generated_counts), device=logits_V.device)
        counts = torch.tensor(
            list(job.generated_counts.values()), dtype=torch.float32, device=logits_V.device
        )
        logits_V[ids] -= params.frequency_penalty * counts + params.presence_penalty
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=logits_V.device)
        logits_V[ids] += torch.tensor(list(params.logit_bias.values()), device=logits_V.device)
    return logits_V


def _draw(logits_V: Tensor, params: SamplingParams, u: float) -> int:
    """Inverts the cumulative distribution of the kept tokens at u in [0, 1).

    In float64, so that the tiniest temperature gives probabilities and not NaN.
    """
    scaled_V = logits_V.double()
    scaled_V = (scaled_V - scaled_V.max()) / params.temperature
    probs_V = torch.softmax(scaled_V, dim=-1)
    if params.min_p > 0:
        probs_V = torch.where(probs_V >= params.min_p * probs_V.max(), probs_V, 0.0)
        probs_V = probs_V / probs_V.sum()
    vocab = probs_V.shape[0]
    if 0 < params.top_k < vocab:
        values, ids = _largest(probs_V, params.top_k)
        values = values / values.sum()
    elif params.top_p < 1.0:
        values, ids = _largest(probs_V, min(_NUCLEUS_GUESS, vocab))
        if values.sum() < params.top_p:
            values, ids = _largest(probs_V, vocab)
    else:
        values, ids = probs_V, None
    if params.top_p < 1.0:
        # Keep a token while the mass before it is below top_p: at least one, as in vLLM.
        before = torch.cumsum(values, dim=0) - values
        values = torch.where(before < params.top_p, values, 0.0)
    cumulative = torch.cumsum(values, dim=0)
    at = int(torch.searchsorted(cumulative, u * cumulative[-1], right=True))
    # Rounding may point past the last token that has any mass.
    at = min(at, int(torch.nonzero(values)[-1]))
    return at if ids is None else int(ids[at])


def _largest(probs_V: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest, in descending order, equal ones by ascending token id."""
    if count == probs_V.shape[0]:
        ordered = torch.sort(probs_V, descending=True, stable=True)
        return ordered.values, ordered.indices
    floor = torch.topk(probs_V, count).values[-1]
    ids = torch.nonzero(probs_V >= floor).squeeze(-1)
    ordered = torch.sort(probs_V[ids], descending=True, stable=True)
    return ordered.values[:count], ids[ordered.indices[:count]]


def _logprobs(logits_V: Tensor, token_id: int, count: int) -> PositionLogprobs:
    """Of the raw logits, before bias, penalties and temperature (vLLM's default)."""
    logprobs_V = torch.log_softmax(logits_V.float(), dim=-1)
    top: tuple[TokenLogprob, ...] = ()
    if count:
        values, ids = _largest(logprobs_V, min(count, logprobs_V.shape[0]))
        top = tuple(
            TokenLogprob(token_id=i, logprob=v)
            for i, v in zip(ids.tolist(), values.tolist(), strict=True)
        )
    return PositionLogprobs(
        chosen=TokenLogprob(token_id=token_id, logprob=float(logprobs_V[token_id])), top=top
    )
