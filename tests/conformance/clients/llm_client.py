"""Simon Willison's `llm`, the command: prompt, stream, --schema, a tool, a chat's next turn."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from calls import API_KEY, BASE_URL, MODEL, QUESTION, call, run
from commands import run_command

home = Path(tempfile.mkdtemp(prefix="llm-"))
(home / "keys.json").write_text(json.dumps({"served": API_KEY}))
(home / "extra-openai-models.yaml").write_text(f"""
- model_id: served
  model_name: {json.dumps(MODEL)}
  api_base: {BASE_URL}
  api_key_name: served
  supports_schema: true
  supports_tools: true
- model_id: text
  model_name: {json.dumps(MODEL)}
  api_base: {BASE_URL}
  api_key_name: served
  completion: true
""")


def llm(model: str, *arguments: str, tokens: int = 48) -> str:
    options = ["-o", "max_tokens", str(tokens), "-o", "temperature", "0"]
    text = run_command("llm", "-m", model, *arguments, *options, LLM_USER_PATH=str(home))
    assert text.strip()
    return text


@call("prompt, streamed")
def prompt() -> str:
    return llm("served", QUESTION)


@call("prompt, --no-stream")
def no_stream() -> str:
    return llm("served", "--no-stream", QUESTION)


@call("--continue")
def next_turn() -> str:
    return llm("served", "--continue", "And of Italy?")


@call("--schema")
def schema() -> str:
    text = llm("served", "--schema", "name, age int", "Invent a dog.", tokens=200)
    assert set(json.loads(text)) == {"name", "age"}
    return text


@call("a tool")
def tool() -> str:
    return llm("served", "-T", "llm_version", "Which version of llm is this?", tokens=100)


@call("completions")
def completions() -> str:
    return llm("text", "The capital of France is", tokens=8)


run()
