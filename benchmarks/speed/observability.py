"""What it costs to be watched: metrics with a log of requests, and traces.

    python -m benchmarks.speed.observability [--base FOLDER] [--rounds 9] [--out STEM]

Three servers of the same base with four random adapters, asked in turns by 32 streams at once, all
adapters and the base mixed: one that counts and logs nothing and does not look at routing (its
metrics are replaced by ones that do nothing; the kernels count experts in all of them), one with
metrics that are read every few seconds and a log of requests as JSON, and that one with a trace of
each request, sent to a collector beside. Tokens per second count, and the processor's time of the
server for each token, which other work on the machine changes less.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import perf_counter
from typing import Annotated, Any

import httpx
import typer

from benchmarks.adapters import write_random_adapters
from benchmarks.options import Base, Out
from benchmarks.result import Table, publish
from benchmarks.rounds import ratio, run_rounds
from benchmarks.shape import AdapterShape
from benchmarks.speed.door import server

UNWATCHED, WATCHED, TRACED = "neither", "metrics and log", "traces too"
GOALS = {WATCHED: 0.99, TRACED: 0.97}
"""Tokens per second against the server that is not watched, at least."""
SHAPE = AdapterShape(n=8, k=4, r=8)
ADAPTERS = 4


@dataclass(frozen=True, slots=True)
class Speed:
    tokens_per_second: float
    processor_seconds: float
    """Of the server, for each token."""


def serve_unwatched() -> None:
    """`remix serve` whose metrics do nothing."""
    import sys

    from remix_runtime.cli import main
    from remix_runtime.contracts import TokenEvent
    from server.live import routing
    from server.metrics import Metrics

    class Watch:
        queue_seconds: float | None = None

        def begin(self) -> None:
            pass

        def see(self, event: TokenEvent) -> None:
            pass

        def end(self) -> None:
            pass

    def nothing(*_: Any, **__: Any) -> None:
        pass

    watch = Watch()
    Metrics.watch = lambda *_, **__: watch  # type: ignore[assignment, method-assign]
    Metrics.count_request = nothing  # type: ignore[method-assign]
    routing.LOOK_SECONDS = 1e9
    sys.argv[1:] = [*sys.argv[1:], "--no-access-log", "--log-level", "critical"]
    main()


def serve_collector() -> None:
    """Takes spans and forgets them."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        print(f"http://127.0.0.1:{listening.server_address[1]}", flush=True)
        listening.serve_forever()


def own(function: str) -> tuple[str, str]:
    """A process that runs a function of this module."""
    return "-c", f"from {__spec__.name} import {function}; {function}()"


@contextmanager
def scraped(url: str, every: float) -> Iterator[None]:
    """Reads the metrics every so many seconds, as Prometheus does."""
    stop = Event()

    def read() -> None:
        while not stop.wait(every):
            httpx.get(f"{url}/metrics", timeout=60)

    thread = Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(
    url: str,
    process: int,
    streams: int,
    waves: int,
    new_tokens: int,
    scrape_seconds: float | None,
    number: int,
) -> Speed:
    """One round: so many waves of streams; prompts that no other round has."""

    async def ask(client: httpx.AsyncClient, stream: int, wave: int) -> None:
        body = {
            "model": models[stream % len(models)],
            "prompt": f"Round {number}, wave {wave}, stream {stream}: once upon a time",
            **{"max_tokens": new_tokens, "ignore_eos": True, "stream": True, "temperature": 0},
        }
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for _ in answer.aiter_raw():
                pass

    async def play() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            for wave in range(waves):
                await asyncio.gather(*(ask(client, stream, wave) for stream in range(streams)))

    models = [each["id"] for each in httpx.get(f"{url}/v1/models").json()["data"]]
    before, begin = processor_seconds(process), perf_counter()
    with nullcontext() if scrape_seconds is None else scraped(url, scrape_seconds):
        asyncio.run(play())
        seconds, used = perf_counter() - begin, processor_seconds(process) - before
    tokens = streams * waves * new_tokens
    return Speed(tokens / seconds, used / tokens)


def main(
    base: Base,
    streams: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 32,
    waves: Annotated[int, typer.Option(min=1, help="Times that they are sent in a round.")] = 4,
    new_tokens: Annotated[int, typer.Option(min=2, help="Output tokens per request.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 9,
    scrape_seconds: Annotated[float, typer.Option(min=0.1, help="Between two scrapes.")] = 5.0,
    out: Out = None,
) -> None:
    """Measure a server that is not watched, one with metrics and a log, and one with traces too."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="remix-bench-")))
        adapters = write_random_adapters(folder, base, SHAPE, ADAPTERS)
        options = ["serve", "--base", str(base), "--port", "0", "--max-running", str(streams)]
        for adapter in adapters:
            options += ["--adapter", f"{adapter.name}={adapter}"]
        plain = ("-c", "from remix_runtime.cli import main; main()", *options)
        plain += ("--log-format", "json")
        collector, _ = stack.enter_context(server(*own("serve_collector")))
        commands = {
            UNWATCHED: (*own("serve_unwatched"), *options),
            WATCHED: plain,
            TRACED: (*plain, "--otlp-endpoint", collector),
        }
        scraping = {UNWATCHED: None, WATCHED: scrape_seconds, TRACED: scrape_seconds}
        found = {name: stack.enter_context(server(*each)) for name, each in commands.items()}
        sides = {
            name: partial(measured, url, process, streams, waves, new_tokens, scraping[name])
            for name, (url, process) in found.items()
        }
        speeds = run_rounds({"": sides}, rounds=rounds, warm_up=1)[""]

    rows = []
    for name in GOALS:
        shown = []
        for field, digits in (("tokens_per_second", 3), ("processor_seconds", 3)):
            of = {
                side: {number: getattr(speed, field) for number, speed in by_round.items()}
                for side, by_round in speeds.items()
            }
            relative = ratio(of[name], of[UNWATCHED])
            assert relative is not None
            shown.append(relative.show(digits))
        rows.append((name, *shown, GOALS[name]))
    header = ("watched by", "tokens/s", "processor time per token", "goal, tokens/s at least")
    publish(
        out,
        f"What it costs to be watched, {streams} streams",
        f"{base.name}, {waves} times {streams} streams of {new_tokens} tokens a round, against the "
        f"server that is not watched, {ADAPTERS} adapters ({SHAPE}) and the base mixed: ratios "
        "within each round, their median (least to most). Clients, the collector and all servers "
        f"share the machine. Metrics are read every {scrape_seconds:g} s.",
        Table(header, rows),
    )


if __name__ == "__main__":
    typer.run(main)
