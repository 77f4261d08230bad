"""All that a GPU has to tell, in a quarter of an hour of one: `make gpu-check`.

The parts are in order of their value, and what came of each is written as it ends, to
benchmarks/results/DATE-gpu-check.{json,md}. A later run of the same code on the same kind of device
goes on where the newest such file stops. Without CUDA all of it is tried out on the CPU, with tiny
shapes and more patience, and written to runs/.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.gpu.parts import Outcome, Part, as_json, read_outcomes, run_parts
from benchmarks.machine import describe_machine
from benchmarks.result import Table, write
from remix_runtime.demo_model import MODELS, SMOLLM2, default_cache

_PYTEST = ("-W", "ignore", "-m", "pytest", "-W", "ignore", "-p", "no:cacheprovider")
"""Other versions may be there than those that warn of nothing."""
_PASSED = r"\d passed"
"""Where all were skipped, none was."""
_VLLM = ("-m", "benchmarks.gpu.vllm_decode", "--out", "{out}", "--seconds", "{seconds}")
PARTS = (
    Part("GPU tests", (*_PYTEST, "-m", "gpu", "tests/gpu"), 150, tells=_PASSED),
    Part(
        "training step",
        ("-m", "benchmarks.gpu.training_step", "--out", "{out}", "--seconds", "{seconds}"),
        120,
        needs=("peft",),
        tells="goal of|goal at least",
    ),
    *(
        Part(
            f"vLLM, {shape}",
            (*_VLLM, "--check-modes", "", "--shape", shape),
            140,
            needs=("vllm",),
            tells="^requests: ",
        )
        for shape in ("8,4,8", "4,2,8")
    ),
    Part(
        "embedded engine's contract",
        (*_PYTEST, "-k", "embedded", "tests/contract"),
        60,
        tells=_PASSED,
    ),
    Part(
        "vLLM's tokens under CUDA graphs",
        (*_VLLM, "--check-modes", "graphs", "--mode", "none"),
        90,
        needs=("vllm",),
        tells="together_is_reference",
    ),
)
RESULTS = Path("benchmarks/results")
TINY_RESULTS = Path("runs/gpu-check")
ENDING = "-gpu-check"
PATIENCE = 4
"""Times the limits, where it is tried out on a CPU."""
_ROOT = Path(__file__).resolve().parents[2]
_ROOMS = ("remix_runtime", "training", "server", "benchmarks", "tests")


def main(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Result path without ending.",
            show_default="of today, or where the newest result of this code on this device is",
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(help="For all parts together.")] = 8.0,
    tiny: Annotated[
        bool, typer.Option(help="Tiny shapes; so it is where there is no CUDA device.")
    ] = False,
    only: Annotated[str, typer.Option(help="Run parts whose name has this in it.")] = "",
    study: Annotated[
        Path | None,
        typer.Option(help="Folder with tasks' files: go on with the study of quality, at the end."),
    ] = None,
) -> None:
    """Run all that there is to check and to measure on a GPU."""
    # The part that is running ends with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: ended by SIGTERM"))
    has_cuda = torch.cuda.is_available()
    tiny = tiny or not has_cuda
    machine = {**describe_machine(), "torch": torch.__version__}
    identity = {
        "code": digest_of_code(_ROOT),
        "device": machine.get("gpu", "cuda") if has_cuda else "cpu",
        "tiny": tiny,
    }
    folder = TINY_RESULTS if tiny else RESULTS
    stem = out or newest(folder, identity) or folder / f"{date.today().isoformat()}{ENDING}"
    stem = unless_of_others(stem, identity)
    patience = 1 if has_cuda else PATIENCE
    planned = [*PARTS, *([study_part(study, tiny=tiny)] if study else [])]
    parts = [
        replace(part, seconds=patience * part.seconds) for part in planned if only in part.name
    ]
    if not parts:
        names = ", ".join(part.name for part in planned)
        raise SystemExit(f"error: only: found {only!r}, expected a part of one of {names}")
    known = earlier_outcomes(stem, identity)

    def on_end(outcomes: Sequence[Outcome]) -> None:
        ended = {outcome.name: outcome for outcome in outcomes}
        so_far = {**known, **ended}
        ordered = [so_far[part.name] for part in PARTS if part.name in so_far]
        write_outcomes(stem, ordered, machine, identity)

    found = run_parts(
        parts,
        Path("runs/gpu-check/logs"),
        earlier=known,
        seconds=60 * minutes * patience,
        environment={"REMIX_GPU_TINY": "1"} if tiny else {},
        on_end=on_end,
        report=lambda line: print(f"gpu-check: {line}", flush=True),
    )
    print(f"gpu-check: written to {stem}.md and .json", flush=True)
    raise typer.Exit(0 if all(outcome.is_good for outcome in found) else 1)


def study_part(data: Path, *, tiny: bool) -> Part:
    """The next runs of the study, on the demo bases that are here."""
    bases = ",".join(name for name in MODELS if (default_cache() / name).is_dir())
    options = {
        "--data": str(data.resolve()),
        "--bases": bases or SMOLLM2.name,
        "--scale": "tiny" if tiny else "paper",
        "--minutes": "{minutes}",
        "--work": "runs/study",
        "--out": "{out}",
    }
    words = [word for option in options.items() for word in option]
    return Part(
        "study",
        ("-m", "benchmarks.quality.study", *words),
        240,
        tells="^study: ",
        goes_on=True,
    )


def write_outcomes(
    stem: Path, outcomes: Sequence[Outcome], machine: dict[str, Any], identity: dict[str, Any]
) -> None:
    table = Table(
        ("part", "came to", "s", ""),
        [
            (each.name, each.status, f"{each.seconds:.0f}", each.note.splitlines()[-1])
            for each in outcomes
        ],
    )
    sections = []
    for each in outcomes:
        note = "" if each.is_good else f"```\n{each.note}\n```"
        shown = [shown for shown in (note, each.text) if shown]
        sections += [f"## {each.name}", *shown] if shown else []
    tried = " tried out with tiny shapes: no figure says anything" if identity["tiny"] else ""
    write(
        stem,
        f"GPU check{tried}",
        table,
        *sections,
        machine=machine,
        identity=identity,
        parts=as_json(outcomes),
    )


def newest(folder: Path, identity: dict[str, Any]) -> Path | None:
    """The stem of the newest result of the same code, device and shapes."""
    for path in sorted(folder.glob(f"*{ENDING}*.json"), reverse=True):
        stem = path.with_suffix("")
        if earlier_outcomes(stem, identity):
            return stem
    return None


def unless_of_others(stem: Path, identity: dict[str, Any]) -> Path:
    """The stem, or the first numbered one whose file nobody else has written."""
    numbered = (stem.with_name(f"{stem.name}-{number}") for number in itertools.count(2))
    return next(
        each
        for each in (stem, *itertools.islice(numbered, 1000))
        if not _json(each).exists() or earlier_outcomes(each, identity)
    )


def earlier_outcomes(stem: Path, identity: dict[str, Any]) -> dict[str, Outcome]:
    """What a result says, if it is of the same code, device and shapes."""
    path = _json(stem)
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    return read_outcomes(document) if document.get("identity") == identity else {}


def _json(stem: Path) -> Path:
    return stem.with_name(stem.name + ".json")


def digest_of_code(root: Path) -> str:
    """Of all that runs. A commit of results changes nothing of it, and a copy without git has it
    too."""
    digest = hashlib.sha256()
    for room in _ROOMS:
        for path in sorted((root / room).rglob("*")):
            if path.suffix in (".py", ".c", ".h"):
                digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    typer.run(main)
