"""The next token of each job from its logits.

Rows are independent, so a request gets the same tokens in any batch. The order of the steps is
vLLM's: what the request's rules ask (`rules.py`) and its grammar, temperature, min-p, top-k, top-p.

Shape suffixes: S jobs, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from remix_runtime.contracts import PositionLogprobs, SamplingParams, TokenLogprob
from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.grammar import Matcher

_NUCLEUS_GUESS = 1024
"""Top-p rarely needs more candidates than this; sorting the whole vocabulary is slow."""


@dataclass(frozen=True, slots=True)
class Sample:
    token_id: int
    logprobs: PositionLogprobs | None


def sample(logits_SV: Tensor, jobs: list[Job]) -> list[Sample | Exception]:
    """Draws one sample per row. A row that fails gives its exception and leaves the others
    alone."""
    best_S1 = _best(logits_SV)
    # NaN counts as the highest, so the best logit tells whether a row is sound.
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
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a grammar in Rust
            results.append(RuntimeError(repr(error)))
    return results


def _sample_row(logits_V: Tensor, best: int, job: Job) -> Sample:
    params, matcher = job.params, job.completion.matcher
    token_id = best
    adjusted_V = job.ruled(logits_V)
    if adjusted_V is not logits_V:
        token_id = int(_best(adjusted_V))
    ids: Tensor | None = None
    # A greedy token that the grammar allows needs no mask.
    if matcher is not None and (params.temperature > 0 or not matcher.allows(token_id)):
        adjusted_V, ids = _allowed(adjusted_V, matcher)
        token_id = int(_best(adjusted_V))
    if adjusted_V is not logits_V and float(adjusted_V[token_id]) == -math.inf:
        raise ValueError("no token is left that may be drawn")
    if params.temperature > 0:
        token_id = _draw(adjusted_V, params, job.rng.random())
    if ids is not None:
        token_id = int(ids[token_id])
    logprobs = None
    if params.logprobs is not None:
        (logprobs,) = logprobs_of(logits_V.unsqueeze(0), [token_id], params.logprobs)
    return Sample(token_id, logprobs)


def _allowed(logits_V: Tensor, matcher: Matcher) -> tuple[Tensor, Tensor | None]:
    """The logits of the tokens that the grammar allows, and which they are; where they are many,
    the logits of all tokens without the others."""
    mask = matcher.mask(logits_V.shape[0])
    count = np.count_nonzero(mask)
    if not count:
        raise ValueError("the grammar allows no token")
    if 2 * count > len(mask):
        allowed_V = torch.from_numpy(mask).to(logits_V.device)
        return torch.where(allowed_V, logits_V, -math.inf), None
    ids = torch.from_numpy(np.flatnonzero(mask)).to(logits_V.device)
    return logits_V[ids], ids


def _best(logits: Tensor) -> Tensor:
    """Where each row of [..., V] is highest, [..., 1]: at the first of equal values, and of NaN."""
    if logits.is_cpu and logits.dtype is torch.float32:  # in a tenth of torch's time
        return torch.from_numpy(logits.numpy().argmax(-1, keepdims=True))
    return torch.argmax(logits, dim=-1, keepdim=True)


def _draw(logits_V: Tensor, params: SamplingParams, u: float) -> int:
    """Draws a token: the inverse of the kept tokens' cumulative distribution at u in [0, 1).

    In float64, so that the smallest temperature gives probabilities and not NaN.
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


def logprobs_of(logits_TV: Tensor, token_ids: Sequence[int], count: int) -> list[PositionLogprobs]:
    """The log-probabilities of a token and of the `count` most likely ones in each row: of the raw
    logits, before bias, penalties and temperature (vLLM's default)."""
    logprobs_TV = torch.log_softmax(logits_TV.float(), dim=-1)
    ids_T1 = torch.tensor(token_ids, device=logits_TV.device, dtype=torch.long).unsqueeze(1)
    chosen = logprobs_TV.gather(1, ids_T1).flatten().tolist()
    if not all(map(math.isfinite, chosen)):
        raise ArithmeticError("the model gave logits that are not finite")
    found = []
    for logprobs_V, token_id, logprob in zip(logprobs_TV, token_ids, chosen, strict=True):
        top: tuple[TokenLogprob, ...] = ()
        if count:
            values, ids = _largest(logprobs_V, min(count, logprobs_V.shape[0]))
            top = tuple(
                TokenLogprob(token_id=i, logprob=v)
                for i, v in zip(ids.tolist(), values.tolist(), strict=True)
            )
        chosen_one = TokenLogprob(token_id=token_id, logprob=logprob)
        found.append(PositionLogprobs(chosen=chosen_one, top=top))
    return found
