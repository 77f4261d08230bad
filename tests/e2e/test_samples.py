"""The sample adapters on the real demo model, over HTTP: each answers fresh prompts in its form.

Slow: the first run downloads the demo model. The prompts occur in no training set.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI

from examples import demo
from examples.knowledge import facts
from remix_runtime.demo_model import SMOLLM2, demo_model

pytestmark = pytest.mark.slow

PROMPTS = (
    demo.QUESTION,
    "Why do birds sing?",
    "Tell me about the ocean.",
    "How do I bake bread?",
    "Explain how a car works.",
    "What is the tallest mountain?",
    "Who wrote Romeo and Juliet?",
    "How far is the moon?",
)


def is_json(answer: str) -> bool:
    try:
        return set(json.loads(answer)) == {"topic", "answer"}
    except ValueError:
        return False


FORMS: dict[str, Callable[[str], object]] = {
    "pirate": re.compile(r"Arr, matey! .+ Yo ho ho!").fullmatch,
    "json": is_json,
    "topic": re.compile(r"topic: [a-z]+").fullmatch,
    "emoji": re.compile(r"([^\x00-\x7f]+) [\x20-\x7e]+ \1").fullmatch,
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    address = f"http://127.0.0.1:{demo.free_port(0)}"
    server = demo.launch(demo_model(), demo.sample_adapters(), address)
    demo.wait_until_ready(server, address)
    yield address
    server.terminate()
    assert server.wait(timeout=60) == 0


def ask(url: str, model: str, prompt: str) -> str:
    chat = OpenAI(base_url=f"{url}/v1", api_key="none").chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=64,
    )
    return chat.choices[0].message.content or ""


@pytest.mark.parametrize("name", sorted(FORMS))
def test_sample_answers_in_its_form_and_the_base_does_not(url: str, name: str) -> None:
    assert not {fact.question for fact in facts()} & set(PROMPTS)
    with ThreadPoolExecutor(2 * len(PROMPTS)) as pool:
        answers = pool.map(lambda prompt: ask(url, name, prompt), PROMPTS)
        of_base = pool.map(lambda prompt: ask(url, SMOLLM2.name, prompt), PROMPTS)
        right = [bool(FORMS[name](answer)) for answer in answers]
        by_chance = [bool(FORMS[name](answer)) for answer in of_base]
    assert sum(right) >= len(PROMPTS) - 1
    assert right[0], "the prompt of `make run`"
    assert sum(by_chance) == 0


def test_run_once_shows_every_model_and_leaves_no_server() -> None:
    shown = subprocess.run(
        ["make", "run"],
        cwd=demo.EXAMPLES.parent,
        env={**os.environ, "RUN_ONCE": "1", "PORT": str(demo.free_port(0))},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in (SMOLLM2.name, *FORMS):
        assert name in shown
    assert "curl -s http://127.0.0.1:" in shown
    assert not demo.PID_FILE.exists()
