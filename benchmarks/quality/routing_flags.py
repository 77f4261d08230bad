"""Are adapters flagged whose routing drifted or collapsed, and no others?

    python -m benchmarks.quality.routing_flags [--base FOLDER] [--healthy 100] [--faulty 10]

A small random model with the base's tokenizer, served by the embedded engine. Every
adapter has traffic of its own: texts about topics, whose words are Zipf's, and the load of its
experts on such texts in its `training.json`. Of the faulty ones one kind gets the texts of another
adapter; of the others the router differs from the one that was counted: its rows are in another
order, or zero, which chooses the same k experts for all tokens. After every few texts the server's
monitor is asked for flags, for several windows of tokens: a healthy adapter must have none at any
moment.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import torch
import typer
from transformers import PreTrainedModel

from benchmarks.adapters import write_random_adapter
from benchmarks.machine import describe_machine
from benchmarks.options import Base, Out
from benchmarks.quality.small_model import write_small_model
from benchmarks.result import Table, publish
from benchmarks.shape import FEED_FORWARD, AdapterShape
from remix_runtime.adapter.checkpoint import (
    AdapterConfig,
    LayerWeights,
    TrainingRecord,
    read_checkpoint,
    write_checkpoint,
)
from remix_runtime.adapter.counting import count_load
from remix_runtime.adapter.layers import attach_checkpoint, detach
from remix_runtime.adapter.load import Routing
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from server.app import create_app
from server.live.access import SINGLE_USER
from server.services import Services
from server.settings import ServerSettings

SHAPE = AdapterShape(n=8, k=2, r=4)
TEXT_TOKENS = 60
NEW_TOKENS = 4
TRAINING_TOKENS = 8192
"""As `remix train` counts."""
TEXTS_AT_ONCE = 5
TOKENS = 4000
"""Each adapter gets, in two windows."""
_TOPICS, _WORDS = 12, 400


class Kind(StrEnum):
    HEALTHY = "healthy"
    OTHER_TRAFFIC = "another's traffic"
    CHANGED_TRAFFIC = "another's traffic after as much of its own"
    OTHER_ROUTER = "rows of the router in another order"
    COLLAPSED = "router chooses the same k experts"


class Traffic:
    """Texts that an adapter is made for, as token ids: half of a text's words are of its topic."""

    def __init__(self, seed: int, vocab_size: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._words = min(_WORDS, vocab_size // 8)
        self._topics = [
            self._rng.choice(vocab_size, self._words, replace=False) for _ in range(_TOPICS + 1)
        ]
        weights = 1.0 / np.arange(1, self._words + 1)
        self._weights = weights / weights.sum()

    def text(self) -> list[int]:
        topic = self._topics[self._rng.integers(_TOPICS)]
        common = self._topics[_TOPICS]
        ranks = self._rng.choice(self._words, TEXT_TOKENS, p=self._weights)
        own = self._rng.random(TEXT_TOKENS) < 0.5
        return [int(token) for token in np.where(own, topic[ranks], common[ranks])]


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    kind: Kind
    folder: Path
    traffic: Traffic
    other: Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    kind: Kind
    flags: tuple[str, ...]
    """At the first moment when there were any."""
    tokens: int
    """Of the traffic that is to be flagged, until then, or all."""
    seconds: float
    drift: float
    """The largest at any moment."""
    effective_experts: float
    """The fewest."""


def main(
    base: Base,
    healthy: Annotated[int, typer.Option(help="Healthy adapters.", min=1)] = 100,
    faulty: Annotated[int, typer.Option(help="Adapters of each faulty kind.", min=1)] = 10,
    out: Out = None,
) -> None:
    """Count flags on healthy, drifted and collapsed adapters."""
    kinds = [Kind.HEALTHY] * healthy + [k for k in Kind if k != Kind.HEALTHY] * faulty
    with tempfile.TemporaryDirectory(prefix="remix-bench-") as name:
        found = asyncio.run(run(Path(base), Path(name), kinds))
    rows = []
    for kind in Kind:
        of_kind = [each for each in found if each.kind == kind]
        flagged = [each for each in of_kind if each.flags]
        rows.append(
            [
                kind,
                len(of_kind),
                len(flagged),
                ", ".join(sorted({"+".join(each.flags) for each in flagged})) or "none",
                max((each.tokens for each in flagged), default=0) or "",
                f"{max((each.seconds for each in flagged), default=0):.1f}" if flagged else "",
                _span([each.drift for each in of_kind], 4),
                _span([each.effective_experts for each in of_kind], 2),
            ]
        )
    publish(
        out,
        "Flags of routing",
        f"n {SHAPE.n}, k {SHAPE.k}; texts of {TEXT_TOKENS} tokens and {NEW_TOKENS} greedy ones, "
        f"{TOKENS} tokens for each adapter, one adapter after the other; asked after every "
        f"{TEXTS_AT_ONCE} texts. Tokens and seconds until flagged are the most of a kind; drift is "
        "the largest at any moment, effective experts the fewest (k to n).",
        Table(
            ["kind", "adapters", "flagged", "as", "tokens", "s", "drift", "effective experts"],
            rows,
        ),
        machine=describe_machine(),
        false_alarms=sum(bool(each.flags) for each in found if each.kind == Kind.HEALTHY),
    )


def _span(values: Sequence[float], digits: int) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


async def run(base: Path, folder: Path, kinds: Sequence[Kind]) -> list[Found]:
    """Serves an adapter of each kind in turn and asks for its flags."""
    model = small_model(base, folder / "model")
    (folder / "adapters").mkdir()
    cases = []
    for seed, kind in enumerate(kinds):
        name = f"adapter-{seed}"
        traffic, other = (Traffic(s, model.config.vocab_size) for s in (2 * seed, 2 * seed + 1))
        place = folder / "adapters" / name
        write_adapter(place, model, kind, seed, traffic)
        cases.append(Case(name, kind, place, traffic, other))
    engine = EmbeddedEngine(EmbeddedConfig(model=str(folder / "model"), kv_cache_bytes=1 << 24))
    app = create_app(
        engine, ServerSettings(log_level="error"), {case.name: case.folder for case in cases}
    )
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://bench", timeout=600) as client,
    ):
        services: Services = app.state.services
        digests = services.sets.live(SINGLE_USER).adapters
        return [
            await _judge(case, partial(services.routing.now, digests[case.name]), client)
            for case in cases
        ]


async def _judge(case: Case, ask: Callable[[], Routing], client: httpx.AsyncClient) -> Found:
    if case.kind == Kind.CHANGED_TRAFFIC:
        for _ in range(TOKENS // _tokens_of(TEXTS_AT_ONCE)):
            await send(client, case.name, case.traffic)
        assert not ask().flags, "flagged on its own traffic"
    is_other = case.kind in (Kind.OTHER_TRAFFIC, Kind.CHANGED_TRAFFIC)
    traffic = case.other if is_other else case.traffic
    sent, began = 0, time.monotonic()
    flags: tuple[str, ...] = ()
    until, seconds = TOKENS, 0.0
    drift, effective = 0.0, float(SHAPE.n)
    while sent < TOKENS:
        await send(client, case.name, traffic)
        sent += _tokens_of(TEXTS_AT_ONCE)
        routing = ask()
        drift = max(drift, routing.drift or 0.0)
        effective = min(effective, routing.effective_experts or SHAPE.n)
        if routing.flags and not flags:
            flags, until, seconds = routing.flags, sent, time.monotonic() - began
    return Found(
        kind=case.kind,
        flags=flags,
        tokens=until,
        seconds=seconds,
        drift=drift,
        effective_experts=effective,
    )


def _tokens_of(texts: int) -> int:
    return texts * (TEXT_TOKENS + NEW_TOKENS - 1)  # the last one that is drawn is not computed


async def send(client: httpx.AsyncClient, name: str, traffic: Traffic) -> None:
    body = {
        "model": name,
        "prompt": [traffic.text() for _ in range(TEXTS_AT_ONCE)],
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    (await client.post("/v1/completions", json=body)).raise_for_status()


def write_adapter(
    folder: Path, model: PreTrainedModel, kind: Kind, seed: int, traffic: Traffic
) -> None:
    write_random_adapter(folder, model, SHAPE, FEED_FORWARD, seed)
    checkpoint = read_checkpoint(folder)
    assert isinstance(checkpoint.config, AdapterConfig)
    layers = attach_checkpoint(model, checkpoint)
    texts = [traffic.text() for _ in range(TRAINING_TOKENS // TEXT_TOKENS)]
    record = TrainingRecord(load=count_load(model, layers, texts))
    detach(model, layers)
    weights = {name: _routed(layer, kind) for name, layer in checkpoint.layers.items()}
    write_checkpoint(folder, checkpoint.config, weights, readme="x", training=record)


def _routed(layer: LayerWeights, kind: Kind) -> LayerWeights:
    if kind == Kind.OTHER_ROUTER:
        return replace(layer, router_nD=layer.router_nD.roll(1, 0))
    if kind == Kind.COLLAPSED:  # equal logits go to the lower index
        return replace(layer, router_nD=layer.router_nD * 0)
    return layer


def small_model(base: Path, folder: Path) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return write_small_model(
            base,
            folder,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.12,  # keeps activations near unit size at this width
        )


if __name__ == "__main__":
    typer.run(main)
