"""One request inside the engine: its tokens, what of them is computed, and what it holds."""

from __future__ import annotations

import random
from collections import Counter

from remix_runtime.contracts import GenerationRequest
from remix_runtime.engines.completion import Completion


class Job:
    """A request from its arrival to its last token. Only the engine's thread changes it."""

    def __init__(self, request: GenerationRequest, completion: Completion) -> None:
        self.request = request
        self.params = request.params
        self.completion = completion
        self.tokens = list(request.prompt_token_ids)
        self.prompt_len = len(self.tokens)
        self.num_computed = 0
        """Tokens whose keys and values are in the KV pages."""
        self.pages: list[int] = []
        self.slot = -1
        """The adapter's device slot while running; -1 is the base model."""
        self.turn_came: int | None = None
        """How many requests had been admitted when it first was its turn and no slot was there."""
        # Its own source of randomness: a seeded request draws the same in any batch.
        self.rng = random.Random(request.params.seed)  # noqa: S311 - sampling, not secrecy
        self.generated_counts: Counter[int] = Counter()

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def max_len(self) -> int:
        """KV rows it can ever need: the last token is never fed back."""
        return self.prompt_len + self.params.max_tokens - 1

    @property
    def num_left(self) -> int:
        """Tokens that it has to compute at most until its end."""
        return self.max_len - self.num_computed

    def append(self, token_id: int) -> None:
        self.tokens.append(token_id)
        self.generated_counts[token_id] += 1
