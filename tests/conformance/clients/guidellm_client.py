"""guidellm: a short run over chat completions, completions and responses."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from calls import API_KEY, BASE_URL, MODEL, call, run
from commands import run_command

TOKENIZER = os.environ["CONFORMANCE_TOKENIZER"]
REQUESTS = 3


def benchmark(request_format: str) -> str:
    backend = {
        "kind": "openai_http",
        "target": BASE_URL.removesuffix("/v1"),
        "model": MODEL,
        "api_key": API_KEY,
        "request_format": request_format,
    }
    data = {"kind": "synthetic_text", "prompt_tokens": 24, "output_tokens": 8}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        run_command(
            "guidellm",
            "run",
            "--disable-console",
            *("--backend", json.dumps(backend)),
            *("--tokenizer", json.dumps({"kind": "hf_auto", "model": TOKENIZER})),
            *("--profile", json.dumps({"kind": "synchronous"})),
            *("--constraint", json.dumps({"kind": "max_requests", "count": REQUESTS})),
            *("--data", json.dumps(data)),
            *("--output", json.dumps({"kind": "json", "path": str(report)})),
        )
        totals = json.loads(report.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    assert totals["successful"] == REQUESTS, totals
    return f"{REQUESTS} requests"


@call("chat completions")
def chat() -> str:
    return benchmark("/v1/chat/completions")


@call("completions")
def completions() -> str:
    return benchmark("/v1/completions")


@call("responses")
def responses() -> str:
    return benchmark("/v1/responses")


run()
