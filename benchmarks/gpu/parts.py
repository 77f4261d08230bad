"""Runs parts of a check one after the other, each a process with a limit of its own.

What came of a part is told as it ends, so that nothing is lost with the machine; what an earlier
run has done is not done again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from benchmarks.result import MACHINE

Report = Callable[[str], None]
"""Takes one line about what happens now."""

LEAST_SECONDS = 15.0
"""With less than this left no part is begun."""
MARGIN_SECONDS = 15.0
"""A part that is told its limit is told so much less, and ends by itself."""
TOLD_LINES = 12
"""Of a log, where a part failed."""
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Part:
    """`arguments` are Python's: "{out}" becomes the path without ending where the part may write a
    result of its own, "{seconds}" or "{minutes}" the time that it has."""

    name: str
    arguments: tuple[str, ...]
    seconds: float
    """Its limit."""
    needs: tuple[str, ...] = ()
    """Modules without which it is left out."""
    tells: str = ""
    """A pattern of the line that says what came of it; one that prints none is not done."""
    goes_on: bool = False
    """Has more to do in every run."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a part."""

    name: str
    status: Literal["done", "failed", "over its limit", "left out"]
    note: str = ""
    """The telling line of one that is done, why one was left out, or the last lines of its log."""
    seconds: float = 0.0
    text: str = ""
    """Its own result in Markdown, as far as it came."""
    figures: dict[str, Any] | None = field(default=None, repr=False)
    """Its own result in JSON."""

    @property
    def is_good(self) -> bool:
        return self.status in ("done", "left out")


def run_parts(
    parts: Sequence[Part],
    logs: Path,
    *,
    earlier: Mapping[str, Outcome],
    seconds: float,
    environment: Mapping[str, str],
    on_end: Callable[[list[Outcome]], None],
    report: Report,
) -> list[Outcome]:
    """Runs what is not done in `earlier`, within `seconds` altogether.

    `on_end` gets what is known of all parts so far after each of them. A part that fails stops no
    other.
    """
    end = time.monotonic() + seconds
    found: list[Outcome] = []
    for number, part in enumerate(parts, start=1):
        outcome = earlier.get(part.name)
        if outcome is not None and outcome.status == "done" and not part.goes_on:
            report(f"{part.name}: done in an earlier run")
        else:
            before, left = outcome, end - time.monotonic()
            outcome = _attempt(part, logs / f"{number}", left, environment, report)
            report(f"{part.name}: {outcome.status}, {outcome.seconds:.0f} s\n{outcome.note}")
            if outcome.status == "left out" and before is not None:
                outcome = before  # which says more
        found.append(outcome)
        on_end(found)
    return found


def read_outcomes(document: Mapping[str, Any]) -> dict[str, Outcome]:
    """The outcomes in a result, by part."""
    known = {each.name for each in fields(Outcome)}
    found = [Outcome(**{k: v for k, v in row.items() if k in known}) for row in document["parts"]]
    return {outcome.name: outcome for outcome in found}


def as_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    return [asdict(outcome) for outcome in outcomes]


def _attempt(
    part: Part, stem: Path, left: float, environment: Mapping[str, str], report: Report
) -> Outcome:
    missing = [module for module in part.needs if find_spec(module) is None]
    if missing:
        return Outcome(part.name, "left out", f"{missing[0]} is not installed")
    if left < LEAST_SECONDS:
        return Outcome(part.name, "left out", "the time was over; another run goes on here")
    limit = min(part.seconds, left)
    report(f"{part.name}: at most {limit:.0f} s")
    stem.parent.mkdir(parents=True, exist_ok=True)
    for ending in (".json", ".md"):
        stem.with_suffix(ending).unlink(missing_ok=True)
    told = max(1.0, limit - MARGIN_SECONDS)
    given = {"out": str(stem), "seconds": f"{told:.0f}", "minutes": f"{told / 60:.2f}"}
    command = [sys.executable, *(argument.format_map(given) for argument in part.arguments)]
    log, begin = stem.with_suffix(".log"), time.monotonic()
    code = _run(command, log, limit, environment)
    seconds = round(time.monotonic() - begin, 1)
    lines = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
    telling = [line for line in lines if re.search(part.tells, line)]
    if code == 0 and telling:
        return Outcome(part.name, "done", telling[-1], seconds, *_own_result(stem))
    status: Literal["failed", "over its limit"] = "over its limit" if code is None else "failed"
    last = "\n".join(lines[-TOLD_LINES:])
    return Outcome(part.name, status, last, seconds, *_own_result(stem))


def _run(
    command: Sequence[str], log: Path, limit: float, environment: Mapping[str, str]
) -> int | None:
    """The exit code; None where the limit ended it, with all that it had started."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # What it left behind would have the GPU of the next part.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _own_result(stem: Path) -> tuple[str, dict[str, Any] | None]:
    """The result that the part has written, as Markdown without its title and machine, and as
    JSON."""
    markdown, document = stem.with_suffix(".md"), stem.with_suffix(".json")
    if not (markdown.exists() and document.exists()):
        return "", None
    text = markdown.read_text(encoding="utf-8").partition(f"\n{MACHINE}\n")[0]
    figures = json.loads(document.read_text(encoding="utf-8"))
    return text.partition("\n")[2].strip(), {k: v for k, v in figures.items() if k != "machine"}
