"""Log-probabilities in the forms of the APIs, as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from remix_runtime.contracts import PositionLogprobs, TokenLogprob
from server.api.token_texts import Placed, Placement, TokenTexts, as_json
from server.api.wire.answers import CompletionLogprobs
from server.api.wire.written import Written


def completion_logprobs(texts: TokenTexts, placed: Sequence[Placed]) -> CompletionLogprobs:
    """Log-probabilities of generated tokens, as completions have them."""
    logprobs = CompletionLogprobs()
    for token in placed:
        name = as_json(texts.of_placed(token)) if token.said is not None else None
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
            logprobs.tokens.append(as_json(name))
            logprobs.token_logprobs.append("null")
            logprobs.top_logprobs.append("null")
            logprobs.text_offset.append(str(offset))
        else:
            _add(logprobs, texts, position, offset, top, as_json(name))
    return logprobs


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=Written(first.tokens + second.tokens),
        token_logprobs=Written(first.token_logprobs + second.token_logprobs),
        top_logprobs=Written(first.top_logprobs + second.top_logprobs),
        text_offset=Written(first.text_offset + second.text_offset),
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
    logprobs.token_logprobs.append(_number(chosen))
    likeliest = {names[entry.token_id]: _number(entry) for entry in (*entries, chosen)}
    members = ",".join([f"{name}:{number}" for name, number in likeliest.items()])
    logprobs.top_logprobs.append(f"{{{members}}}")
    logprobs.text_offset.append(str(offset))


def chat_logprobs(texts: TokenTexts, placement: Placement, placed: Sequence[Placed]) -> Written:
    """Log-probabilities of the tokens that a chat's text consists of: `ChatTokenLogprob`s."""
    return Written(_chat_token(texts, token) for token in placed if placement.is_said(token))


def _chat_token(texts: TokenTexts, token: Placed) -> str:
    """Log-probabilities of one token, and of the likeliest ones in its place."""
    position = token.position
    name, spelled = texts.written(position.chosen.token_id)
    if token.said is not None:
        name, spelled = as_json(texts.of_placed(token)), as_json(list(token.said))
    top = []
    for entry in position.top:
        text, bytes_of = texts.written(entry.token_id)
        top.append(f'{{"token":{text},"logprob":{_number(entry)},"bytes":{bytes_of}}}')
    return (
        f'{{"token":{name},"logprob":{_number(position.chosen)},"bytes":{spelled},'
        f'"top_logprobs":[{",".join(top)}]}}'
    )


def prompt_logprobs(
    texts: TokenTexts, positions: Sequence[PositionLogprobs | None], top: int
) -> Written:
    """Log-probabilities of a prompt's tokens, in vLLM's form: the token itself, then the likeliest
    ones."""
    return Written(
        "null" if position is None else _by_token(texts, position, top) for position in positions
    )


def _by_token(texts: TokenTexts, position: PositionLogprobs, top: int) -> str:
    ranks = {entry.token_id: rank for rank, entry in enumerate(position.top, 1)}
    told = {entry.token_id: entry for entry in (position.chosen, *position.top[:top])}
    members = [
        f'"{token_id}":{{"logprob":{_number(entry)},"rank":{ranks.get(token_id, "null")},'
        f'"decoded_token":{texts.written(token_id)[0]}}}'
        for token_id, entry in told.items()
    ]
    return f"{{{','.join(members)}}}"


def _number(entry: TokenLogprob) -> str:
    """A log-probability that JSON can hold: OpenAI writes -9999 for a token that cannot come."""
    logprob = float(entry.logprob)
    return repr(logprob if logprob > -9999.0 else -9999.0)
