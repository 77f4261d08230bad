"""One request inside the engine: its tokens, what of them is computed, and what it holds."""

from __future__ import annotations

import random
from collections.abc import Collection

from torch import Tensor

from remix_runtime.contracts import GenerationRequest, PositionLogprobs
from remix_runtime.engines.bad_words import BadWords
from remix_runtime.engines.completion import Completion
from remix_runtime.engines.embedded.pages import PageKeys
from remix_runtime.engines.embedded.proposals import Proposer
from remix_runtime.engines.embedded.rules import LogitRules


class Job:
    """A request from its arrival to its last token. Only the engine's thread changes it.

    `end_token_ids` are the model's ends of a text.
    """

    def __init__(
        self,
        request: GenerationRequest,
        completion: Completion,
        *,
        end_token_ids: Collection[int] = (),
        bad_words: BadWords = (),
        proposer: Proposer | None = None,
    ) -> None:
        self.request = request
        self.params = request.params
        self.completion = completion
        self.tokens = list(request.prompt_token_ids)
        self.prompt_len = len(self.tokens)
        self.num_computed = 0
        """Tokens whose keys and values are in the KV pages."""
        self.proposer = proposer
        """Guesses the next tokens; None where none are to be proposed."""
        self.pages: list[int] = []
        self.page_keys: PageKeys | None = PageKeys(
            request.digest, request.tenant, request.cache_salt
        )
        """None where its pages are not to be found, and it looks for none."""
        self.num_kept = 0
        """Its first pages that can be found."""
        self.slot = -1
        """The adapter's device slot while running; -1 is the base model."""
        self.number = -1
        """How many requests had been admitted before it was for the first time; -1 until then."""
        self.has_returned = False
        """It was set back to the queue, and has made no token since."""
        self.turn_came: int | None = None
        """How many requests had been admitted when it was first this job's turn and it found no
        slot."""
        # Its own source of randomness: a seeded request draws the same in any batch.
        self.rng = random.Random(request.params.seed)  # noqa: S311 - sampling, not secrecy
        self._end_token_ids = end_token_ids
        self._bad_words = bad_words
        self._rules: LogitRules | None = None
        self.prompt_logprobs: list[PositionLogprobs | None] = [None]
        """Of the prompt's tokens that are computed, where they are asked for."""
        self.num_scored = 0
        """Tokens whose logits need not come again for them, since it was set back."""

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def max_len(self) -> int:
        """The most KV rows that the job can need: the last token is never fed back."""
        return self.prompt_len + max(self.params.max_tokens - 1, 0)

    @property
    def num_rows(self) -> int:
        """KV rows that it takes when it enters: of its tokens and the next one."""
        return min(len(self.tokens) + 1, self.max_len)

    @property
    def num_reusable(self) -> int:
        """Tokens whose keys and values need not be computed where they are found: those before the
        newest one, or before those whose logits are wanted for the prompt."""
        if self.params.prompt_logprobs is not None and self.num_scored < self.prompt_len - 1:
            return self.num_scored
        return len(self.tokens) - 1

    @property
    def prompt_charge(self) -> int:
        """Tokens that its tenant is charged for when it is first admitted."""
        return self.prompt_len

    @property
    def num_left(self) -> int:
        """The most tokens that are left to compute."""
        return self.max_len - self.num_computed

    def append(self, token_id: int) -> None:
        self.tokens.append(token_id)
        self.has_returned = False

    def set_back(self) -> None:
        """Keeps what was made; keys and values are gone."""
        self.num_computed = self.num_kept = 0
        self.num_scored = len(self.prompt_logprobs) - 1
        self.slot = -1
        self.turn_came = None
        self.has_returned = True

    @property
    def scores_prompt(self) -> bool:
        """Whether the next tokens to compute give log-probabilities of the prompt."""
        asked = self.params.prompt_logprobs is not None
        return asked and max(self.num_computed, self.num_scored) < self.prompt_len - 1

    def ruled(self, logits_V: Tensor) -> Tensor:
        """The logits that the next token is drawn from."""
        if self._rules is None:
            self._rules = LogitRules(
                self.params,
                self.request.prompt_token_ids,
                self._end_token_ids,
                self._bad_words,
                logits_V,
            )
        return self._rules.apply(logits_V, self.tokens)
