"""Roles that the API has no name for: the template writes their turns, or they are refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remix_runtime.errors import InvalidRequestError
from server.api.tools.prepare import prepare_chat
from server.api.wire.chat import ROLES, ChatRequest
from tests.unit.server import chat_templates as templates
from tests.unit.server.harness import Server
from tests.unit.server.scripted import TemplateTokenizer
from tests.unit.server.test_bad_input import check_error

OTHERS_AS_USER = """
{%- for message in messages %}
{{- '[' + ('bot' if message.role == 'assistant' else 'user') + ']' + message.content }}
{%- endfor %}"""
KNOWS_ONE = """
{%- for message in messages %}
{%- if message.role not in ['user', 'assistant', 'critic'] -%}
{{ raise_exception('who?') }}
{%- endif -%}
{{- '[' + message.role + ']' + message.content }}
{%- endfor %}"""
TOOLS = [{"type": "function", "function": {"name": "f", "description": "does it"}}]

roles = st.from_regex(r"\A[A-Za-z][A-Za-z0-9_-]{0,63}\Z").filter(
    lambda role: role.lower() not in ROLES and role != "function"
)
said = st.text(st.characters(codec="ascii", categories=["L", "Nd"]), min_size=1, max_size=20)


def prompt_of(template: str, messages: list[dict[str, Any]], **body: Any) -> str:
    tokenizer = TemplateTokenizer(template)
    request = ChatRequest.model_validate({"model": "m", "messages": messages, **body})
    return tokenizer.decode(prepare_chat(tokenizer, request).prompt)


@pytest.mark.parametrize(
    ("template", "turn"),
    [
        (templates.SMOLLM2, "<|im_start|>{}\n{}<|im_end|>"),
        (templates.NO_SYSTEM, "<start_of_turn>{}\n{}<end_of_turn>"),
        (templates.LLAMA3, "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"),
    ],
)
@pytest.mark.parametrize("more", [{}, {"tools": TOOLS}], ids=["", "tools"])
@settings(max_examples=50)
@given(role=roles, text=said, at=st.integers(0, 2))
def test_a_template_that_writes_every_role(
    template: str, turn: str, more: dict[str, Any], role: str, text: str, at: int
) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    turns.insert(at, {"role": role, "content": text})
    assert turn.format(role, text) in prompt_of(template, turns, **more)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (templates.QWEN, "leaves out"),
        (templates.MISTRAL, "Only user, assistant and tool roles"),
        (OTHERS_AS_USER, "does not tell such a role from others"),
        (KNOWS_ONE, "who\\?"),
    ],
)
@settings(max_examples=50)
@given(role=roles.filter(lambda role: role != "critic"), at=st.integers(0, 3))
def test_a_template_that_does_not(template: str, reason: str, role: str, at: int) -> None:
    turns = [{"role": name, "content": name} for name in ("user", "assistant", "user")]
    turns.insert(at, {"role": role, "content": "turn0x"})
    with pytest.raises(InvalidRequestError, match=reason) as refused:
        prompt_of(template, turns)
    assert refused.value.param == f"messages[{at}].role"


def test_a_role_that_only_this_template_knows() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "critic", "content": "bad"}]
    assert prompt_of(KNOWS_ONE, turns) == "[user]a[critic]bad"


@pytest.mark.parametrize("role", ["", "a b", "é", "a" * 65, "1st", "<|im_end|>", "a\n", "x.y"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
async def test_what_is_no_name_of_a_role(server: Server, path: str, role: str) -> None:
    body = {"model": "fake-base", "messages": [{"role": role, "content": "a"}]}
    error = check_error(await server.client.post(path, json=body), 400)
    assert (error["param"], error["code"]) == ("messages[0].role", "string_pattern_mismatch")


@pytest.mark.parametrize("role", ["User", "SYSTEM", "Tool", "function"])
async def test_names_that_are_nearly_another(server: Server, role: str) -> None:
    messages = [{"role": role, "content": "a"}]
    error = check_error(await server.chat(messages=messages), 400)
    assert (error["param"], error["code"]) == ("messages[0].role", "invalid_value")
    assert "expected" in error["message"]


async def test_text_and_parts_are_the_same(server: Server) -> None:
    contents = ["what is 1+1?", [{"type": "text", "text": "what is 1+1?"}]]
    for content in contents:
        answer = await server.chat(messages=[{"role": "my-custom-role", "content": content}])
        assert answer.status_code == 200
    first, second = (request.prompt_token_ids for request in server.engine.requests)
    assert first == second
    assert b"my-custom-role" in bytes(i for i in first if i < 256)
