"""Rows are read when they are needed, and all of them some time: what is wrong is always said."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import PretrainedConfig, PreTrainedTokenizerFast

import training.data
from remix_runtime.errors import ConfigError, DataError
from tests.models import tiny_config, tiny_model
from tests.unit.training.conftest import ROWS, MakeConfig, write_rows
from training.base import row_limit
from training.data import BatchOrder, Rows, Sequences, read_examples
from training.jsonl import JsonRows
from training.log import read_metrics
from training.run import run_training
from training.seeds import generator
from training.trainer import StepReport, Trainer

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")

MANY = 1500
"""More than are read before the first step."""


def many_rows(path: Path) -> Path:
    return write_rows(path, [ROWS[i % len(ROWS)] for i in range(MANY)])


def append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts of the rows that were encoded, in that order."""
    found: list[str] = []
    encode = training.data.encode_row

    def noted(row: dict[str, str], *rest: object) -> object:
        found.append(row["prompt"])
        return encode(row, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(training.data, "encode_row", noted)
    return found


def test_a_row_is_encoded_once_and_when_it_is_asked_for(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, encoded: list[str]
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    rows = Rows(JsonRows(path), tokenizer, max_length=64)
    assert len(rows) == len(ROWS)
    assert encoded == []
    assert rows[7] == rows[7]
    assert encoded == ["hen ->"]
    rows.read_on(2)
    assert encoded == ["hen ->", "ant ->", "bee ->"]
    rows.read_on(100)
    assert len(encoded) == len(ROWS)
    assert rows.share_met == 1
    whole, _ = read_examples(path, tokenizer, max_length=64)
    assert list(Sequences(rows)) == whole == [example for row in rows for example in row]
    assert Sequences(rows)[2:4] == whole[2:4]
    assert rows[2:4] == [[example] for example in whole[2:4]]


def test_the_first_step_needs_its_pool_and_no_more(
    make_config: MakeConfig,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    encoded: list[str],
) -> None:
    rows = Rows(JsonRows(many_rows(tmp_path / "rows.jsonl")), tokenizer, max_length=64)
    Trainer(make_config(), tiny_model("llama"), rows).train_step()
    assert len(encoded) == BatchOrder.POOL * 3


def test_a_run_on_rows_that_come_late_has_the_bits_of_one_that_has_all(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = many_rows(tmp_path / "many.jsonl")
    digests = []
    for first in (0, 10_000):
        monkeypatch.setattr("training.reading._FIRST", first)
        config = make_config(data=str(rows), base_name="tiny", steps=3)
        digests.append(run_training(config, overwrite=True).digest)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("which", ["data", "eval_data"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"}', "completion: found nothing"),
        (json.dumps({"prompt": "a", "completion": "b" * 600}), "expected at most max_length"),
    ],
)
def test_a_wrong_row_at_the_end_stops_the_run_and_no_adapter_is_written(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    which: str,
    line: str,
    message: str,
) -> None:
    path = many_rows(tmp_path / "many.jsonl")
    append(path, line)
    config = make_config(steps=4, **{which: str(path)}, eval_every=100)
    with pytest.raises(DataError, match=rf"many\.jsonl:{MANY + 1}: .*{message}"):
        run_training(config)
    assert not (config.output / "adapter").exists()


def test_a_wrong_row_is_met_beside_the_steps(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the end: long before a run of a million steps has ended."""
    path = many_rows(tmp_path / "many.jsonl")
    append(path, '{"prompt": "a"}')
    take = Trainer.train_step

    def slow(self: Trainer) -> StepReport:
        return dataclasses.replace(take(self), seconds=1e9)

    monkeypatch.setattr(Trainer, "train_step", slow)
    config = make_config(data=str(path), steps=1_000_000)
    with pytest.raises(DataError, match=rf"many\.jsonl:{MANY + 1}: "):
        run_training(config)
    assert [row["step"] for row in read_metrics(config.output)] == [1]


def test_broken_json_at_the_end_is_found_before_the_base_is_loaded(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    path = many_rows(tmp_path / "many.jsonl")
    append(path, '{"prompt"')
    with pytest.raises(DataError, match=rf"many\.jsonl:{MANY + 1}: expected one JSON object"):
        run_training(make_config(data=str(path), base=str(tmp_path / "nowhere")))


def test_a_file_that_changes_while_it_is_read_is_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    rows = Rows(JsonRows(path), tokenizer, max_length=64)
    rows.read_on(3)
    append(path, '{"prompt": "a", "completion": "b"}')
    with pytest.raises(DataError, match=r"rows\.jsonl: found another content than at the start"):
        rows.read_on(100)


def test_a_file_that_is_replaced_is_read_as_it_was(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    expected, _ = read_examples(path, tokenizer, max_length=64)
    rows = Rows(JsonRows(path), tokenizer, max_length=64)
    write_rows(tmp_path / "new.jsonl", ROWS[::-1]).replace(path)
    assert list(Sequences(rows)) == expected


def as_it_was(lengths: list[int], *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The order of an epoch by all lengths at once."""
    size = min(batch_size, len(lengths))
    count = len(lengths) // size
    random = generator(seed, "epoch", epoch)
    order = torch.randperm(len(lengths), generator=random).tolist()[: count * size]
    batches: list[list[int]] = []
    for start in range(0, len(order), size * BatchOrder.POOL):
        pool = sorted(order[start : start + size * BatchOrder.POOL], key=lengths.__getitem__)
        batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    return [batches[i] for i in torch.randperm(count, generator=random).tolist()]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=200),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_the_order_by_pools_is_the_order_by_all_lengths(
    lengths: list[int], batch_size: int, seed: int
) -> None:
    order = BatchOrder(len(lengths), lengths.__getitem__, batch_size=batch_size, seed=seed)
    count = order.batches_per_epoch
    for epoch in (1, 0):
        expected = as_it_was(lengths, batch_size=batch_size, seed=seed, epoch=epoch)
        assert [order[epoch * count + i] for i in range(count)] == expected


def test_the_number_of_cut_rows_is_that_of_the_whole_file(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    path = many_rows(tmp_path / "many.jsonl")
    append(path, json.dumps({"prompt": "a", "completion": "b" * 300}))
    shown = io.StringIO()
    config = make_config(data=str(path), steps=1, max_length=200, too_long="truncate")
    run_training(config, console=Console(file=shown, width=300))
    assert "many.jsonl: 1 rows cut to 200 tokens" in shown.getvalue()


def test_every_long_step_is_announced_once(make_config: MakeConfig) -> None:
    shown = io.StringIO()
    config = make_config(steps=2)
    run_training(config, console=Console(file=shown, width=300))
    lines = [line.split(str(config.data))[0].strip() for line in shown.getvalue().splitlines()]
    expected = ("opening", "loading the base", "hashing the base", "reading rows of",
                "training begins: 2 steps, 12 rows", "training", "writing")  # fmt: skip
    assert len(lines) == len(expected)
    assert all(line.startswith(word) for line, word in zip(lines, expected, strict=True))


def test_a_row_has_room_in_the_context() -> None:
    config = tiny_config("llama")
    assert row_limit(config, None, default=512) == 256
    assert row_limit(config, None, default=100) == 100
    assert row_limit(config, 256, default=512) == 256
    with pytest.raises(ConfigError, match="max_length: found 257, expected at most 256"):
        row_limit(config, 257, default=512)
    endless = PretrainedConfig()
    assert row_limit(endless, 4000, default=512) == 4000
    assert row_limit(endless, None, default=512) == 512
