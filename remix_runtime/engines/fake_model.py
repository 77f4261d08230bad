"""The language model of the fake engine: a hash.

The logits of a position are a function of the adapter's digest and all tokens before it. One
token is one byte; completions are printable ASCII, and about one token in a hundred is the end of
text.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper

from remix_runtime.contracts import GenerationRequest, PositionLogprobs, TokenLogprob
from remix_runtime.engines.bad_words import BadWords
from remix_runtime.engines.grammar import Matcher
from remix_runtime.engines.within import encode_within
from remix_runtime.errors import RemixError

EOS_ID = 256
VOCAB_SIZE = 257
_EOS = "<eos>"
_PRINTABLE = range(32, 127)
_UNLIKELY = -30.0
_CLOSING = frozenset(b'"]}') | {EOS_ID}
_HASTE = 6.0
"""What ends a part of an answer is likelier by this under a grammar, so that answers stay short."""


class ByteTokenizer:
    """One token per UTF-8 byte."""

    max_token_chars = 1
    special_tokens: Mapping[str, int] = {_EOS: EOS_ID}
    chat_template = "each message as a line: its role, its content"

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool,
        at_most: int | None = None,
        keep_end: bool = False,
    ) -> list[int]:
        return encode_within(lambda part: list(part.encode()), text, at_most, keep_end=keep_end)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        shown = [i for i in token_ids if i < EOS_ID or not skip_special_tokens]
        return b"".join(map(self.token_bytes, shown)).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        return self.decode([token_id], skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes:
        return _EOS.encode() if token_id == EOS_ID else bytes([token_id])

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        at_most: int | None = None,
        keep_end: bool = False,
        **variables: Any,
    ) -> list[int]:
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        if continue_final_message:
            lines[-1] = lines[-1].removesuffix("\n")
        elif add_generation_prompt:
            lines.append("assistant: ")
        text = "".join(lines)
        return self.encode(text, add_special_tokens=False, at_most=at_most, keep_end=keep_end)


class _Bytes:
    """The tokenizer, in the words of llguidance."""

    eos_token_id = EOS_ID
    bos_token_id = None
    tokens = (*(bytes([i]) for i in range(EOS_ID)), _EOS.encode())
    special_token_ids = (EOS_ID,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def byte_grammar_tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=VOCAB_SIZE)


class HashModel:
    """Logits from a running hash of everything before the position, and the choice of a token."""

    def __init__(
        self, request: GenerationRequest, bad_words: BadWords = (), matcher: Matcher | None = None
    ) -> None:
        self._params = request.params
        self._prompt = request.prompt_token_ids
        self._seed = hashlib.sha256(f"{request.digest}".encode())
        self._context = self._seed.copy()
        self._context.update(b"".join(i.to_bytes(2, "big") for i in request.prompt_token_ids))
        self._bad_words = bad_words
        self._matcher = matcher
        self._output: list[int] = []

    @cached_property
    def _sampler(self) -> random.Random:
        return random.Random(self._params.seed)  # noqa: S311

    def prompt_logprobs(self, count: int) -> list[PositionLogprobs | None]:
        """Those of each token of the prompt."""
        found: list[PositionLogprobs | None] = [None]
        context = self._seed.copy()
        for token_id, following in pairwise(self._prompt):
            context.update(token_id.to_bytes(2, "big"))
            found.append(_logprobs(_logits(context.digest()), following, count))
        return found

    def next_token(self) -> tuple[int, PositionLogprobs | None]:
        """Raises `RemixError` where no token may come."""
        logits = _logits(self._context.digest())
        token_id = self._choose(logits)
        self._context.update(token_id.to_bytes(2, "big"))
        self._output.append(token_id)
        count = self._params.logprobs
        return token_id, None if count is None else _logprobs(logits, token_id, count)

    def _choose(self, logits: list[float]) -> int:
        params = self._params
        allowed = self._allowed()
        if not allowed:
            raise RemixError("no token is left that may be drawn")
        is_plain = not params.logit_bias and params.temperature == 0 and self._matcher is None
        if is_plain and len(allowed) == VOCAB_SIZE:
            return logits.index(max(logits))  # as below, in a tenth of the time
        scores = {i: logits[i] + params.logit_bias.get(i, 0.0) for i in allowed}
        if self._matcher is not None:
            for token_id in _CLOSING & scores.keys():
                scores[token_id] += _HASTE
        if params.temperature > 0:
            # Gumbel noise makes the argmax a draw from the softmax.
            scores = {
                i: z / params.temperature - math.log(self._sampler.expovariate(1.0) or 1e-300)
                for i, z in scores.items()
            }
        return max(scores, key=lambda i: (scores[i], -i))

    def _allowed(self) -> Sequence[int]:
        params, banned = self._params, set[int]()
        limits = (params.min_tokens, self._bad_words, self._matcher, params.allowed_token_ids)
        if not any(limits):
            return range(VOCAB_SIZE)
        if len(self._output) < params.min_tokens:
            banned.update(params.stop_token_ids, (EOS_ID,))
        for word in self._bad_words:
            before = list(word[:-1])
            if not before or self._output[-len(before) :] == before:
                banned.add(word[-1])
        candidates = set(params.allowed_token_ids or range(VOCAB_SIZE)) - banned
        if self._matcher is not None:
            mask = self._matcher.mask(VOCAB_SIZE).tolist()
            candidates = {i for i in candidates if mask[i]}
        return sorted(candidates)


def _logits(context: bytes) -> list[float]:
    draw = random.Random(context).random  # noqa: S311
    logits = [_UNLIKELY] * VOCAB_SIZE
    logits[_PRINTABLE.start : _PRINTABLE.stop] = [8.0 * draw() for _ in _PRINTABLE]
    logits[EOS_ID] = 8.0 * draw()
    return logits


def _logprobs(logits: Sequence[float], token_id: int, count: int) -> PositionLogprobs:
    total = math.log(sum(math.exp(z) for z in logits))
    order = sorted(range(VOCAB_SIZE), key=lambda i: (-logits[i], i))[:count]
    chosen, *top = (TokenLogprob(token_id=i, logprob=logits[i] - total) for i in (token_id, *order))
    return PositionLogprobs(chosen=chosen, top=tuple(top))
