"""When an answer is right, and what runs of the code in it."""

from __future__ import annotations

import textwrap
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.errors import ConfigError, DataError
from training.code_tests import passes
from training.judges import JudgeName, as_judge, chosen_letter, judge_of, last_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("24 clips in May, 48+24 = 72 in all.\n#### 72", "72"),
        ("so $1,234.50 is left.", "1234.50"),
        ("it fell to -3", "-3"),
        ("1, 2 and 3.", "3"),
        ("1,2,3", "3"),
        ("4-5", "5"),
        ("on 2024-05-06", "6"),
        ("x = −5", "-5"),
        ("(3)-2", "2"),
        ("about 1e5", "100000"),
        ("1_000", "1000"),
        ("12,345,678.5!", "12345678.5"),
        ("9" * 5000, "9" * 5000),
        ("none", None),
    ],
)
def test_the_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" D.", "D"),
        ("(C) because it is warm", "C"),
        ("The answer is A", "A"),
        ("A hot day is long, so the answer is: (B).", "B"),
        ("Answer: E", "E"),
        ("C) rain\nD) snow", "C"),
        ("A dog barks", None),
        ("it is (D), I think", "D"),
        ("no idea", None),
        ("The answer is **B**", "B"),
        ("so $\\boxed{C}$", "C"),
        ("Final Answer: $\\boxed{B}$", "B"),
        ("Option A is wrong. The answer is B.", "B"),
        ("The answer is A? No. The answer is C.", "C"),
        ("I take option D", "D"),
        ("Answer: I think (B)", "B"),
        ("I'm sure it is (C)", "C"),
        ("I", "I"),
    ],
)
def test_the_letter_of_a_choice(text: str, letter: str | None) -> None:
    assert chosen_letter(text) == letter


def judged(
    name: JudgeName, reference: str, answer: str, *, is_whole: bool = True, **row: Any
) -> bool:
    return judge_of(name, reference, row, is_whole=is_whole)(answer)


def test_each_judge_knows_right_from_wrong() -> None:
    assert judged("exact", "yes", "yes")
    assert not judged("exact", "yes", "yes.")
    assert judged("exact", "yes", "yes, and more", is_whole=False)
    assert judged("number", "#### 1,000", "It is 1000.")
    assert not judged("number", "#### 1,000", "It is 1001.")
    assert judged("choice", "B", "The answer is (B).")
    assert not judged("choice", "B", "no letter at all")
    double = "Here:\n```python\ndef f(x):\n    return 2 * x\n```\nDone."
    assert judged("tests", "", double, tests=["assert f(2) == 4", "assert f(0) == 0"])
    assert not judged("tests", "", double, tests="assert f(2) == 5")


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("number", {}, "completion: found 'none', expected a number"),
        ("choice", {}, "completion: found 'none', expected the letter"),
        ("tests", {}, "tests: expected Python"),
        ("tests", {"tests": []}, "tests: expected Python"),
        ("tests", {"tests": [1]}, "tests: expected Python"),
        ("tests", {"tests": 5}, "tests: expected Python"),
        ("tests", {"tests": True}, "tests: expected Python"),
        ("tests", {"tests": {"assert f()": 1}}, "tests: expected Python"),
        ("tests", {"tests": [" ", ""]}, "tests: expected Python"),
    ],
)
def test_a_row_that_a_judge_cannot_use_is_named(
    name: JudgeName, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        judge_of(name, "none", row, is_whole=True)


def test_tests_are_run_by_leave_only() -> None:
    assert as_judge("tests", may_run_code=True) == "tests"
    with pytest.raises(ConfigError, match=r"score: found tests, .* expected --run-code"):
        as_judge("tests", may_run_code=False)
    with pytest.raises(ConfigError, match="score: found 'bleu', expected one of exact, number"):
        as_judge("bleu", may_run_code=True)


@pytest.mark.parametrize(
    "answer",
    [
        "raise SystemExit(0)",
        "import os\nos._exit(0)",
        "x = 'a' * (1 << 31)",
        "open('large', 'w').write('x' * (1 << 22))",
        "import numpy",
        "def f(:",
        "\x00",
        "\ud800",
        "import sys\nsys.stdin.read(1)[0]",
        "import os\nfor i in range(3000):\n os.mkdir('a'); os.chdir('a')\nraise SystemExit",
        "import os\nd = os.getcwd(); os.rename(d, d + 'x'); open(d, 'w').write('x')\nos._exit(1)",
    ],
)
def test_code_that_ends_in_another_way_has_not_passed(answer: str) -> None:
    assert not passes(answer, "assert True")


def test_what_code_has_started_ends_with_its_time(tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    child = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    answer = (
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "while True:\n    print('x')"
    )
    assert not passes(answer, "", seconds=1)
    time.sleep(3.5)
    assert not mark.exists()


def test_code_is_the_first_block_of_python() -> None:
    test = "assert f() == 1"
    code = "def f():\n    return 1\n"
    for answer in (
        f"```python\n{code}```\nOutput:\n```\n1 2 3\n```",
        f"First:\n```bash\npip install x\n```\nthen\n```py\n{code}```",
        f"```Python\n{code}```\nUse it:\n```python\nf(1, 2, 3)\n```",
        f"1. so:\n   ```python\n{textwrap.indent(code, '   ')}   ```\n2. done",
        f"```\n{code}```",
        f"```python\n{code}",
        code,
    ):
        assert passes(answer, test), answer
    assert not passes(f"```text\n{code}```", test)


def test_code_sees_no_environment_and_an_empty_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert passes("import os", "assert 'HF_TOKEN' not in os.environ")
    assert passes("import os", "assert os.listdir() == ['answer.py']")
