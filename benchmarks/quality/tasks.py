"""Real tasks as rows for training and rows to be judged by.

The files are those that the tasks' authors publish, in a folder of one's own (none is part of the
project): `gsm8k/train.jsonl`, `arc_challenge/arc_challenge_{train,val}.jsonl.gz`,
`commonsense_qa/csqa_{train,val}.jsonl.gz`, `mbpp/train.jsonl`. No test split is used: where there
is no validation file, rows are taken from the end of the training file.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.judges import JudgeName

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """What a task is made of."""

    train: str
    validation: str | None
    judge: JudgeName
    row: Callable[[Row], Row]
    """A row of the file as one of ours."""
    answer_tokens: int


def _chat(question: str, answer: str, **more: Any) -> Row:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def _choice(row: Row) -> Row:
    return _chat(row["query"], row["choices"][row["gold"]])


def _program(row: Row) -> Row:
    tests = row["test_list"]
    question = f"{row['text']} Your code should pass these tests:\n" + "\n".join(tests)
    return _chat(question, row["code"].replace("\r\n", "\n"), tests=tests)


TASKS: Mapping[str, Task] = {
    "arc": Task(
        "arc_challenge/arc_challenge_train.jsonl.gz",
        "arc_challenge/arc_challenge_val.jsonl.gz",
        "choice",
        _choice,
        8,
    ),
    "csqa": Task(
        "commonsense_qa/csqa_train.jsonl.gz",
        "commonsense_qa/csqa_val.jsonl.gz",
        "choice",
        _choice,
        8,
    ),
    "gsm8k": Task(
        "gsm8k/train.jsonl",
        None,
        "number",
        lambda row: _chat(row["question"], row["answer"]),
        256,
    ),
    "mbpp": Task("mbpp/train.jsonl", None, "tests", _program, 256),
}


def write_rows(
    task: Task, data: Path, folder: Path, *, development: int, held_out: int
) -> dict[str, Path]:
    """Writes `train`, `development` (rates are chosen by it) and `held_out` (nothing is) as JSONL
    and returns their paths."""
    rows = _read(data / task.train)
    judged = _read(data / task.validation) if task.validation else []
    if not judged:
        kept = len(rows) - development - held_out
        rows, judged = rows[:kept], rows[kept:]
    parts = {
        "train": rows,
        "development": judged[:development],
        "held_out": judged[development:][:held_out],
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.jsonl" for name in parts}
    for name, part in parts.items():
        text = "".join(json.dumps(task.row(row)) + "\n" for row in part)
        paths[name].write_text(text, encoding="utf-8")
    return paths


def _read(path: Path) -> list[Row]:
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    return [json.loads(line) for line in content.splitlines()]
