"""The result of `mixture.py`: floors, percentages, JSON and Markdown."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from benchmarks.result import Table, publish
from benchmarks.shape import AdapterShape

BF16_FLOPS, FP32_FLOPS = 800e12, 60e12
"""An H100's rates: a large matrix product as measured, and its float32 units."""
HEADER = ("model", "adapter", "tokens / adapters", "form", "base", "added", "%", "floor", "× floor")


@dataclass(frozen=True, slots=True)
class Model:
    """The linears of a decoder layer: qkv, output, gate/up as one, down."""

    name: str
    layers: int
    hidden: int
    ffn: int
    qkv: int


@dataclass(frozen=True, slots=True)
class Case:
    tokens: int
    adapters: int
    bound: int
    """The most adapters there can be, as far as the host knows."""
    layers: int

    def __str__(self) -> str:
        unknown = "" if self.bound == self.adapters else f" (of up to {self.bound})"
        return f"{self.tokens} / {self.adapters}{unknown}"


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds are those of the whole step."""

    model: Model
    shape: AdapterShape
    case: Case
    form: str
    """"beside" where the part that needs only x runs beside the base product."""
    is_chosen: bool
    base_seconds: float
    seconds: float

    @property
    def _added(self) -> float:
        return self.seconds - self.base_seconds

    def floor(self, bandwidth: float) -> float:
        """Microseconds per layer that the addition cannot beat: the bytes of the routers, of the
        experts that can be activated and of x and y, or the arithmetic."""
        T, n, k, r = self.case.tokens, self.shape.n, self.shape.k, self.shape.r
        each = -(-T // self.case.adapters)
        experts = self.case.adapters * min(n, each * k)
        routed = n if k < n else 0
        size = flops = router_flops = 0.0
        for D, width, slices in (
            (self.model.hidden, self.model.ffn, 2),
            (self.model.ffn, self.model.hidden, 1),
        ):
            size += slices * self.case.adapters * routed * D * 4
            size += slices * experts * r * (D + width) * 2
            size += T * (D + 2 * slices * width) * 2
            router_flops += 2 * T * slices * routed * D
            flops += 2 * T * slices * k * r * (D + width)
        arithmetic = flops / BF16_FLOPS + router_flops / FP32_FLOPS
        return max(size / bandwidth, arithmetic) * 1e6

    def row(self, bandwidth: float) -> list[object]:
        base, added = (s / self.case.layers * 1e6 for s in (self.base_seconds, self._added))
        floor, percent = self.floor(bandwidth), 100 * self._added / self.base_seconds
        figures = [f"{number:.1f}" for number in (base, added, percent, floor, added / floor)]
        return [self.model.name, self.shape, self.case, self.form + " *" * self.is_chosen, *figures]


@dataclass(slots=True)
class Summary:
    bandwidth: float
    checks: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def write(summary: Summary, stem: Path) -> None:
    machine = {
        **describe_machine(),
        "gpu": torch.cuda.get_device_name(),
        "copy_tb_per_s": round(summary.bandwidth / 1e12, 2),
    }
    notes = [f"- check: {line}" for line in summary.checks]
    notes += [f"- left out, the time was over: {line}" for line in summary.left_out]
    publish(
        stem,
        "The ReMix addition on a GPU",
        "\n".join(notes),
        "Microseconds per layer (gate/up and down together), percent of the step's linears; "
        "`*` marks the form that `choose_form` takes.",
        Table(HEADER, [result.row(summary.bandwidth) for result in summary.results]),
        machine=machine,
        results=[asdict(result) for result in summary.results],
    )
