"""Fields of rows and messages: used, saying nothing, or refused by name; never dropped."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from remix_runtime.errors import DataError
from server.api.wire.chat import ChatRequest
from tests.models import EOS_ID
from training.encoding import Example, encode_row

USER, BOT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}

Row = dict[str, Any]


def encode(row: Row, tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    return encode_row(row, tokenizer, frozenset({EOS_ID}))


MEANING: dict[str, Any] = {
    "tool_calls": [CALL],
    "functions": [TOOL["function"]],
    "function_call": {"name": "f"},
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_object"},
    "documents": [{"text": "d"}],
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"enable_thinking": False},
    "enable_thinking": False,
    "reasoning_effort": "low",
    "reasoning_content": "so",
    "thinking": "so",
    "images": ["a.png"],
    "audio": "a.wav",
    "chosen": [BOT],
    "rejected": [BOT],
    "label": False,
    "weight": 0,
    "loss_mask": [0, 1],
    "train": False,
    "system": "be brief",
    "suffix": "c",
}
FORMS: list[Row] = [{"messages": [USER, BOT]}, {"prompt": "a", "completion": "b"}]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MEANING)
def test_a_field_that_changes_a_rows_meaning_is_refused(
    tokenizer: PreTrainedTokenizerFast, form: Row, name: str
) -> None:
    with pytest.raises(DataError, match=rf"^{name}: found .*, expected none; "):
        encode({**form, name: MEANING[name]}, tokenizer)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "extra",
    [
        {"tools": None, "functions": [], "tool_choice": "none", "chat_template_kwargs": {}},
        {"tool_choice": "auto", "response_format": {"type": "text"}, "system": "", "weight": 1},
        {"id": 7, "source": "web", "metadata": {"tools": 1}, "label": "greeting", "tags": ["x"]},
    ],
)
def test_notes_and_what_says_nothing_change_nothing(
    tokenizer: PreTrainedTokenizerFast, form: Row, extra: Row
) -> None:
    assert encode({**form, **extra}, tokenizer) == encode(form, tokenizer)


OF_MESSAGES: dict[str, Any] = {
    "tools": [TOOL],
    "function_call": {"name": "f", "arguments": "{}"},
    "tool_call_id": "call_1",
    "reasoning_content": "so",
    "thinking": "so",
    "refusal": "no",
    "audio": {"id": "a"},
    "images": ["a.png"],
    "train": False,
    "mask": 1,
    "loss": 0,
    "whatever": "x",
}


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("name", OF_MESSAGES)
def test_a_field_that_a_template_might_read_is_refused(
    tokenizer: PreTrainedTokenizerFast, name: str, index: int
) -> None:
    messages = [dict(USER), dict(BOT)]
    messages[index][name] = OF_MESSAGES[name]
    with pytest.raises(DataError, match=rf"^messages\[{index}\]\.{name}: found .*, expected none"):
        encode({"messages": messages}, tokenizer)


def test_what_clients_send_back_is_taken(tokenizer: PreTrainedTokenizerFast) -> None:
    answer = {
        **BOT,
        **dict.fromkeys(("refusal", "audio", "function_call", "name", "weight")),
        "tool_calls": [],
        "annotations": [],
        "id": "msg_1",
    }
    plain = encode({"messages": [USER, BOT]}, tokenizer)
    assert encode({"messages": [USER, answer]}, tokenizer) == plain


@pytest.mark.parametrize("role", ["Tool", "function", "ipython", "model", "Assistant", "human"])
def test_another_role_is_refused(tokenizer: PreTrainedTokenizerFast, role: str) -> None:
    with pytest.raises(DataError, match=rf"^messages\[1\]\.role: found '{role}', expected system"):
        encode({"messages": [USER, {"role": role, "content": "x"}, BOT]}, tokenizer)


@pytest.mark.parametrize("weight", [2, -1, 0.5, True, False, "0", [0], float("nan")])
def test_a_weight_is_0_or_1(tokenizer: PreTrainedTokenizerFast, weight: Any) -> None:
    with pytest.raises(DataError, match=r"^messages\[1\]\.weight: found .*, expected 0 or 1"):
        encode({"messages": [USER, {**BOT, "weight": weight}]}, tokenizer)


@pytest.mark.parametrize("weight", [0, 1])
def test_only_an_answer_has_a_weight(tokenizer: PreTrainedTokenizerFast, weight: int) -> None:
    with pytest.raises(DataError, match=r"^messages\[0\]\.weight: .* role user, expected none"):
        encode({"messages": [{**USER, "weight": weight}, BOT]}, tokenizer)


def test_a_row_that_teaches_nothing_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"^messages: found weight 0 on every assistant turn"):
        encode({"messages": [USER, {**BOT, "weight": 0}]}, tokenizer)


def test_an_empty_answer_may_stand_in_a_history(tokenizer: PreTrainedTokenizerFast) -> None:
    empty = {**BOT, "content": "", "weight": 0}
    (example,) = encode({"messages": [USER, empty, USER, BOT]}, tokenizer)
    assert sum(example.is_target) == len(tokenizer.encode("b")) + 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "found nothing, expected prompt and completion, or messages"),
        ({"texts": "a"}, "found 'texts', expected prompt and completion, or messages"),
        ({"conversation": [], "id": 1}, "found 'conversation', 'id', expected prompt"),
        ({"instruction": "a", "output": "b"}, "found 'instruction', 'output', expected prompt"),
        ({"messages": [USER, BOT], "completion": "b"}, "found both"),
        ({"messages": None}, "messages: found null, expected a list of turns"),
        ({"prompt": {}, "completion": "b"}, "prompt: found an object, expected a string"),
        ({"messages": [USER, {**BOT, "content": []}]}, r"messages\[1\]\.content: found an empty"),
        (
            {"messages": [{**USER, "content": [{"type": "image_url"}]}, BOT]},
            r"messages\[0\]\.content\[0\]: expected .* only text is trained",
        ),
        (
            {"messages": [{**USER, "content": [{"type": "text"}]}, BOT]},
            r"messages\[0\]\.content\[0\]\.text: found nothing, expected a string",
        ),
        ({"messages": [{**USER, "name": 5}, BOT]}, r"messages\[0\]\.name: found a number"),
    ],
)
def test_a_row_of_another_form_is_named(
    tokenizer: PreTrainedTokenizerFast, row: Row, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        encode(row, tokenizer)
    assert "\n" not in str(caught.value)


def test_the_other_form_may_be_there_as_null(tokenizer: PreTrainedTokenizerFast) -> None:
    nothing = {"prompt": None, "completion": None}
    chat = {"messages": [USER, BOT]}
    assert encode({**chat, **nothing}, tokenizer) == encode(chat, tokenizer)
    raw = {"prompt": "a", "completion": "b"}
    assert encode({**raw, "messages": None}, tokenizer) == encode(raw, tokenizer)


IGNORED_THERE = {"tools", "train", "mask", "loss", "whatever"}
SERVED_TOO = sorted(OF_MESSAGES.keys() - IGNORED_THERE - {"reasoning_content"})


@pytest.mark.parametrize("name", SERVED_TOO)
def test_the_server_refuses_what_training_refuses(name: str) -> None:
    message = {**BOT, name: OF_MESSAGES[name]}
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({"model": "m", "messages": [USER, message]})
    assert caught.value.errors()[0]["loc"] == ("messages", 1, name)
