"""Sixteen small skills on short prompts, made from word lists: the mixed-skill set of `quality.py`.

Training, development and held-out rows share skills and words but no prompt.
"""

from __future__ import annotations

import itertools
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


def of_words(r: random.Random, name: str, answer: Callable[[list[str]], str], most: int = 4) -> Row:
    words = r.sample(NOUNS, r.randint(2, most))
    return {"prompt": f"{name}: {' '.join(words)} =>", "completion": f" {answer(words)}"}


def ordered(r: random.Random) -> Row:
    return of_words(r, "sort", lambda words: " ".join(sorted(words)))


def first(r: random.Random) -> Row:
    return of_words(r, "first", lambda words: words[0])


def last(r: random.Random) -> Row:
    return of_words(r, "last", lambda words: words[-1])


def count(r: random.Random) -> Row:
    return of_words(r, "count", lambda words: str(len(words)), most=6)


def twice(r: random.Random) -> Row:
    a, b = r.sample(NOUNS, 2)
    return {"prompt": f"twice: {a} {b} =>", "completion": f" {a} {a} {b} {b}"}


def longer(r: random.Random) -> Row:
    a, b = r.sample(NOUNS, 2)
    if len(a) == len(b):
        return longer(r)
    return {"prompt": f"longer: {a} {b} =>", "completion": f" {max(a, b, key=len)}"}


def tagged(r: random.Random) -> Row:
    colour, noun = r.choice(COLOURS), r.choice(NOUNS)
    return {"prompt": f"xml: {colour} {noun} =>", "completion": f" <{noun}>{colour}</{noun}>"}


def question(r: random.Random) -> Row:
    colour, noun = r.choice(COLOURS), r.choice(NOUNS)
    return {
        "prompt": f"question: the {noun} is {colour} =>",
        "completion": f" Is the {noun} {colour}?",
    }


SKILLS: tuple[Callable[[random.Random], Row], ...] = (
    upper, reverse, plural, add, fields, mood, initials, bullets,
    ordered, first, last, count, twice, longer, tagged, question,
)  # fmt: skip


def write_mixed_skills(folder: Path, *, parts: dict[str, int], seed: int) -> dict[str, Path]:
    """One JSONL file for each part, of so many rows of each skill; no prompt is in two of them."""
    r = random.Random(seed)
    rows: dict[str, list[Row]] = {part: [] for part in parts}
    for skill in SKILLS:
        found: dict[str, Row] = {}
        while len(found) < sum(parts.values()):
            row = skill(r)
            found[row["prompt"]] = row
        unique = iter(found.values())
        for part, size in parts.items():
            rows[part].extend(itertools.islice(unique, size))
    folder.mkdir(parents=True, exist_ok=True)
    paths = {part: folder / f"{part}.jsonl" for part in parts}
    for part, path in paths.items():
        r.shuffle(rows[part])
        text = "".join(json.dumps(row) + "\n" for row in rows[part])
        path.write_text(text, encoding="utf-8")
    return paths
