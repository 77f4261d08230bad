"""Log-probabilities in the forms of the APIs, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from remix_runtime.contracts import PositionLogprobs, TokenLogprob
from server.api.token_texts import Placed, Placement, TokenTexts, as_json
from server.api.wire.answers import CompletionLogprobs
from server.api.wire.written import Written


@dataclass(frozen=True, slots=True)
class _Lists:
    """What completions tell of some tokens."""

    tokens: Written = field(default_factory=Written)
    token_logprobs: Written = field(default_factory=Written)
    top_logprobs: Written = field(default_factory=Written)
    text_offset: Written = field(default_factory=Written)

    def add(self, name: str, logprob: str, likeliest: str, offset: int) -> None:
        """All but the offset as JSON."""
        self.tokens.append(name)
        self.token_logprobs.append(logprob)
        self.top_logprobs.append(likeliest)
        self.text_offset.append(str(offset))

    def add_position(
        self,
        texts: TokenTexts,
        position: PositionLogprobs,
        offset: int,
        top: int,
        name: str | None = None,
    ) -> None:
        """`name`: what the token is called here, if that is something else."""
        entries = position.top[:top]
        chosen = position.chosen
        names = texts.distinct([chosen.token_id, *(entry.token_id for entry in entries)])
        if name is not None and name not in names.values():
            names[chosen.token_id] = name
        likeliest = {names[entry.token_id]: _number(entry) for entry in (*entries, chosen)}
        members = ",".join([f"{name}:{number}" for name, number in likeliest.items()])
        self.add(names[chosen.token_id], _number(chosen), f"{{{members}}}", offset)

    def as_answer(self) -> CompletionLogprobs:
        return CompletionLogprobs(
            tokens=self.tokens,
            token_logprobs=self.token_logprobs,
            top_logprobs=self.top_logprobs,
            text_offset=self.text_offset,
        )


def completion_logprobs(texts: TokenTexts, placed: Sequence[Placed]) -> CompletionLogprobs:
    """Log-probabilities of generated tokens, as completions have them."""
    lists = _Lists()
    for token in placed:
        name = as_json(texts.of_placed(token)) if token.said is not None else None
        top = len(token.position.top)
        lists.add_position(texts, token.position, token.offset, top, name)
    return lists.as_answer()


def echoed_logprobs(
    texts: TokenTexts,
    placed: Sequence[tuple[str, int]],
    positions: Sequence[PositionLogprobs | None],
    top: int,
) -> CompletionLogprobs:
    """The same of an echoed prompt, with `top` of the likeliest tokens."""
    lists = _Lists()
    for (name, offset), position in zip(placed, positions, strict=True):
        if position is None:
            lists.add(as_json(name), "null", "null", offset)
        else:
            lists.add_position(texts, position, offset, top, as_json(name))
    return lists.as_answer()


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=Written([*first.tokens, *second.tokens]),
        token_logprobs=Written([*first.token_logprobs, *second.token_logprobs]),
        top_logprobs=Written([*first.top_logprobs, *second.top_logprobs]),
        text_offset=Written([*first.text_offset, *second.text_offset]),
    )


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
