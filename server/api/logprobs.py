"""Log-probabilities in the forms of the APIs."""

from __future__ import annotations

from collections.abc import Sequence

from remix_runtime.contracts import PositionLogprobs, TokenLogprob
from server.api.token_texts import Placed, Placement, TokenTexts
from server.api.wire.answers import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)


def completion_logprobs(texts: TokenTexts, placed: Sequence[Placed]) -> CompletionLogprobs:
    """Log-probabilities of generated tokens, as completions have them."""
    logprobs = CompletionLogprobs()
    for token in placed:
        name = texts.of_placed(token) if token.said is not None else None
        _add(logprobs, texts, token.position, token.offset, len(token.position.top), name)
    return logprobs


def echoed_logprobs(
    texts: TokenTexts,
    placed: Sequence[tuple[str, int]],
    positions: Sequence[PositionLogprobs | None],
    top: int,
) -> CompletionLogprobs:
    """The same of an echoed prompt, with `top` of the likeliest tokens."""
    logprobs = CompletionLogprobs()
    for (name, offset), position in zip(placed, positions, strict=True):
        if position is None:
            logprobs.tokens.append(name)
            logprobs.token_logprobs.append(None)
            logprobs.top_logprobs.append(None)
            logprobs.text_offset.append(offset)
        else:
            _add(logprobs, texts, position, offset, top, name)
    return logprobs


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=first.tokens + second.tokens,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        top_logprobs=first.top_logprobs + second.top_logprobs,
        text_offset=first.text_offset + second.text_offset,
    )


def _add(
    logprobs: CompletionLogprobs,
    texts: TokenTexts,
    position: PositionLogprobs,
    offset: int,
    top: int,
    name: str | None = None,
) -> None:
    entries = position.top[:top]
    chosen = position.chosen
    names = texts.distinct([chosen.token_id, *(entry.token_id for entry in entries)])
    if name is not None and name not in names.values():
        names[chosen.token_id] = name
    logprobs.tokens.append(names[chosen.token_id])
    logprobs.token_logprobs.append(finite(chosen.logprob))
    likeliest = {names[entry.token_id]: finite(entry.logprob) for entry in (*entries, chosen)}
    logprobs.top_logprobs.append(likeliest)
    logprobs.text_offset.append(offset)


def chat_logprobs(
    texts: TokenTexts, placement: Placement, placed: Sequence[Placed]
) -> ChatLogprobs:
    """Log-probabilities of the tokens that a chat's text consists of."""
    content = []
    for token in filter(placement.is_said, placed):
        told = chat_token(texts, token.position)
        if token.said is not None:
            told.token, told.bytes = texts.of_placed(token), list(token.said)
        content.append(told)
    return ChatLogprobs(content=content)


def chat_token(texts: TokenTexts, position: PositionLogprobs) -> ChatTokenLogprob:
    """Log-probabilities of one token, and of the likeliest ones in its place."""
    chosen = _chat_entry(texts, position.chosen)
    top = [_chat_entry(texts, entry) for entry in position.top]
    return ChatTokenLogprob(**chosen.model_dump(), top_logprobs=top)


def _chat_entry(texts: TokenTexts, entry: TokenLogprob) -> TopLogprob:
    return TopLogprob(
        token=texts.of(entry.token_id),
        logprob=finite(entry.logprob),
        bytes=list(texts.spelled(entry.token_id)),
    )


def prompt_logprobs(
    texts: TokenTexts, positions: Sequence[PositionLogprobs | None], top: int
) -> PromptLogprobs:
    """Log-probabilities of a prompt's tokens, in vLLM's form: the token itself, then the likeliest
    ones."""
    return [None if position is None else _by_token(texts, position, top) for position in positions]


def _by_token(texts: TokenTexts, position: PositionLogprobs, top: int) -> dict[int, PromptLogprob]:
    ranks = {entry.token_id: rank for rank, entry in enumerate(position.top, 1)}
    return {
        entry.token_id: PromptLogprob(
            logprob=finite(entry.logprob),
            rank=ranks.get(entry.token_id),
            decoded_token=texts.of(entry.token_id),
        )
        for entry in (position.chosen, *position.top[:top])
    }


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold: OpenAI writes -9999 for a token that cannot come."""
    return max(logprob, -9999.0)
