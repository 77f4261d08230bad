"""What a chat template raises on a message is the message's mistake, whatever it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from remix_runtime.base.template import render
from remix_runtime.base.tokenizer import load_tokenizer
from remix_runtime.engines.tokenizer import ModelTokenizer
from remix_runtime.errors import ChatTemplateError, DataError, InvalidRequestError
from tests.wrong_bases import template
from training.encoding import encode_row

FAILURES = {
    "refusal": ("{{ raise_exception('no odd turns') }}", "no odd turns"),
    "division": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "types": ("{{ 'a' + messages }}", "TypeError"),
    "arguments": ("{{ message.content.join() }}", ""),
    "undefined": ("{{ nothing.at.all }}", "nothing"),
    "sandbox": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "range": ("{% for i in range(999999999) %}{% endfor %}", "OverflowError"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "key": ("{{ {}['a'].b }}", ""),
    "date": ("{{ strftime_now(7) }}", "TypeError"),
    "unicode": (r"{{ 'a'.encode('nope') }}", ""),
}


@pytest.mark.parametrize(("failure", "says"), FAILURES.values(), ids=FAILURES)
def test_a_template_that_fails_on_some_messages(base: Path, failure: str, says: str) -> None:
    body = "{% for message in messages %}{% if message.content == 'bad' %}" + failure
    template(body + "{% endif %}{{ message.content }}{% endfor %}")(base)
    tokenizer = load_tokenizer(str(base))
    good, bad = ([{"role": "user", "content": text}] for text in ("good", "bad"))
    assert render(tokenizer, good, add_generation_prompt=True) == "good"
    with pytest.raises(ChatTemplateError) as failed:
        render(tokenizer, bad, add_generation_prompt=True)
    assert says in str(failed.value)
    assert "\n" not in str(failed.value)
    with pytest.raises(InvalidRequestError, match="chat template refuses") as refused:
        ModelTokenizer(str(base)).apply_chat_template(bad)
    assert refused.value.param == "messages"
    row = {"messages": [*bad, {"role": "assistant", "content": "x"}]}
    with pytest.raises(DataError, match="chat template"):
        encode_row(row, tokenizer, frozenset({258}))


def test_further_names_reach_the_template(base: Path) -> None:
    template("{{ (tools or []) | length }} {{ mood }}")(base)
    tokenizer = load_tokenizer(str(base))
    messages = [{"role": "user", "content": "x"}]
    text = render(tokenizer, messages, add_generation_prompt=True, tools=[{}, {}], mood="calm")
    assert text == "2 calm"
