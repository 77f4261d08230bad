"""Every hostile client of the catalogue against one server, under the normal load of two tenants on
a real base: what the two feel is at most doubled, memory is flat, `/health` answers, and each
hostile client ends as the catalogue says.

The time of the two without and beside the hostile ones alternates, so that what else the machine
does hits both. A p99 beside one entry is of few answers: one that is over the limit is tried again,
and has to keep it once in three times. Those of a group, and of all, count every try.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.result import Table, publish
from benchmarks.rounds import percentile
from remix_runtime.demo_model import demo_model
from tests.hostile.catalogue import GROUPS
from tests.hostile.load import Load, Measured
from tests.hostile.served import Served, serving
from tests.hostile.trial import MOST_RATIO, PAUSE, Compared, Felt, Run, Trial, attacking

SECONDS = float(os.environ.get("REMIX_HOSTILE_SECONDS", "5"))
"""Of each hostile client, which may take longer to end."""
ROUNDS = int(os.environ.get("REMIX_HOSTILE_ROUNDS", "2"))
ONLY = os.environ.get("REMIX_HOSTILE_ONLY", "")
"""A group, or a part of entries' names."""
OUT = os.environ.get("REMIX_HOSTILE_OUT")
"""Where the result is written, without its ending."""

EXAMPLES = Path(__file__).parents[2] / "examples"
LOADED = {"acme": "pirate", "beta": "json"}
"""The two tenants of the load, and their adapters."""
HOSTILE = "hostile"
QUOTA = {"max_concurrent": 4, "may_use_base": True}
"""Of every tenant. Together they fit into what runs at a time, so nobody waits for a place that is
held for minutes: what runs is not interrupted."""
CONTEXT = 2048
OPTIONS = (
    *("--max-running", str(4 * (len(LOADED) + 1)), "--max-tokens-per-step", "64"),
    *("--max-model-len", str(CONTEXT), "--kv-cache-bytes", str(1200 << 20)),
    *("--memory-bytes", str(5 << 30), "--threads", os.environ.get("REMIX_HOSTILE_THREADS", "1")),
)
"""One thread of the model: the other core is for the clients, which a server does not have beside
it, and for what is not the model's."""
LOOPS, MAX_TOKENS = 2, 24
GROWTH_BYTES = 64 << 20
"""From the end of the first round to that of the last."""

pytestmark = pytest.mark.timeout(24 * 3600)


def chosen() -> list[tuple[str, str]]:
    """Groups and entries' names."""
    found = [(group, entry.name) for group, entries in GROUPS.items() for entry in entries]
    return [item for item in found if item[0] == ONLY or (ONLY not in GROUPS and ONLY in item[1])]


async def test_catalogue(tmp_path: Path) -> None:
    with serving(demo_model(), tmp_path, EXAMPLES, OPTIONS) as server:
        for tenant, adapter in LOADED.items():
            server.add_tenant(tenant, {"mine": EXAMPLES / adapter / "adapter"}, **QUOTA)
        server.add_tenant(HOSTILE, {"mine": EXAMPLES / "topic" / "adapter"}, **QUOTA)
        keys = {tenant: server.keys[tenant] for tenant in LOADED}
        load = Load(server.port, keys, model="mine", loops=LOOPS, max_tokens=MAX_TOKENS)
        async with load.running(), attacking(server, HOSTILE) as attacker:
            trial = Trial(server, attacker, load.measured)
            await asyncio.sleep(2 * SECONDS)
            resident = []
            for _ in range(ROUNDS):
                for group, name in chosen():
                    await trial.run(group, name, SECONDS)
                resident.append(server.resident_bytes)
            hard = [name for group, name in chosen() if not await trial.bears(group, name)]
            await asyncio.sleep(PAUSE)
        await all_is_free(server)
        report(trial, resident)
        faults = [*trial.faults, *load.measured.failed]
        faults += [f"{name}: more than {MOST_RATIO} times, each time" for name in hard]
        if resident[-1] > resident[0] + GROWTH_BYTES:
            faults.append(f"memory: {[found >> 20 for found in resident]} MiB after the rounds")
        assert faults == []


async def all_is_free(server: Served) -> None:
    """Nothing of what came is left in the engine."""
    names = ("requests_running", "requests_waiting", "kv_used_tokens")
    found: list[float] = []
    for _ in range(100):
        found = server.metrics(*names)
        if not any(found):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(dict(zip(names, found, strict=True)))


def report(trial: Trial, resident: list[int]) -> None:
    runs, measured, stated = trial.runs, trial.measured, trial.server.stated_bytes
    groups = [group for group in GROUPS if any(run.group == group for run in runs)]
    rows = [row(group, measured, [run for run in runs if run.group == group]) for group in groups]
    rows.append(row("all", measured, runs))
    each = []
    for group, name in chosen():
        found = [run for run in runs if run.entry.name == name]
        felt = Compared.of(measured, found, [run for run in runs if run.group == group])
        ended: Counter[str] = sum((run.ended for run in found), start=Counter())
        told = ", ".join(f"{count:,} x {end}" for end, count in ended.most_common())
        memory = (
            f"{found[-1].resident_bytes >> 20}, {max(r.most_resident_bytes for r in found) >> 20}"
        )
        most = milliseconds(felt.hostile.health, 1.0)
        ratios = [f"{felt.first:.2f}", f"{felt.between:.2f}"]
        each.append([name, told, *ratios, most, memory])
    publish(
        Path(OUT) if OUT else None,
        "Hostile clients beside two tenants",
        f"SmolLM2-135M, {len(chosen())} entries, {SECONDS:g} s and {ROUNDS} times each. "
        f"Two tenants with {LOOPS} streams of {MAX_TOKENS} tokens at a time, each through its own "
        "adapter, are the load; a third one, or somebody without a key, is hostile. "
        f"`remix serve {' '.join(OPTIONS)}`; every tenant may have {QUOTA['max_concurrent']} "
        "sequences at a time. Milliseconds without and beside the hostile clients, in turns. The "
        "hostile clients are a process of the lowest priority on the same two cores.",
        Table(
            [
                *("", "tries"),
                *("TTFT p50", "p99", "ratio of p99"),
                *("between tokens p50", "p99", "ratio of p99"),
                "slowest /health",
            ],
            rows,
        ),
        f"Resident memory after each round: {', '.join(str(r >> 20) for r in resident)} MiB; at "
        "most "
        f"{max(run.most_resident_bytes for run in runs) >> 20} MiB, of {stated >> 20} that the "
        "server states.",
        Table(
            [
                *("hostile client", "how it ended", "TTFT p99, times", "between tokens p99, times"),
                *("slowest /health ms", "resident MiB after it, at most"),
            ],
            each,
        ),
    )


def row(name: str, measured: Measured, runs: list[Run]) -> list[object]:
    found = Compared.of(measured, runs)
    tries = sum(run.ended.total() for run in runs)
    first = shown(found, "first")
    between = shown(found, "between")
    slowest = milliseconds([*found.solo.health, *found.hostile.health], 1.0)
    return [
        name,
        f"{tries:,}",
        *first,
        f"{found.first:.2f}",
        *between,
        f"{found.between:.2f}",
        slowest,
    ]


def shown(found: Compared, what: str) -> list[str]:
    """The p50 and the p99, without and beside."""

    def times(felt: Felt) -> list[float]:
        return list(getattr(felt, what))

    return [
        f"{milliseconds(times(found.solo), share)} → {milliseconds(times(found.hostile), share)}"
        for share in (0.5, 0.99)
    ]


def milliseconds(seconds: list[float], share: float) -> str:
    return f"{1000 * percentile(seconds, share):.0f}" if seconds else "-"
