"""`POST /v1/chat/completions`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from remix_runtime.contracts import PositionLogprobs, TokenEvent, TokenLogprob
from server.api.conversation import open_conversation
from server.api.documentation import generation_responses
from server.api.generation import Choice, finished_by
from server.api.parts import (
    AnswerParser,
    CallDelta,
    CallStart,
    Delta,
    ReasoningDelta,
    TextDelta,
    parse_whole,
)
from server.api.streaming import GenerationResponse
from server.api.wire.answers import (
    AnsweredCall,
    AnsweredFunction,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatFinishedBy,
    ChatLogprobs,
    ChatMessage,
    ChatTokenLogprob,
    FinishedBy,
    FunctionDelta,
    ToolCallDelta,
    TopLogprob,
)
from server.api.wire.chat import ChatRequest
from server.api.writer import ChoicesWriter, Event, finite
from server.http.body import StrictRoute
from server.services import services_of

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/chat/completions", responses=generation_responses(ChatCompletion))
async def create_chat_completion(body: ChatRequest, http: Request) -> Response:
    """Answers a chat with the base model's chat template; OpenAI's API with vLLM's extras."""
    services, answer_id = services_of(http), f"chatcmpl-{uuid.uuid4().hex}"
    chat = await open_conversation(http, body, answer_id=answer_id)
    writer = ChatWriter(
        answer_id=answer_id,
        target=chat.call.target,
        tokenizer=services.engine.tokenizer,
        prompt_tokens=chat.prompt_tokens,
        num_choices=len(chat.requests),
        make_parser=chat.make_parser,
        may_call=bool(body.callable_tools),
        names_its_tool=body.names_its_tool,
        include_usage=body.include_usage,
    )
    return GenerationResponse(services, chat.call, chat.requests, writer, stream=bool(body.stream))


_NOTHING_NEW = ChatDelta()


@dataclass(kw_only=True)
class ChatWriter(ChoicesWriter):
    chunk_type, whole_type = ChatCompletionChunk, ChatCompletion

    num_choices: int
    make_parser: Callable[[], AnswerParser]
    may_call: bool
    names_its_tool: bool
    """OpenAI ends an answer with `stop` where the request says which tool is called."""

    def __post_init__(self) -> None:
        self._parsers = [self.make_parser() for _ in range(self.num_choices)]
        self._has_called = [False] * self.num_choices

    def opening(self) -> Iterable[Event]:
        for index in range(self.num_choices):
            # The content of an answer that is nothing but calls is null.
            delta = ChatDelta(role="assistant", content=None if self.may_call else "")
            yield self._chunk(ChatChunkChoice(index=index, delta=delta))

    def chunks(self, index: int, event: TokenEvent) -> Iterable[Event]:
        choice = self._choice_of_chunk(index, event)
        if choice.delta != _NOTHING_NEW or choice.logprobs or choice.finish_reason:
            yield self._chunk(choice)

    def _choice_of_chunk(self, index: int, event: TokenEvent) -> ChatChunkChoice:
        parser, finish = self._parsers[index], finished_by(event)
        deltas = [*parser.push(event.text), *(parser.close() if finish else ())]
        self._has_called[index] |= any(isinstance(delta, CallStart) for delta in deltas)
        return ChatChunkChoice(
            index=index,
            delta=delta_of(deltas),
            logprobs=self._logprobs(event.logprobs),
            finish_reason=finish and self._finish(finish, called=self._has_called[index]),
        )

    def _choice_of_whole(self, index: int, choice: Choice) -> ChatChoice:
        assert choice.finished_by is not None
        answer = parse_whole(self.make_parser(), choice.text)
        calls = [
            AnsweredCall(
                id=call.id, function=AnsweredFunction(name=call.name, arguments=call.arguments)
            )
            for call in answer.calls
        ]
        return ChatChoice(
            index=index,
            message=ChatMessage(
                content=None if calls and not answer.text else answer.text,
                reasoning_content=answer.reasoning or None,
                tool_calls=calls or None,
            ),
            logprobs=self._logprobs(choice.positions or None),
            finish_reason=self._finish(choice.finished_by, called=bool(calls)),
        )

    def _finish(self, finish: FinishedBy, *, called: bool) -> ChatFinishedBy:
        if finish == "stop" and called and not self.names_its_tool:
            return "tool_calls"
        return finish

    def _logprobs(self, positions: Sequence[PositionLogprobs] | None) -> ChatLogprobs | None:
        if positions is None:
            return None
        content = []
        for position in positions:
            top = [self._entry(entry) for entry in position.top]
            chosen = self._entry(position.chosen)
            content.append(ChatTokenLogprob(**chosen.model_dump(), top_logprobs=top))
        return ChatLogprobs(content=content)

    def _entry(self, entry: TokenLogprob) -> TopLogprob:
        token = self.tokenizer.token_text(entry.token_id)
        # A token that is half a character has no bytes that its text could tell.
        as_bytes = None if "\ufffd" in token else list(token.encode())
        return TopLogprob(token=token, logprob=finite(entry.logprob), bytes=as_bytes)


def delta_of(deltas: Iterable[Delta]) -> ChatDelta:
    """What is new, as one part of a message."""
    text = reasoning = ""
    calls: dict[int, ToolCallDelta] = {}
    for delta in deltas:
        match delta:
            case TextDelta():
                text += delta.text
            case ReasoningDelta():
                reasoning += delta.text
            case CallStart():
                function = FunctionDelta(name=delta.name)
                calls[delta.index] = ToolCallDelta(
                    index=delta.index, id=delta.id, type="function", function=function
                )
            case CallDelta():
                call = calls.setdefault(
                    delta.index, ToolCallDelta(index=delta.index, function=FunctionDelta())
                )
                call.function.arguments += delta.arguments
    return ChatDelta(
        content=text or None,
        reasoning_content=reasoning or None,
        tool_calls=list(calls.values()) or None,
    )
