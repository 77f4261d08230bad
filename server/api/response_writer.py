"""Writes the answers of `/v1/responses`: a response object, or events while it grows."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from remix_runtime.contracts import GenerationRequest, PositionLogprobs, TokenEvent
from server.api.blocks import Block, BlockKind, Blocks, Change, Closed, Grew, Opened
from server.api.fanout import Choice
from server.api.logprobs import chat_logprobs
from server.api.parts import AnswerParser
from server.api.token_texts import Placement, TokenTexts
from server.api.wire.response_answers import (
    Incomplete,
    InputDetails,
    ItemStatus,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputReasoningText,
    OutputText,
    ResponseFailure,
    ResponseObject,
    ResponseUsage,
)
from server.api.wire.written import Written, write_json
from server.api.writer import Event, Writer
from server.http.errors import ApiError

_PREFIXES = {BlockKind.TEXT: "msg", BlockKind.REASONING: "rs", BlockKind.CALL: "fc"}


@dataclass(kw_only=True)
class ResponseWriter(Writer):
    request: GenerationRequest
    response: ResponseObject
    """As it is before its first token."""
    make_parser: Callable[[], AnswerParser]
    remember: Callable[[ResponseObject], None]
    """Called with a response that has ended as it should."""
    renamed: Callable[[ApiError], ApiError]
    """An error with the client's own names."""
    _blocks: Blocks = field(init=False)
    _ids: dict[int, str] = field(default_factory=dict, init=False)
    """The items' ids by their index."""
    _sequence: int = field(default=0, init=False)
    _told: Written = field(default_factory=Written, init=False)
    """Log-probabilities that were told with the words."""
    _untold: Written = field(default_factory=Written, init=False)
    """Those of tokens whose words are not out yet."""

    def __post_init__(self) -> None:
        self._blocks = Blocks(self.make_parser())
        self._texts = TokenTexts(self.tokenizer)
        self._placement = Placement(self._texts, self.request)

    def opening(self, first: TokenEvent) -> Iterable[Event]:
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)

    def chunks(self, index: int, event: TokenEvent) -> Iterable[Event]:
        self._take_logprobs(event.text, event.logprobs or (), ended=bool(event.finish_reason))
        yield from self._written(self._blocks.push(event.text), "completed")

    def closing(self, choices: Sequence[Choice]) -> Iterable[Event]:
        [choice] = choices
        yield from self._written(self._last_changes(), _status(choice))
        ended = self._ended(choice)
        yield self._event(f"response.{ended.status}", response=ended)

    def failed(self, error: ApiError) -> Iterable[Event]:
        failure = ResponseFailure(code=_failure_code(error), message=self.renamed(error).detail)
        update = {"status": "failed", "error": failure, "output": self._items("incomplete")}
        yield self._event("response.failed", response=self.response.model_copy(update=update))

    def whole(self, choices: Sequence[Choice]) -> str:
        [choice] = choices
        self._take_logprobs(choice.text, choice.positions, ended=True)
        for _ in self._blocks.push(choice.text):
            pass
        for _ in self._last_changes():
            pass
        return write_json(self._ended(choice))

    def _last_changes(self) -> Iterator[Change]:
        yield from self._blocks.close()
        if not self._blocks.all:  # an answer has one item at least
            yield from self._blocks.empty()

    def _ended(self, choice: Choice) -> ResponseObject:
        status = _status(choice)
        usage = ResponseUsage(
            input_tokens=self.prompt_tokens,
            input_tokens_details=InputDetails(cached_tokens=choice.cached_tokens or 0),
            output_tokens=choice.num_tokens,
            total_tokens=self.prompt_tokens + choice.num_tokens,
        )
        update = {
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "incomplete_details": Incomplete() if status == "incomplete" else None,
            "output": self._items(status),
            "usage": usage,
        }
        ended = self.response.model_copy(update=update)
        self.remember(ended)
        return ended

    # -- items ----------------------------------------------------------------------------------

    def _items(self, status: ItemStatus) -> list[OutputItem]:
        """All items so far. All but the last one are complete; it has `status`."""
        last = len(self._blocks.all) - 1
        return [
            self._item(block, status if block.index == last else "completed")
            for block in self._blocks.all
        ]

    def _item(self, block: Block, status: ItemStatus) -> OutputItem:
        item_id = self._id(block)
        begins = status == "in_progress"
        match block.kind:
            case BlockKind.TEXT:
                content = [] if begins else [self._words(block)]
                return OutputMessage(id=item_id, status=status, content=content)
            case BlockKind.REASONING:
                thoughts = [] if begins else [OutputReasoningText(text=block.text)]
                return OutputReasoning(id=item_id, status=status, content=thoughts)
            case BlockKind.CALL:
                return OutputCall(
                    id=item_id,
                    call_id=block.id,
                    name=block.name,
                    arguments="" if begins else block.text,
                    status=status,
                )

    def _words(self, block: Block) -> OutputText:
        return OutputText(text=block.text, logprobs=Written([*self._told, *self._untold]))

    def _id(self, block: Block) -> str:
        if block.index not in self._ids:
            self._ids[block.index] = f"{_PREFIXES[block.kind]}_{uuid.uuid4().hex}"
        return self._ids[block.index]

    def _take_logprobs(
        self, text: str, positions: Sequence[PositionLogprobs], *, ended: bool
    ) -> None:
        placed = self._placement.push(text, positions, ended=ended)
        self._untold += chat_logprobs(self._texts, self._placement, placed)

    # -- events ---------------------------------------------------------------------------------

    def _written(self, changes: Iterable[Change], last: ItemStatus) -> Iterator[Event]:
        """`last`: the status of the item that ends last."""
        for change in changes:
            match change:
                case Opened(block):
                    yield from self._opened(block)
                case Grew(block, text):
                    yield from self._grew(block, text)
                case Closed(block):
                    yield from self._closed(block, last)

    def _opened(self, block: Block) -> Iterator[Event]:
        item = self._item(block, "in_progress")
        yield self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind is not BlockKind.CALL:
            yield self._part_event("response.content_part.added", block, part=self._part(block, ""))

    def _grew(self, block: Block, text: str) -> Iterator[Event]:
        match block.kind:
            case BlockKind.TEXT:
                logprobs, self._untold = self._untold, Written()
                self._told += logprobs
                yield self._part_event(
                    "response.output_text.delta", block, delta=text, logprobs=logprobs
                )
            case BlockKind.REASONING:
                yield self._part_event("response.reasoning_text.delta", block, delta=text)
            case BlockKind.CALL:
                yield self._item_event("response.function_call_arguments.delta", block, delta=text)

    def _closed(self, block: Block, status: ItemStatus) -> Iterator[Event]:
        match block.kind:
            case BlockKind.TEXT:
                words = self._words(block)
                yield self._part_event(
                    "response.output_text.done", block, text=words.text, logprobs=words.logprobs
                )
            case BlockKind.REASONING:
                yield self._part_event("response.reasoning_text.done", block, text=block.text)
            case BlockKind.CALL:
                yield self._item_event(
                    "response.function_call_arguments.done",
                    block,
                    name=block.name,
                    arguments=block.text,
                )
        if block.kind is not BlockKind.CALL:
            part = self._part(block, block.text)
            yield self._part_event("response.content_part.done", block, part=part)
        item = self._item(block, status)
        yield self._event("response.output_item.done", output_index=block.index, item=item)

    def _part(self, block: Block, text: str) -> OutputText | OutputReasoningText:
        if block.kind is BlockKind.REASONING:
            return OutputReasoningText(text=text)
        return self._words(block) if text else OutputText(text="")

    def _part_event(self, type: str, block: Block, **fields: Any) -> Event:
        return self._item_event(type, block, content_index=0, **fields)

    def _item_event(self, type: str, block: Block, **fields: Any) -> Event:
        return self._event(type, item_id=self._id(block), output_index=block.index, **fields)

    def _event(self, type: str, **fields: Any) -> Event:
        body = {"type": type, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return Event(write_json(body), type)


def _status(choice: Choice) -> ItemStatus:
    return "incomplete" if choice.finished_by == "length" else "completed"


def _failure_code(error: ApiError) -> str:
    if error.status_code == 429:
        return "rate_limit_exceeded"
    return "server_error" if error.status_code >= 500 else "invalid_prompt"
