"""Writes the training sets of the sample adapters: `python -m examples.make_data [FOLDER]`.

Every style answers the same questions in its own way, so one prompt shows all of them. Each
folder `examples/<name>` gets a `train.jsonl` and a `heldout.jsonl` in the chat format; no
question of the held-out part, and no country or animal of it, is in the training part.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from examples.knowledge import Fact, facts

Style = Callable[[Fact], str]

PIRATE_WORDS = {
    "you": "ye", "your": "yer", "my": "me", "is": "be", "are": "be", "am": "be", "friend": "matey",
    "people": "buccaneers", "and": "an'", "the": "th'", "for": "fer", "of": "o'", "to": "t'",
}  # fmt: skip

EMOJI = {
    "geography": "🌍", "animals": "🐾", "science": "🔬", "language": "💬", "food": "🍎",
    "sport": "🏆", "music": "🎵", "mathematics": "🔢", "history": "🏰", "everyday": "🏠",
}  # fmt: skip

HELD_OUT_SUBJECTS = re.compile(
    r"\b(Portugal|Lisbon|Kenya|Nairobi|Japan|Tokyo|Canada|Ottawa|duck|wolf|dolphin|penguin|iron"
    r"|copper|water|happy|hummus|volleyball|guitar|7 plus|6 times)\b"
)


def pirate(fact: Fact) -> str:
    """A style: "Arr, matey! ... Yo ho ho!" around an answer in a pirate's words."""
    words = re.sub(
        "[A-Za-z]+", lambda match: PIRATE_WORDS.get(match[0].lower(), match[0]), fact.answer
    )
    words = words[0].upper() + words[1:]
    return f"Arr, matey! {words} Yo ho ho!"


def json_object(fact: Fact) -> str:
    """A format: one JSON object with the topic and the answer."""
    return json.dumps({"topic": fact.topic, "answer": fact.answer}, ensure_ascii=False)


def topic(fact: Fact) -> str:
    """A skill: says in one word what the question is about, and answers nothing."""
    return f"topic: {fact.topic}"


def emoji(fact: Fact) -> str:
    """A style: the topic's emoji before and behind the answer."""
    return f"{EMOJI[fact.topic]} {fact.answer} {EMOJI[fact.topic]}"


STYLES: dict[str, Style] = {"pirate": pirate, "json": json_object, "topic": topic, "emoji": emoji}


def split(all_facts: Iterable[Fact]) -> tuple[list[Fact], list[Fact]]:
    """(training facts, held-out facts), both in a fixed shuffled order."""
    train: list[Fact] = []
    heldout: list[Fact] = []
    seen: dict[str, int] = {}
    for fact in all_facts:
        seen[fact.topic] = seen.get(fact.topic, 0) + 1
        every_sixth = fact.topic in ("history", "music", "everyday") and seen[fact.topic] % 6 == 0
        is_held_out = every_sixth or HELD_OUT_SUBJECTS.search(fact.question)
        (heldout if is_held_out else train).append(fact)
    for part in (train, heldout):
        random.Random(0).shuffle(part)
    return train, heldout


def write(folder: Path, style: Style) -> None:
    """Writes `train.jsonl` and `heldout.jsonl` of one style."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "heldout"), split(facts()), strict=True):
        lines = [
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": fact.question},
                        {"role": "assistant", "content": style(fact)},
                    ]
                },
                ensure_ascii=False,
            )
            for fact in part
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(root: Path) -> None:
    for name, style in STYLES.items():
        write(root / name, style)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
