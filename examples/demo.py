"""`make run`: serves the sample adapters on the demo model and asks all of them one question.

On a terminal the server stays in the foreground until Ctrl-C. Without one it stays up in the
background and `make stop` ends it; with RUN_ONCE=1 it stops after the answers.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from remix_runtime.demo_model import demo_model
from remix_runtime.errors import ConfigError, RemixError
from remix_runtime.extras import require_extra
from training.progress import stage

EXAMPLES = Path(__file__).parent
RUNS = EXAMPLES.parent / "runs"
PID_FILE = RUNS / "demo.pid"
LOG_FILE = RUNS / "demo-server.log"
QUESTION = "What is the capital of France?"
START_SECONDS = 180.0
API_KEY = os.environ.get("REMIX_API_KEY") or "none"
"""The server that is started inherits the variable; without it any key will do."""

console = Console()


def main() -> None:
    require_extra("make run", "demo", "openai")
    adapters = sample_adapters()
    base = demo_model(report=lambda line: console.print(f"demo model: {line}"))
    wanted = os.environ.get("PORT", "8000")
    if not wanted.isdecimal() or int(wanted) > 65535:
        raise ConfigError(f"PORT: found {wanted!r}, expected a port number")
    names = [base.name, *adapters]
    url = f"http://127.0.0.1:{wanted}"
    if serves(url, names):
        show(url, ask(url, names))
        return
    url = f"http://127.0.0.1:{free_port(int(wanted))}"
    server = launch(base, adapters, url)
    try:
        with stage(console, f"starting the server on {base}"):
            wait_until_ready(server, url)
        with stage(console, f"asking {', '.join(names)}"):
            answers = ask(url, names)
        show(url, answers)
    except BaseException:  # Ctrl-C too: no server stays behind unseen
        stop(server)
        raise
    leave(server)


def sample_adapters() -> dict[str, Path]:
    """Name to folder of the committed samples."""
    return {folder.parent.name: folder for folder in sorted(EXAMPLES.glob("*/adapter"))}


def serves(url: str, names: Sequence[str]) -> bool:
    """Whether a server of an earlier `make run` already answers there with these models."""
    try:
        headers = {"Authorization": f"Bearer {API_KEY}"}
        listed = httpx.get(f"{url}/v1/models", headers=headers, timeout=2).json()
        return {model["id"] for model in listed["data"]} >= set(names)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


def free_port(wanted: int) -> int:
    """`wanted`, or any free port when another program has it."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigError(f"port {wanted} is taken and no other one is free")


def launch(base: Path, adapters: Mapping[str, Path], url: str) -> subprocess.Popen[bytes]:
    """`remix serve` in a process of its own, which writes to the log file."""
    RUNS.mkdir(exist_ok=True)
    remix = Path(sys.executable).with_name("remix")
    command = [str(remix), "serve", "--base", str(base), "--port", url.rpartition(":")[2]]
    for name, folder in adapters.items():
        command += ["--adapter", f"{name}={folder}"]
    with LOG_FILE.open("wb") as log:
        # A session of its own: Ctrl-C reaches only this process, which then asks for a drain.
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    PID_FILE.write_text(f"{server.pid}\n")
    return server


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            reason = LOG_FILE.read_text(errors="replace").strip().splitlines()[-1:]
            raise ConfigError(f"the server stopped: {' '.join(reason)} (log: {LOG_FILE})")
        try:
            if httpx.get(f"{url}/ready", timeout=2).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise ConfigError(f"the server was not ready after {START_SECONDS:.0f} s (log: {LOG_FILE})")


def ask(url: str, names: Sequence[str]) -> dict[str, str]:
    """The answer of every model to one question, asked at the same time: one mixed batch."""
    from openai import OpenAI, OpenAIError

    client = OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0)

    def answer(name: str) -> str:
        chat = client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=48,
            temperature=0,
        )
        return chat.choices[0].message.content or ""

    try:
        with ThreadPoolExecutor(len(names)) as pool:
            return dict(zip(names, pool.map(answer, names), strict=True))
    except OpenAIError as error:
        raise ConfigError(f"the server's answer: {error} (log: {LOG_FILE})") from error


def show(url: str, answers: Mapping[str, str]) -> None:
    table = Table(title=QUESTION, title_justify="left")
    table.add_column("model", style="bold")
    table.add_column("answer")
    for name, answer in answers.items():
        table.add_row(name, answer)
    console.print(table)
    chat = {
        "model": list(answers)[-1],
        "messages": [{"role": "user", "content": "Why do birds sing?"}],
    }
    # Plain print: a line to copy must not be wrapped.
    print(f"\nThe server is up: {url}/v1 (any OpenAI client, any model above). Try:\n")
    key = '-H "Authorization: Bearer $REMIX_API_KEY" ' if API_KEY != "none" else ""
    print(
        f"curl -s {url}/v1/chat/completions {key}-H 'Content-Type: application/json' "
        f"-d '{json.dumps(chat)}'"
    )


def leave(server: subprocess.Popen[bytes]) -> None:
    """Stops the server, keeps it in the foreground, or leaves it in the background."""
    if os.environ.get("RUN_ONCE"):
        stop(server)
    elif sys.stdin.isatty():
        console.print("\nCtrl-C stops it.")
        try:
            if server.wait() != 0:
                raise ConfigError(f"the server stopped (log: {LOG_FILE})")
        except KeyboardInterrupt:
            stop(server)
    else:
        console.print(f"\nIt runs in the background (process {server.pid}); `make stop` ends it.")


def stop(server: subprocess.Popen[bytes]) -> None:
    """Lets the server drain and removes the note of its process id."""
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(timeout=60)
    except subprocess.TimeoutExpired:
        server.kill()
    PID_FILE.unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        main()
    except RemixError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
