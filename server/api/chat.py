"""`POST /v1/chat/completions`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from remix_runtime.contracts import TokenEvent
from server.api.arms import answered
from server.api.calls import Call, CountedRoute
from server.api.conversation import open_conversation
from server.api.documentation import generation_responses
from server.api.fanout import Choice, finished_by
from server.api.logprobs import chat_logprobs
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
from server.api.token_texts import Placed
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
    FinishedBy,
    FunctionDelta,
    ToolCallDelta,
)
from server.api.wire.chat import ChatRequest
from server.api.writer import ChoicesWriter, Event
from server.services import services_of

router = APIRouter(route_class=CountedRoute)


@router.post("/v1/chat/completions", responses=generation_responses(ChatCompletion))
async def create_chat_completion(body: ChatRequest, http: Request) -> Response:
    """Answers a chat with the base model's chat template; OpenAI's API with vLLM's extras."""
    services = services_of(http)

    async def answer(call: Call) -> Response:
        answer_id = f"chatcmpl-{uuid.uuid4().hex}"
        chat = await open_conversation(services, call, body, answer_id=answer_id)
        writer = ChatWriter(
            answer_id=body.request_id or answer_id,
            target=call.target,
            tokenizer=services.engine.tokenizer,
            prompt_tokens=chat.prompt_tokens,
            body=body,
            requests=chat.requests,
            make_parser=chat.make_parser,
        )
        return GenerationResponse(services, chat, writer, stream=bool(body.stream))

    return await answered(http, body.model, body.conversation, answer)


_NOTHING_NEW = ChatDelta()


@dataclass(kw_only=True)
class ChatWriter(ChoicesWriter):
    chunk_type, whole_type = ChatCompletionChunk, ChatCompletion

    body: ChatRequest
    make_parser: Callable[[], AnswerParser]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._parsers = [self.make_parser() for _ in self.requests]
        self._has_called = [False] * len(self.requests)

    def opening(self, first: TokenEvent) -> Iterable[Event]:
        # The content of an answer that is nothing but calls is null.
        nothing = None if self.body.callable_tools else ""
        delta = ChatDelta(role="assistant", content=self.body.echoed or nothing)
        for index in range(len(self.requests)):
            choice = ChatChunkChoice(index=index, delta=delta)
            yield self._chunk(choice, prompt_token_ids=self._prompt_token_ids(index))

    def _choice_of_chunk(
        self, index: int, event: TokenEvent, placed: Sequence[Placed]
    ) -> ChatChunkChoice | None:
        parser, finish = self._parsers[index], finished_by(event)
        deltas = [*parser.push(event.text), *(parser.close() if finish else ())]
        self._has_called[index] |= any(isinstance(delta, CallStart) for delta in deltas)
        choice = ChatChunkChoice(
            index=index,
            delta=delta_of(deltas),
            logprobs=self._logprobs(index, placed) if placed else None,
            finish_reason=finish and self._finish(finish, called=self._has_called[index]),
            token_ids=self._token_ids(event),
        )
        says_more = choice.logprobs or choice.finish_reason or choice.token_ids
        return choice if says_more or choice.delta != _NOTHING_NEW else None

    def _choice_of_whole(self, index: int, choice: Choice) -> ChatChoice:
        assert choice.finished_by is not None
        answer = parse_whole(self.make_parser(), choice.text)
        text = self.body.echoed + answer.text
        calls = [
            AnsweredCall(
                id=call.id, function=AnsweredFunction(name=call.name, arguments=call.arguments)
            )
            for call in answer.calls
        ]
        return ChatChoice(
            index=index,
            message=ChatMessage(
                content=None if calls and not text else text,
                reasoning_content=answer.reasoning or None,
                tool_calls=calls or None,
            ),
            logprobs=self._whole_logprobs(index, choice),
            finish_reason=self._finish(choice.finished_by, called=bool(calls)),
            token_ids=self._token_ids(choice),
        )

    def _finish(self, finish: FinishedBy, *, called: bool) -> ChatFinishedBy:
        # OpenAI ends an answer with `stop` where the request says which tool is called.
        if finish == "stop" and called and not self.body.names_its_tool:
            return "tool_calls"
        return finish

    def _whole_logprobs(self, index: int, choice: Choice) -> ChatLogprobs | None:
        if not self.body.logprobs:
            return None
        placement = self._placement(index)
        return self._logprobs(index, placement.push(choice.text, choice.positions, ended=True))

    def _logprobs(self, index: int, placed: Sequence[Placed]) -> ChatLogprobs:
        content = chat_logprobs(self._texts, self._placement(index), placed)
        return ChatLogprobs(content=content)

    def _of_prompt(self, choices: Sequence[Choice]) -> dict[str, Any]:
        return {
            "prompt_token_ids": self._prompt_token_ids(0),
            "prompt_logprobs": self._prompt_logprobs(choices[0]),
        }


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
