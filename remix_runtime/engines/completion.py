"""Turns the generated tokens of one request into token events, the same in every engine.

The end of a sequence, stop tokens and stop strings, the length, text that is held back,
log-probabilities and the time in the queue are settled here and nowhere else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

from remix_runtime.contracts import FinishReason, GenerationRequest, PositionLogprobs, TokenEvent
from remix_runtime.engines.grammar import Matcher
from remix_runtime.engines.text import Speller, TextStream
from remix_runtime.errors import RemixError

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


def _failing_alone(method: Callable[P, T]) -> Callable[P, T]:
    """Makes whatever fails with one request's tokens a `RemixError` of that request."""

    @wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except (RemixError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a tokenizer in Rust is no `Exception`
            log.exception("the tokens of a request could not be taken")
            raise RemixError(f"a token could not be taken: {type(error).__name__}") from error

    return guarded


class Completion:
    """The output of one request while it grows. Made when the request arrives.

    `speller` turns token ids into text; `end_token_ids` end a sequence unless the request ignores
    them; `matcher` follows its grammar, whose end is an end too. The last event has a finish
    reason, and nothing may be taken after it. Whatever fails here raises a `RemixError`, which
    ends this request and no other.
    """

    @_failing_alone
    def __init__(
        self,
        request: GenerationRequest,
        speller: Speller,
        end_token_ids: Collection[int],
        matcher: Matcher | None = None,
    ) -> None:
        params = request.params
        self._max_tokens = params.max_tokens
        self._min_tokens = params.min_tokens
        self._ends = frozenset(params.stop_token_ids)
        self.matcher = matcher
        # A grammar allows the end of the text only where the answer is whole.
        if not params.ignore_eos or matcher is not None:
            self._ends |= frozenset(end_token_ids)
        special = speller.special_tokens if params.stop else {}
        self._special_stops = {special[text]: text for text in params.stop if text in special}
        self._include_stop = params.include_stop_str_in_output
        self._text = TextStream(
            speller,
            request.prompt_token_ids,
            params.stop,
            include_stop=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
            skip_special_tokens=params.skip_special_tokens,
        )
        self._num_tokens = 0
        self._new: list[int] = []
        """Tokens that no event has told yet, with their text, log-probabilities and end."""
        self._shown = ""
        self._logprobs: list[PositionLogprobs] | None = None
        self._reason = None if params.max_tokens else FinishReason.LENGTH
        self._prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
        """Set when the prompt is computed, and told by one event only."""
        self._arrived = time.monotonic()
        self._queue_seconds: float | None = None
        """Set when the request is scheduled, and told by one event only."""
        self._cached_tokens: int | None = None
        """Tokens of the prompt that were found in a prefix cache, told by one event only."""

    def scheduled(self) -> None:
        """Ends the time in the queue: the request enters its first step."""
        self._queue_seconds = time.monotonic() - self._arrived

    def prompt_cached(self, num_tokens: int) -> None:
        """Takes how many more tokens of the prompt the prefix cache had, for the first event."""
        self._cached_tokens = (self._cached_tokens or 0) + num_tokens

    def prompt_scored(self, logprobs: Sequence[PositionLogprobs | None]) -> None:
        """Takes the log-probabilities of the whole prompt, for the first event."""
        self._prompt_logprobs = tuple(logprobs)

    def forced(self, vocab_size: int) -> tuple[int, ...]:
        """The tokens that most likely come next where the grammar leaves no choice of text."""
        try:
            return () if self.matcher is None else self.matcher.forced(vocab_size)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # whatever is wrong fails the request with its next token
            return ()

    @_failing_alone
    def take(
        self, token_ids: Sequence[int], logprobs: Sequence[PositionLogprobs] | None = None
    ) -> TokenEvent:
        """Takes new tokens, in order. Those after an end are dropped, with their
        log-probabilities. A request for no tokens ends with the first call."""
        for at, token_id in enumerate(token_ids):
            if not self.push(token_id, logprobs[at] if logprobs else None):
                break
        return self.tell()

    @_failing_alone
    def push(self, token_id: int, logprobs: PositionLogprobs | None = None) -> bool:
        """Takes one new token, for the next event. Returns whether another one may come."""
        shown, self._reason = self._next(token_id)
        self._new.append(token_id)
        self._shown += shown
        if logprobs is not None:
            self._logprobs = self._logprobs or []
            self._logprobs.append(logprobs)
        return self._reason is None

    @_failing_alone
    def tell(self) -> TokenEvent:
        """The event of all tokens that were pushed since the last one."""
        event = self._event(self._new, self._shown, self._logprobs, self._reason)
        self._new, self._shown, self._logprobs = [], "", None
        return event

    def _next(self, token_id: int) -> tuple[str, FinishReason | None]:
        self._num_tokens += 1
        if self.matcher is not None:
            self.matcher.take(token_id)
        if token_id in self._ends:
            shown = self._text.push(token_id) if self._include_stop else ""
            return shown + self._text.flush(), FinishReason.STOP
        if token_id in self._special_stops and self._num_tokens > self._min_tokens:
            name = self._special_stops[token_id] if self._include_stop else ""
            return self._text.flush() + name, FinishReason.STOP
        shown = self._text.push(token_id)
        if self._text.stopped:
            return shown, FinishReason.STOP
        if self.matcher is not None and self.matcher.is_complete:
            return shown + self._text.flush(), FinishReason.STOP
        if self._num_tokens < self._max_tokens:
            return shown, None
        shown += self._text.flush()
        # What was held back may complete a stop string.
        return shown, FinishReason.STOP if self._text.stopped else FinishReason.LENGTH

    def abort(self) -> TokenEvent:
        """Ends the request. The event has the text that was held back, unless that fails."""
        try:
            text = self._flush()
        except RemixError:
            text = ""
        return self._event((), text, None, FinishReason.ABORT)

    @_failing_alone
    def _flush(self) -> str:
        return self._text.flush()

    def _event(
        self,
        token_ids: Sequence[int],
        text: str,
        logprobs: Sequence[PositionLogprobs] | None,
        reason: FinishReason | None,
    ) -> TokenEvent:
        queue_seconds, self._queue_seconds = self._queue_seconds, None
        prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, None
        cached_tokens, self._cached_tokens = self._cached_tokens, None
        return TokenEvent(
            token_ids=tuple(token_ids),
            text=text,
            logprobs=None if logprobs is None else tuple(logprobs),
            prompt_logprobs=prompt_logprobs,
            finish_reason=reason,
            queue_seconds=queue_seconds,
            cached_tokens=cached_tokens,
        )
