"""Rows from what `datasets` reads: the same rows whatever the format, and no code of anybody's."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from remix_runtime.errors import ConfigError, DataError
from tests.unit.training.conftest import ROWS, MakeConfig, write_rows
from training.config import load_config
from training.data import Rows, read_examples
from training.export import model_card
from training.jsonl import JsonList, JsonRows
from training.run import run_training
from training.sources import is_hub_name, open_rows, placed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocess.*")

ASK, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CHATS = [
    {"messages": [ASK, {**ANSWER, "weight": 1}]},
    {"messages": [ASK, ANSWER, ASK, ANSWER], "id": "7"},
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def packed(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode()))


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def on_disk(path: Path, rows: list[dict[str, Any]]) -> None:
    datasets.Dataset.from_list(rows).save_to_disk(str(path))


def arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    on_disk(path.with_name("disk"), rows)
    next(path.with_name("disk").glob("*.arrow")).rename(path)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], object]] = {
    "rows.parquet": lambda path, rows: pd.DataFrame(rows).to_parquet(path),
    "rows.csv": lambda path, rows: pd.DataFrame(rows).to_csv(path, index=False),
    "rows.tsv": lambda path, rows: pd.DataFrame(rows).to_csv(path, index=False, sep="\t"),
    "rows.csv.gz": lambda path, rows: pd.DataFrame(rows).to_csv(path, index=False),
    "rows.json": lambda path, rows: path.write_text(json.dumps(rows)),
    "rows.jsonl.gz": lambda path, rows: packed(path, lines(rows)),
    "rows.arrow": arrow,
    "on_disk": on_disk,
}


def calling(name: str, arguments: Any) -> dict[str, Any]:
    """A row of a call, whose keys differ from those of other rows."""
    tool = {"name": name, "parameters": {"type": "object", "properties": {name: {"type": "null"}}}}
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
    messages = [ASK, {"role": "assistant", "tool_calls": calls}]
    return {"messages": messages, "tools": [{"type": "function", "function": tool}]}


CALLS = [calling("f", {"x": 1}), calling("g", {"y": {"z": [2]}}), calling("h", {})]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl.gz", "rows.arrow", "on_disk"])
def test_calls_have_no_arguments_of_other_rows(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
) -> None:
    """Arrow gives each object the keys of all, as null. JSON text keeps its own nulls."""
    texts = [calling("f", '{"x": null}')] * 2
    for number, rows in enumerate((CALLS, texts)):
        (tmp_path / str(number)).mkdir()
        WRITERS[name](tmp_path / str(number) / name, rows)
        plain = write_rows(tmp_path / f"plain{number}.jsonl", rows)
        found, _ = read_examples(tmp_path / str(number) / name, tokenizer, max_length=4096)
        expected, _ = read_examples(plain, tokenizer, max_length=4096)
        assert found == expected


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_rows(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
) -> None:
    text = [{"prompt": "2+2 =", "completion": "4"}, {"prompt": "=", "completion": "NA"}, *ROWS]
    WRITERS[name](tmp_path / name, text)
    plain = write_rows(tmp_path / "plain.jsonl", text)
    found, _ = read_examples(tmp_path / name, tokenizer, max_length=64)
    expected, _ = read_examples(plain, tokenizer, max_length=64)
    assert found == expected


@pytest.mark.parametrize("name", ["rows.parquet", "rows.json", "rows.jsonl.gz", "on_disk"])
def test_chats_with_fields_that_some_rows_lack(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
) -> None:
    WRITERS[name](tmp_path / name, CHATS)
    plain = write_rows(tmp_path / "plain.jsonl", CHATS)
    found, _ = read_examples(tmp_path / name, tokenizer, max_length=64)
    assert found == read_examples(plain, tokenizer, max_length=64)[0]


def test_what_is_jsonl_has_the_reader_of_its_own(tmp_path: Path) -> None:
    for name in ("rows.jsonl", "rows.json", "rows", "rows.data"):
        path = write_rows(tmp_path / name, ROWS)
        assert isinstance(open_rows(path), JsonRows), name
    (tmp_path / "list.json").write_text("\ufeff \r\n" + json.dumps(ROWS), encoding="utf-8")
    rows = open_rows(tmp_path / "list.json")
    assert isinstance(rows, JsonList)
    assert [rows[i] for i in range(len(rows))] == ROWS
    assert rows.where(2).endswith("list.json: [2]")


def test_a_folder_with_splits(tmp_path: Path) -> None:
    for split, rows in (("train", ROWS[:8]), ("test", ROWS[8:])):
        pd.DataFrame(rows).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    rows = open_rows(tmp_path)
    assert [rows[i] for i in range(len(rows))] == ROWS[:8]
    assert rows.where(3) == f"{tmp_path}: train[3]"
    assert len(open_rows(tmp_path, split="test")) == 4
    assert [open_rows(tmp_path, split="train[6:]")[i] for i in (0, 1)] == ROWS[6:8]
    with pytest.raises(DataError, match=r'cannot be read: .*Unknown split "dev"'):
        open_rows(tmp_path, split="dev")


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    def digest(folder: str, rows: list[dict[str, Any]]) -> str:
        (tmp_path / folder).mkdir()
        pd.DataFrame(rows).to_parquet(tmp_path / folder / "rows.parquet")
        return open_rows(tmp_path / folder / "rows.parquet").digest

    first = digest("a", ROWS)
    assert digest("b", ROWS) == first
    assert digest("c", ROWS[::-1]) != first
    assert digest("d", ROWS[:-1]) != first
    assert digest("e", [*ROWS[:-1], {**ROWS[-1], "completion": "x"}]) != first


def test_a_wrong_row_is_told_by_its_place(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "rows.parquet"
    pd.DataFrame([*ROWS, {"prompt": "a", "completion": None}]).to_parquet(path)
    rows = Rows(open_rows(path), tokenizer, max_length=64)
    with pytest.raises(
        DataError, match=r"rows.parquet: train\[12\]: completion: found null, expected a string"
    ):
        rows.read_on(len(rows))


def _image(path: Path) -> None:
    path.mkdir()
    (path / "a.png").write_bytes(b"\x89PNG")


def _script(path: Path) -> None:
    path.mkdir()
    (path / f"{path.name}.py").write_text(f"open({str(path / 'ran')!r}, 'w')\n")
    (path / "rows.pkl").write_bytes(b"\x80\x04.")


def _empty(path: Path) -> None:
    pd.DataFrame({"prompt": [], "completion": []}).to_parquet(path)


WRONG: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "nothing": ("rows.parquet", lambda path: None, "no such file or folder"),
    "no parquet": ("rows.parquet", lambda path: path.write_text("{}"), "cannot be read"),
    "no rows": ("rows.parquet", _empty, "cannot be read"),
    "an empty list": ("rows.json", lambda path: path.write_text("[]"), "found no rows, expected"),
    "a list twice": ("rows.json", lambda path: path.write_text("[] []"), "expected one JSON array"),
    "an empty folder": ("rows", lambda path: path.mkdir(), "cannot be read"),
    "images": ("rows", _image, "found data of the kind imagefolder, expected one of arrow, csv"),
    "code and pickles": ("rows", _script, "cannot be read"),
    "half a list": ("rows.json", lambda path: path.write_text('[{"prompt":'), "one JSON array"),
    "broken packing": ("rows.jsonl.gz", lambda path: path.write_bytes(b"\x1f\x8b\0"), "cannot be"),
    "a broken folder": ("rows", lambda path: on_disk_without_data(path), "cannot be read"),
}  # fmt: skip


def on_disk_without_data(path: Path) -> None:
    on_disk(path, ROWS)
    next(path.glob("*.arrow")).unlink()


@pytest.mark.parametrize(("name", "make", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        open_rows(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert not (tmp_path / name / "ran").exists()


def test_a_file_has_no_splits(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(
        ConfigError, match=r"split: found 'test' with .*rows\.jsonl, which has none"
    ):
        open_rows(path, split="test")
    with pytest.raises(ConfigError, match="subset: found 'main' with"):
        open_rows(path, subset="main")
    on_disk(tmp_path / "disk", ROWS)
    with pytest.raises(ConfigError, match="split: found 'test' with"):
        open_rows(tmp_path / "disk", split="test")


def test_names_of_the_hub(make_config: MakeConfig, tmp_path: Path) -> None:
    assert is_hub_name(Path("openai/gsm8k"))
    for name in (
        "rows",
        "data/rows.jsonl",
        "a/b/c",
        "/a/b",
        "data/rows.csv.gz",
        "../rows",
        "a.jsonl/b",
    ):
        assert not is_hub_name(Path(name)), name
    assert placed(tmp_path, Path("openai/gsm8k")) == Path("openai/gsm8k")
    assert placed(tmp_path, Path("rows.jsonl")) == tmp_path / "rows.jsonl"
    (tmp_path / "openai" / "gsm8k").mkdir(parents=True)
    assert placed(tmp_path, Path("openai/gsm8k")) == tmp_path / "openai" / "gsm8k"
    card = model_card(
        make_config(data="openai/gsm8k", subset="main", eval_data="/a/b/rows.jsonl"),
        log=[],
        num_rows=7,
    )
    assert "`openai/gsm8k`, 7 rows" in card
    assert "data: openai/gsm8k" in card
    assert "eval_data: rows.jsonl" in card
    with pytest.raises(DataError, match="remix-serve-tests/none: cannot be read: "):
        open_rows(Path("remix-serve-tests/none"))


@pytest.mark.usefixtures("one_thread", "no_plots")
def test_a_run_on_a_folder_is_the_run_on_its_rows(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    pd.DataFrame(ROWS).to_parquet(folder / "train.parquet")
    pd.DataFrame(ROWS[:3]).to_parquet(folder / "test.parquet")
    plain = run_training(
        make_config(
            output=str(tmp_path / "plain"),
            eval_data=str(write_rows(tmp_path / "test.jsonl", ROWS[:3])),
        )
    )
    recipe = tmp_path / "recipe.yaml"
    settings = make_config().model_dump(mode="json", exclude_defaults=True)
    recipe.write_text(yaml.safe_dump({**settings, "data": "rows", "eval_split": "test"}))
    found = run_training(load_config(recipe))
    for key in ("loss", "held_out_loss"):
        assert [row.get(key) for row in found.rows] == [row.get(key) for row in plain.rows], key
    # It goes on with the same rows only.
    recipe.write_text(
        yaml.safe_dump({**settings, "data": "rows", "eval_split": "test", "steps": 8})
    )
    run_training(load_config(recipe), resume=True)
    pd.DataFrame(ROWS[::-1]).to_parquet(folder / "train.parquet")
    with pytest.raises(Exception, match="was saved with data = "):
        run_training(load_config(recipe), resume=True)


def test_without_the_library_the_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS["rows.parquet"](tmp_path / "rows.parquet", ROWS)
    plain = write_rows(tmp_path / "rows.jsonl", ROWS)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"datasets is not installed; .*remix-serve\[train\]"):
        open_rows(tmp_path / "rows.parquet")
    assert len(open_rows(plain)) == len(ROWS)
