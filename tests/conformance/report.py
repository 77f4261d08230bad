"""What a run found: kept as JSON, since a run may be in parts, and written to docs/clients.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.conformance.clients import CLIENTS, Client
from tests.conformance.environments import ROOT

RESULTS = ROOT / "docs" / "results" / "clients.json"
DOCUMENT = ROOT / "docs" / "clients.md"
WORDS = {"ok": "works", "skipped": "skipped", "refused": "refused", "failed": "**fails**"}
"""The best first."""


@dataclass(frozen=True)
class Row:
    """How one call of one client ended."""

    call: str
    status: str
    """ok; refused: a 400 that names its field; skipped: by the client itself; or failed."""
    detail: str


Rows = Mapping[str, Mapping[str, list[Row]]]
"""By client and by what was served."""


def remember(client: Client, served: str, rows: Iterable[Row]) -> None:
    """Puts one client's rows in the place of its earlier ones, so that a run can be in parts."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    kept.setdefault(client.name, {})[served] = [asdict(row) for row in rows]
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def recall() -> Rows:
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    return {
        client: {served: [Row(**row) for row in rows] for served, rows in by_served.items()}
        for client, by_served in kept.items()
    }


def fine(client: Client, row: Row) -> bool:
    return row.status in ("ok", "skipped") or row.call in client.explained


def write_document(introduction: Path) -> None:
    """docs/clients.md: a line for each client, then client by client a line for each call."""
    found = recall()
    served = list(dict.fromkeys(name for by_served in found.values() for name in by_served))
    lines = [introduction.read_text(), table_line(["Client", *served, "with any"])]
    lines.append(rule(2 + len(served)))
    for client in CLIENTS:
        by_served = found.get(client.name, {})
        columns = [*(by_served.get(name, []) for name in served), best(by_served)]
        lines.append(table_line([client.title, *map(count, columns)]))
    for client in CLIENTS:
        lines += section(client, found.get(client.name, {}), served)
    DOCUMENT.write_text("\n".join(lines) + "\n")


def best(by_served: Mapping[str, list[Row]]) -> list[Row]:
    """Of each call the row of the model that did best: what it fails on is not a model's doing."""
    found: dict[str, Row] = {}
    for row in (row for rows in by_served.values() for row in rows):
        other = found.setdefault(row.call, row)
        found[row.call] = min(other, row, key=lambda row: list(WORDS).index(row.status))
    return list(found.values())


def count(rows: list[Row]) -> str:
    if not rows:
        return "not run"
    words = [f"{sum(row.status == 'ok' for row in rows)} of {len(rows)} work"]
    words += [
        f"{number} {status}"
        for status in ("refused", "failed", "skipped")
        if (number := sum(row.status == status for row in rows))
    ]
    return ", ".join(words)


def section(client: Client, by_served: Mapping[str, list[Row]], served: list[str]) -> list[str]:
    installed = ", ".join(f"`{package}`" for package in client.packages) or "as it is installed"
    lines = ["", f"## {client.title}", "", f"{installed}; [{client.script}]({link(client)})", ""]
    lines += [table_line(["Call", *served, ""]), rule(2 + len(served))]
    calls = dict.fromkeys(row.call for rows in by_served.values() for row in rows)
    for call in calls:
        rows = {name: row for name in served for row in by_served.get(name, []) if row.call == call}
        cells = [WORDS[rows[name].status] if name in rows else "" for name in served]
        bad = [row.detail for row in rows.values() if row.status != "ok"]
        note = client.explained.get(call, bad[0] if bad else "") if bad else ""
        lines.append(table_line([call, *cells, note]))
    return lines


def link(client: Client) -> str:
    return f"../tests/conformance/clients/{client.script}"


def table_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def rule(columns: int) -> str:
    return "|" + "---|" * columns
