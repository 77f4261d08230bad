"""What `/v1/messages` is asked for, as a chat."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

from remix_runtime.errors import InvalidRequestError
from server.api.translation import ChatForm
from server.api.wire.messages import (
    OTHERS,
    CountTokensRequest,
    Message,
    MessagesRequest,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolResultBlock,
    ToolUseBlock,
)


def chat_form(body: CountTokensRequest) -> ChatForm:
    form = ChatForm(messages="messages")
    form.put("model", body.model)
    for name, value in (body.model_extra or {}).items():
        if name in OTHERS.passed_on:
            form.put(name, value)
    if isinstance(body, MessagesRequest):
        for name in ("temperature", "top_p", "top_k", "stream"):
            form.put(name, getattr(body, name))
        form.put("max_completion_tokens", body.max_tokens, "max_tokens")
        if body.stop_sequences:
            form.put("stop", body.stop_sequences, "stop_sequences")
            # The writer takes it off again: without it nobody knows which one it was.
            form.put("include_stop_str_in_output", True, "stop_sequences")
    if body.thinking and body.thinking.type != "adaptive":
        effort = "medium" if body.thinking.type == "enabled" else "none"
        form.put("reasoning_effort", effort, "thinking")
    if body.output_config and body.output_config.effort:
        form.put("reasoning_effort", body.output_config.effort, "output_config.effort")
    if body.output_config and body.output_config.format:
        schema = {"name": "output", "schema": body.output_config.format.schema_, "strict": True}
        wire = {"type": "json_schema", "json_schema": schema}
        form.put("response_format", wire, "output_config.format")
        form.came_from("response_format.json_schema", "output_config.format")
    _put_tools(form, body)
    for block in body.system or ():
        if form.last_message is None:
            form.add_message("system", "system", content=[])
        form.extend_message("system", content=[_text(block.text)])
    for index, message in enumerate(body.messages):
        _add_message(form, message, f"messages[{index}]")
    if body.messages[-1].role == "assistant":
        # Anthropic's prefill: the answer goes on where the last message ends.
        form.put("continue_final_message", True, f"messages[{len(body.messages) - 1}]")
        form.put("add_generation_prompt", False, f"messages[{len(body.messages) - 1}]")
    return form


def _put_tools(form: ChatForm, body: CountTokensRequest) -> None:
    tools = body.tools or []
    if tools:
        form.put("tools", [_chat_tool(tool) for tool in tools])
    for index in range(len(tools)):
        form.came_from(f"tools[{index}].function", f"tools[{index}]")
        form.came_from(f"tools[{index}].function.parameters", f"tools[{index}].input_schema")
    choice = body.tool_choice
    if choice is None:
        return
    if choice.type == "tool":
        form.put("tool_choice", {"type": "function", "function": {"name": choice.name}})
        form.came_from("tool_choice.function", "tool_choice")
    else:
        form.put("tool_choice", "required" if choice.type == "any" else choice.type)
    if choice.disable_parallel_tool_use is not None:
        origin = "tool_choice.disable_parallel_tool_use"
        form.put("parallel_tool_calls", not choice.disable_parallel_tool_use, origin)


def _chat_tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "parameters": tool.input_schema}
    more = {"description": tool.description, "strict": tool.strict}
    given = {name: value for name, value in more.items() if value is not None}
    return {"type": "function", "function": {**function, **given}}


def _add_message(form: ChatForm, message: Message, origin: str) -> None:
    """Adds one message. Those of one role that follow each other are one turn, as Anthropic says;
    results of tools are messages of their own in a chat."""
    for index, block in enumerate(message.content):
        where = f"{origin}.content[{index}]"
        match message.role, block:
            case _, TextBlock():
                _add_text(form, message.role, block.text, where)
            case "user", ToolResultBlock():
                content = _result(block)
                form.add_message(where, "tool", tool_call_id=block.tool_use_id, content=content)
            case "assistant", ToolUseBlock():
                _begin_turn(form, "assistant", where)
                # It is read again: what matters is that it takes no long call to write.
                arguments = to_json(block.input, inf_nan_mode="constants").decode()
                form.add_call(where, id=block.id, name=block.name, arguments=arguments)
            case "assistant", ThinkingBlock():
                _begin_turn(form, "assistant", where)
                form.extend_text(where, reasoning_content=block.thinking)
            case "assistant", RedactedThinkingBlock():
                pass
            case _:
                param = f"{where}.type"
                raise InvalidRequestError(
                    f"{param}: found {block.type!r} in a message of role {message.role!r}",
                    param=param,
                )
    if not message.content:
        _begin_turn(form, message.role, origin)


def _add_text(form: ChatForm, role: str, text: str, origin: str) -> None:
    _begin_turn(form, role, origin)
    form.extend_message(origin, content=[_text(text)])


def _begin_turn(form: ChatForm, role: str, origin: str) -> None:
    if form.last_message is None or form.last_message["role"] != role or role == "system":
        form.add_message(origin, role, content=[])


def _result(block: ToolResultBlock) -> list[dict[str, str]]:
    texts = [each.text for each in block.content]
    if block.is_error:  # chats have no other place for it
        texts = ["Error: " + "\n".join(texts)]
    return [_text(text) for text in texts or [""]]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
