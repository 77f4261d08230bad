"""The speed suite from its settings to its files: start the systems, run rounds, judge, write."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from benchmarks.adapters import AdapterShape
from benchmarks.goals import goals, judge
from benchmarks.lineup import LineupConfig, start_lineup
from benchmarks.machine import describe_machine
from benchmarks.plan import Prompt, cases
from benchmarks.plot import plot_output_rates
from benchmarks.report import as_json, as_markdown, write_result
from benchmarks.speed import run_rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedConfig:
    """The options of `remix bench`, parsed."""

    base: Path
    stem: Path
    shape: str
    targets: tuple[str, ...]
    batches: tuple[int, ...]
    prompts: tuple[str, ...]
    new_tokens: int
    peers: tuple[str, ...]
    rounds: int
    minutes: float
    threads: int
    vllm_python: Path | None
    vllm_eager: bool
    vllm_preload: str


def run_speed(config: SpeedConfig, report: Callable[[str], None]) -> str:
    """Measures, writes `stem`.json, .md and .png, and returns the Markdown.

    Raises `ConfigError`.
    """
    from transformers import AutoTokenizer

    machine = describe_machine()
    prompts = cast("tuple[Prompt, ...]", config.prompts)
    grid = cases(config.batches, prompts, config.new_tokens)
    with tempfile.TemporaryDirectory(prefix="remix-bench-") as scratch:
        lineup = start_lineup(
            LineupConfig(
                base=config.base,
                scratch=Path(scratch),
                threads=config.threads,
                max_running=max(config.batches),
                peers=config.peers,
                shape=AdapterShape.parse(config.shape),
                targets=config.targets,
                vllm_python=config.vllm_python,
                vllm_eager=config.vllm_eager,
                vllm_preload=config.vllm_preload,
            ),
            report,
        )
        try:
            tokenizer = AutoTokenizer.from_pretrained(config.base)
            results = run_rounds(
                grid,
                lineup.workers,
                vocab_size=lineup.vocab_size,
                rounds=config.rounds,
                minutes=config.minutes,
                detokenize=tokenizer.decode,
                report=report,
            )
            results.failures |= lineup.left_out
            systems = lineup.about()
        finally:
            lineup.close()
    verdicts = judge(goals(grid), results)
    machine["load_average_at_end"] = describe_machine()["load_average"]
    settings = {
        key: value
        for key, value in asdict(config).items()
        if key not in ("base", "stem", "vllm_python", "vllm_preload")
    }
    settings["base"] = config.base.name
    settings["megabytes_read_per_token"] = round(lineup.bytes_per_token / 1e6, 1)
    markdown = as_markdown(results, verdicts, machine, systems, settings)
    document = as_json(results, verdicts, machine, systems, settings)
    write_result(config.stem, document, markdown)
    plot_output_rates(results, config.stem.with_name(config.stem.name + ".png"))
    return markdown
