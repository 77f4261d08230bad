"""The next token of each job from its logits.

Rows are independent, so a request gets the same tokens in any batch. The order of the steps is
vLLM's: what the request's rules ask (`rules.py`) and its grammar, temperature, min-p, top-k, top-p.

Shape suffixes: S jobs, V vocabulary, C candidates (or the V tokens), B blocks of candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from remix_runtime.contracts import PositionLogprobs, SamplingParams, TokenLogprob
from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.grammar import Matcher

_NUCLEUS_GUESS = 1024
"""Top-p rarely needs more candidates than this; sorting the whole vocabulary is slow."""
_BLOCK = 64
"""Weights whose sum is made at once."""

Weights = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    token_id: int
    logprobs: PositionLogprobs | None


def sample(logits_SV: Tensor, jobs: list[Job]) -> list[Sample | Exception]:
    """Draws one sample per row. A row that fails gives its exception and leaves the others
    alone."""
    best, logits = _best(logits_SV)
    results: list[Sample | Exception] = []
    for row, job in enumerate(jobs):
        try:
            # NaN counts as the highest, so the best logit tells whether a row is sound.
            if not math.isfinite(logits[row]):
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
        token_id = _best_of(adjusted_V)
    ids: Tensor | None = None
    # A greedy token that the grammar allows needs no mask.
    if matcher is not None and (params.temperature > 0 or not matcher.allows(token_id)):
        adjusted_V, ids = _allowed(adjusted_V, matcher)
        token_id = _best_of(adjusted_V)
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


def _best(logits_SV: Tensor) -> tuple[list[int], list[float]]:
    """Where each row is highest, at the first of equal values and of NaN; and the values there."""
    if logits_SV.is_cpu and logits_SV.dtype is torch.float32:  # in a tenth of torch's time
        rows_SV = logits_SV.numpy()
        ids = rows_SV.argmax(-1).tolist()
        return ids, [rows_SV.item(row, token_id) for row, token_id in enumerate(ids)]
    ids_S1 = torch.argmax(logits_SV, dim=-1, keepdim=True)
    return ids_S1.flatten().tolist(), logits_SV.gather(1, ids_S1).flatten().tolist()


def _best_of(logits_V: Tensor) -> int:
    (token_id,), _ = _best(logits_V.unsqueeze(0))
    return token_id


def _draw(logits_V: Tensor, params: SamplingParams, u: float) -> int:
    """Draws a token: the inverse of the kept tokens' cumulative distribution at u in [0, 1)."""
    if 0 < params.top_k < len(logits_V):  # first, as min-p then keeps the same of these
        logits_C, ids_C = _largest(logits_V, params.top_k)
        weights_C = _weights(logits_C, params)
        if params.top_p < 1.0:
            weights_C = _nucleus(weights_C, params.top_p * weights_C.sum())
        return int(ids_C[_drawn(weights_C, u)])
    weights_V = _weights(logits_V, params)
    if params.top_p == 1.0:
        return _drawn(weights_V, u)
    total = weights_V.sum()
    mass = params.top_p * total
    order_C = _candidates(weights_V, mass, total - mass)
    return int(order_C[_drawn(_nucleus(weights_V[order_C], mass), u)])


def _weights(logits_C: Tensor, params: SamplingParams) -> Weights:
    """The chances of tokens but for a common factor, 1 for the largest, 0 below min-p.

    In float64, so that the smallest temperature gives weights and not NaN; with numpy, whose single
    operations take a half to a tenth of the time of torch's on one thread.
    """
    weights_C = logits_C.to(torch.float64, copy=True).numpy(force=True)
    weights_C -= weights_C.max()
    with np.errstate(over="ignore"):
        weights_C /= params.temperature
    np.exp(weights_C, out=weights_C)
    if params.min_p > 0:
        weights_C[weights_C < params.min_p] = 0.0
    return weights_C


def _candidates(weights_V: Weights, mass: float, rest: float) -> NDArray[np.int64]:
    """Tokens that a nucleus of that mass, which leaves out `rest`, is among: the largest weights
    first, equal ones by ascending id."""
    # All tokens below this have no more than half of what is left out.
    floor = rest / (2 * len(weights_V))
    ids_C = np.flatnonzero(weights_V > floor)
    if len(ids_C) > _NUCLEUS_GUESS:  # sorting many is slow, and it rarely needs more than these
        floor = np.partition(weights_V[ids_C], -_NUCLEUS_GUESS)[-_NUCLEUS_GUESS]
        some = ids_C[weights_V[ids_C] >= floor]
        if weights_V[some].sum() >= mass:
            ids_C = some
    return ids_C[np.argsort(-weights_V[ids_C], kind="stable")]


def _nucleus(weights_C: Weights, mass: float) -> Weights:
    """Of weights in descending order, those before which there is less than `mass`: at least one,
    as in vLLM."""
    before_C = np.cumsum(weights_C) - weights_C
    return weights_C[before_C < mass]


def _drawn(weights_C: Weights, u: float) -> int:
    """Where the cumulative weights pass u times their sum: in blocks, since a sum that runs through
    all of them takes longer than everything else here."""
    blocks = -(-len(weights_C) // _BLOCK)
    padded = np.zeros(blocks * _BLOCK)
    padded[: len(weights_C)] = weights_C
    weights_BC = padded.reshape(blocks, _BLOCK)
    cumulative_B = weights_BC.sum(1).cumsum()
    target = u * cumulative_B[-1]
    # Rounding may point past the last token that has any mass.
    block = min(int(np.searchsorted(cumulative_B, target, side="right")), blocks - 1)
    begin = cumulative_B[block - 1] if block else 0.0
    within = int(np.searchsorted(begin + weights_BC[block].cumsum(), target, side="right"))
    at = block * _BLOCK + min(within, _BLOCK - 1)
    if padded[at] > 0:
        return at
    return int(np.flatnonzero(padded[:at])[-1])


def _largest(values_V: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest, in descending order, equal ones by ascending token id."""
    if count == values_V.shape[0]:
        ordered = torch.sort(values_V, descending=True, stable=True)
        return ordered.values, ordered.indices
    floor = torch.topk(values_V, count).values[-1]
    highest = (values_V >= floor).numpy(force=True)  # torch's own nonzero takes five times as long
    ids = torch.from_numpy(np.flatnonzero(highest)).to(values_V.device)
    ordered = torch.sort(values_V[ids], descending=True, stable=True)
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
