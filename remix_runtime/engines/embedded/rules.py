"""What a request asks of its logits before a token is drawn, as tensors that are made once.

The order is vLLM's: allowed tokens, bad words, no end before `min_tokens`, bias, penalties.

Shape suffixes: V vocabulary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from remix_runtime.contracts import SamplingParams
from remix_runtime.engines.bad_words import BadWords


class LogitRules:
    """The rules of one request, for logits like `like_V`."""

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        end_token_ids: Collection[int],
        bad_words: BadWords,
        like_V: Tensor,
    ) -> None:
        device, size = like_V.device, like_V.shape[0]
        self._params = params
        self._prompt_len = len(prompt_token_ids)
        self._never_V: Tensor | None = None
        never = [word[0] for word in bad_words if len(word) == 1]
        if params.allowed_token_ids or never:
            self._never_V = _all_but(params.allowed_token_ids, size, device)
            if never:
                self._never_V = self._never_V.clone()
                self._never_V[never] = True
        self._words: defaultdict[int, list[tuple[int, ...]]] = defaultdict(list)
        """Bad words of several tokens, by the last but one."""
        for word in bad_words:
            if len(word) > 1:
                self._words[word[-2]].append(word)
        self._ends: Tensor | None = None
        if params.min_tokens:
            ends = sorted({*end_token_ids, *params.stop_token_ids})
            self._ends = torch.tensor(ends, dtype=torch.long, device=device)
        self._bias: tuple[Tensor, Tensor] | None = None
        if params.logit_bias:
            ids, values = zip(*params.logit_bias.items(), strict=True)
            self._bias = (
                torch.tensor(ids, dtype=torch.long, device=device),
                torch.tensor(values, dtype=torch.float32, device=device),
            )
        self._seen_V: Tensor | None = None
        if params.repetition_penalty != 1.0:
            self._seen_V = torch.zeros(size, dtype=torch.bool, device=device)
            self._seen_V[list(prompt_token_ids)] = True
        self._counts_V: Tensor | None = None
        if params.presence_penalty or params.frequency_penalty:
            self._counts_V = torch.zeros(size, device=device)
        self._num_counted = self._prompt_len
        """Tokens of prompt and output that are in `_seen_V` and `_counts_V`."""
        parts = (self._never_V, self._bias, self._seen_V, self._counts_V, self._words)
        self._always = any(part is not None and len(part) for part in parts)

    def apply(self, logits_V: Tensor, tokens: Sequence[int]) -> Tensor:
        """The logits that the token after `tokens`, prompt and output, is drawn from; the same
        tensor where nothing changes."""
        num_generated = len(tokens) - self._prompt_len
        is_early = self._ends is not None and num_generated < self._params.min_tokens
        if not self._always and not is_early:
            return logits_V
        logits_V = logits_V.float().clone()
        if self._never_V is not None:
            logits_V.masked_fill_(self._never_V, -math.inf)
        if self._words and num_generated:
            self._ban_words(logits_V, tokens, num_generated)
        if is_early:
            logits_V[self._ends] = -math.inf
        if self._bias is not None:
            ids, values = self._bias
            logits_V[ids] += values
        self._count(tokens)
        return self._penalised(logits_V)

    def _ban_words(self, logits_V: Tensor, tokens: Sequence[int], num_generated: int) -> None:
        for word in self._words.get(tokens[-1], ()):
            before = word[:-1]
            if len(before) <= num_generated and tuple(tokens[-len(before) :]) == before:
                logits_V[word[-1]] = -math.inf

    def _penalised(self, logits_V: Tensor) -> Tensor:
        """The repetition penalty covers prompt and output, the others the output."""
        params = self._params
        if self._seen_V is not None:
            penalty = params.repetition_penalty
            lower_V = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
            logits_V = torch.where(self._seen_V, lower_V, logits_V)
        if self._counts_V is not None:
            logits_V -= params.frequency_penalty * self._counts_V
            logits_V -= params.presence_penalty * (self._counts_V > 0)
        return logits_V

    def _count(self, tokens: Sequence[int]) -> None:
        """Counts what was generated since the last time."""
        for token_id in tokens[self._num_counted :]:
            if self._seen_V is not None:
                self._seen_V[token_id] = True
            if self._counts_V is not None:
                self._counts_V[token_id] += 1
        self._num_counted = len(tokens)


@lru_cache(maxsize=4)
def _all_but(token_ids: tuple[int, ...], size: int, device: torch.device) -> Tensor:
    """A mask of all other tokens, of none where none is given. Not to be written to: all choices of
    a request have the same."""
    mask_V = torch.full((size,), bool(token_ids), device=device)
    if token_ids:
        mask_V[torch.tensor(token_ids, device=device)] = False
    return mask_V
