"""The runner of `make gpu-check`, with parts that do next to nothing, and its part of training."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
from typer.testing import CliRunner

from benchmarks.gpu import check, training_step
from benchmarks.gpu.bases import small
from benchmarks.gpu.parts import Outcome, Part, as_json, read_outcomes, run_parts

IDENTITY = {"code": "abc", "device": "a GPU", "tiny": False}


def python(name: str, code: str, seconds: float = 60, **fields: Any) -> Part:
    return Part(name, ("-c", code), seconds, **fields)


def run(
    tmp_path: Path,
    *chosen: Part,
    earlier: Mapping[str, Outcome] | None = None,
    seconds: float = 600,
    seen: list[list[str]] | None = None,
) -> dict[str, Outcome]:
    def on_end(outcomes: list[Outcome]) -> None:
        if seen is not None:
            seen.append([outcome.name for outcome in outcomes])

    found = run_parts(
        chosen,
        tmp_path / "logs",
        earlier=earlier or {},
        seconds=seconds,
        environment={"GIVEN": "yes"},
        on_end=on_end,
        report=lambda line: None,
    )
    return {outcome.name: outcome for outcome in found}


def test_a_part_that_fails_is_told_of_and_stops_no_other(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    found = run(
        tmp_path,
        python("bad", "print('before'); raise SystemExit('no such kernel')"),
        python("good", "import os; print('first'); print('GIVEN', os.environ['GIVEN'])"),
        seen=seen,
    )
    assert (found["bad"].status, found["bad"].note) == ("failed", "before\nno such kernel")
    assert (found["good"].status, found["good"].note) == ("done", "GIVEN yes")
    assert [found[name].is_good for name in ("bad", "good")] == [False, True]
    assert seen == [["bad"], ["bad", "good"]]


def test_a_limit_ends_a_part_with_all_that_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid))\n"
        "print('began', flush=True)\n"
        "time.sleep(600)"
    )
    found = run(tmp_path, python("slow", code, seconds=8), python("next", "print('here')"))
    assert (found["slow"].status, found["slow"].note) == ("over its limit", "began")
    assert found["next"].status == "done"
    while psutil.pid_exists(pid := int(child.read_text())):
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            break  # dead, and nobody has asked for it
        time.sleep(0.05)


def test_what_is_done_is_not_done_again_and_what_failed_is(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    again = python("again", f"open({str(mark)!r}, 'a').write('x'); print('now')")
    earlier = {
        "done": Outcome("done", "done", "72 passed", 9.0, "its text", {"a": 1}),
        "again": Outcome("again", "failed", "out of memory"),
    }
    kept = read_outcomes(json.loads(json.dumps({"parts": as_json([*earlier.values()])})))
    assert kept == earlier
    found = run(tmp_path, python("done", "raise SystemExit(1)"), again, earlier=kept)
    assert found["done"] == earlier["done"]
    study = Part("done", ("-c", "import sys; print(sys.argv[1])", "{minutes}"), 75, goes_on=True)
    assert run(tmp_path, study, earlier=kept)["done"].note == "1.00"
    assert (found["again"].note, mark.read_text()) == ("now", "x")


def test_what_cannot_run_is_left_out_and_says_why(tmp_path: Path) -> None:
    lacking = python("lacking", "print(1)", needs=("json", "no_such_module"))
    found = run(tmp_path, lacking, python("late", "print(1)"), seconds=1)
    assert found["lacking"].note == "no_such_module is not installed"
    assert "another run goes on here" in found["late"].note
    assert {outcome.status for outcome in found.values()} == {"left out"}
    failed = Outcome("late", "failed", "out of memory")
    assert run(tmp_path, python("late", ""), seconds=1, earlier={"late": failed})["late"] is failed


def test_a_part_that_did_nothing_is_not_done(tmp_path: Path) -> None:
    skipped = python("skipped", "print('72 skipped in 1 s')", tells=r"\d passed")
    passed = python("passed", "print('3 passed in 1 s'); print('goodbye')", tells=r"\d passed")
    found = run(tmp_path, skipped, passed)
    assert (found["skipped"].status, found["passed"].status) == ("failed", "done")
    assert found["passed"].note == "3 passed in 1 s"


def test_a_part_s_own_result_is_kept_also_where_its_limit_ends_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from benchmarks.result import publish\n"
        "publish(Path(sys.argv[1]), 'Mine', 'half of it', left=sys.argv[2])\n"
        "time.sleep(600)"
    )
    part = Part("cut", ("-c", code, "{out}", "{seconds}"), seconds=8)
    cut = run(tmp_path, part)["cut"]
    assert cut.status == "over its limit"
    assert cut.text == "half of it"
    assert cut.figures == {"left": "1", "result": ["half of it"]}


def _check(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(check.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(check.signal, "signal", lambda *_: None)
    app = typer.Typer()
    app.command()(check.main)
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def test_the_check_goes_on_where_its_file_stops_until_the_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    switch, count = tmp_path / "switch", tmp_path / "count"
    counted = python("one", f"open({str(count)!r}, 'a').write('x'); print('one is good')")
    second = python("two", f"import os; assert os.path.exists({str(switch)!r}); print('fine')")
    lacking = python("three", "", needs=("no_such_module",))
    monkeypatch.setattr(check, "PARTS", (counted, second, lacking))
    monkeypatch.setattr(check, "digest_of_code", lambda root: "1")
    code, output = _check(monkeypatch)
    assert code == 1
    assert "AssertionError" in output
    (result,) = (tmp_path / check.TINY_RESULTS).glob("*.json")
    text = result.with_suffix(".md").read_text()
    assert "| one | done | 0 | one is good |" in text
    assert "AssertionError" in text
    assert "| three | left out | 0 | no_such_module is not installed |" in text

    switch.touch()
    assert _check(monkeypatch)[0] == 0
    assert count.read_text() == "x"
    assert "| two | done | 0 | fine |" in result.with_suffix(".md").read_text()

    monkeypatch.setattr(check, "digest_of_code", lambda root: "2")
    assert _check(monkeypatch, "--only", "one")[0] == 0
    assert count.read_text() == "xx"
    assert len(list((tmp_path / check.TINY_RESULTS).glob("*.json"))) == 2
    assert "| two |" in result.with_suffix(".md").read_text()  # the other code's, as it was
    code, output = _check(monkeypatch, "--only", "no such")
    assert code == 1


def test_code_has_another_digest_when_it_changes_and_results_do_not_count(tmp_path: Path) -> None:
    room = tmp_path / "benchmarks"
    room.mkdir()
    (room / "a.py").write_text("1")
    first = check.digest_of_code(tmp_path)
    (room / "a.md").write_text("a result")
    assert check.digest_of_code(tmp_path) == first
    (room / "a.py").rename(room / "b.py")
    assert check.digest_of_code(tmp_path) != first


def test_every_part_names_what_is_there() -> None:
    root = Path(check.__file__).parents[2]
    for part in check.PARTS:
        words = [word for word in part.arguments if word.startswith(("tests/", "benchmarks."))]
        assert words, part
        for word in words:
            path = root / word
            assert path.is_dir() or Path(f"{root / word.replace('.', '/')}.py").is_file(), word


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's use
def test_the_training_part_runs_tiny(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(training_step.main)
    stem = tmp_path / "step"
    arguments = ["--out", str(stem), "--tiny", "--rounds", "1"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told = next(part.tells for part in check.PARTS if part.name == "training step")
    assert any(word in result.output.splitlines()[-1] for word in told.split("|"))
    document = json.loads((tmp_path / "step.json").read_text())
    for case in ("recomputed", "kept"):
        sides = document["cases"][case]
        assert set(sides) == {"ReMix", "PEFT LoRA", "PEFT LoRA, autocast"}
        assert all(side["tokens_per_second"]["0"] > 0 for side in sides.values())
    kept, recomputed = (document["predicted"][case] for case in ("kept", "recomputed"))
    same = ("base", "adapter", "logits")
    assert [kept[name] for name in same] == [recomputed[name] for name in same]
    assert kept["activations"] > recomputed["activations"] > 0


def test_what_a_block_keeps_is_counted_alike_each_time() -> None:
    few, many = (training_step.Sides(small(512), tokens) for tokens in (8, 16))
    counted = [few.predicted("kept")["activations"] for _ in range(3)]
    assert len(set(counted)) == 1
    # What belongs to tokens doubles with them; the experts in the type of the products do not.
    assert counted[0] < many.predicted("kept")["activations"] < 2 * counted[0]


def test_a_case_without_memory_is_a_line_of_the_result() -> None:
    found: dict[str, dict[str, Any]] = {
        "ReMix": {"failure": "out of memory"},
        "PEFT LoRA": {"tokens_per_second": {0: 10.0}, "peak_bytes": 5 * 10**9},
    }
    rows = training_step.table_rows("kept", found, 7 * 10**9)
    assert rows[0] == ["kept", "ReMix", "out of memory", "", "", "7.00"]
    assert rows[1][3:] == ["", "5.00", ""]
    assert "nothing is said of the goal" in training_step.verdict("kept", found)
    found["ReMix"] = {"tokens_per_second": {0: 9.0}}
    assert training_step.verdict("kept", found).endswith("met")
    found["PEFT LoRA, autocast"] = {"tokens_per_second": {0: 20.0}}
    assert training_step.verdict("kept", found).endswith("missed")
