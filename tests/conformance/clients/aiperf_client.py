"""aiperf: a short run over chat, completions, responses and Anthropic's messages."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from calls import API_KEY, BASE_URL, MODEL, call, run
from commands import run_command

TOKENIZER = os.environ["CONFORMANCE_TOKENIZER"]
REQUESTS = 3


def profile(endpoint: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        run_command(
            "aiperf",
            "profile",
            *("--model", MODEL, "--url", BASE_URL.removesuffix("/v1"), "--api-key", API_KEY),
            *("--endpoint-type", endpoint, "--streaming", "--tokenizer", TOKENIZER),
            *("--request-count", str(REQUESTS), "--concurrency", "1"),
            *("--isl", "24", "--osl", "8", "--ui", "none", "--artifact-dir", folder),
            *("--workers-max", "1"),
        )
        (report,) = Path(folder).rglob("profile_export_aiperf.json")
        found = json.loads(report.read_text())
    assert found["request_count"]["avg"] == REQUESTS, found["request_count"]
    return f"{REQUESTS} requests"


@call("chat")
def chat() -> str:
    return profile("chat")


@call("completions")
def completions() -> str:
    return profile("completions")


@call("responses")
def responses() -> str:
    return profile("responses")


@call("messages")
def messages() -> str:
    return profile("messages")


run()
