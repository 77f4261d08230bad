"""Eight small skills on short prompts, made from word lists: the mixed-skill set of `quality.py`.

Train and held-out rows share skills and words but no prompt.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

Row = dict[str, str]

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


def upper(r: random.Random) -> Row:
    words = " ".join(r.sample(NOUNS, r.randint(2, 3)))
    return {"prompt": f"upper: {words} =>", "completion": f" {words.upper()}"}


def reverse(r: random.Random) -> Row:
    words = r.sample(NOUNS, r.randint(2, 4))
    return {
        "prompt": f"reverse: {' '.join(words)} =>",
        "completion": f" {' '.join(reversed(words))}",
    }


def plural(r: random.Random) -> Row:
    noun = r.choice(sorted(PLURALS))
    colour = r.choice(COLOURS)
    return {"prompt": f"plural: {colour} {noun} =>", "completion": f" {colour} {PLURALS[noun]}"}


def add(r: random.Random) -> Row:
    a, b = r.randint(2, 60), r.randint(2, 39)
    return {"prompt": f"add: {a} and {b} =>", "completion": f" {a + b}"}


def fields(r: random.Random) -> Row:
    name, city, age = r.choice(NAMES), r.choice(CITIES), r.randint(5, 90)
    answer = json.dumps({"name": name, "age": age, "city": city})
    return {"prompt": f"json: {name}, {age}, from {city} =>", "completion": f" {answer}"}


def mood(r: random.Random) -> Row:
    good = r.random() < 0.5
    text = f"{r.choice(NAMES)} {r.choice(GOOD if good else BAD)} the {r.choice(COLOURS)}"
    answer = "positive" if good else "negative"
    return {"prompt": f"mood: {text} {r.choice(NOUNS)} =>", "completion": f" {answer}"}


def initials(r: random.Random) -> Row:
    words = r.sample(NOUNS, 3)
    answer = ".".join(word[0].upper() for word in words)
    return {"prompt": f"initials: {' '.join(words)} =>", "completion": f" {answer}"}


def bullets(r: random.Random) -> Row:
    words = r.sample(NOUNS, r.randint(2, 3))
    answer = "".join(f"\n* {word}" for word in words)
    return {"prompt": f"list: {', '.join(words)} =>", "completion": answer}


SKILLS: tuple[Callable[[random.Random], Row], ...] = (
    upper, reverse, plural, add, fields, mood, initials, bullets,
)  # fmt: skip


def write_mixed_skills(folder: Path, *, train: int, held_out: int, seed: int) -> tuple[Path, Path]:
    """`train` and `held_out` rows of each skill as two JSONL files; no prompt is in both."""
    r = random.Random(seed)
    parts: tuple[list[Row], list[Row]] = ([], [])
    for skill in SKILLS:
        rows: dict[str, Row] = {}
        while len(rows) < train + held_out:
            row = skill(r)
            rows[row["prompt"]] = row
        unique = list(rows.values())
        parts[0].extend(unique[:train])
        parts[1].extend(unique[train:])
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / "train.jsonl", folder / "held_out.jsonl")
    for path, part in zip(paths, parts, strict=True):
        r.shuffle(part)
        path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return paths
