"""`make samples`: trains the sample adapters again, scores them and puts them in place.

    python -m examples.samples [NAME ...] [--keep-runs] [--only-records]

For each sample: `remix train` with its recipe, `remix eval` on its held-out rows, then the
adapter with the scores in its model card goes to `examples/<name>/adapter`, and its digest and
scores to the table in `examples/README.md`. With --keep-runs an existing run is not trained again.
With --only-records nothing is trained: the committed adapters get a `training.json` with the load
of their experts on their training rows, and keep their digests.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from examples import make_data
from remix_runtime.adapter.checkpoint import read_checkpoint
from remix_runtime.adapter.checkpoint.writer import put_training
from remix_runtime.adapter.layers import attach_checkpoint
from remix_runtime.demo_model import demo_model
from training.config import load_config
from training.preparation import prepare
from training.record import training_record

EXAMPLES = Path(__file__).parent
RUNS = EXAMPLES.parent / "runs"
REMIX = str(Path(sys.executable).with_name("remix"))


def main(arguments: list[str]) -> None:
    keep_runs, only_records = "--keep-runs" in arguments, "--only-records" in arguments
    names = [name for name in arguments if not name.startswith("--")] or list(make_data.STYLES)
    make_data.main(EXAMPLES)
    RUNS.mkdir(exist_ok=True)
    base = RUNS / demo_model(report=print).name
    base.unlink(missing_ok=True)
    base.symlink_to(demo_model())
    for name in names:
        if only_records:
            put_record(name)
            continue
        if not (keep_runs and (RUNS / name / "adapter").is_dir()):
            recipe = EXAMPLES / name / "recipe.yaml"
            subprocess.run([REMIX, "train", str(recipe), "--overwrite"], check=True)
        install(name, base)


def install(name: str, base: Path) -> None:
    """Scores the trained adapter of one sample and replaces the committed one."""
    trained = RUNS / name / "adapter"
    heldout = EXAMPLES / name / "heldout.jsonl"
    command = [REMIX, "eval", str(trained), str(heldout), "--base", str(base), "--json"]
    scores = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    target = EXAMPLES / name / "adapter"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(trained, target)
    card = target / "README.md"
    title = f"# {name}: a sample ReMix adapter"
    text = re.sub(r"^# .*$", title, card.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
    card.write_text(f"{text.rstrip()}\n\n{score_table(scores)}", encoding="utf-8")
    update_readme(name, read_checkpoint(target).digest, scores)


def put_record(name: str) -> None:
    """Writes what `remix train` would have into a committed adapter, but for the curves of the
    run, which are gone."""
    target = EXAMPLES / name / "adapter"
    made = prepare(load_config(EXAMPLES / name / "recipe.yaml"), Console())
    layers = attach_checkpoint(made.model, read_checkpoint(target))
    put_training(target, training_record(made.model, layers, made.rows, log=()))


def score_table(scores: dict[str, Any]) -> str:
    """The section of the model card on the held-out rows."""
    lines = ["## Held-out rows", "", "| | loss | exact match |", "|---|---|---|"]
    for model in ("base", "adapter"):
        score = scores[model]
        lines.append(f"| {model} | {score['loss']:.3f} | {score['accuracy']:.1%} |")
    rows = scores["base"]["rows"]
    return "\n".join(
        [*lines, "", f"{rows} rows of `heldout.jsonl`; greedy answers, exact text.", ""]
    )


def update_readme(name: str, digest: str, scores: dict[str, Any]) -> None:
    """Replaces the sample's row in the table of `examples/README.md`."""
    readme = EXAMPLES / "README.md"
    loss = " → ".join(f"{scores[model]['loss']:.2f}" for model in ("base", "adapter"))
    match = " → ".join(f"{scores[model]['accuracy']:.0%}" for model in ("base", "adapter"))
    row = f"| [{name}]({name}/recipe.yaml) | {loss} | {match} | `{digest}` |"
    text, count = re.subn(
        rf"^\| \[{name}\].*$", row, readme.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    if count != 1:
        sys.exit(f"{readme}: expected one table row that begins with '| [{name}]', found {count}")
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
