"""What `/v1/responses` is asked for, as a chat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from server.api.translation import ChatForm
from server.api.wire.response_items import (
    ContentText,
    FunctionCallItem,
    FunctionCallOutputItem,
    InputItem,
    ItemReference,
    MessageItem,
    ReasoningItem,
)
from server.api.wire.responses import (
    OTHERS,
    AllowedTools,
    FunctionTool,
    NamedFunction,
    ResponsesRequest,
    SchemaFormat,
)


def chat_form(
    body: ResponsesRequest, before: Sequence[InputItem], items: Sequence[InputItem]
) -> ChatForm:
    """`before`: the items of the response that this one goes on from. No item is a reference."""
    form = ChatForm(messages="input")
    form.put("model", body.model)
    for name in ("temperature", "top_p", "stream"):
        form.put(name, getattr(body, name))
    form.put("max_completion_tokens", body.max_output_tokens, "max_output_tokens")
    if body.wants_logprobs:
        form.put("logprobs", True, "include")
        form.put("top_logprobs", body.top_logprobs)
    if body.reasoning:
        form.put("reasoning_effort", body.reasoning.effort, "reasoning.effort")
    for name, value in (body.model_extra or {}).items():
        if name in OTHERS.passed_on:
            form.put(name, value)
    _put_format(form, body)
    _put_tools(form, body)
    if body.instructions is not None:
        form.add_message("instructions", "system", content=body.instructions)
    for item in before:
        _add_item(form, item, "previous_response_id")
    for index, item in enumerate(items):
        _add_item(form, item, f"input[{index}]")
    return form


def _put_format(form: ChatForm, body: ResponsesRequest) -> None:
    if body.text is None or body.text.format is None:
        return
    asked = body.text.format
    wire: dict[str, Any] = {"type": asked.type}
    if isinstance(asked, SchemaFormat):
        wire["json_schema"] = asked.model_dump(exclude={"type"}, exclude_none=True)
        form.came_from("response_format.json_schema", "text.format")
    form.put("response_format", wire, "text.format")


def _put_tools(form: ChatForm, body: ResponsesRequest) -> None:
    form.put("parallel_tool_calls", body.parallel_tool_calls)
    if body.tools:
        form.put("tools", [_chat_tool(tool) for tool in body.tools])
        for index in range(len(body.tools)):
            form.came_from(f"tools[{index}].function", f"tools[{index}]")
    form.came_from("tool_choice.function", "tool_choice")
    form.came_from("tool_choice.allowed_tools", "tool_choice")
    match body.tool_choice:
        case NamedFunction() as named:
            form.put("tool_choice", _chat_choice(named))
        case AllowedTools() as allowed:
            tools = [_chat_choice(tool) for tool in allowed.tools]
            choice = {"mode": allowed.mode, "tools": tools}
            form.put("tool_choice", {"type": "allowed_tools", "allowed_tools": choice})
        case word:
            form.put("tool_choice", word)


def _chat_choice(named: NamedFunction) -> dict[str, Any]:
    return {"type": "function", "function": {"name": named.name}}


def _chat_tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}


def _add_item(form: ChatForm, item: InputItem, origin: str) -> None:
    """Adds one item. What the assistant thought, said and called without a break is one message."""
    match item:
        case MessageItem(role="assistant") if _only_thoughts(form):
            form.fill_message(origin, content=_parts(item.content))
        case MessageItem():
            form.add_message(origin, item.role, content=_parts(item.content))
        case FunctionCallItem():
            if form.last_message is None or form.last_message["role"] != "assistant":
                form.add_message(origin, "assistant", content=None)
            form.add_call(origin, id=item.call_id, name=item.name, arguments=item.arguments)
        case FunctionCallOutputItem():
            content = _parts(item.output)
            form.add_message(origin, "tool", tool_call_id=item.call_id, content=content)
        case ReasoningItem():
            thoughts = "".join(each.text for each in item.content or ())
            if thoughts:
                form.add_message(origin, "assistant", content=None, reasoning_content=thoughts)
        case ItemReference():
            raise AssertionError("a reference is replaced by its item before")


def _only_thoughts(form: ChatForm) -> bool:
    last = form.last_message
    return (
        last is not None
        and "reasoning_content" in last
        and last["content"] is None
        and "tool_calls" not in last
    )


def _parts(content: Iterable[ContentText]) -> list[dict[str, str]]:
    return [{"type": "text", "text": part.text} for part in content]
