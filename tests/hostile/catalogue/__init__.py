"""Hostile requests and clients: what each sends, and how it must end. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping

from tests.hostile.acts import Entry
from tests.hostile.catalogue import answers, bodies, grammars, heads, prompts, readers, strangers

GROUPS: Mapping[str, tuple[Entry, ...]] = {
    "heads": tuple(heads.entries()),
    "bodies": tuple(bodies.entries()),
    "prompts": tuple(prompts.entries()),
    "answers": tuple(answers.entries()),
    "grammars": tuple(grammars.entries()),
    "readers": tuple(readers.entries()),
    "strangers": tuple(strangers.entries()),
}
ENTRIES: Mapping[str, Entry] = {
    entry.name: entry for entries in GROUPS.values() for entry in entries
}
assert len(ENTRIES) == sum(map(len, GROUPS.values())), "two entries have the same name"
