"""Rows of the shapes that TRL and ShareGPT document become the rows of ours that mean the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from remix_runtime.errors import ConfigError, DataError
from tests.models import EOS_ID
from tests.unit.training.conftest import MakeConfig, write_rows
from training.columns import columns_of
from training.data import Rows
from training.encoding import Example, encode_row
from training.evaluation import compare_with_base
from training.jsonl import JsonRows
from training.run import run_training

Row = dict[str, Any]

SYSTEM = {"role": "system", "content": "s"}
ASK, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
MORE, LAST = {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}


def said(by: str, value: str) -> Row:
    return {"from": by, "value": value}


def human(value: str) -> Row:
    return said("human", value)


def gpt(value: str) -> Row:
    return said("gpt", value)


def encode(row: Row, tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    return encode_row(row, tokenizer, frozenset({EOS_ID}))


PAIRS: dict[str, tuple[Row, Row]] = {
    "conversational prompt and completion": (
        {"prompt": [ASK], "completion": [ANSWER]},
        {"messages": [ASK, ANSWER]},
    ),
    "a prompt with answers": (
        {"prompt": [SYSTEM, ASK, ANSWER, MORE], "completion": [LAST]},
        {"messages": [SYSTEM, ASK, {**ANSWER, "weight": 0}, MORE, LAST]},
    ),
    "a completion of two turns": (
        {"prompt": [ASK], "completion": [ANSWER, MORE, LAST]},
        {"messages": [ASK, ANSWER, MORE, LAST]},
    ),
    "sharegpt": (
        {"conversations": [human("a"), gpt("b"), human("c"), gpt("d")]},
        {"messages": [ASK, ANSWER, MORE, LAST]},
    ),
    "sharegpt with system": (
        {"system": "s", "conversations": [said("user", "a"), said("chatgpt", "b")], "id": "7"},
        {"messages": [SYSTEM, ASK, ANSWER]},
    ),
    "sharegpt with system as a turn": (
        {"system": "", "conversations": [said("system", "s"), human("a"), gpt("b")]},
        {"messages": [SYSTEM, ASK, ANSWER]},
    ),
    "sharegpt with weight": (
        {
            "conversations": [
                human("a"),
                {**gpt("b"), "weight": 0},
                human("c"),
                said("assistant", "d"),
            ]
        },
        {"messages": [ASK, {**ANSWER, "weight": 0}, MORE, LAST]},
    ),
    "openai's turns in conversations": (
        {"conversations": [ASK, ANSWER]},
        {"messages": [ASK, ANSWER]},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "ours"), PAIRS.values(), ids=PAIRS)
def test_a_row_of_another_shape_is_the_row_of_ours(
    tokenizer: PreTrainedTokenizerFast, row: Row, ours: Row
) -> None:
    before = json.dumps(row)
    examples = encode(row, tokenizer)
    assert examples == encode(ours, tokenizer)
    assert any(examples[-1].is_target)
    assert json.dumps(row) == before  # the user's row is not changed


def test_a_text_is_learned_whole_and_ends(tokenizer: PreTrainedTokenizerFast) -> None:
    [example] = encode({"text": "the hen", "id": 3}, tokenizer)
    ids = tokenizer.encode("the hen")
    assert example.tokens == (*ids, EOS_ID)
    assert example.is_target == (False, *(True,) * len(ids))
    # One that ends by itself ends once, and one that begins by itself begins once.
    assert encode({"text": "the hen<|im_end|>"}, tokenizer) == [example]
    tokenizer.bos_token = "<|im_start|>"
    [begun] = encode({"text": "<|im_start|>hen"}, tokenizer)
    assert begun.tokens.count(tokenizer.bos_token_id) == 1
    # Beside a prompt, or messages, it is somebody's note.
    assert encode({"text": "x", "messages": [ASK, ANSWER]}, tokenizer) == encode(
        {"messages": [ASK, ANSWER]}, tokenizer
    )


WRONG: list[tuple[Row, str]] = [
    ({"prompt": [ASK], "completion": "b"}, "completion: found a string, expected a list of"),
    ({"prompt": "a", "completion": [ANSWER]}, "prompt: found a string, expected a list of"),
    ({"prompt": [ASK]}, "completion: found null, expected a list of messages"),
    ({"prompt": [ASK], "completion": []}, r"no assistant turn, .*made of prompt and completion"),
    ({"prompt": [ASK, ANSWER], "completion": [MORE]}, "weight 0 on every assistant turn"),
    ({"prompt": ["a"], "completion": [ANSWER]}, r"messages\[0\]: found a string, expected"),
    ({"prompt": [ASK], "completion": [ANSWER], "messages": [ASK, ANSWER]}, "found both"),
    ({"prompt": [ASK], "completion": [ANSWER], "tools": [7]}, r"tools\[0\]: found a number, exp"),
    ({"conversations": []}, "conversations: found a list, expected a list of turns"),
    ({"conversations": "hi"}, "conversations: found a string, expected a list of turns"),
    ({"conversations": ["hi"]}, r"conversations\[0\]: found a string, expected an object"),
    ({"conversations": [{"value": "a"}]}, r"conversations\[0\].from: found nothing, expected who"),
    ({"conversations": [said("bot", "a")]}, r"conversations\[0\].from: found 'bot', expected sys"),
    ({"conversations": [{"from": "gpt"}]}, r"conversations\[0\].value: found nothing, expected"),
    ({"conversations": [human("a")], "prompt": "a"}, "conversations, or prompt; found both"),
    (
        {"system": "s", "conversations": [said("system", "t"), human("a"), gpt("b")]},
        "system: found one, and another as the first turn",
    ),
    ({"system": 7, "conversations": [human("a")]}, "system: found a number, expected a string"),
    (
        {"conversations": [human("a"), gpt("")]},
        r"messages\[1\].content: found an empty string, .* made of conversations",
    ),
    ({"text": 7}, "text: found a number, expected a string"),
    ({"text": "a", "tools": [{}]}, "tools: found a list, expected none"),
    ({"text": "\ud800"}, "text: found a lone surrogate"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), WRONG)
def test_what_is_wrong_is_told_by_its_name(
    tokenizer: PreTrainedTokenizerFast, row: Row, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        encode(row, tokenizer)


def test_an_empty_text_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="text: found no tokens, expected at least one"):
        encode({"text": ""}, tokenizer)


def test_columns_of_other_names(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "rows.jsonl",
        [{"question": "a", "answer": "b", "prompt": "note"}, {"question": "c", "Answer": "d"}],
    )
    columns = {"prompt": "question", "completion": "answer"}
    rows = Rows(JsonRows(path), tokenizer, max_length=64, columns=columns)
    assert rows[0] == encode({"prompt": "a", "completion": "b"}, tokenizer)
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: columns: completion: found 'question', 'Answer', expected"
    ):
        rows[1]


@pytest.mark.usefixtures("one_thread", "no_plots")
def test_a_run_and_its_evaluation_by_columns(make_config: MakeConfig, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in make_config().data.read_text().splitlines()]
    others = [{"q": row["prompt"], "a": row["completion"]} for row in rows]
    path = write_rows(tmp_path / "others.jsonl", others)
    columns = {"prompt": "q", "completion": "a"}
    plain = run_training(make_config(output=str(tmp_path / "plain")))
    found = run_training(make_config(data=str(path), columns=columns))
    assert [row["loss"] for row in found.rows] == [row["loss"] for row in plain.rows]
    assert found.adapter is not None
    scores = [
        compare_with_base(found.adapter, make_config().data),
        compare_with_base(found.adapter, path, columns=columns),
    ]
    assert scores[0] == scores[1]


def test_columns_on_the_command_line() -> None:
    assert columns_of("prompt=q,completion=a b") == {"prompt": "q", "completion": "a b"}
    assert columns_of("") == {}
    for wrong in ("prompt", "prompt=", "=q", "prompt=q,x"):
        with pytest.raises(ConfigError, match="expected pairs as in prompt=question"):
            columns_of(wrong)
