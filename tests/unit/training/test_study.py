"""The study of quality: its tasks, its plan, and that it goes on where it was stopped."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import study, study_lab
from benchmarks.quality.study_plan import METHODS, RULES, TAKES_OVER, Scale, final_runs, search_runs
from benchmarks.quality.study_report import wilson, write_report
from benchmarks.quality.tasks import TASKS, write_rows
from remix_runtime.adapter.layers import base_shapes
from training.config import parse_config

pytestmark = pytest.mark.usefixtures("one_thread")

SCALE = Scale(1, 1, 2, 2, 2, 1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files of all tasks, in the form that they are published in."""
    folder = tmp_path / "data"
    choice = {
        "query": "Question: is it?\n A. yes\n B. no\nAnswer:",
        "choices": ["A", "B"],
        "gold": 1,
    }
    number = {"question": "How many?", "answer": "1 + 1 = 2\n#### 2"}
    program = {
        "text": "Write f.",
        "code": "def f():\r\n    return 1",
        "test_list": ["assert f() == 1"],
    }
    for path, row in (
        ("arc_challenge/arc_challenge_train.jsonl.gz", choice),
        ("arc_challenge/arc_challenge_val.jsonl.gz", choice),
        ("commonsense_qa/csqa_train.jsonl.gz", choice),
        ("commonsense_qa/csqa_val.jsonl.gz", choice),
        ("gsm8k/train.jsonl", number),
        ("mbpp/train.jsonl", program),
    ):
        content = "".join(
            json.dumps({**row, "id": number, "query": f"{number} {row.get('query', '')}"}) + "\n"
            for number in range(9)
        ).encode()
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(content) if path.endswith(".gz") else content)
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_rows_of_a_task_are_in_one_part_only(data: Path, tmp_path: Path, name: str) -> None:
    paths = write_rows(TASKS[name], data, tmp_path / "rows", development=2, held_out=3)
    rows = {part: path.read_text().splitlines() for part, path in paths.items()}
    assert len(rows["development"]) == 2
    assert len(rows["held_out"]) == 3
    has_file = TASKS[name].validation is not None
    assert len(rows["train"]) == (9 if has_file else 4)
    answer = json.loads(rows["train"][0])["messages"][-1]["content"]
    assert answer in ("B", "1 + 1 = 2\n#### 2", "def f():\n    return 1")
    if name == "mbpp":
        assert json.loads(rows["held_out"][0])["tests"] == ["assert f() == 1"]


def test_every_method_has_as_many_trials_and_settings_that_are_valid() -> None:
    runs = list(search_runs("base", "arc"))
    trials = Counter(
        next(name for name in METHODS if run.name.startswith(f"{name} ")) for run in runs
    )
    assert trials.keys() == METHODS.keys() - TAKES_OVER.keys()
    assert len(set(trials.values())) == 1
    found = {name: {} for name in trials}
    needed = {"base": "b", "data": "d.jsonl", "output": "o"}
    for run in (*runs, *final_runs("base", "arc", found)):
        parse_config({**needed, **run.settings})
    assert len({run.file for run in runs}) == len(runs)


def test_the_best_rates_are_those_of_the_lowest_development_loss() -> None:
    def trial(name: str, rate: float, loss: float) -> dict[str, Any]:
        return {
            "name": f"{name} {rate}",
            "settings": {"rate": rate},
            "losses": {"development": [loss, loss]},
        }

    results = [trial("LoRA", 1, 0.5), trial("LoRA", 2, 0.4), trial("rsLoRA", 3, 0.1)]
    assert study.best_rates(results) == {"LoRA": {"rate": 2}, "rsLoRA": {"rate": 3}}


def test_wilsons_interval() -> None:
    low, high = wilson(0.5, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-3)
    low, high = wilson(0.0, 10)
    assert low == pytest.approx(0, abs=1e-12)
    assert 0.2 < high < 0.35


def test_a_study_goes_on_where_it_was_stopped(
    data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_lab, "demo_model", lambda model: tiny_base)
    work = tmp_path / "work"
    ran: list[str] = []
    own = study_lab.Lab.result

    def result(self: study_lab.Lab, run: Any) -> Any:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(run.name)
        return own(self, run)

    monkeypatch.setattr(study_lab.Lab, "result", result)
    base = next(iter(study.MODELS))
    first = study.Study(SCALE, data, work, minutes=5)
    with pytest.raises(KeyboardInterrupt):
        first.results_of(study.rule_runs(base, "arc", 0))
    monkeypatch.setattr(study_lab.Lab, "result", own)
    second = study.Study(SCALE, data, work, minutes=5)
    found = second.results_of(study.rule_runs(base, "arc", 0))
    assert [each["name"] for each in found] == list(RULES)
    assert ran == list(RULES)[:2]
    model = second.lab(base, "arc").model
    assert "model.layers.1.mlp.up_proj" in base_shapes(model)  # no adapter is left in it
    over = study.Study(SCALE, data, work, minutes=0)
    assert over.results_of(study.rule_runs(base, "arc", 1)) == []
    assert len(over.results_of(study.rule_runs(base, "arc", 0))) == len(RULES)


def test_the_report_says_who_was_ahead(
    data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_lab, "demo_model", lambda model: tiny_base)
    base = next(iter(study.MODELS))
    made = study.Study(SCALE, data, tmp_path / "work", minutes=5)
    rates = {name: {} for name in METHODS.keys() - TAKES_OVER.keys()}
    made.results_of(
        run
        for run in final_runs(base, "gsm8k", rates)
        if run.seed == 0 and run.name in ("ReMix, M 4", "LoRA", "softmax mixture")
    )
    found = {result["name"]: result for result in made.results}
    assert found["softmax mixture"]["accuracy"] is None  # it is not servable
    assert found["LoRA"]["accuracy"] in (0.0, 1.0)
    assert all(math.isfinite(x) for x in found["LoRA"]["losses"]["held_out"])
    write_report(made.results, scale="tiny", setting={}, out=tmp_path / "report")
    text = (tmp_path / "report.md").read_text()
    lower = found["ReMix, M 4"]["losses"]["held_out"] < found["LoRA"]["losses"]["held_out"]
    assert f"has a lower loss than LoRA on {int(lower)} of 1 seeds" in text
