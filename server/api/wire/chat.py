"""Body of `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from server.api.wire.generation import GenerationBody
from server.api.wire.json_size import json_size
from server.api.wire.past_calls import LightCalls, PastCall
from server.api.wire.refusal import refused
from server.api.wire.setting import Effort, Setting
from server.api.wire.tools import (
    MAX_TOOLS,
    AllowedChoice,
    NamedTool,
    Tool,
    ToolChoice,
    Tools,
)
from server.http.fields import MAX_PARTS, NumLogprobs, Text, invalid

_MAX_TEMPLATE_NAMES = 32
_MAX_TEMPLATE_CHARS = 1 << 14


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
    if len(value) > MAX_PARTS:
        raise invalid(f"found {len(value)} content parts, expected at most {MAX_PARTS}")
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


ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


def _check_role(role: str) -> str:
    if role == "function":
        raise invalid("OpenAI's old name, expected tool")
    if role not in ROLES and role.lower() in ROLES:
        raise invalid(f"found {role}, expected {role.lower()}")
    return role


Role = Annotated[str, Field(pattern="^[A-Za-z][A-Za-z0-9_-]{0,63}$"), AfterValidator(_check_role)]
"""One of `ROLES`, or another for which the chat template writes a turn."""


class Message(BaseModel):
    """One message of a chat. Fields that no template reads are ignored."""

    model_config = ConfigDict(strict=True)

    role: Role
    # OpenAI's, before content, which is null beside some of them.
    tool_calls: Annotated[list[PastCall], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_call_id: Annotated[Text, Field(max_length=256)] | None = Field(None, validate_default=True)
    function_call: Absent = None
    refusal: Absent = None
    audio: Absent = None
    # Other servers'.
    reasoning_content: Text | None = None
    """What the model thought before this answer. Given to templates that read it: others, and those
    who made the models, leave out earlier thoughts."""
    reasoning: Text | None = None
    """vLLM's name of it."""
    thinking: Absent = None
    images: Absent = None
    prefix: Absent = None
    partial: Absent = None
    name: Annotated[Text, Field(max_length=256)] | None = None
    """Given to the template, which may not read it."""
    content: Annotated[
        Text | None,
        BeforeValidator(_join_parts, json_schema_input_type=str | list[TextPart] | None),
    ] = Field(None, validate_default=True)

    @field_validator("tool_calls")
    @classmethod
    def _only_in_answers(cls, calls: list[PastCall] | None, info: ValidationInfo) -> Any:
        if calls and info.data.get("role", "assistant") != "assistant":
            raise invalid("only allowed in an assistant's message")
        return calls

    @field_validator("reasoning_content", "reasoning")
    @classmethod
    def _only_thoughts_of_answers(cls, text: str | None, info: ValidationInfo) -> Any:
        if text and info.data.get("role", "assistant") != "assistant":
            raise invalid("only allowed in an assistant's message")
        return text

    @field_validator("tool_call_id")
    @classmethod
    def _only_in_results(cls, call: str | None, info: ValidationInfo) -> Any:
        role = info.data.get("role")
        if call and role not in (None, "tool"):
            raise invalid("only allowed in a tool's message")
        if not call and role == "tool":
            raise invalid("expected the id of the call that this message answers")
        return call

    @field_validator("content")
    @classmethod
    def _says_something(cls, text: str | None, info: ValidationInfo) -> Any:
        beside = info.data.get("tool_calls") or info.data.get("reasoning_content")
        if text is None and not (beside or info.data.get("reasoning")):
            raise invalid("expected text, or parts of the form {type: text, text: …}")
        return text

    @property
    def thoughts(self) -> str:
        return self.reasoning_content or self.reasoning or ""

    @property
    def size(self) -> int:
        """Its characters, as far as they are text of the client's."""
        arguments = (call.function.arguments for call in self.tool_calls or ())
        sizes = (json_size(item, ensure_ascii=False) for item in arguments)
        return len(self.content or "") + sum(sizes)

    def for_template(self) -> dict[str, Any]:
        """The message with the fields that any template may read; what it does not have is not
        there, since templates ask for that."""
        # Templates do not know OpenAI's newer name of the system role.
        role = "system" if self.role == "developer" else self.role
        # Templates join content with other text where it is null.
        message: dict[str, Any] = {"role": role, "content": self.content or ""}
        if self.name:
            message["name"] = self.name
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.thoughts:
            message["reasoning_content"] = self.thoughts
        return message


def _bounded(variables: dict[str, Any]) -> dict[str, Any]:
    if len(variables) > _MAX_TEMPLATE_NAMES:
        raise invalid(f"found {len(variables)} names, expected at most {_MAX_TEMPLATE_NAMES}")
    if json_size(variables, at_most=_MAX_TEMPLATE_CHARS) > _MAX_TEMPLATE_CHARS:
        raise invalid(f"expected at most {_MAX_TEMPLATE_CHARS} characters of JSON")
    return variables


class Reasoning(Setting):
    """Other servers' form of `reasoning_effort`, as that of responses."""

    effort: Effort | None = None
    summary: Literal["auto"] | None = None
    """Thoughts come as they are: none is summarized."""


class ChatPrompt(BaseModel):
    """What the prompt of a chat is made of."""

    model_config = ConfigDict(strict=True)

    messages: Annotated[
        list[Message], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True), LightCalls
    ]
    tools: Tools = None
    tool_choice: ToolChoice = None
    reasoning_effort: Effort | None = None
    """Given to templates that read it; "none" also asks those to think no more that can. Says
    nothing to others."""
    reasoning: Reasoning | None = None
    # vLLM's.
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: Annotated[list[dict[str, Any]], Field(max_length=128, fail_fast=True)] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_bounded)] | None = None

    _num_characters: int | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _take_effort(self) -> Self:
        if self.reasoning is not None and self.reasoning.effort is not None:
            if self.reasoning_effort not in (None, self.reasoning.effort):
                raise refused("reasoning.effort", "found another one in reasoning_effort")
            self.reasoning_effort = self.reasoning.effort
        return self

    @model_validator(mode="after")
    def _check_last_message(self) -> Self:
        if self.continue_final_message:
            if self.add_generation_prompt:
                raise refused(
                    "continue_final_message", "not allowed together with add_generation_prompt"
                )
            last = self.messages[-1] if self.messages else None
            if last is None or last.role != "assistant" or not last.content:
                raise refused(
                    "continue_final_message", "the last message must be an assistant's, with text"
                )
        return self

    @model_validator(mode="after")
    def _check_tools(self) -> Self:
        if not self.tools:
            if self.tool_choice not in (None, "none", "auto"):
                raise refused("tool_choice", "only allowed when there are tools")
            return self
        names = {tool.function.name for tool in self.tools}
        for name in self._chosen_names:
            if name not in names:
                raise refused("tool_choice", f"Tool '{name}' not found in tools list")
        return self

    @model_validator(mode="after")
    def _count_characters(self) -> Self:
        # Here, where large bodies are checked: much of it takes its time.
        if self._num_characters is None:
            tools = [tool.for_template() for tool in self.callable_tools]
            shown = [*tools, *(self.documents or ())]
            sizes = (json_size(item, ensure_ascii=False) for item in shown)
            self._num_characters = sum(message.size for message in self.messages) + sum(sizes)
        return self

    @property
    def num_characters(self) -> int:
        """Of all that the prompt has from the client."""
        assert self._num_characters is not None, "counted when it was checked"
        return self._num_characters

    @property
    def _chosen_names(self) -> list[str]:
        match self.tool_choice:
            case NamedTool() as named:
                return [named.function.name]
            case AllowedChoice() as choice:
                return [tool.function.name for tool in choice.allowed_tools.tools]
        return []

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that the answer may call."""
        if self.tool_choice == "none":
            return []
        chosen = self._chosen_names
        tools = self.tools or []
        return [tool for tool in tools if tool.function.name in chosen] if chosen else tools

    @property
    def must_call(self) -> bool:
        match self.tool_choice:
            case AllowedChoice() as choice:
                return choice.allowed_tools.mode == "required"
            case NamedTool():
                return True
        return self.tool_choice == "required"

    @property
    def names_its_tool(self) -> bool:
        return isinstance(self.tool_choice, NamedTool)


class ChatRequest(ChatPrompt, GenerationBody):
    """Body of `POST /v1/chat/completions`."""

    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    parallel_tool_calls: bool | None = None
    echo: bool | None = None
    """vLLM's: the answer begins with the last message, which is the assistant's."""

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        last = self.messages[-1]
        if self.echo and not (last.role == "assistant" and last.content):
            raise refused("echo", "the last message must be an assistant's, with text")
        if self.top_logprobs and not self.logprobs:
            raise refused("top_logprobs", "only allowed when logprobs is true")
        return self

    @property
    def echoed(self) -> str:
        """What the text of the answer begins with."""
        return (self.messages[-1].content or "") if self.echo else ""

    @property
    def calls_at_most_one(self) -> bool:
        return self.parallel_tool_calls is False or self.names_its_tool
