"""A training step of a base in the shape of Llama-3-8B, and its memory, against PEFT's LoRA.

    python -m benchmarks.gpu.training_step --out STEM [--rounds 5] [--seconds 100]

The base is random, made on the device in bfloat16, and shared by all sides. ReMix is `Trainer`'s
own step, its checks and its copy of the last good state included; PEFT's LoRA of rank k·r takes the
same M copies of the same rows, as PEFT makes it and under autocast. Sides take turns, and ratios
are taken within a round. Beside the peak of the memory stands what docs/training.md predicts.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.gpu.bases import llama_8b, small
from benchmarks.result import Table, publish
from benchmarks.rounds import Spread, ratio, run_rounds, spread
from benchmarks.shape import FEED_FORWARD, AdapterShape
from benchmarks.speed.training import peft_lora, random_examples, stepping
from training.completion_loss import completion_shares
from training.config import TrainConfig, parse_config
from training.data import Batch, collate
from training.losses import supervised_loss
from training.memory import memory_of
from training.objective import attach_method
from training.recompute import recompute_blocks
from training.trainer import Trainer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE = AdapterShape(8, 4, 8)
SELECTIONS, EXAMPLES = 4, 2
GOAL = 0.85
"""Of the tokens per second of PEFT's LoRA, the faster of the two."""
CASES = {"recomputed": True, "kept": False}
"""Whether blocks are computed again for their gradients. The second may need too much memory, and
is then a line of the result."""
REMIX = "ReMix"
HEADER = ("blocks", "side", "tokens/s", "ReMix to it", "peak GB", "predicted GB")

Step = Callable[[], object]


def main(
    out: Annotated[Path, typer.Option(help="Result path without ending.")],
    tokens: int = 512,
    layers: int = 32,
    rounds: int = 5,
    seconds: Annotated[float, typer.Option(help="Rounds that would end later are left out.")] = 600,
    tiny: Annotated[
        bool, typer.Option(envvar="REMIX_GPU_TINY", help="A tiny base and few tokens.")
    ] = False,
) -> None:
    """Measure a training step and its memory."""
    end = time.monotonic() + seconds
    torch.manual_seed(0)
    tokens = 16 if tiny else tokens
    shape = small(vocab_size=512) if tiny else llama_8b(layers=layers)
    sides = Sides(shape, tokens)
    rows: list[list[object]] = []
    verdicts: list[str] = []
    figures: dict[str, Any] = {"goal": GOAL, "predicted": {}, "cases": {}}
    for number, case in enumerate(CASES):
        share = (end - time.monotonic()) / (len(CASES) - number)
        found = sides.measure(case, rounds=rounds, seconds=share)
        predicted = sides.predicted(case)
        figures["predicted"][case], figures["cases"][case] = predicted, found
        rows += table_rows(case, found, sum(predicted.values()))
        verdicts.append(f"- {verdict(case, found)}")
        parts = "; ".join(f"{name} {_gb(size)}" for name, size in predicted.items())
        verdicts += [f"- predicted, blocks {case}, in GB: {parts}"]
        publish(
            out,
            "A training step in the shape of Llama-3-8B",
            f"{SHAPE}, M {SELECTIONS}, {EXAMPLES} rows of {tokens} tokens, all feed-forward "
            f"linears of {shape.num_hidden_layers} blocks, bfloat16, {sides.parameters:,} "
            "parameters.",
            "\n".join(verdicts),
            Table(HEADER, rows),
            **figures,
        )
    print("; ".join(verdict(case, found) for case, found in figures["cases"].items()))


class Sides:
    """What is compared, on one base."""

    def __init__(self, config: LlamaConfig, tokens: int) -> None:
        with DEVICE:
            base: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        self._base = base.eval().requires_grad_(False)
        self._base_bytes = _allocated()
        self._rows = random_examples(EXAMPLES, tokens + 1, config.vocab_size, 0)
        self._batch = collate(self._rows, device=DEVICE).repeat(SELECTIONS)
        self.parameters = base.num_parameters()
        self.tokens = self._batch.inputs_BT.numel()

    def measure(self, case: str, *, rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
        """By side: tokens per second by round, and bytes at the peak, None on a CPU. Or why it
        could not run."""
        end, recompute = time.monotonic() + seconds, CASES[case]
        makers = {
            REMIX: partial(self._remix, recompute),
            "PEFT LoRA": partial(self._peft, recompute, nullcontext),
            "PEFT LoRA, autocast": partial(self._peft, recompute, _autocast),
        }
        steps: dict[str, Callable[[int], float | None]] = {}
        found: dict[str, dict[str, Any]] = {}
        for name, make in makers.items():
            begun = self._begun(make)
            if begun is None:
                found[name] = {"failure": "out of memory"}
                _free()
            else:
                steps[name] = partial(self._rate, begun[0])
                found[name] = {"peak_bytes": begun[1]}
            print(f"blocks {case}, {name}: {found[name]}", flush=True)
        left = end - time.monotonic()
        by_round = run_rounds({"": steps}, rounds=rounds, warm_up=1, seconds=left, report=print)[""]
        for name, rates in by_round.items():
            found[name]["tokens_per_second"] = rates
        steps.clear()
        del begun
        _free()
        return found

    def predicted(self, case: str) -> dict[str, int]:
        """Bytes of a step of ReMix by the formula of docs/training.md."""
        config, model = self._config(CASES[case]), self._copy()
        memory = memory_of(model, attach_method(model, config), config, self._batch)
        assert memory is not None, "a Llama's blocks"
        return asdict(memory)

    def _remix(self, recompute: bool) -> Step:
        trainer = Trainer(self._config(recompute), self._copy(), self._rows)
        return trainer.train_step

    def _peft(self, recompute: bool, context: Callable[[], AbstractContextManager[Any]]) -> Step:
        model = peft_lora(self._copy(), SHAPE, FEED_FORWARD)
        inner: PreTrainedModel = model.get_base_model()
        if recompute:
            recompute_blocks(inner)

        def loss_of(batch: Batch, _: int) -> Tensor:
            with context():
                return supervised_loss(completion_shares(inner, batch))[0]

        return partial(stepping(inner, loss_of), self._batch, 0)

    def _begun(self, make: Callable[[], Step]) -> tuple[Step, int | None] | None:
        """A side after two steps, and their peak as if it were alone: the second has all that any
        step has. None where there is too little memory."""
        others = _allocated() - self._base_bytes
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            step = make()
            step()
            step()
        except torch.OutOfMemoryError:
            return None
        is_told = DEVICE.type == "cuda"
        return step, torch.cuda.max_memory_allocated() - others if is_told else None

    def _rate(self, step: Step, number: int) -> float | None:
        _synchronize()
        begin = time.perf_counter()
        try:
            step()
        except torch.OutOfMemoryError:  # with what the other sides keep
            return None
        _synchronize()
        return self.tokens / (time.perf_counter() - begin)

    def _copy(self) -> PreTrainedModel:
        """A model of its own over the base's weights."""
        shared = {id(parameter): parameter for parameter in self._base.parameters()}
        return copy.deepcopy(self._base, shared)

    def _config(self, recompute: bool) -> TrainConfig:
        return parse_config(
            {
                "base": "random",
                "data": "random",
                "output": "nowhere",
                "num_experts": SHAPE.n,
                "top_k": SHAPE.k,
                "r": SHAPE.r,
                "target_modules": FEED_FORWARD,
                "selections": SELECTIONS,
                "batch_size": EXAMPLES,
                "gradient_checkpointing": recompute,
                # The rows are the same in every step: nothing is to be learned from them.
                "expert_learning_rate": 1e-4,
                "router_learning_rate": 1e-4,
            }
        )


def table_rows(case: str, found: dict[str, dict[str, Any]], predicted: int) -> list[list[object]]:
    rows: list[list[object]] = []
    for name, side in found.items():
        rates, peak = side.get("tokens_per_second"), side.get("peak_bytes")
        to_it = None if name == REMIX else _to(found, name)
        rows.append(
            [
                case,
                name,
                spread(list(rates.values())).show(0) if rates else side.get("failure", ""),
                to_it.show(3) if to_it else "",
                _gb(peak) if peak is not None else "",
                _gb(predicted) if name == REMIX else "",
            ]
        )
    return rows


def verdict(case: str, found: dict[str, dict[str, Any]]) -> str:
    """The goal, against the fastest of the others."""
    ratios = [each for name in found if name != REMIX and (each := _to(found, name))]
    if not ratios:
        return f"blocks {case}: no ratio, so nothing is said of the goal of {GOAL}"
    least = min(ratios, key=lambda each: each.median)
    met = "met" if least.median >= GOAL else "missed"
    return f"blocks {case}: {least.show(3)} of PEFT's tokens/s, goal at least {GOAL}: {met}"


def _to(found: dict[str, dict[str, Any]], name: str) -> Spread | None:
    ours, theirs = (found[side].get("tokens_per_second", {}) for side in (REMIX, name))
    return ratio(ours, theirs)


def _autocast() -> AbstractContextManager[Any]:
    return torch.autocast(DEVICE.type, torch.bfloat16)


def _allocated() -> int:
    return torch.cuda.memory_allocated() if DEVICE.type == "cuda" else 0


def _synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _free() -> None:
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"


if __name__ == "__main__":
    typer.run(main)
