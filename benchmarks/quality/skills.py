"""Sixteen small skills on short prompts, made from word lists: the rows of the experiment.

Training, development and held-out rows share skills and words but no prompt.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

Skill = Callable[[random.Random], tuple[str, str]]
"""A random task and its answer."""

NOUNS = (
    "apple", "river", "stone", "cloud", "tiger", "music", "paper", "ocean", "winter", "table",
    "bread", "mountain", "garden", "train", "bridge", "window", "candle", "forest", "island",
    "pencil", "rabbit", "basket", "mirror", "ladder", "pocket", "hammer", "button", "castle",
    "desert", "engine", "feather", "guitar", "harbor", "jacket", "kettle", "lemon", "magnet",
    "needle", "orange", "pillow",
)  # fmt: skip
PLURALS = {
    "box": "boxes", "fox": "foxes", "bus": "buses", "dish": "dishes", "wish": "wishes",
    "city": "cities", "baby": "babies", "party": "parties", "knife": "knives", "leaf": "leaves",
    "wolf": "wolves", "man": "men", "foot": "feet", "mouse": "mice", "child": "children",
    "church": "churches", "story": "stories", "glass": "glasses", "shelf": "shelves",
    "tooth": "teeth", **{noun: noun + "s" for noun in NOUNS},
}  # fmt: skip
NAMES = (
    "Ann", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Irene", "Jack", "Karen",
    "Leo", "Maria", "Nina", "Oscar",
)  # fmt: skip
CITIES = (
    "Paris", "Rome", "Oslo", "Cairo", "Lima", "Delhi", "Tokyo", "Berlin", "Madrid", "Athens",
    "Boston", "Quito",
)  # fmt: skip
COLOURS = (
    "red", "blue", "green", "black", "white", "yellow", "purple", "brown", "silver", "golden",
)  # fmt: skip
GOOD = ("loved", "enjoyed", "admired", "liked", "adored", "praised")
BAD = ("hated", "disliked", "despised", "feared", "regretted", "loathed")


def reworded(most: int, answer: Callable[[list[str]], str], joined: str = " ") -> Skill:
    """Two or more words, and what becomes of them."""

    def skill(r: random.Random) -> tuple[str, str]:
        found = r.sample(NOUNS, r.randint(2, most))
        return joined.join(found), answer(found)

    return skill


def plural(r: random.Random) -> tuple[str, str]:
    noun, colour = r.choice(sorted(PLURALS)), r.choice(COLOURS)
    return f"{colour} {noun}", f"{colour} {PLURALS[noun]}"


def add(r: random.Random) -> tuple[str, str]:
    a, b = r.randint(2, 60), r.randint(2, 39)
    return f"{a} and {b}", str(a + b)


def fields(r: random.Random) -> tuple[str, str]:
    name, city, age = r.choice(NAMES), r.choice(CITIES), r.randint(5, 90)
    return f"{name}, {age}, from {city}", json.dumps({"name": name, "age": age, "city": city})


def mood(r: random.Random) -> tuple[str, str]:
    good = r.random() < 0.5
    text = f"{r.choice(NAMES)} {r.choice(GOOD if good else BAD)} the {r.choice(COLOURS)}"
    return f"{text} {r.choice(NOUNS)}", "positive" if good else "negative"


def initials(r: random.Random) -> tuple[str, str]:
    found = r.sample(NOUNS, 3)
    return " ".join(found), ".".join(word[0].upper() for word in found)


def twice(r: random.Random) -> tuple[str, str]:
    a, b = r.sample(NOUNS, 2)
    return f"{a} {b}", f"{a} {a} {b} {b}"


def longer(r: random.Random) -> tuple[str, str]:
    a, b = r.sample(NOUNS, 2)
    return longer(r) if len(a) == len(b) else (f"{a} {b}", max(a, b, key=len))


def tagged(r: random.Random) -> tuple[str, str]:
    colour, noun = r.choice(COLOURS), r.choice(NOUNS)
    return f"{colour} {noun}", f"<{noun}>{colour}</{noun}>"


def question(r: random.Random) -> tuple[str, str]:
    colour, noun = r.choice(COLOURS), r.choice(NOUNS)
    return f"the {noun} is {colour}", f"Is the {noun} {colour}?"


SKILLS: dict[str, Skill] = {
    "upper": reworded(3, lambda words: " ".join(words).upper()),
    "reverse": reworded(4, lambda words: " ".join(reversed(words))),
    "plural": plural,
    "add": add,
    "json": fields,
    "mood": mood,
    "initials": initials,
    "list": reworded(3, lambda words: "".join(f"\n* {word}" for word in words), joined=", "),
    "sort": reworded(4, lambda words: " ".join(sorted(words))),
    "first": reworded(4, lambda words: words[0]),
    "last": reworded(4, lambda words: words[-1]),
    "count": reworded(6, lambda words: str(len(words))),
    "twice": twice,
    "longer": longer,
    "xml": tagged,
    "question": question,
}


def write_mixed_skills(folder: Path, *, parts: dict[str, int], seed: int) -> dict[str, Path]:
    """One JSONL file for each part, of so many rows of each skill; no prompt is in two of them."""
    r = random.Random(seed)
    rows: dict[str, list[dict[str, str]]] = {part: [] for part in parts}
    for name, skill in SKILLS.items():
        found: dict[str, str] = {}
        while len(found) < sum(parts.values()):
            text, answer = skill(r)
            # A list begins on a line of its own, all else on the prompt's.
            found[f"{name}: {text} =>"] = answer if answer.startswith("\n") else f" {answer}"
        unique = iter({"prompt": prompt, "completion": text} for prompt, text in found.items())
        for part, size in parts.items():
            rows[part].extend(itertools.islice(unique, size))
    folder.mkdir(parents=True, exist_ok=True)
    paths = {part: folder / f"{part}.jsonl" for part in parts}
    for part, path in paths.items():
        r.shuffle(rows[part])
        text = "".join(json.dumps(row) + "\n" for row in rows[part])
        path.write_text(text, encoding="utf-8")
    return paths
