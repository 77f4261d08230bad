"""Writes answers in the form of an API: whole, or as server-sent events while they grow."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel

from remix_runtime.contracts import GenerationRequest, TokenEvent, Tokenizer
from server.api.fanout import Choice, cached_tokens
from server.api.logprobs import prompt_logprobs
from server.api.token_texts import Placed, Placement, TokenTexts
from server.api.wire.answers import PromptLogprobs, Usage
from server.api.wire.generation import GenerationBody
from server.api.wire.written import write_json
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


def encode(events: Iterable[Event]) -> bytes:
    return b"".join(event.encode() for event in events)


@dataclass(kw_only=True)
class Writer(ABC):
    """The wire form of one answer."""

    is_chat: ClassVar[bool] = True

    answer_id: str
    target: Target
    tokenizer: Tokenizer
    prompt_tokens: int
    created: int = field(default_factory=lambda: int(time.time()), init=False)

    @abstractmethod
    def opening(self, first: TokenEvent) -> Iterable[Event]:
        """What comes before the first event's text."""

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

    body: GenerationBody
    requests: Sequence[GenerationRequest]
    """One for each choice."""

    def __post_init__(self) -> None:
        as_ids = bool(self.body.return_tokens_as_token_ids)
        self._texts = TokenTexts(self.tokenizer, as_ids=as_ids)
        self._placements: dict[int, Placement] = {}
        self._generated = 0
        self._cached: int | None = None

    def _placement(self, index: int) -> Placement:
        """Of the tokens of choice `index`, which have log-probabilities."""
        if index not in self._placements:
            start = self._start(index)
            self._placements[index] = Placement(self._texts, self.requests[index], start=start)
        return self._placements[index]

    def _start(self, index: int) -> int:
        """Characters before the generated text of choice `index`."""
        return 0

    @abstractmethod
    def _choice_of_chunk(
        self, index: int, event: TokenEvent, placed: Sequence[Placed]
    ) -> BaseModel | None:
        """What is new, None for nothing. `placed`: the tokens whose text is out with this
        event."""

    @abstractmethod
    def _choice_of_whole(self, index: int, choice: Choice) -> BaseModel: ...

    def chunks(self, index: int, event: TokenEvent) -> Iterable[Event]:
        self._generated += len(event.token_ids)
        if event.cached_tokens is not None and index % self.body.choices_per_prompt == 0:
            self._cached = (self._cached or 0) + event.cached_tokens
        ended = event.finish_reason is not None
        placed: Sequence[Placed] = ()
        if self.requests[index].params.logprobs is not None:
            placed = self._placement(index).push(event.text, event.logprobs, ended=ended)
        choice = self._choice_of_chunk(index, event, placed)
        if choice is not None:
            yield self._chunk(choice)

    def _token_ids(self, of: TokenEvent | Choice) -> list[int] | None:
        """Of an event or a whole choice, where they were asked for."""
        return list(of.token_ids) if self.body.return_token_ids else None

    def _prompt_token_ids(self, index: int) -> list[int] | None:
        """Where they were asked for."""
        ids = self.requests[index].prompt_token_ids
        return list(ids) if self.body.return_token_ids else None

    def _prompt_logprobs(self, choice: Choice) -> PromptLogprobs | None:
        """Where they were asked for."""
        top, positions = self.body.prompt_logprobs, choice.prompt_logprobs
        if top is None or positions is None:
            return None
        return prompt_logprobs(self._texts, positions, top)

    def closing(self, choices: Sequence[Choice]) -> Iterable[Event]:
        if self.body.include_usage:
            yield self._chunk(usage=self._usage(choices))
        yield Event("[DONE]")

    def failed(self, error: ApiError) -> Iterable[Event]:
        yield Event(error.body.model_dump_json())

    def whole(self, choices: Sequence[Choice]) -> str:
        answers = [self._choice_of_whole(index, choice) for index, choice in enumerate(choices)]
        usage, prompt = self._usage(choices), self._of_prompt(choices)
        return write_json(self._document(self.whole_type, answers, usage, **prompt))

    def _of_prompt(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """What a whole answer says of the prompt, beside its choices."""
        return {}

    def _chunk(self, *choices: BaseModel, usage: Usage | None = None, **more: Any) -> Event:
        if self.body.continuous_usage and usage is None:
            usage = Usage.of(self.prompt_tokens, self._generated, self._cached)
        document = self._document(self.chunk_type, choices, usage, **more)
        # OpenAI's streams have `usage: null` in every chunk only if usage was asked for.
        exclude = None if self.body.include_usage else {"usage"}
        return Event(write_json(document, exclude=exclude))

    def _document(
        self, kind: type[BaseModel], choices: Sequence[BaseModel], usage: Usage | None, **more: Any
    ) -> BaseModel:
        return kind(
            id=self.answer_id,
            created=self.created,
            model=self.target.name,
            system_fingerprint=self.target.fingerprint,
            choices=choices,
            usage=usage,
            **more,
        )

    def _usage(self, choices: Sequence[Choice]) -> Usage:
        cached = cached_tokens(choices, self.body.choices_per_prompt)
        return Usage.of(self.prompt_tokens, sum(choice.num_tokens for choice in choices), cached)
