"""What a model gets to see of tools, calls, results and thoughts, whatever its template reads."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from remix_runtime.chats.families import HERMES, JSON, LLAMA3, MISTRAL, MISTRAL_NAMED, family_of
from remix_runtime.chats.reads import read_template
from remix_runtime.errors import InvalidRequestError
from server.api.parts import parse_whole
from server.api.tools.prepare import PreparedChat, prepare_chat
from server.api.wire.chat import ChatRequest
from tests.unit.server import chat_templates as templates
from tests.unit.server.scripted import TemplateTokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Says the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
USER = {"role": "user", "content": "Rain?"}


def call(id: str, city: str) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
    return {"id": id, "type": "function", "function": function}


def result(id: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": text}


CALLED = {"role": "assistant", "content": None, "tool_calls": [call("call_1", "Oslo")]}
HISTORY = [USER, CALLED, result("call_1", "sunny")]

ALL = {
    "qwen": templates.QWEN,
    "qwen3": templates.QWEN3,
    "thinking": templates.THINKING,
    "llama3": templates.LLAMA3,
    "mistral": templates.MISTRAL,
    "mistral, named": templates.MISTRAL_NAMED,
    "smollm2": templates.SMOLLM2,
    "no system": templates.NO_SYSTEM,
}


def prepare(
    template: str, messages: list[dict[str, Any]], **body: Any
) -> tuple[PreparedChat, str, TemplateTokenizer]:
    tokenizer = TemplateTokenizer(template)
    request = ChatRequest.model_validate({"model": "m", "messages": messages, **body})
    prepared = prepare_chat(tokenizer, request)
    return prepared, tokenizer.decode(prepared.prompt), tokenizer


def prompt_of(template: str, messages: list[dict[str, Any]], **body: Any) -> str:
    return prepare(template, messages, **body)[1]


@pytest.mark.parametrize("template", ALL.values(), ids=ALL)
def test_nothing_of_tools_is_dropped(template: str) -> None:
    tools = {"tools": [WEATHER]}
    assert "Says the weather" in prompt_of(template, [USER], **tools)
    prompt = prompt_of(template, HISTORY, **tools)
    order = [prompt.index(text) for text in ("Rain?", "get_weather", "Oslo", "sunny")]
    assert "sunny" in prompt
    assert order[0] < order[2] < order[3]
    # A history with calls means the same where the next answer can make none.
    assert "Oslo" in prompt_of(template, HISTORY)
    assert "Oslo" in (without := prompt_of(template, HISTORY, **tools, tool_choice="none"))
    assert "Says the weather" not in without
    assert "None" not in prompt


def test_arguments_are_an_object_to_the_template() -> None:
    assert '"arguments": {"city": "Oslo"}}\n</tool_call>' in prompt_of(templates.QWEN, HISTORY)
    assert '"parameters": {"city": "Oslo"}}<|eot_id|>' in prompt_of(templates.LLAMA3, HISTORY)
    empty = {**CALLED, "tool_calls": [call("a", "x")]}
    empty["tool_calls"][0]["function"]["arguments"] = ""
    assert '"arguments": {}}' in prompt_of(templates.QWEN, [USER, empty])


def test_our_own_form_reads_like_hermes() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        USER,
        {**CALLED, "content": "I look.", "tool_calls": [call("a", "Oslo"), call("b", "Rome")]},
        result("a", "sunny"),
        result("b", "rain"),
    ]
    prompt = prompt_of(templates.SMOLLM2, messages, tools=[WEATHER])
    system, user, assistant, results, end = re.split(r"<\|im_end\|>\n", prompt)
    assert system.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    told = re.search(r"<tools>\n(.*)\n</tools>", system)
    assert told is not None
    assert json.loads(told[1]) == WEATHER
    assert user == "<|im_start|>user\nRain?"
    assert assistant == (
        "<|im_start|>assistant\nI look."
        '\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
        '\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    )
    assert results == (
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>"
        "\n<tool_response>\nrain\n</tool_response>"
    )
    assert end == "<|im_start|>assistant\n"


def test_a_template_without_a_system_role_is_told_in_the_first_user_message() -> None:
    prompt = prompt_of(templates.NO_SYSTEM, [USER], tools=[WEATHER])
    assert prompt.startswith("<start_of_turn>user\n# Tools")
    assert prompt.endswith("\n\nRain?<end_of_turn>\n")
    system = {"role": "system", "content": "Be brief."}
    with pytest.raises(InvalidRequestError, match="System role not supported"):
        prompt_of(templates.NO_SYSTEM, [system, USER], tools=[WEATHER])


@pytest.mark.parametrize("template", [templates.QWEN, templates.MISTRAL, templates.SMOLLM2])
def test_results_come_in_the_order_of_their_calls(template: str) -> None:
    calls = [call("aaaaaaaaa", "Oslo"), call("bbbbbbbbb", "Rome")]
    messages = [
        USER,
        {**CALLED, "tool_calls": calls},
        result("bbbbbbbbb", "rain"),
        result("unknown", "who?"),
        result("aaaaaaaaa", "sunny"),
    ]
    prompt = prompt_of(template, messages)
    assert prompt.index("sunny") < prompt.index("rain") < prompt.index("who?")


def test_ids_of_other_servers_suit_mistrals_templates() -> None:
    prompt = prompt_of(templates.MISTRAL, HISTORY)
    ids = re.findall(r'"(?:call_)?id": "([^"]*)"', prompt)
    assert len(ids) == 2
    assert len(set(ids)) == 1
    assert re.fullmatch("[a-z0-9]{9}", ids[0])
    kept = [USER, {**CALLED, "tool_calls": [call("aB3456789", "x")]}, result("aB3456789", "y")]
    assert prompt_of(templates.MISTRAL, kept).count("aB3456789") == 2


def test_results_know_what_was_called() -> None:
    template = (
        "{% for m in messages %}{{ m.role }}={{ m.name }};{{ m.tool_calls }}{% endfor %}{{'tool'}}"
    )
    assert "tool=get_weather;" in prompt_of(template, HISTORY)


def test_what_the_template_refuses_is_a_refusal() -> None:
    two = {**CALLED, "tool_calls": [call("a", "x"), call("b", "y")]}
    with pytest.raises(InvalidRequestError, match="single tool-calls") as refused:
        prompt_of(templates.LLAMA3, [USER, two])
    assert refused.value.param == "messages"


@pytest.mark.parametrize(
    ("template", "family"),
    [
        (templates.QWEN, HERMES),
        (templates.LLAMA3, LLAMA3),
        (templates.MISTRAL, MISTRAL),
        (templates.MISTRAL_NAMED, MISTRAL_NAMED),
        (templates.SMOLLM2, JSON),
        ("<tool_call>\n<function=name>", JSON),
    ],
)
def test_the_family_is_seen_in_the_template(template: str, family: object) -> None:
    assert family_of(template) == family
    assert family_of(template, "json") == JSON
    assert family_of(template, "llama3") == LLAMA3
    assert family_of(template, "hermes") == HERMES
    assert family_of(template, "mistral") in (MISTRAL, MISTRAL_NAMED)


def test_a_template_that_transformers_extends_is_read() -> None:
    source = "{% for m in messages %}{%- generation -%}{{ m.tool_calls }}{% endgeneration %}"
    source += "{% if loop.last %}{% break %}{% endif %}{% endfor %}{{ tools }}"
    reads = read_template(source)
    assert reads.calls
    assert reads.tools
    assert not reads.results
    assert read_template("{% nonsense").variables == frozenset()


# -- thoughts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("effort", "thinks"), [("none", False), ("low", True), (None, False)])
def test_an_effort_switches_thoughts(effort: str | None, thinks: bool) -> None:
    """Also where a template does not think unless it is told to."""
    template = "{{ messages[0].content }}{% if thinking %}<think>{% else %}</think>{% endif %}"
    for names in (
        {"reasoning_effort": effort},
        {"reasoning": {"effort": effort, "summary": "auto"}},
        {"reasoning": {"effort": effort}, "reasoning_effort": effort},
    ):
        _, prompt, _ = prepare(template, [USER], **names)
        assert prompt.endswith("<think>") == thinks


@pytest.mark.parametrize(
    ("template", "body", "reasoning", "text"),
    [
        (templates.QWEN3, {}, "so", "yes"),
        (templates.QWEN3, {"chat_template_kwargs": {"enable_thinking": True}}, "so", "yes"),
        (
            templates.QWEN3,
            {"chat_template_kwargs": {"enable_thinking": False}},
            "",
            "<think>so</think>\n\nyes",
        ),
        (templates.QWEN3, {"reasoning_effort": "none"}, "", "<think>so</think>\n\nyes"),
        (templates.QWEN3, {"reasoning_effort": "high"}, "so", "yes"),
        (templates.QWEN, {}, "", "<think>so</think>\n\nyes"),
        (templates.QWEN, {"reasoning_effort": "none"}, "", "<think>so</think>\n\nyes"),
    ],
)
def test_thoughts_are_told_apart_where_the_model_thinks(
    template: str, body: dict[str, Any], reasoning: str, text: str
) -> None:
    prepared, prompt, _ = prepare(template, [USER], **body)
    answer = parse_whole(prepared.make_parser(), "<think>so</think>\n\nyes")
    assert (answer.reasoning, answer.text) == (reasoning, text)
    off = not reasoning and template == templates.QWEN3
    assert prompt.endswith("<think>\n\n</think>\n\n") == off


def test_a_prompt_that_ends_in_a_thought() -> None:
    prepared, prompt, _ = prepare(templates.THINKING, [USER])
    assert prompt.endswith("<think>\n")
    answer = parse_whole(prepared.make_parser(), "so\n</think>\nyes")
    assert (answer.reasoning, answer.text) == ("so", "yes")


@pytest.mark.parametrize(
    ("begun", "written", "reasoning", "text"),
    [
        ("<think>so", " so</think>yes", "so</think>yes"[:2], "yes"),
        ("<think>so</think>y", "es", "", "es"),
        ("y", "es", "", "es"),
    ],
)
def test_a_message_that_goes_on(begun: str, written: str, reasoning: str, text: str) -> None:
    last = {"role": "assistant", "content": begun}
    prepared, prompt, _ = prepare(
        templates.QWEN3, [USER, last], continue_final_message=True, add_generation_prompt=False
    )
    assert prompt.endswith(f"<|im_start|>assistant\n{begun}")
    answer = parse_whole(prepared.make_parser(), written)
    assert (answer.reasoning, answer.text) == (reasoning, text)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_earlier_thoughts_go_to_templates_that_read_them(field: str) -> None:
    answer = {"role": "assistant", "content": "No.", field: "let me think"}
    messages = [USER, answer, USER]
    assert "<think>let me think</think>" in prompt_of(templates.QWEN3, messages)
    assert "let me think" not in prompt_of(templates.QWEN, messages)


# -- what else a template may read -------------------------------------------------------------


def test_further_names_and_documents() -> None:
    template = (
        "{{ mood }} {{ documents or 0 }} {{ messages[0].content }} {{ add_generation_prompt }}"
    )
    body: dict[str, Any] = {"chat_template_kwargs": {"mood": "calm"}, "documents": [{"text": "d1"}]}
    assert prompt_of(template, [USER], **body) == "calm [{'text': 'd1'}] Rain? True"
    assert prompt_of(template, [USER], add_generation_prompt=False) == " 0 Rain? False"


@pytest.mark.parametrize(
    ("body", "param", "names"),
    [
        ({"documents": [{"text": "x"}]}, "documents", "documents"),
        ({"chat_template_kwargs": {"mood": 1}}, "chat_template_kwargs", "mood"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", "tools"),
        ({"chat_template_kwargs": {"eos_token": ""}}, "chat_template_kwargs", "eos_token"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs", "tokenize"),
    ],
)
def test_what_a_template_does_not_read_is_refused(
    body: dict[str, Any], param: str, names: str
) -> None:
    with pytest.raises(InvalidRequestError, match=names) as refused:
        prompt_of(templates.QWEN, [USER], **body)
    assert refused.value.param == param
