"""What do weights of 8 bits cost?

    python -m benchmarks.quality.weights [--base FOLDER] [--data FILE] [--windows 16]

The same base with its weights as stored and in int8, on windows of a text: the perplexity of the
text, how often both would choose the same next token, and how much of a greedy answer is the same.
A file of rows (.jsonl) counts as the strings in them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import typer

from benchmarks.agreement import agreement
from benchmarks.options import Base, Out
from benchmarks.result import Table, publish
from remix_runtime.base.tokenizer import load_tokenizer
from remix_runtime.contracts import GenerationRequest, SamplingParams
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.engines.embedded.config import Weights
from remix_runtime.errors import ConfigError

_TEXT = Path(__file__).parents[2] / "docs" / "training.md"
_REFERENCE = "stored"


@dataclass(frozen=True, slots=True)
class Seen:
    """What an engine says of the windows."""

    logprobs: list[float]
    """Of every token that has others before it in its window."""
    choices: list[int]
    """The likeliest token in their places."""
    answers: list[list[int]]
    """Greedy tokens after each window."""

    @property
    def perplexity(self) -> float:
        return math.exp(-sum(self.logprobs) / len(self.logprobs))


def main(
    base: Base,
    data: Annotated[Path, typer.Option(help="A text, or rows of texts.")] = _TEXT,
    windows: Annotated[int, typer.Option(help="Windows, spread over the text.", min=1)] = 16,
    length: Annotated[int, typer.Option(help="Tokens of a window.", min=2)] = 256,
    new_tokens: Annotated[int, typer.Option(help="Greedy tokens after each.", min=1)] = 32,
    out: Out = None,
) -> None:
    """Compare a base in int8 with the base as stored."""
    text = text_of(data)
    tokenizer = load_tokenizer(str(base))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    cut = windows_of(ids, windows, length)
    kinds = [kind for kind in get_args(Weights) if kind != "float32"]  # the bits of `stored`
    seen = {kind: asyncio.run(_run(base, kind, cut, new_tokens)) for kind in kinds}
    reference = seen[_REFERENCE]
    rows = []
    for kind, found in seen.items():
        same = [a == b for a, b in zip(found.choices, reference.choices, strict=True)]
        rows.append(
            [
                kind,
                f"{found.perplexity:.4f}",
                f"{found.perplexity / reference.perplexity - 1:+.3%}",
                f"{sum(same) / len(same):.2%}",
                f"{agreement(found.answers, reference.answers):.2%}",
            ]
        )
    header = ["weights", "perplexity", "against stored", "same next token", "same greedy answer"]
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    publish(
        out,
        "What weights of 8 bits cost",
        f"{Path(base).name} on {data.name} (sha256 {digest}): {len(cut)} windows of {length} "
        f"tokens, {len(reference.logprobs)} predictions; {new_tokens} greedy tokens after each "
        "window, the same up to the first difference.",
        Table(header, rows),
    )


def text_of(file: Path) -> str:
    """The text of a file. Raises `ConfigError`."""
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix != ".jsonl":
            return text
        rows = [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"data: {file}: {error}, expected a text or rows of JSON") from None
    return "\n\n".join(part for row in rows for part in row.values() if isinstance(part, str))


def windows_of(ids: list[int], count: int, length: int) -> list[list[int]]:
    """At most `count` windows without overlap, spread evenly. Raises `ConfigError`."""
    found = len(ids) // length
    if not found:
        raise ConfigError(f"data: found {len(ids)} tokens, expected at least --length ({length})")
    count = min(count, found)
    starts = [found * i // count * length for i in range(count)]
    return [ids[start : start + length] for start in starts]


async def _run(base: Path, weights: Weights, cut: list[list[int]], new_tokens: int) -> Seen:
    engine = EmbeddedEngine(
        EmbeddedConfig(model=str(base), device="cpu", weights=weights, kv_cache_bytes=1 << 29)
    )
    await engine.start()
    try:
        asked = [_ask(engine, i, window, new_tokens) for i, window in enumerate(cut)]
        parts = await asyncio.gather(*asked)
    finally:
        await engine.stop()
    return Seen(
        logprobs=[number for part in parts for number in part.logprobs],
        choices=[token for part in parts for token in part.choices],
        answers=[answer for part in parts for answer in part.answers],
    )


async def _ask(engine: EmbeddedEngine, number: int, window: list[int], new_tokens: int) -> Seen:
    params = SamplingParams(
        max_tokens=new_tokens, temperature=0.0, ignore_eos=True, prompt_logprobs=1
    )
    request = GenerationRequest(
        request_id=f"window {number}", prompt_token_ids=tuple(window), params=params
    )
    seen = Seen([], [], [[]])
    async for event in engine.generate(request):
        for position in event.prompt_logprobs or ():
            if position is not None:
                seen.logprobs.append(position.chosen.logprob)
                seen.choices.append(position.top[0].token_id)
        seen.answers[0].extend(event.token_ids)
    return seen


if __name__ == "__main__":
    typer.run(main)
