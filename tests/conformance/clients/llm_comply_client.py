"""llm-comply: its suites for chat completions, Open Responses and Anthropic's messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from calls import API_KEY, BASE_URL, MODEL, report

SUITES = {"openai-chat": "chat", "open-responses": "Open Responses", "anthropic": "Anthropic"}
STATUSES = {"passed": "ok", "skipped": "skipped"}

for suite, name in SUITES.items():
    command = [str(Path(sys.executable).with_name("llm-comply")), "--format", suite, "--json"]
    command += ["--base-url", BASE_URL, "--api-key", API_KEY, "--model", MODEL]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    sys.stderr.write(done.stdout + done.stderr)
    for result in json.loads(done.stdout)["results"]:
        detail = "; ".join(result.get("errors", result.get("warnings", [])))
        report(f"{name}: {result['id']}", STATUSES.get(result["status"], "failed"), detail)
