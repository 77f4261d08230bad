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
from typing import Any

from remix_runtime.contracts import GenerationRequest, PositionLogprobs, TokenLogprob

EOS_ID = 256
VOCAB_SIZE = 257
_PRINTABLE = range(32, 127)
_UNLIKELY = -30.0


class ByteTokenizer:
    """One token per UTF-8 byte."""

    max_token_chars = 1
    chat_template = "each message as a line: its role, its content"
    special_tokens: Mapping[str, int] = {"<eos>": EOS_ID}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(i for i in token_ids if i < EOS_ID).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        return "<eos>" if token_id == EOS_ID else self.decode([token_id])

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> list[int]:
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        if continue_final_message:
            lines[-1] = lines[-1].removesuffix("\n")
        elif add_generation_prompt:
            lines.append("assistant: ")
        return self.encode("".join(lines), add_special_tokens=False)


class HashModel:
    """Logits from a running hash of everything before the position."""

    def __init__(self, request: GenerationRequest) -> None:
        self._params = request.params
        self._context = hashlib.sha256(f"{request.digest}".encode())
        for token_id in request.prompt_token_ids:
            self._context.update(token_id.to_bytes(2, "big"))
        self._sampler = random.Random(request.params.seed)  # noqa: S311

    def next_token(self) -> tuple[int, PositionLogprobs | None]:
        noise = random.Random(self._context.digest())  # noqa: S311
        logits = [_UNLIKELY] * VOCAB_SIZE
        for token_id in (*_PRINTABLE, EOS_ID):
            logits[token_id] = noise.uniform(0.0, 8.0)
        total = math.log(sum(math.exp(z) for z in logits))
        token_id = self._choose(logits)
        self._context.update(token_id.to_bytes(2, "big"))
        if self._params.logprobs is None:
            return token_id, None
        order = sorted(range(VOCAB_SIZE), key=lambda i: (-logits[i], i))[: self._params.logprobs]
        chosen, *top = (
            TokenLogprob(token_id=i, logprob=logits[i] - total) for i in (token_id, *order)
        )
        return token_id, PositionLogprobs(chosen=chosen, top=tuple(top))

    def _choose(self, logits: Sequence[float]) -> int:
        scores = [z + self._params.logit_bias.get(i, 0.0) for i, z in enumerate(logits)]
        if self._params.temperature > 0:
            # Gumbel noise makes the argmax a draw from the softmax.
            scores = [
                z / self._params.temperature - math.log(self._sampler.expovariate(1.0) or 1e-300)
                for z in scores
            ]
        return max(range(VOCAB_SIZE), key=lambda i: (scores[i], -i))
