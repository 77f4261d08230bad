"""Whether the time of an answer tells a tenant what another one has asked.

    python -m benchmarks.tenants.timing [--base FOLDER] [--probes 2000] [--tokens 96]

Before each probe a tenant asks a prompt, or another one of the same length, by chance. Then a
second tenant asks that prompt and takes the time to its first token. A classifier by that time, its
threshold and direction learned on half of the probes, says of the other half whether the prompt had
been asked. A tenant who probes what it has asked itself does the same: there it must be right.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from benchmarks.greedy import greedy
from benchmarks.options import Base, Out
from benchmarks.result import Table, publish
from benchmarks.rounds import percentile
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine

MOST = 0.55
"""Where the classifier is right more often, the times tell something."""

Probe = tuple[float, bool]
"""Seconds to the first token, and whether the prompt had been asked."""


async def _first_token(engine: EmbeddedEngine, tenant: str, prompt: Sequence[int]) -> float:
    begin = time.perf_counter()
    (came,), _ = await greedy(engine, prompt, 1, tenant=tenant)
    return came - begin


async def _probes(
    engine: EmbeddedEngine, count: int, tokens: int, victim: str, prober: str
) -> list[Probe]:
    rng = random.Random(f"{victim} {prober}")
    vocab = engine.model.vocab_size
    found = []
    for number in range(count):
        if number % 100 == 0:
            print(f"{prober} probes {victim}: {number} of {count}", flush=True)
        prompt, other = ([rng.randrange(vocab) for _ in range(tokens)] for _ in range(2))
        asked = rng.random() < 0.5
        await _first_token(engine, victim, prompt if asked else other)
        found.append((await _first_token(engine, prober, prompt), asked))
    return found


def share_right(probes: Sequence[Probe]) -> float:
    """How often the classifier is right. It learns from every second probe: a slow hour of the
    machine is in both halves."""
    learned, judged = probes[::2], probes[1::2]

    def right(half: Sequence[Probe], threshold: float, faster: bool) -> float:
        return sum(((t < threshold) is asked) is faster for t, asked in half) / len(half)

    _, threshold, faster = max(
        (right(learned, time, faster), time, faster)
        for time, _ in learned
        for faster in (True, False)
    )
    return right(judged, threshold, faster)


def main(
    base: Base,
    probes: Annotated[int, typer.Option(min=4, help="Of another tenant.")] = 2000,
    own_probes: Annotated[int, typer.Option(min=4, help="Of what was asked by oneself.")] = 200,
    tokens: Annotated[int, typer.Option(min=17, help="Tokens of a prompt.")] = 96,
    out: Out = None,
) -> None:
    """Try to tell from times what another tenant has asked."""
    others, own, hits = asyncio.run(_main(str(base), probes, own_probes, tokens))

    def row(title: str, found: Sequence[Probe]) -> list[object]:
        medians = [
            f"{1e3 * percentile([t for t, was in found if was is asked], 0.5):.1f}"
            for asked in (True, False)
        ]
        return [title, len(found), *medians, f"{share_right(found):.3f}"]

    publish(
        out,
        f"Times of a tenant whose neighbour has asked the same, {base.name}",
        f"Prompts of {tokens} random tokens; the classifier's share of right answers on the half "
        f"that it did not learn from, expected at most {MOST} of another tenant. Tokens that "
        f"another tenant's requests found in the cache: {hits}.",
        Table(
            ["who is probed", "probes", "asked before, p50 ms", "not asked, ms", "right"],
            [row("another tenant", others), row("oneself", own)],
        ),
        milliseconds={
            who: {
                "asked before" if asked else "not asked": " ".join(
                    f"{1e3 * time:.2f}" for time, was in found if was is asked
                )
                for asked in (True, False)
            }
            for who, found in (("another tenant", others), ("oneself", own))
        },
    )
    if hits or share_right(others) > MOST:
        raise typer.Exit(1)


async def _main(
    base: str, count: int, own_count: int, tokens: int
) -> tuple[list[Probe], list[Probe], int]:
    engine = EmbeddedEngine(EmbeddedConfig(model=base))
    await engine.start()
    try:
        await _probes(engine, 8, tokens, "warm", "up")
        before = engine.stats().prefix_cache_hits
        others = await _probes(engine, count, tokens, "victim", "prober")
        hits = engine.stats().prefix_cache_hits - before
        return others, await _probes(engine, own_count, tokens, "oneself", "oneself"), hits
    finally:
        await engine.stop()


if __name__ == "__main__":
    typer.run(main)
