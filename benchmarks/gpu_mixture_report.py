"""The result of `gpu_mixture.py`: floors, percentages, JSON and Markdown."""

from __future__ import annotations

import dataclasses
import datetime
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
import triton

BF16_FLOPS, FP32_FLOPS = 800e12, 60e12
"""Of an H100: a large matrix product as measured, and its float32 units."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The linears of a decoder layer: qkv, output, gate/up as one, down."""

    name: str
    layers: int
    hidden: int
    ffn: int
    qkv: int


@dataclass(frozen=True, slots=True)
class Config:
    n: int
    k: int
    r: int

    def __str__(self) -> str:
        return f"n{self.n} k{self.k} r{self.r}"


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

    shape: Shape
    config: Config
    case: Case
    form: str
    beside: bool
    """The part that needs only x runs beside the base product."""
    variant: str
    """What of `Tuning` is not as usual."""
    is_chosen: bool
    base_seconds: float
    seconds: float

    @property
    def added(self) -> float:
        """Microseconds per layer."""
        return (self.seconds - self.base_seconds) / self.case.layers * 1e6

    @property
    def percent(self) -> float:
        return 100 * (self.seconds / self.base_seconds - 1)

    def floor(self, bandwidth: float) -> float:
        """Microseconds per layer that the addition cannot beat: the bytes of the routers, of the
        experts that can be activated and of x and y, or the arithmetic."""
        T, n, k, r = self.case.tokens, self.config.n, self.config.k, self.config.r
        each = -(-T // self.case.adapters)
        experts = self.case.adapters * min(n, each * k)
        routed = n if k < n else 0
        size = flops = router_flops = 0.0
        for D, width, slices in (
            (self.shape.hidden, self.shape.ffn, 2),
            (self.shape.ffn, self.shape.hidden, 1),
        ):
            size += slices * self.case.adapters * routed * D * 4
            size += slices * experts * r * (D + width) * 2
            size += T * (D + 2 * slices * width) * 2
            router_flops += 2 * T * slices * routed * D
            flops += 2 * T * slices * k * r * (D + width)
        arithmetic = flops / BF16_FLOPS + router_flops / FP32_FLOPS
        return max(size / bandwidth, arithmetic) * 1e6

    @property
    def name(self) -> str:
        return self.form + " beside" * self.beside + f", {self.variant}" * bool(self.variant)

    def line(self, bandwidth: float) -> str:
        base, floor = self.base_seconds / self.case.layers * 1e6, self.floor(bandwidth)
        chosen = " *" * (self.is_chosen and not self.variant)
        return (
            f"| {self.shape.name} | {self.config} | {self.case} | "
            f"{self.name}{chosen} | {base:.1f} | {self.added:.1f} | "
            f"{self.percent:.1f} | {floor:.1f} | {self.added / floor:.1f} |"
        )


@dataclass(slots=True)
class Summary:
    quick: bool
    checks: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    bandwidth: float = 3e12
    seconds: float = 0.0


def short(summary: Summary) -> str:
    """A line per case, microseconds per layer: the chosen form, after the base product and beside
    it, and the others, best first."""
    groups: dict[str, list[Result]] = {}
    for result in summary.results:
        groups.setdefault(f"{result.shape.name} {result.config} {result.case}", []).append(result)
    lines = [*summary.checks, *(f"left out: {line}" for line in summary.left_out[:3])]
    for name, results in groups.items():
        first = results[0]
        base = first.base_seconds / first.case.layers * 1e6
        plain = [result for result in results if not result.variant]
        chosen = ", ".join(f"{r.name} {r.added:.1f}" for r in plain if r.is_chosen)
        others = [result for result in results if not result.is_chosen or result.variant]
        others.sort(key=lambda result: result.seconds)
        best = ", ".join(f"{result.name} {result.added:.1f}" for result in others[:8])
        floor = first.floor(summary.bandwidth)
        lines.append(f"{name}: base {base:.0f} floor {floor:.1f} | {chosen} | {best}")
    lines.append(f"{summary.seconds:.0f} s, {len(summary.left_out)} left out")
    return "\n".join(lines)


def write(summary: Summary, folder: Path) -> None:
    """Both files."""
    machine = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "copy_tb_per_s": round(summary.bandwidth / 1e12, 2),
        "seconds": round(summary.seconds),
        "quick": summary.quick,
    }
    text = "\n".join(
        [
            "# The ReMix addition on a GPU",
            "",
            *(f"- {name}: {value}" for name, value in machine.items()),
            *(f"- check: {line}" for line in summary.checks),
            *(f"- left out, the time was over: {line}" for line in summary.left_out),
            "",
            "Microseconds per layer (gate/up and down together), percent of the step's linears; "
            "`*` marks the form that `choose_form` takes.",
            "",
            "| model | adapter | tokens / adapters | form | base | added | % | floor | × floor |",
            "|---|---|---|---|---|---|---|---|---|",
            *(result.line(summary.bandwidth) for result in summary.results),
            "",
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        dataclasses.asdict(result)
        | {
            "added_us_per_layer": result.added,
            "percent": result.percent,
            "floor_us_per_layer": result.floor(summary.bandwidth),
        }
        for result in summary.results
    ]
    document = machine | {"checks": summary.checks, "left_out": summary.left_out, "results": rows}
    (folder / "gpu_mixture.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "gpu_mixture.md").write_text(text)
