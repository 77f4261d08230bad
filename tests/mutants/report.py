"""What runs found: kept as JSON, since a run may be of some modules, and written to
docs/results/mutants.md."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.mutants.modules import MODULES

RESULTS = Path(__file__).parents[2] / "docs" / "results"
KEPT, DOCUMENT = RESULTS / "mutants.json", RESULTS / "mutants.md"
REASONS = Path(__file__).with_name("reasons.toml")
INTRODUCTION = Path(__file__).with_name("introduction.md")
LEAST = 0.85
"""The score that each module must have. Survivors with a reason count as survivors."""


@dataclass(frozen=True)
class Survivor:
    """A change that no test fails for."""

    function: str
    was: str
    becomes: str


@dataclass(frozen=True)
class Found:
    """What became of one module's mutants."""

    mutants: int
    hung: int
    """Killed by a signal, since their tests took too long."""
    survivors: tuple[Survivor, ...]

    @property
    def killed(self) -> int:
        return self.mutants - len(self.survivors)

    @property
    def score(self) -> float:
        return self.killed / self.mutants

    def without_reason(self, module: str) -> list[Survivor]:
        reasons = read_reasons(module)
        return [survivor for survivor in self.survivors if survivor not in reasons]

    @classmethod
    def read(cls, path: Path) -> Found:
        """What `tool.py` wrote."""
        told = json.loads(path.read_text())
        survivors = [Survivor(**each) for each in told["survivors"]]
        ended: Mapping[str, int] = told["ended"]
        hung = ended.get("timeout", 0) + ended.get("segfault", 0)
        return cls(sum(ended.values()), hung, in_order(survivors))


def in_order(survivors: Iterable[Survivor]) -> tuple[Survivor, ...]:
    return tuple(sorted(survivors, key=lambda each: (each.function, each.was, each.becomes)))


def read_reasons(module: str) -> dict[Survivor, str]:
    """Why each of a module's survivors may live."""
    groups = tomllib.loads(REASONS.read_text()).get(module, [])
    return {
        Survivor(group["function"], was, becomes): group["reason"]
        for group in groups
        for was, becomes in group["changes"]
    }


def remember(module: str, found: Found) -> None:
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    kept[module] = asdict(found)
    ordered = {name: kept[name] for name in MODULES if name in kept}
    KEPT.write_text(json.dumps(ordered, indent=1) + "\n")


def recall() -> dict[str, Found]:
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    return {
        module: Found(
            each["mutants"], each["hung"], tuple(Survivor(**one) for one in each["survivors"])
        )
        for module, each in kept.items()
    }


def write_document() -> None:
    found = recall()
    lines = [INTRODUCTION.read_text().rstrip(), ""]
    lines += ["| module | mutants | killed | of them by a time limit | survive | score |"]
    lines += ["|---|---|---|---|---|---|"]
    for module in MODULES:
        if module in found:
            lines.append(row(module, found[module]))
        else:
            lines.append(f"| `{module}` | not run | | | | |")
    for module, each in found.items():
        lines += section(module, each)
    DOCUMENT.write_text("\n".join(lines) + "\n")


def row(module: str, found: Found) -> str:
    cells = [found.mutants, found.killed, found.hung, len(found.survivors), f"{found.score:.1%}"]
    return f"| `{module}` | " + " | ".join(map(str, cells)) + " |"


def section(module: str, found: Found) -> list[str]:
    lines = ["", f"## {module}", ""]
    if not found.survivors:
        return [*lines, "None survives."]
    reasons = read_reasons(module)
    for survivor in found.survivors:
        lines += [f"- `{survivor.function}`: {reasons.get(survivor, '**no reason yet**')}", ""]
        lines += ["  ```diff", f"  - {survivor.was}", f"  + {survivor.becomes}", "  ```"]
    return lines
