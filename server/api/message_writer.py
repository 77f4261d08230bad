"""Writes the answers of `/v1/messages`: a message, or events while it grows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json, to_json

from remix_runtime.contracts import TokenEvent
from server.api.blocks import Block, BlockKind, Blocks, Change, Closed, Grew, Opened
from server.api.fanout import Choice, finished_by
from server.api.parts import AnswerParser
from server.api.wire.answers import FinishedBy
from server.api.wire.message_answers import (
    AnsweredBlock,
    AnsweredMessage,
    AnsweredText,
    AnsweredThinking,
    AnsweredToolUse,
    MessageUsage,
    StopReason,
)
from server.api.writer import Event, Writer
from server.http.anthropic import anthropic_error
from server.http.errors import ApiError


@dataclass(kw_only=True)
class MessageWriter(Writer):
    make_parser: Callable[[], AnswerParser]
    renamed: Callable[[ApiError], ApiError]
    """An error with the client's own names."""
    request_id: str
    omits_thoughts: bool = False
    """Whether blocks of thoughts come empty."""
    stops: Sequence[str]
    """Stop strings, which the engine leaves at the end of the text: so it is known which it was."""
    _blocks: Blocks = field(init=False)
    _stop: str | None = field(default=None, init=False)
    """The one that ended the answer."""

    def __post_init__(self) -> None:
        self._blocks = Blocks(self.make_parser())

    def opening(self, first: TokenEvent) -> Iterable[Event]:
        usage = self._usage(0, first.cached_tokens)
        yield _event("message_start", message=self._message(usage=usage))
        yield _event("ping")

    def chunks(self, index: int, event: TokenEvent) -> Iterable[Event]:
        yield from self._written(
            self._blocks.push(self._without_stop(event.text, finished_by(event)))
        )

    def closing(self, choices: Sequence[Choice]) -> Iterable[Event]:
        [choice] = choices
        yield from self._written(self._blocks.close())
        delta = {"stop_reason": self._stop_reason(choice), "stop_sequence": self._stop}
        usage = self._usage(choice.num_tokens, choice.cached_tokens)
        yield _event("message_delta", delta={**delta, "container": None}, usage=usage)
        yield _event("message_stop")

    def failed(self, error: ApiError) -> Iterable[Event]:
        error = self.renamed(error)
        body = anthropic_error(error.status_code, error.detail, self.request_id)
        yield Event(body.model_dump_json(), "error")

    def whole(self, choices: Sequence[Choice]) -> str:
        [choice] = choices
        text = self._without_stop(choice.text, choice.finished_by)
        for changes in (self._blocks.push(text), self._blocks.close()):
            for _ in changes:
                pass
        message = self._message(
            content=[self._answered(block) for block in self._blocks.all],
            stop_reason=self._stop_reason(choice),
            stop_sequence=self._stop,
            usage=self._usage(choice.num_tokens, choice.cached_tokens),
        )
        return message.model_dump_json()

    def _message(self, **fields: Any) -> AnsweredMessage:
        return AnsweredMessage(
            **{
                "id": self.answer_id,
                "model": self.target.name,
                "system_fingerprint": self.target.fingerprint,
                **fields,
            }
        )

    def _usage(self, generated: int, cached: int | None) -> MessageUsage:
        return MessageUsage(
            input_tokens=self.prompt_tokens - (cached or 0),
            output_tokens=generated,
            cache_read_input_tokens=cached,
        )

    def _stop_reason(self, choice: Choice) -> StopReason:
        if choice.finished_by == "length":
            return "max_tokens"
        if any(block.kind is BlockKind.CALL for block in self._blocks.all):
            return "tool_use"
        return "end_turn" if self._stop is None else "stop_sequence"

    def _answered(self, block: Block) -> AnsweredBlock:
        match block.kind:
            case BlockKind.TEXT:
                return AnsweredText(text=block.text)
            case BlockKind.REASONING:
                return AnsweredThinking(thinking="" if self.omits_thoughts else block.text)
            case BlockKind.CALL:
                return AnsweredToolUse(
                    id=block.id, name=block.name, input=arguments_object(block.text)
                )

    def _written(self, changes: Iterable[Change]) -> Iterator[Event]:
        for change in changes:
            match change:
                case Opened(block):
                    empty = self._answered(Block(block.kind, block.index, block.id, block.name))
                    yield _event("content_block_start", index=block.index, content_block=empty)
                case Grew(block) if block.kind is BlockKind.REASONING and self.omits_thoughts:
                    pass
                case Grew(block, text):
                    yield _event(
                        "content_block_delta", index=block.index, delta=_delta(block, text)
                    )
                case Closed(block):
                    if block.kind is BlockKind.REASONING:
                        signature = {"type": "signature_delta", "signature": ""}
                        yield _event("content_block_delta", index=block.index, delta=signature)
                    yield _event("content_block_stop", index=block.index)

    def _without_stop(self, text: str, finish: FinishedBy | None) -> str:
        if finish == "stop":
            matched = [stop for stop in self.stops if text.endswith(stop)]
            self._stop = max(matched, key=len, default=None)
        return text.removesuffix(self._stop or "")


def arguments_object(arguments: str) -> dict[str, Any]:
    """Arguments as an object, as far as they go: an answer may be cut inside of them."""
    try:
        found = from_json(arguments or "{}", allow_partial="trailing-strings")
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"arguments": arguments}


def _delta(block: Block, text: str) -> dict[str, str]:
    match block.kind:
        case BlockKind.TEXT:
            return {"type": "text_delta", "text": text}
        case BlockKind.REASONING:
            return {"type": "thinking_delta", "thinking": text}
        case BlockKind.CALL:
            return {"type": "input_json_delta", "partial_json": text}


def _event(type: str, **fields: Any) -> Event:
    return Event(to_json({"type": type, **fields}).decode(), type)
