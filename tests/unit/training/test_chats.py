"""Chat rows: training sees what the server sees, for every tokenizer and template."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from types import SimpleNamespace

import pytest
from transformers.utils import chat_template_utils

from remix_runtime.errors import DataError
from tests.tokenizers import END, EOS, EXACT, FAMILIES, TEMPLATES, tokenizer_of
from tests.unit.training.served import Row, Served, answers, served


def _plain(content: str) -> str:
    return content


def _thought(content: str, *, opening: str) -> str:
    """A rendering with thoughts as Qwen3's: in a block of their own lines, which may be empty."""
    thoughts, closing, answer = content.rpartition("</think>")
    inner = thoughts.removeprefix("<think>").strip("\n") if closing else ""
    return f"{opening}{inner}\n</think>\n\n" + answer.lstrip("\n")


def _continued(content: str) -> str:
    """Behind an open block: own thoughts as they stand, or else the block is closed at once."""
    if "</think>" in content:
        return content.removeprefix("<think>\n")
    return "\n</think>\n\n" + content.lstrip("\n")


EXPECTED = {
    "plain": _plain,
    "stripping": str.strip,
    "dated": _plain,
    "with its own bos": _plain,
    "no system": _plain,
    "thinking in the prompt": _continued,
    "thinking in the answer": partial(_thought, opening="<think>\n"),
    "thinking in both": partial(_thought, opening=""),
    "no thinking": lambda content: content.lstrip("\n"),
    "llama 2": lambda content: f" {content.strip()} ",
    "without marks": lambda content: f" {content}\n",
}
THINKING = {"thinking in the prompt", "thinking in the answer", "thinking in both", "no thinking"}
SPLIT = {*THINKING, "without marks"}
"""Templates in whose history an answer is not what was generated: without its thoughts, or without
a token that ends it."""
CONTENTS = ("sat", " the cat\n", "\nb (1)\n\n", "naïve café 🙂")
THOUGHTS = ("the thought\n</think>\n\nhello", "<think>\nso long\n</think>\n\nthe end")


def chat(*contents: str, system: bool = False) -> list[Row]:
    turns = [{"role": "system", "content": "be brief"}] if system else []
    for content in contents:
        turns += [{"role": "user", "content": "where is it?"}]
        turns += [{"role": "assistant", "content": content}]
    return turns


def check_chat(base: Served, template: str, messages: list[Row], *, texts: bool = True) -> None:
    learned = [
        i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight") != 0
    ]
    examples = base.encode({"messages": messages})
    found = list(answers(examples))
    assert len(found) == len(learned)
    for index, (context, answer) in zip(learned, found, strict=True):
        history = [{k: v for k, v in m.items() if k != "weight"} for m in messages[:index]]
        assert list(context) == base.prompt_of(history)
        if texts:
            assert base.said(context, answer) == EXPECTED[template](messages[index]["content"])


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_chat_is_what_the_server_sees_and_says(family: str, template: str) -> None:
    base = served(family, template)
    contents = CONTENTS if family in EXACT or family == "qwen" else ("sat", "the cat", "b (1)")
    thoughts = THOUGHTS if "thinking in" in template else ()
    rows = [chat(text) for text in (*contents, *thoughts)]
    rows += [chat(*contents), chat(*thoughts, *contents)]
    if template not in ("no system", "llama 2"):
        rows += [chat(*contents, system=True)]
    for messages in rows:
        check_chat(base, template, messages, texts=family in EXACT or family == "qwen")


@pytest.mark.parametrize("template", ["plain", *sorted(THINKING)])
@pytest.mark.parametrize("family", ["gpt2", "llama 3", "qwen", "gemma", "mistral"])
def test_a_chat_with_marks_that_are_tokens(family: str, template: str) -> None:
    base = served(family, template, marks=True)
    thoughts = THOUGHTS if "thinking in" in template else ()
    for messages in [*map(chat, thoughts), chat(*CONTENTS), chat(*thoughts, *CONTENTS)]:
        check_chat(base, template, messages)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_is_one_sequence_where_it_can_be(template: str) -> None:
    base = served("llama 3", template)
    examples = base.encode({"messages": chat("sat", "the cat", "the end")})
    assert len(examples) == (3 if template in SPLIT else 1)


def test_a_row_of_another_day_has_that_days_context(monkeypatch: pytest.MonkeyPatch) -> None:
    base, messages, seen = served("llama 3", "dated"), chat("sat", "the cat"), []
    for day in (28, 29):
        clock = SimpleNamespace(now=lambda day=day: datetime(2026, 11, day))
        monkeypatch.setattr(chat_template_utils, "datetime", clock)
        check_chat(base, "dated", messages)
        (example,) = base.encode({"messages": messages})
        assert f"Today is {day} Nov 2026" in base.server.decode(example.tokens)
        seen.append(example)
    assert seen[0].is_target == seen[1].is_target


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_loss_on_a_turn_of_weight_0(template: str) -> None:
    base = served("llama 3", template)
    messages = chat("BAD", "sat", "BAD", "the cat")
    for index in (1, 5):
        messages[index]["weight"] = 0
    messages[3]["weight"] = 1
    check_chat(base, template, messages)


def test_a_greeting_is_context_with_weight_0_and_refused_without() -> None:
    base = served("gpt2", "plain")
    messages = [{"role": "assistant", "content": "hello you"}, *chat("sat")]
    with pytest.raises(DataError, match=r"^messages\[0\]: found an answer, .* give it weight 0"):
        base.encode({"messages": messages})
    messages[0]["weight"] = 0
    check_chat(base, "plain", messages)


@pytest.mark.parametrize("key", ["role", "content"])
def test_a_message_means_what_it_means_to_the_server(key: str) -> None:
    """OpenAI's name of the system role; text in parts."""
    base = served("gpt2", "plain")
    parts = [{"type": "text", "text": "be brief"}, {"type": "text", "text": "hi"}]
    first = {
        "role": {"role": "developer", "content": "be brief"},
        "content": {"role": "user", "content": parts},
    }[key]
    check_chat(base, "plain", [first, *chat("sat")])


def test_a_template_that_reads_names_gets_them() -> None:
    template = TEMPLATES["plain"].replace("m.role +", "m.role + (m.name or '') +")
    base = Served(tokenizer_of("gpt2", template))
    messages = [{"role": "user", "content": "hi", "name": "ann"}, *chat("sat")]
    ((context, _),) = answers(base.encode({"messages": messages}))
    assert list(context) == base.prompt_of(messages[:-1])
    assert base.server.decode(context).startswith("userann\n")


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ({"prompt": "the", "completion": f"sat{EOS}on"}, "completion"),
        ({"messages": chat(f"sat {END} on")}, r"messages\[1\]\.content"),
        ({"messages": chat("sat", f"{END}")}, r"messages\[3\]\.content"),
    ],
)
def test_an_end_token_inside_an_answer_is_refused(row: Row, where: str) -> None:
    with pytest.raises(DataError, match=rf"^{where}: found '.*' inside, which ends an answer"):
        served("gpt2", "plain").encode(row)


@pytest.mark.parametrize(
    ("template", "content", "expected"),
    [
        # Its thoughts are dropped by a template that opens no block itself.
        ("no block", "<think>so</think>hi", "<think>so</think>hi"),
        ("no block", "so\n</think>\n\nhi", "so\n</think>\n\nhi"),
        # An empty block before the content's own.
        ("doubled", "<think>so</think>hi", "<think>so</think>hi"),
        ("doubled and prompted", "so\n</think>\n\nhi", "so\n</think>\n\nhi"),
        ("doubled and prompted", "hi", "\n</think>\n\nhi"),
        # Another name, other brackets, no white space.
        ("brackets", "hi", "[/THINK]hi"),
        ("brackets", "so[/THINK]hi", "so[/THINK]hi"),
        # A header with another white space.
        ("loose header", " hi", " hi"),
        # Thoughts that stay with the last answer only: the turns before are rewritten.
        ("last thoughts", "so\n</think>\n\nhi", "so\n</think>\n\nhi"),
    ],
)
def test_templates_that_write_something_else_than_they_prompt_for(
    template: str, content: str, expected: str
) -> None:
    plain, header = TEMPLATES["plain"], "<|im_start|>assistant\n"
    stripped = "m.content.split('</think>')[-1]"
    source = {
        "no block": plain.replace("{{- m.content }}", "{{- " + stripped + " }}", 1),
        "doubled": plain.replace(
            "{{- m.content }}", "{{- '<think>\n\n</think>\n\n' + m.content }}", 1
        ),
        "doubled and prompted": plain.replace(
            "{{- m.content }}", "{{- '<think>\n\n</think>\n\n' + m.content }}", 1
        ).replace(header, header + "<think>\\n"),
        "brackets": plain.replace("m.content", "m.content.split('[/THINK]')[-1]").replace(
            header, header + "[THINK]"
        ),
        "loose header": plain.replace(header, header + "\\n"),
        "last thoughts": plain.replace(
            "{{- m.content }}",
            "{%- set answers = messages|selectattr('role', 'equalto', 'assistant')|list %}"
            "{{- m.content if m == answers[-1] else " + stripped + " }}",
            1,
        ),
    }[template]
    assert source != plain
    base = Served(tokenizer_of("llama 3", source))
    for messages in (chat(content), chat("first</think>then", content)):
        *_, (context, answer) = answers(base.encode({"messages": messages}))
        assert list(context) == base.prompt_of(messages[:-1])
        assert base.said(context, answer) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.role }}{% endfor %}{% if add_generation_prompt %}x{% endif %}",
        "{% if messages|length < 2 %}{{ messages[0].content }}{% endif %}",
    ],
)
def test_a_template_that_cannot_be_followed_is_refused_with_advice(template: str) -> None:
    base = Served(tokenizer_of("gpt2", template))
    advice = r"^messages\[1\]: .* train on rows of prompt and completion"
    with pytest.raises(DataError, match=advice) as caught:
        base.encode({"messages": chat("sat")})
    assert "\n" not in str(caught.value)


def test_thoughts_where_the_prompt_has_closed_them_are_refused() -> None:
    with pytest.raises(DataError, match=r"^messages\[1\]: "):
        served("gpt2", "no thinking").encode({"messages": chat("so</think>hi")})
