"""`make test-conformance`: clients that others wrote, unmodified, against a real server.

It writes docs/clients.md and ends with 1 when a call fails that nothing explains. With --client and
--base it runs a part, and keeps what earlier runs found for the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples import demo
from remix_runtime.demo_model import QWEN_CODER, SMOLLM2, DemoModel, demo_model
from tests.conformance.clients import CLIENTS, Client
from tests.conformance.environments import KEPT, ROOT, prepare
from tests.conformance.report import Row, fine, remember, write_document

API_KEY = "conformance-key"
REASONER = "pirate-o3-claude-4"
"""A name by which clients take a model for one that reasons, and ask it to."""
ORIGIN = "http://127.0.0.1:8799"
"""Where the browser's page comes from."""


@dataclass(frozen=True)
class Served:
    """What is served, and which of its models the clients ask for."""

    title: str
    base: DemoModel
    model: str
    adapter: str = ""
    """The folder of `model`, under examples/; empty: the base itself."""

    @property
    def folders(self) -> dict[str, Path]:
        """The adapters that are served: the samples, and `adapter` by the name of a reasoner."""
        if not self.adapter:
            return {}
        return {**demo.sample_adapters(), REASONER: ROOT / "examples" / self.adapter}


SERVED = (
    Served("SmolLM2 with the adapter pirate", SMOLLM2, "pirate", "pirate/adapter"),
    Served("Qwen2.5-Coder-0.5B", QWEN_CODER, QWEN_CODER.name),
)


def main() -> int:
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    KEPT.mkdir(exist_ok=True)
    chosen = [client for client in CLIENTS if client.name in arguments.client and at_hand(client)]
    commands = {client.name: prepare(client) for client in chosen}
    bad = 0
    for served in SERVED:
        if served.base.name not in arguments.base:
            continue
        base = demo_model(model=served.base, report=print)
        with server(served, base) as url:
            for client in chosen:
                rows = run(client, commands[client.name], served, base, url)
                remember(client, served.title, rows)
                bad += show(client, served, rows)
                write_document(Path(__file__).with_name("introduction.md"))
    print(f"{bad} calls fail that nothing explains")
    return min(bad, 1)


def parse() -> argparse.Namespace:
    names = [client.name for client in CLIENTS]
    bases = [served.base.name for served in SERVED]
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--client", nargs="+", choices=names, default=names)
    parser.add_argument("--base", nargs="+", choices=bases, default=bases)
    return parser.parse_args()


def at_hand(client: Client) -> bool:
    """Whether its source is there, of a suite that no registry has."""
    if client.source and not os.environ.get(client.source):
        print(f"{client.title}: not run, since {client.source} names no folder of its source")
        return False
    return True


@contextmanager
def server(served: Served, base: Path) -> Iterator[str]:
    """`remix serve` with the embedded engine, the samples on the base that they are for."""
    url = f"http://127.0.0.1:{demo.free_port(0)}"
    os.environ.update(REMIX_API_KEY=API_KEY, REMIX_CORS_ORIGIN=ORIGIN)
    print(f"starting the server on {base.name}", flush=True)
    process = demo.launch(base, served.folders, url)
    try:
        demo.wait_until_ready(process, url)
        yield url
    finally:
        demo.stop(process)


def run(client: Client, command: list[str], served: Served, base: Path, url: str) -> list[Row]:
    """The script's rows, and one more if it did not come to its end."""
    adapter = str(ROOT / "examples" / served.adapter) if served.adapter else ""
    known = {
        "CONFORMANCE_BASE_URL": f"{url}/v1",
        "CONFORMANCE_API_KEY": API_KEY,
        "CONFORMANCE_MODEL": REASONER if client.asks_to_reason and adapter else served.model,
        "CONFORMANCE_BASE_MODEL": served.base.name,
        "CONFORMANCE_SOURCE": os.environ.get(client.source, ""),
        "CONFORMANCE_TOKENIZER": str(base),
        "CONFORMANCE_ADAPTER": adapter,
        "CONFORMANCE_ORIGIN": ORIGIN,
        "PYTHONPATH": str(ROOT),
        **client.environment,
    }
    log = KEPT / f"{client.name}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            env={**os.environ, **known},
            cwd=log.parent / client.name if client.packages else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            printed, _ = process.communicate(timeout=client.seconds)
            end = "" if process.returncode == 0 else f"ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            end = f"no end after {client.seconds} s"
        except BaseException:  # Ctrl-C, SIGTERM: nothing stays behind
            os.killpg(process.pid, signal.SIGKILL)
            raise
    lines = [line for line in printed.splitlines() if line.startswith('{"call"')]
    rows = [Row(**json.loads(line)) for line in lines]
    if end or not rows:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        rows.append(Row("the script", "failed", f"{end or 'no calls'}: {' '.join(last)}"[:300]))
    return rows


def show(client: Client, served: Served, rows: list[Row]) -> int:
    """Prints what is not fine, and counts it."""
    bad = [row for row in rows if not fine(client, row)]
    print(f"{client.title}, {served.title}: {len(rows) - len(bad)} of {len(rows)} fine", flush=True)
    for row in bad:
        print(f"    {row.call}: {row.status}: {row.detail}", flush=True)
    return len(bad)


if __name__ == "__main__":
    sys.exit(main())
