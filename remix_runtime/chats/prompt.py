"""A chat as its template gets it: what it does not read of tools, calls and results is text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

from remix_runtime.chats import own_form
from remix_runtime.chats.families import HERMES, Family, ToolParserName, family_of
from remix_runtime.chats.history import Message, prepare_messages
from remix_runtime.chats.reads import TemplateReads, read_template
from remix_runtime.errors import ChatTemplateError, InvalidRequestError

TOOL_NAME = r"^[a-zA-Z0-9_-]{1,128}$"
"""OpenAI's names of functions."""

Rendered_co = TypeVar("Rendered_co", covariant=True)


class Render(Protocol[Rendered_co]):
    def __call__(self, messages: Sequence[Message], **variables: Any) -> Rendered_co:
        """Text or tokens of messages. Raises `ChatTemplateError` or `InvalidRequestError` for what
        the template refuses."""


@dataclass(frozen=True, slots=True)
class ChatForm:
    """How a template is told of a chat and of the tools that its next answer may call."""

    reads: TemplateReads
    family: Family
    """How calls are written."""
    tools: Sequence[Mapping[str, Any]]
    """As `shown_tool` has them."""

    @classmethod
    def of(
        cls, template: str, tools: Sequence[Mapping[str, Any]], setting: ToolParserName = "auto"
    ) -> Self:
        reads = read_template(template)
        told = bool(tools) and not reads.tools
        return cls(reads, HERMES if told else family_of(template, setting), tools)

    def render(self, render: Render[Rendered_co], messages: Sequence[Message]) -> Rendered_co:
        """What `render` makes of the messages. Raises what it raises."""
        prepared = prepare_messages(messages, self.reads, self.family)
        if not self.tools:
            return render(prepared)
        if self.reads.tools:
            return render(prepared, tools=self.tools)
        text = own_form.tell_of_tools(self.tools)
        try:
            return render(own_form.into_system(prepared, text))
        except (ChatTemplateError, InvalidRequestError):
            if prepared[0]["role"] == "system":
                raise
            # Some templates refuse a system message, which nobody wrote.
            return render(own_form.into_user(prepared, text))


def shown_tool(
    name: str, description: str | None, parameters: dict[str, Any] | None
) -> dict[str, Any]:
    """A tool as templates get it."""
    function: dict[str, Any] = {"name": name}
    if description:
        function["description"] = description
    function["parameters"] = parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}
