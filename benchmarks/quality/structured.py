"""Do sampled answers meet their JSON schemas?

    python -m benchmarks.quality.structured --schemas FOLDER [--base FOLDER] [--answers 100]

Draws schemas from a folder of `.json` files, any public collection, and samples answers to each
from a small random model with the base's tokenizer: a model that knows nothing wanders through all
that a grammar allows. Tokens that close something are likelier, so that answers end. Each answer is
judged by the library jsonschema. Answers that `max_tokens` cut say nothing and are drawn again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from jsonschema import ValidationError, validators
from jsonschema.exceptions import SchemaError

from benchmarks.machine import describe_machine
from benchmarks.options import Base, Out
from benchmarks.quality.small_model import write_small_model
from benchmarks.result import Table, publish
from remix_runtime.contracts import (
    FinishReason,
    GenerationRequest,
    Grammar,
    GrammarKind,
    SamplingParams,
)
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.errors import InvalidRequestError

_CLOSING = ('"', "}", "]", '",', '"}', '"]', "}}", '":', "1", "0")
_BIAS = 9.0
_MAX_TOKENS = 400
_TRIES = 5
"""Draws for each answer that is wanted, at most."""


def main(
    base: Base,
    schemas: Annotated[Path, typer.Option(help="Folder of JSON schemas, searched in full.")],
    count: Annotated[int, typer.Option(help="How many schemas are drawn.", min=1)] = 100,
    answers: Annotated[int, typer.Option(help="Whole answers for each.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Another one draws other schemas.")] = 0,
    out: Out = None,
) -> None:
    """Count the answers that meet their schemas."""
    with tempfile.TemporaryDirectory(prefix="remix-bench-") as name:
        model = Path(name) / "model"
        write_small_model(
            Path(base),
            model,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=2048,
        )
        asyncio.run(_run(model, schemas, count, answers, seed, out))


def _schemas(folder: Path, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Schemas that jsonschema itself takes, in a drawn order."""
    files = sorted(folder.rglob("*.json"))
    random.Random(seed).shuffle(files)
    for file in files:
        schema = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(schema, dict):
            try:
                validators.validator_for(schema).check_schema(schema)
            except SchemaError:
                continue
            yield str(file.relative_to(folder)), schema


async def _run(
    model: Path, folder: Path, count: int, answers: int, seed: int, out: Path | None
) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(model=str(model), max_running=32, max_waiting=1024))
    await engine.start()
    encode = engine.tokenizer.encode
    ids = [encode(text, add_special_tokens=False) for text in _CLOSING]
    bias = {i[0]: _BIAS for i in ids if len(i) == 1} | dict.fromkeys(
        engine.model.eos_token_ids, _BIAS
    )
    refused: Counter[str] = Counter()
    found: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    numbers = itertools.count(seed << 40)

    async def draw(name: str, schema: dict[str, Any]) -> None:
        number = next(numbers)
        params = SamplingParams(
            max_tokens=_MAX_TOKENS,
            seed=number,
            logit_bias=bias,
            grammar=Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema)),
        )
        prompt = tuple(encode("JSON: ", add_special_tokens=False))
        request = GenerationRequest(request_id=f"{number}", prompt_token_ids=prompt, params=params)
        text, reason = "", None
        async for event in engine.generate(request):
            text, reason = text + event.text, event.finish_reason
        if reason is not FinishReason.STOP:
            found[name]["cut"] += 1
            return
        try:
            validators.validator_for(schema)(schema).validate(json.loads(text))
            found[name]["valid"] += 1
        except (ValueError, ValidationError) as error:
            found[name]["wrong"] += 1
            wrong.append(f"{name}: {text[:200]!r}: {str(error).splitlines()[0]}")

    chosen = _schemas(folder, seed)
    for drawn in range(count):
        done = sum(sum(counts.values()) for counts in found.values())
        typer.echo(f"structured: schema {drawn + 1} of {count}, {done} answers before it", err=True)
        for name, schema in chosen:
            found[name] = Counter()
            try:
                await draw(name, schema)
                break
            except InvalidRequestError as error:
                del found[name]
                refused[str(error)[:60]] += 1
        else:
            break
        for _ in range(_TRIES):
            missing = answers - found[name]["valid"] - found[name]["wrong"]
            await asyncio.gather(*(draw(name, schema) for _ in range(missing)))
    await engine.stop()
    total = sum(found.values(), Counter())
    whole = total["valid"] + total["wrong"]
    row = [len(found), sum(refused.values()), whole, total["valid"], total["cut"]]
    publish(
        out,
        "Structured answers",
        f"Schemas of {folder.name}. Refused are those that are a 400 before anything runs; cut are "
        f"answers that had not ended after {_MAX_TOKENS} tokens.",
        Table(["schemas", "refused", "whole answers", "valid", "cut"], [row]),
        machine=describe_machine(),
        refused=dict(refused),
        wrong=wrong,
        by_schema={name: dict(counts) for name, counts in found.items()},
    )


if __name__ == "__main__":
    typer.run(main)
