"""The speed suite from its settings to its files: start the systems, run rounds, judge, write."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.rounds import Report
from benchmarks.speed.goals import goals, judge
from benchmarks.speed.lineup import lineup
from benchmarks.speed.measure import Results, measure
from benchmarks.speed.plan import SpeedConfig, cases
from benchmarks.speed.plot import plot_output_rates
from benchmarks.speed.report import write_report
from remix_runtime.base.tokenizer import load_tokenizer


def run_speed(config: SpeedConfig, stem: Path, report: Report) -> None:
    """Measures, prints, writes `stem`.json, .md and .png. Raises `ConfigError`."""
    machine = describe_machine()
    grid = cases(config.batches, config.prompts, config.new_tokens)
    results = Results()
    for _ in range(config.sittings):
        with lineup(config, report) as systems:
            results = measure(
                grid,
                systems.workers,
                vocab_size=systems.vocab_size,
                rounds=config.rounds,
                minutes=config.minutes / config.sittings,
                detokenize=load_tokenizer(str(config.base)).decode,
                report=report,
                before=results,
            )
            results.failures |= systems.left_out
    machine["load_average_at_end"] = describe_machine()["load_average"]
    settings = asdict(config) | {"base": config.base.name, "shape": str(config.shape)}
    for path in ("vllm_python", "vllm_preload"):
        del settings[path]  # of this machine only
    settings["megabytes_read_per_token"] = {
        kind: round(number / 1e6, 1) for kind, number in systems.bytes_per_token.items()
    }
    verdicts = judge(goals(grid), results)
    write_report(stem, results, verdicts, machine, systems.about(), settings)
    plot_output_rates(results, stem.with_name(stem.name + ".png"))
