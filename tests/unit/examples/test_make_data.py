"""The samples' training sets: the same everywhere, no leak into the held-out part, true styles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.knowledge import Fact, facts
from examples.make_data import STYLES, main, split


def rows(file: Path) -> list[tuple[str, str]]:
    """(question, answer) of each line."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        user, assistant = json.loads(line)["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        found.append((user["content"], assistant["content"]))
    return found


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    main(tmp_path / "a")
    main(tmp_path / "b")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").glob("*/*.jsonl"))
    assert len(files) == 2 * len(STYLES)
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_every_style_answers_the_same_questions(tmp_path: Path) -> None:
    main(tmp_path)
    for part in ("train", "heldout"):
        asked = {name: [q for q, _ in rows(tmp_path / name / f"{part}.jsonl")] for name in STYLES}
        first = asked.pop("pirate")
        assert all(questions == first for questions in asked.values())


def test_heldout_questions_and_the_demo_prompt_are_not_trained_on() -> None:
    from examples.demo import QUESTION

    train, heldout = split(facts())
    trained = {fact.question for fact in train}
    assert len(trained) == len(train), "a question twice"
    assert len(heldout) >= 30
    assert trained.isdisjoint(fact.question for fact in heldout)
    assert QUESTION not in trained
    assert not any("Tokyo" in fact.question or "Japan" in fact.question for fact in train)


def test_every_topic_is_trained_and_held_out() -> None:
    train, heldout = split(facts())
    topics = {fact.topic for fact in train}
    assert len(topics) >= 8
    assert {fact.topic for fact in heldout} == topics


@pytest.mark.parametrize("fact", list(facts()), ids=lambda fact: fact.question)
def test_styles_keep_the_fact(fact: Fact) -> None:
    assert json.loads(STYLES["json"](fact)) == {"topic": fact.topic, "answer": fact.answer}
    assert STYLES["topic"](fact) == f"topic: {fact.topic}"
    before, middle = STYLES["emoji"](fact).split(" ", 1)
    assert middle == f"{fact.answer} {before}"
    assert not before.isascii()
    pirate = STYLES["pirate"](fact)
    assert pirate.startswith("Arr, matey! ")
    assert pirate.endswith(" Yo ho ho!")
    assert " the " not in pirate
    assert " is " not in pirate
