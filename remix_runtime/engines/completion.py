"""From generated tokens to token events: the output of one request, the same in every engine.

The end of a sequence, stop tokens and stop strings, the length, text that is held back,
log-probabilities and the time in the queue are settled here and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from remix_runtime.contracts import FinishReason, GenerationRequest, PositionLogprobs, TokenEvent
from remix_runtime.engines.text import TextStream


class Completion:
    """The output of one request while it grows. Made when the request arrives.

    `decode` turns token ids into text; `end_token_ids` end a sequence unless the request ignores
    them. The last event has a finish reason, and nothing may be taken after it.
    """

    def __init__(
        self,
        request: GenerationRequest,
        decode: Callable[[Sequence[int]], str],
        end_token_ids: Collection[int],
    ) -> None:
        params = request.params
        self._max_tokens = params.max_tokens
        self._ends = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            self._ends |= frozenset(end_token_ids)
        self._text = TextStream(decode, request.prompt_token_ids, params.stop)
        self._num_tokens = 0
        self._arrived = time.monotonic()
        self._queue_seconds: float | None = None
        """Known once the request is scheduled, and told by one event only."""

    def scheduled(self) -> None:
        """The request enters its first step: its time in the queue is over."""
        self._queue_seconds = time.monotonic() - self._arrived

    def take(
        self, token_ids: Sequence[int], logprobs: Sequence[PositionLogprobs] | None = None
    ) -> TokenEvent:
        """New tokens, in order. Those after an end are dropped, and their log-probabilities."""
        text, reason, taken = "", None, 0
        for token_id in token_ids:
            taken += 1
            self._num_tokens += 1
            if token_id in self._ends:
                text += self._text.flush()
                reason = FinishReason.STOP
                break
            text += self._text.push(token_id)
            if self._text.stopped:
                reason = FinishReason.STOP
                break
            if self._num_tokens >= self._max_tokens:
                text += self._text.flush()
                # What was held back may complete a stop string.
                reason = FinishReason.STOP if self._text.stopped else FinishReason.LENGTH
                break
        return self._event(token_ids[:taken], text, logprobs and logprobs[:taken], reason)

    def abort(self) -> TokenEvent:
        """The last event of a request that somebody ended, with the text that was held back."""
        return self._event((), self._text.flush(), None, FinishReason.ABORT)

    def _event(
        self,
        token_ids: Sequence[int],
        text: str,
        logprobs: Sequence[PositionLogprobs] | None,
        reason: FinishReason | None,
    ) -> TokenEvent:
        queue_seconds, self._queue_seconds = self._queue_seconds, None
        return TokenEvent(
            token_ids=tuple(token_ids),
            text=text,
            logprobs=None if logprobs is None else tuple(logprobs),
            finish_reason=reason,
            queue_seconds=queue_seconds,
        )
