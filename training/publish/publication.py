"""Publishes an adapter: the gate, the import, the canary, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from remix_runtime.adapter.checkpoint import read_checkpoint
from training.progress import stage
from training.publish.gate import MARGIN, Comparison, compare
from training.publish.losses import HeldOut, row_losses
from training.publish.place import Place

PUBLISHED, REFUSED, ROLLED_BACK = 0, 3, 4
"""Exit codes: the adapter is live, or its canary runs and nobody waits for it; the gate refused it,
and nothing was changed; its canary was rolled back, and the adapter before is live."""
BATCH_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is wanted of a publication, beside the adapter and its place."""

    margin: float = MARGIN
    """Nats per token by which it must be better."""
    canary: Mapping[str, Any]
    """The canary's share and rules, as the admin API takes them; what is left out has its
    defaults."""
    source: str | None = None
    """Where the server finds the adapter; None: it is uploaded."""
    waits: bool = True


def publish(
    adapter: Path, place: Place, base: str, held_out: HeldOut, plan: Plan, console: Console
) -> int:
    """Publishes the adapter in a folder and returns the exit code. Raises `AdminError`,
    `CheckpointError`, `ConfigError`, `DataError`; before the import nothing on the server has
    changed."""
    digest = read_checkpoint(adapter).digest
    live = place.live()
    if live == digest:
        console.print(f"adapter {digest} is live already", markup=False, soft_wrap=True)
        return PUBLISHED
    comparisons = _compared(adapter, live, place, base, held_out, plan, console)
    console.print(figures_of(comparisons))
    if not all(comparison.passes for comparison in comparisons):
        console.print(
            f"refused: {place.tenant}/{place.name} stays as it is; the adapter must be better by "
            f"{plan.margin:g} nats per token, with 95 % certainty",
            markup=False,
            soft_wrap=True,
        )
        return REFUSED
    source = plan.source
    if source is None:
        with stage(console, "uploading the adapter") as move:
            source = place.send(adapter, digest, move=move)
    with stage(console, f"importing {source}"):
        place.import_(source, digest)
    # By now somebody else may have given the name its first adapter, or taken it away.
    if place.live() is None:
        place.put(digest)
        console.print(
            f"adapter {digest} is live as {place.tenant}/{place.name}, the first of this name",
            markup=False,
            soft_wrap=True,
        )
        return PUBLISHED
    canary = place.begin_canary(digest, dict(plan.canary))
    console.print(f"adapter {digest} is a canary now", markup=False, soft_wrap=True)
    if not plan.waits:
        return PUBLISHED
    ended = _waited(place, canary, console)
    console.print(arms_of(ended["figures"]))
    is_live = ended["state"] == "promoted"
    console.print(f"{ended['state'].replace('_', ' ')}: {ended['reason']}", markup=False)
    return PUBLISHED if is_live else ROLLED_BACK


def _compared(
    adapter: Path,
    live: str | None,
    place: Place,
    base: str,
    held_out: HeldOut,
    plan: Plan,
    console: Console,
) -> list[Comparison]:
    with TemporaryDirectory(prefix="remix-live-") as folder:
        adapters = {"new": adapter}
        if live is not None:
            with stage(console, f"fetching the live adapter {live[:12]}"):
                place.fetch(live, Path(folder))
            adapters["live"] = Path(folder)
        losses = row_losses(base, adapters, held_out, console, batch_size=BATCH_SIZE)
    others = [name for name in ("live", "base") if name in losses]
    return [compare(name, losses["new"], losses[name], margin=plan.margin) for name in others]


def _waited(place: Place, canary: str, console: Console) -> Any:
    told = ""
    with console.status("waiting for the canary") as status:

        def tell(state: Any) -> None:
            nonlocal told
            arms = state["figures"]
            counts = ", ".join(
                f"{arm} {figures['requests']} requests, {figures['failures']} failed"
                for arm, figures in arms.items()
            )
            text = f"canary: {counts}; waits for: {state['waits_for']}"
            status.update(text)
            # Elsewhere than on a terminal a line whenever the counts are others.
            if not console.is_terminal and counts != told:
                told = counts
                console.print(text, markup=False, soft_wrap=True)

        return place.wait(canary, tell)


def figures_of(comparisons: list[Comparison]) -> Table:
    table = Table("beside", "loss", "new", "better by", "at least", "wanted", "")
    for found in comparisons:
        table.add_row(
            found.than,
            f"{found.loss:.4f}",
            f"{found.new_loss:.4f}",
            f"{found.loss - found.new_loss:+.4f} ± {found.standard_error:.4f}",
            f"{found.certain:+.4f}",
            f"{found.margin:.4f}",
            "passes" if found.passes else "refused",
        )
    return table


def arms_of(figures: Mapping[str, Any]) -> Table:
    """What the servers saw of both arms."""
    table = Table("arm", "requests", "failed", "first token, median", "later token, median")
    for arm, seen in figures.items():
        times = (seen["first_token_median_seconds"], seen["token_median_seconds"])
        shown = ("" if seconds is None else f"{seconds:.4f} s" for seconds in times)
        table.add_row(arm, str(seen["requests"]), str(seen["failures"]), *shown)
    return table
