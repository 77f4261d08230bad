"""A request of another API as the body of a chat, and where each of its fields came from."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from remix_runtime.errors import InvalidRequestError
from server.api.wire.chat import ChatRequest
from server.http.errors import ApiError, as_api_error


class ChatForm:
    """Gathers the body of a chat in its wire form. A client that knows nothing of this body is told
    of mistakes by the names of what it sent: `messages`, the field that the messages came in, and
    the origins that are given with everything else."""

    def __init__(self, *, messages: str) -> None:
        self._fields: dict[str, Any] = {}
        self._messages: list[dict[str, Any]] = []
        self._origins = {"messages": messages}

    def put(self, name: str, value: Any, origin: str | None = None) -> None:
        """Sets a field, unless it is None. `origin`: the client's name of it, if it is another."""
        if value is not None:
            self._fields[name] = value
        self._origins[name] = origin or name

    def came_from(self, name: str, origin: str) -> None:
        """Tells where something inside a field came from."""
        self._origins[name] = origin

    @property
    def last_message(self) -> Mapping[str, Any] | None:
        return self._messages[-1] if self._messages else None

    def add_message(self, origin: str, role: str, **fields: Any) -> None:
        self._origins[f"messages[{len(self._messages)}]"] = origin
        self._messages.append({"role": role, **fields})

    def extend_message(self, origin: str, **lists: list[Any]) -> None:
        """Adds to lists in the last message."""
        index = len(self._messages) - 1
        for name, values in lists.items():
            grown = self._messages[index].setdefault(name, [])
            for place in range(len(grown), len(grown) + len(values)):
                self._origins[f"messages[{index}].{name}[{place}]"] = origin
            grown.extend(values)

    def extend_text(self, origin: str, **texts: str) -> None:
        """Adds to texts in the last message."""
        for name, text in texts.items():
            self.fill_message(origin, **{name: self._messages[-1].get(name, "") + text})

    def add_call(self, origin: str, *, id: str, name: str, arguments: str) -> None:
        """Adds a call of a function to the last message."""
        function = {"name": name, "arguments": arguments}
        self.extend_message(
            origin, tool_calls=[{"id": id, "type": "function", "function": function}]
        )
        index, place = len(self._messages) - 1, len(self._messages[-1]["tool_calls"]) - 1
        self._origins[f"messages[{index}].tool_calls[{place}].function"] = origin

    def fill_message(self, origin: str, **fields: Any) -> None:
        """Sets fields of the last message."""
        for name in fields:
            self._origins[f"messages[{len(self._messages) - 1}].{name}"] = origin
        self._messages[-1].update(fields)

    def validated(self) -> ChatRequest:
        """Raises `ApiError`."""
        messages = [_with_content(message) for message in self._messages]
        try:
            return ChatRequest.model_validate({**self._fields, "messages": messages})
        except ValidationError as error:
            errors = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
            raise self.renamed(as_api_error(RequestValidationError(errors))) from None

    def renamed(self, error: ApiError) -> ApiError:
        """The same error with the client's own name of the field."""
        param = self.origin_of(error.param)
        if param == error.param or error.param is None:
            return error
        message = error.detail
        if message.startswith(f"{error.param}: "):
            message = f"{param}: {message[len(error.param) + 2 :]}"
        status = HTTPStatus(error.status_code)
        return ApiError(
            status,
            message,
            type=error.type,
            param=param,
            code=error.code,
            headers=error.headers,
            label=error.label,
        )

    def refusal(self, error: InvalidRequestError) -> ApiError:
        return self.renamed(as_api_error(error))

    def origin_of(self, param: str | None) -> str | None:
        """Where a field of the chat came from: what is known of the nearest field around it."""
        known = param or ""
        while known and known not in self._origins:
            known = known[: max(known.rfind("."), known.rfind("["), 0)]
        if not known or param is None:
            return param
        return self._origins[known] + param[len(known) :]


def _with_content(message: dict[str, Any]) -> dict[str, Any]:
    """A chat has no empty lists of parts: nothing said is null beside calls and thoughts, else
    an empty text."""
    if message["content"]:
        return message
    says_more = "tool_calls" in message or "reasoning_content" in message
    return {**message, "content": None if says_more else ""}


class TranslatedResponse(Response):
    """An answer whose errors name what the client sent."""

    def __init__(self, form: ChatForm, response: Response) -> None:
        super().__init__()
        self._form = form
        self._response = response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._response(scope, receive, send)
        except ApiError as error:
            raise self._form.renamed(error) from error
