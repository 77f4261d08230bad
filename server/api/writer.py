"""Writes answers in the form of an API: whole, or as server-sent events while they grow."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import BaseModel

from remix_runtime.contracts import TokenEvent, Tokenizer
from server.api.generation import Choice
from server.api.wire.answers import Usage
from server.http.errors import ApiError
from server.http.lines import one_line
from server.live.sets import Target


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event."""

    data: str
    """JSON."""
    name: str | None = None

    def encode(self) -> bytes:
        name = "" if self.name is None else f"event: {self.name}\n"
        return f"{name}data: {one_line(self.data)}\n\n".encode()


@dataclass(kw_only=True)
class Writer(ABC):
    """The wire form of one answer."""

    answer_id: str
    target: Target
    tokenizer: Tokenizer
    prompt_tokens: int
    created: int = field(default_factory=lambda: int(time.time()), init=False)

    @abstractmethod
    def opening(self) -> Iterable[Event]:
        """What comes before the first token."""

    @abstractmethod
    def chunks(self, index: int, event: TokenEvent) -> Iterable[Event]:
        """What an event of choice `index` adds."""

    @abstractmethod
    def closing(self, choices: Sequence[Choice]) -> Iterable[Event]:
        """What ends a whole answer."""

    @abstractmethod
    def failed(self, error: ApiError) -> Iterable[Event]:
        """What ends an answer that fails after its beginning was sent: nobody should take it for a
        whole one."""

    @abstractmethod
    def whole(self, choices: Sequence[Choice]) -> str:
        """The answer as one JSON document."""


@dataclass(kw_only=True)
class ChoicesWriter(Writer):
    """What OpenAI's completions and chats have in common."""

    chunk_type: ClassVar[type[BaseModel]]
    whole_type: ClassVar[type[BaseModel]]

    include_usage: bool

    @abstractmethod
    def _choice_of_chunk(self, index: int, event: TokenEvent) -> BaseModel: ...

    @abstractmethod
    def _choice_of_whole(self, index: int, choice: Choice) -> BaseModel: ...

    def chunks(self, index: int, event: TokenEvent) -> Iterable[Event]:
        if event.text or event.logprobs or event.finish_reason:
            yield self._chunk(self._choice_of_chunk(index, event))

    def closing(self, choices: Sequence[Choice]) -> Iterable[Event]:
        if self.include_usage:
            yield self._chunk(usage=self._usage(choices))
        yield Event("[DONE]")

    def failed(self, error: ApiError) -> Iterable[Event]:
        yield Event(error.body.model_dump_json())

    def whole(self, choices: Sequence[Choice]) -> str:
        answers = [self._choice_of_whole(index, choice) for index, choice in enumerate(choices)]
        return self._document(self.whole_type, answers, self._usage(choices)).model_dump_json()

    def _chunk(self, *choices: BaseModel, usage: Usage | None = None) -> Event:
        document = self._document(self.chunk_type, choices, usage)
        # OpenAI's streams have `usage: null` in every chunk only if usage was asked for.
        exclude = None if self.include_usage else {"usage"}
        return Event(document.model_dump_json(exclude=exclude))

    def _document(
        self, kind: type[BaseModel], choices: Sequence[BaseModel], usage: Usage | None
    ) -> BaseModel:
        return kind(
            id=self.answer_id,
            created=self.created,
            model=self.target.name,
            system_fingerprint=self.target.fingerprint,
            choices=choices,
            usage=usage,
        )

    def _usage(self, choices: Sequence[Choice]) -> Usage:
        return Usage.of(self.prompt_tokens, sum(choice.num_tokens for choice in choices))


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold: OpenAI writes -9999 for a token that cannot come."""
    return max(logprob, -9999.0)
