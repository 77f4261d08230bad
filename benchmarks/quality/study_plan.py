"""What the study runs: scales, methods, rules for router rates, trials."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Settings = dict[str, Any]

MAX_LENGTH = 320
TUNING_SEED = 1000
SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Scale:
    blocks: int | None
    """How many of the last blocks are adapted; None: all."""
    steps: int
    batch_size: int
    development: int
    held_out: int
    judged: int
    """Held-out rows whose answers are judged."""


SCALES = {
    "tiny": Scale(1, 2, 2, 4, 4, 2),
    "brief": Scale(2, 30, 2, 32, 64, 8),
    "small": Scale(2, 60, 4, 64, 128, 64),
    "paper": Scale(None, 400, 4, 128, 512, 256),
}

METHODS: Mapping[str, Settings] = {
    "ReMix, M 4": {"selections": 4},
    "LoRA": {"method": "lora", "scaling": "lora"},
    "rsLoRA": {"method": "lora"},
    "random routing": {"router": "random"},
    "softmax mixture": {"method": "softmax"},
    "ReMix, M 2": {"selections": 2},
    "ReMix, M 8": {"selections": 8},
    "rsLoRA, equal time": {"method": "lora"},
}
TAKES_OVER = {
    "ReMix, M 2": "ReMix, M 4",
    "ReMix, M 8": "ReMix, M 4",
    "rsLoRA, equal time": "rsLoRA",
}
"""Methods whose rates are another's."""
MORE_STEPS = {"rsLoRA, equal time": 4}
"""A step of ReMix runs M rows for each of a baseline's."""
RULES: Mapping[str, Settings] = {
    "0.1 logits per step": {"router_logits_per_step": 0.1},
    "3e-2 for every layer": {"router_learning_rate": 3e-2},
    "0.3 logits per step": {"router_logits_per_step": 0.3},
    "1e-3 for every layer": {"router_learning_rate": 1e-3},
    "0.03 logits per step": {"router_logits_per_step": 0.03},
    "1 logit per step": {"router_logits_per_step": 1.0},
}
RULES_SEEDS = (TUNING_SEED, TUNING_SEED + 1)
EXPERT_RATES = (1e-3, 3e-3, 1e-2)
ROUTER_STEPS = (0.3, 1.0)
PLAIN_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Of methods whose routers learn nothing: as many trials as the others have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run, by all that it depends on."""

    part: str
    base: str
    task: str
    name: str
    settings: Settings
    seed: int
    final: bool = False
    """Judged on held-out rows, by answers too."""

    @property
    def file(self) -> str:
        words = (self.part, self.base, self.task, self.name, self.seed)
        return "_".join(str(word).replace(" ", "-").replace(",", "") for word in words) + ".json"


def rule_runs(base: str, task: str, seed: int) -> Iterator[Run]:
    """Rules for the routers' rates, everything else by default."""
    for name, settings in RULES.items():
        yield Run(part="rules", base=base, task=task, name=name, settings=settings, seed=seed)


def search_runs(base: str, task: str) -> Iterator[Run]:
    for method, settings in METHODS.items():
        if method in TAKES_OVER:
            continue
        learns_routes = settings.get("method") != "lora" and "router" not in settings
        trials: list[Settings] = [{"expert_learning_rate": rate} for rate in PLAIN_RATES]
        if learns_routes:
            trials = [
                {"expert_learning_rate": rate, "router_logits_per_step": step}
                for rate, step in itertools.product(EXPERT_RATES, ROUTER_STEPS)
            ]
        for trial in trials:
            name = " ".join([method, *map(str, trial.values())])
            yield Run(
                part="search",
                base=base,
                task=task,
                name=name,
                settings={**settings, **trial},
                seed=TUNING_SEED,
            )


def final_runs(base: str, task: str, found: Mapping[str, Settings]) -> Iterator[Run]:
    """Every method with every seed at its best rates, and ReMix by its defaults alone."""
    finals = {
        method: {**found[TAKES_OVER.get(method, method)], **settings}
        for method, settings in METHODS.items()
    }
    for seed, (name, settings) in itertools.product(
        SEEDS, {"ReMix, defaults alone": {}, **finals}.items()
    ):
        yield Run(
            part="final",
            base=base,
            task=task,
            name=name,
            settings=settings,
            seed=seed,
            final=True,
        )
