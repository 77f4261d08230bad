"""Tasks whose answers repeat the prompt, and ordinary chat, whose answers do not.

The forms are random; code and prose are the standard library's own.
"""

from __future__ import annotations

import colorsys
import difflib
import heapq
import inspect
import json
import random
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    prompt: str
    """What the user says."""
    schema: str | None = None
    """The JSON schema that the answer is held to."""


_FIELDS: dict[str, tuple[str, ...]] = {
    "surname": ("Okafor", "Lindqvist", "Marchetti", "Yamaguchi", "Brennan", "Castellanos"),
    "first_name": ("Adaeze", "Johan", "Chiara", "Haruto", "Siobhan", "Ximena"),
    "date_of_birth": ("1988-03-14", "1971-11-02", "1995-07-29", "1964-01-21", "2001-09-09"),
    "street": ("18 Harbour Lane", "7 Old Mill Road", "240 Kingfisher Avenue", "3 Cloister Court"),
    "city": ("Port Harwick", "Lower Wexcombe", "San Telmo del Mar", "Nieuwendijk"),
    "email": ("reader@harbourmail.example", "post@oldmill.example", "hello@kingfisher.example"),
    "membership": ("family with two children", "student, reduced fee", "retired, home delivery"),
    "interests": (
        "sea charts and the history of navigation",
        "woodcuts, letterpress and old maps",
        "detective novels of the nineteen thirties",
    ),
    "remarks": (
        "The card should be sent to the office in the town hall.",
        "Please call in the evening, as the shop is closed on Mondays.",
        "The last card was lost on the ferry in the spring.",
    ),
}
_SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {name: {"type": "string"} for name in _FIELDS},
        "required": list(_FIELDS),
        "additionalProperties": False,
    }
)


def extraction(number: int, *, schema: bool = False) -> Task:
    """A filled form, to be told as JSON."""
    rng = random.Random(number)
    lines = [f"{name.replace('_', ' ').capitalize()}: {rng.choice(values)}"
             for name, values in _FIELDS.items()]  # fmt: skip
    form = "\n".join(lines)
    prompt = (
        f"Application for a library card\n\n{form}\n\nWrite the form as one JSON object with the "
        f"keys {', '.join(_FIELDS)}. Copy the values exactly. Answer with the JSON only."
    )
    return Task(prompt, _SCHEMA if schema else None)


_CODE: tuple[tuple[Any, str, str], ...] = (
    (colorsys.rgb_to_hls, "maxc", "largest"),
    (textwrap.dedent, "margin", "indentation"),
    (difflib.get_close_matches, "cutoff", "threshold"),
    (heapq.nlargest, "result", "found"),
    (colorsys.rgb_to_hsv, "minc", "smallest"),
)


def renaming(number: int) -> Task:
    """A function in which one name is to be another."""
    function, old, new = _CODE[number % len(_CODE)]
    assert isinstance(function, FunctionType)
    source = textwrap.dedent(inspect.getsource(function))
    return Task(
        f"```python\n{source}```\nRename `{old}` to `{new}` in this function and change nothing "
        "else. Answer with the whole function in a code block."
    )


_PROSE: tuple[Any, ...] = (difflib.SequenceMatcher, difflib.Differ, heapq, textwrap.TextWrapper)


def quotation(number: int) -> Task:
    """Paragraphs that are to be repeated."""
    text = inspect.getdoc(_PROSE[number % len(_PROSE)]) or ""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    passage = "\n\n".join(part for part in paragraphs if len(part) > 80)[:1200]
    return Task(f'Here is a text:\n\n"{passage}"\n\nRepeat this text word for word.')


_TALK = (
    "Why is the sky blue, and why are sunsets red?",
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "How do I learn to play the piano as an adult? Give me some advice.",
    "What should I see in Lisbon in three days?",
    "Explain to a child how a bicycle stays upright.",
)


def chat(number: int) -> Task:
    """A question whose answer is in no prompt."""
    return Task(_TALK[number % len(_TALK)])


TASKS: dict[str, Callable[[int], Task]] = {
    "JSON extraction": extraction,
    "JSON extraction, schema": lambda number: extraction(number, schema=True),
    "renaming in code": renaming,
    "quotation": quotation,
    "chat": chat,
}
