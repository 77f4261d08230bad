"""The time of a training step against PEFT's LoRA, the baselines, and itself with other settings.

    python -m benchmarks.speed.training [--base BASE] [--rounds 5] [--out STEM]

Every side takes whole steps, from a batch to the moved weights, on rows of random tokens that are
the same for all sides of a case and new in every round. ReMix with M selections runs M · examples
rows; sides that draw nothing get as many rows of their own. Ratios are taken within each round.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.options import Base, Out
from benchmarks.result import Table, publish
from benchmarks.rounds import ratio, run_rounds, spread
from benchmarks.shape import FEED_FORWARD, AdapterShape, in_upper_blocks
from remix_runtime.extras import require_extra
from remix_runtime.threads import available_cores
from training.base import load_base
from training.completion_loss import completion_shares
from training.config import TrainConfig, parse_config
from training.data import Batch, collate
from training.encoding import Example
from training.losses import supervised_loss
from training.objective import attach_method, pass_loss
from training.recompute import recompute_blocks
from training.seeds import generator
from training.trunk import Trunk

RATE = 1e-3

Step = Callable[[Batch, int], None]
"""Takes one step on a batch of examples in a round."""


def main(
    base: Base,
    shape: str = typer.Option("8,4,8", help="n,k,r; PEFT's LoRA has rank k·r."),
    selections: int = typer.Option(4, min=2, help="M."),
    rows: int = typer.Option(8, help="Sequences that go through the model in a step."),
    tokens: int = typer.Option(160, help="Of each row, prompt and completion in equal parts."),
    upper: int = typer.Option(4, help="Blocks that the case of upper blocks adapts."),
    rounds: int = typer.Option(5, help="Interleaved rounds."),
    threads: int = typer.Option(0, help="0: those it may use."),
    out: Out = None,
) -> None:
    """Measure the time of a training step."""
    require_extra("benchmarks.speed.training", "peft", "peft")
    torch.set_num_threads(threads or available_cores())
    sizes = AdapterShape.parse(shape)
    blocks = load_base(str(base))[0].config.num_hidden_layers
    above = tuple(in_upper_blocks(blocks, upper))
    cleared = ExitStack()
    folder = Path(cleared.enter_context(tempfile.TemporaryDirectory()))
    make = _Sides(base, sizes, selections, folder)
    cases: dict[str, dict[str, Step]] = {
        "all feed-forward linears": {
            "PEFT LoRA": make.peft(FEED_FORWARD),
            "LoRA": make.ours(FEED_FORWARD, method="lora"),
            "softmax mixture": make.ours(FEED_FORWARD, method="softmax"),
            "ReMix": make.ours(FEED_FORWARD),
            "ReMix, blocks recomputed": make.ours(FEED_FORWARD, recompute=True),
        },
        f"those of the upper {upper} of {blocks} blocks": {
            "ReMix, nothing shared": make.ours(above, share=False),
            "ReMix, trunk shared": make.ours(above),
            "ReMix, trunk kept": make.ours(above, keep=True),
            "PEFT LoRA": make.peft(above),
        },
    }

    def timed(step: Step, draws: int, number: int) -> float:
        batch = collate(random_examples(rows // draws, tokens, make.vocab_size, number))
        if isinstance(step, _AfterTheFirst):
            step.see(batch)
        begin = time.perf_counter()
        step(batch, number)
        return time.perf_counter() - begin

    found = run_rounds(
        {
            case: {name: partial(timed, step, make.draws(name)) for name, step in sides.items()}
            for case, sides in cases.items()
        },
        rounds=rounds,
        warm_up=1,
        report=typer.echo,
    )
    cleared.close()
    table = []
    for case, sides in found.items():
        references = next(iter(sides)), "softmax mixture"
        for name, seconds in sides.items():
            ratios = [ratio(seconds, sides[r]) if r in sides else None for r in references]
            table.append(
                [case, name, spread(list(seconds.values())).show(2),
                 *(each.show(3) if each else "" for each in ratios)]
            )  # fmt: skip
    publish(
        out,
        "The time of a training step",
        f"{sizes}, M {selections}, {rows} rows of {tokens} tokens, {base.name}, "
        f"{torch.get_num_threads()} threads: median (least to most) of {rounds} rounds.",
        Table(["adapted", "side", "s", "ratio to the first side", "to the softmax mixture"], table),
        seconds=found,
    )


class _Sides:
    """Makes steps, each on a model of its own."""

    def __init__(self, base: Path, shape: AdapterShape, selections: int, folder: Path) -> None:
        """`folder` is for what trunks keep."""
        self._base, self._shape, self._selections = base, shape, selections
        self._folder = folder
        self.vocab_size = self._model().config.vocab_size

    def draws(self, name: str) -> int:
        """How many rows a side makes of an example."""
        return self._selections if name.startswith("ReMix") else 1

    def ours(
        self,
        targets: tuple[str, ...],
        *,
        method: str = "remix",
        share: bool = True,
        keep: bool = False,
        recompute: bool = False,
    ) -> Step:
        model = self._model()
        config = self._config(targets, method)
        layers = attach_method(model, config)
        folder = Path(tempfile.mkdtemp(dir=self._folder)) if keep else None
        trunk = Trunk.of(model, folder) if share and method == "remix" else None
        if recompute:
            recompute_blocks(model)

        def loss_of(batch: Batch, number: int) -> Tensor:
            draws = generator("benchmark", number)
            return pass_loss(model, layers, batch, config, draws, trunk)[0]

        step = stepping(model, loss_of)
        return _AfterTheFirst(step, trunk, model) if keep and trunk else step

    def peft(self, targets: tuple[str, ...]) -> Step:
        inner: PreTrainedModel = peft_lora(self._model(), self._shape, targets).get_base_model()
        return stepping(inner, lambda batch, _: supervised_loss(completion_shares(inner, batch))[0])

    def _model(self) -> PreTrainedModel:
        return load_base(str(self._base))[0]

    def _config(self, targets: tuple[str, ...], method: str) -> TrainConfig:
        only_remix = {"selections": self._selections} if method == "remix" else {}
        return parse_config(
            {
                "base": str(self._base),
                "data": "rows.jsonl",
                "output": "run",
                "method": method,
                "num_experts": self._shape.n,
                "top_k": self._shape.k,
                "r": self._shape.r,
                "target_modules": targets,
                **only_remix,
            }
        )


@dataclass(frozen=True, slots=True)
class _AfterTheFirst:
    """Steps of later epochs, whose rows have been seen: what their trunk computes is kept."""

    step: Step
    trunk: Trunk
    model: PreTrainedModel

    def see(self, batch: Batch) -> None:
        self.trunk.states(self.model, batch)

    def __call__(self, batch: Batch, number: int) -> None:
        self.step(batch, number)


def peft_lora(model: PreTrainedModel, shape: AdapterShape, targets: tuple[str, ...]) -> Any:
    """The model with PEFT's LoRA of rank k·r."""
    import peft

    rank = shape.k * shape.r
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets))
    return peft.get_peft_model(model, config)


def stepping(model: PreTrainedModel, loss_of: Callable[[Batch, int], Tensor]) -> Step:
    """Loss, gradients, their norm, AdamW: what every side does after its own loss."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, fused=True)

    def step(batch: Batch, number: int) -> None:
        loss = loss_of(batch, number)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def random_examples(count: int, tokens: int, vocab_size: int, number: int) -> list[Example]:
    """Rows of so many random tokens, prompt and completion in equal parts."""
    random = generator("rows", number)
    prompt = tokens // 2
    return [
        Example(
            tokens=tuple(torch.randint(vocab_size, (tokens,), generator=random).tolist()),
            is_target=(False,) * prompt + (True,) * (tokens - prompt),
            prompt_length=prompt,
        )
        for _ in range(count)
    ]


if __name__ == "__main__":
    typer.run(main)
