"""The golden loss trajectories: a tiny fixed run of every training method.

    python -m tests.golden.trajectory            print the largest difference from the stored ones
    python -m tests.golden.trajectory --update   store what the code does now

Model, data, order and draws are functions of fixed seeds, so a difference means that training
computes something else. Update only together with the change that explains it. The draws come
from torch's own generator: another torch release may draw other numbers.
"""

from __future__ import annotations

import json
import string
import sys
from pathlib import Path
from typing import Any

import torch

from tests.models import tiny_model, tiny_tokenizer
from training.config import parse_config
from training.encoding import Example
from training.trainer import StepReport, Trainer

STORED = Path(__file__).with_name("trajectory.json")

METHODS: dict[str, dict[str, Any]] = {
    "remix causal": {"credit": "causal", "selections": 3},
    "remix sequence": {"credit": "sequence", "selections": 3},
    "remix random routing": {"router": "random", "selections": 3},
    "lora": {"method": "lora"},
    "softmax": {"method": "softmax"},
}
STEPS = 12
COLUMNS = ("loss", "entropy", "support", "expert_norm", "router_norm")


def examples() -> list[Example]:
    """Letters, and the answer that repeats the middle one: rows of 6 to 14 tokens."""
    tokenizer = tiny_tokenizer()
    rows = []
    for i in range(24):
        prompt = string.ascii_lowercase[i % 13 : i % 13 + 4 + i % 7] + ":"
        answer = prompt[len(prompt) // 2] * (1 + i % 3)
        head, tail = tokenizer.encode(prompt), tokenizer.encode(answer)
        tail.append(tokenizer.eos_token_id)
        rows.append(
            Example(
                tokens=(*head, *tail),
                is_target=(False,) * len(head) + (True,) * len(tail),
                prompt_length=len(head),
            )
        )
    return rows


def run(method: str) -> list[list[float]]:
    """One row of `COLUMNS` per step."""
    config = parse_config(
        {
            "base": "tiny",
            "data": "none",
            "output": "none",
            "num_experts": 4,
            "top_k": 2,
            "r": 2,
            "steps": STEPS,
            "warmup_steps": 3,
            "expert_learning_rate": 1e-2,
            "router_learning_rate": 3e-2,
            "seed": 5,
            **METHODS[method],
        }
    )
    trainer = Trainer(config, tiny_model("llama"), examples())
    reports: list[StepReport] = []
    trainer.run(on_step=reports.append)
    return [
        [r.loss, r.routing.entropy, r.routing.support, r.expert_norm, r.router_norm]
        for r in reports
    ]


def main() -> None:
    torch.set_num_threads(1)
    found = {method: run(method) for method in METHODS}
    if "--update" in sys.argv[1:]:
        shown = {
            method: [[float(f"{value:.7g}") for value in row] for row in rows]
            for method, rows in found.items()
        }
        lines = [
            f'  "{method}": [\n' + ",\n".join(f"    {json.dumps(row)}" for row in rows) + "\n  ]"
            for method, rows in shown.items()
        ]
        STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    stored = json.loads(STORED.read_text())
    for method, rows in found.items():
        difference = (torch.tensor(rows) - torch.tensor(stored[method])).abs().max()
        print(f"{method}: largest difference {difference:.2e}")


if __name__ == "__main__":
    main()
