"""What observing costs of throughput: the watch over routing, a scrape every 5 s, tracing.

    python -m benchmarks.speed.observability [--rounds 6] [--requests 96] [--observed "--option x"]

Two servers on the same base with four random adapters stay up; in a round each gets the same
requests, all adapters mixed, one server after the other. The bare one is never scraped and its
watch over routing never looks; the other one looks and is scraped every 5 s as by default, and has
what `--observed` adds to its command line, such as options of tracing. Counting experts in the
kernels is part of both.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import httpx
import typer

from benchmarks.adapters import write_random_adapters
from benchmarks.options import Base, Out
from benchmarks.result import Table, publish
from benchmarks.rounds import ratio, run_rounds, spread
from benchmarks.shape import AdapterShape
from benchmarks.speed.door import server

SHAPE = AdapterShape(n=8, k=4, r=8)
ADAPTERS = 4
SCRAPE_SECONDS = 5.0
GOAL = 0.99
_BARE = "from server.live import routing; routing.LOOK_SECONDS = 1e9; "
_MAIN = "from remix_runtime.cli import main; main()"


def main(
    base: Base,
    rounds: Annotated[int, typer.Option(help="Rounds, of both servers.", min=1)] = 6,
    requests: Annotated[int, typer.Option(help="Requests of a round.", min=1)] = 96,
    concurrent: Annotated[int, typer.Option(help="At the same time.", min=1)] = 16,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 64,
    new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    observed: Annotated[
        str, typer.Option(help="Further options of the observed server, as in a shell.")
    ] = "",
    out: Out = None,
) -> None:
    """Compare a server that is observed with one that is not."""
    with tempfile.TemporaryDirectory(prefix="remix-bench-") as name:
        folders = write_random_adapters(Path(name), Path(base), SHAPE, ADAPTERS)
        options = ["serve", "--base", str(base), "--port", "0", "--log-level", "error"]
        for folder in folders:
            options += ["--adapter", f"{folder.name}={folder}"]
        names = [folder.name for folder in folders]
        with (
            server("-c", _BARE + _MAIN, *options) as (bare_url, _),
            server("-c", _MAIN, *options, *observed.split()) as (observed_url, _),
        ):

            def side(url: str, *, scraped: bool) -> float:
                body = {"max_tokens": new_tokens, "ignore_eos": True, "temperature": 0}
                prompts = _prompts(requests, prompt_tokens)
                seconds = asyncio.run(_load(url, names, prompts, body, concurrent, scraped))
                return requests * new_tokens / seconds

            sides: dict[str, Callable[[int], float | None]] = {
                "bare": lambda _: side(bare_url, scraped=False),
                "observed": lambda _: side(observed_url, scraped=True),
            }
            cases = {"": sides}
            found = run_rounds(cases, rounds=rounds, warm_up=1, report=print)[""]
    kept = ratio(found["observed"], found["bare"])
    assert kept is not None, "both ran in every round"
    publish(
        out,
        "What observing costs",
        f"{requests} requests a round, {concurrent} at a time, {prompt_tokens} tokens in and "
        f"{new_tokens} out, {ADAPTERS} adapters (n {SHAPE.n}, k {SHAPE.k}, r {SHAPE.r}) mixed; "
        f"further options of the observed server: {observed or 'none'}. Goal: a ratio of at least "
        f"{GOAL}.",
        Table(
            ["server", "tokens/s, median (least to most)"],
            [[name, spread(list(values.values())).show()] for name, values in found.items()],
        ),
        f"Observed over bare, within a round: {kept.show(4)}.",
        ratio=kept.median,
        reached=kept.median >= GOAL,
        rounds={name: list(values.values()) for name, values in found.items()},
    )


def _prompts(count: int, tokens: int) -> list[list[int]]:
    """New ones each time: no prefix cache can help."""
    return [[random.randrange(1000, 30_000) for _ in range(tokens)] for _ in range(count)]


async def _load(
    url: str,
    names: Sequence[str],
    prompts: Sequence[list[int]],
    body: Mapping[str, object],
    concurrent: int,
    scraped: bool,
) -> float:
    """Seconds until all are answered."""
    places = asyncio.Semaphore(concurrent)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def ask(number: int) -> None:
            async with places:
                asked = {"model": names[number % len(names)], "prompt": prompts[number], **body}
                (await client.post("/v1/completions", json=asked)).raise_for_status()

        async def scrape() -> None:
            while True:
                (await client.get("/metrics")).raise_for_status()
                await asyncio.sleep(SCRAPE_SECONDS)

        scraping = asyncio.create_task(scrape()) if scraped else None
        began = time.perf_counter()
        await asyncio.gather(*map(ask, range(len(prompts))))
        seconds = time.perf_counter() - began
        if scraping is not None:
            scraping.cancel()
        return seconds


if __name__ == "__main__":
    typer.run(main)
