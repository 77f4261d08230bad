"""Body of `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from server.api.wire.generation import GenerationBody
from server.api.wire.refusal import refused
from server.http.fields import NumLogprobs, Text, invalid


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: Text


def _join_parts(value: Any) -> Any:
    """The text of a list of content parts, one part a line."""
    if not isinstance(value, list):
        return value
    if not value:
        raise invalid("expected at least one content part")
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise invalid("expected text, or parts of the form {type: text, text: …}")
    return "\n".join(TextPart.model_validate(part).text for part in value)


def _says_nothing(value: Any) -> None:
    """Clients send answers back as they came, with all that was null or empty in them."""
    if value not in (None, "", [], {}, False):
        raise invalid("this server does not support it; leave it out")


Absent = Annotated[None, BeforeValidator(_says_nothing)]
"""A field that changes what a message means and cannot be honoured."""


class Message(BaseModel):
    """One message of a chat. Fields that no template reads are ignored."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    # OpenAI's, before content, which is null beside some of them.
    tool_calls: Absent = None
    tool_call_id: Absent = None
    function_call: Absent = None
    refusal: Absent = None
    audio: Absent = None
    # Other servers'.
    reasoning_content: Absent = None
    reasoning: Absent = None
    thinking: Absent = None
    images: Absent = None
    prefix: Absent = None
    partial: Absent = None
    name: Annotated[Text, Field(max_length=256)] | None = None
    """Given to the template, which may not read it."""
    content: Annotated[
        Text, BeforeValidator(_join_parts, json_schema_input_type=str | list[TextPart])
    ]

    def for_template(self) -> dict[str, str]:
        # Templates do not know OpenAI's newer name of the system role.
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": self.content}
        return {**message, "name": self.name} if self.name else message


class ChatRequest(GenerationBody):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise refused("top_logprobs", "only allowed when logprobs is true")
        return self
