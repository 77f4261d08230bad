"""A resumed run goes on with the base and the rows that it began with, wherever they lie."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from remix_runtime.errors import TrainingError
from tests.models import save_tiny_base
from tests.unit.training.conftest import ROWS, MakeConfig, write_rows
from training.config import load_config
from training.identity import base_contents
from training.run import STATE, run_training
from training.state import state_files

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")

Change = Callable[[Path], object]


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A base that may be changed."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def edit(name: str, **fields: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def edit_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))


def other_weights(folder: Path) -> None:
    other = save_tiny_base(folder / "other", seed=1)
    shutil.copy(other / "model.safetensors", folder)


def one_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name].view(-1)[0] += 1
    save_file(tensors, path, metadata={"format": "pt"})


def other_type(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_weights, "base weights"),
        (one_weight, "base weights"),
        (other_type, "base weights"),
        (edit("config.json", rms_norm_eps=1e-3), "base config"),
        (edit("generation_config.json", eos_token_id=[3, 258]), "base end tokens"),
        (edit_tokenizer, "base tokenizer"),
        (edit("tokenizer_config.json", eos_token="<|im_start|>"), "base (end tokens|tokenizer)"),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
            "base chat template",
        ),
    ],
)
def test_another_base_in_the_same_folder_is_refused(
    make_config: MakeConfig, base: Path, change: Change, named: str
) -> None:
    config = make_config(base=str(base), steps=2)
    run_training(config)
    change(base)
    with pytest.raises(TrainingError, match=rf"was saved with {named} = .*, found .*; resume with"):
        run_training(make_config(base=str(base), steps=4), resume=True)


def moved(folder: Path) -> str:
    return str(folder.rename(folder.with_name("elsewhere")))


def linked(folder: Path) -> str:
    link = folder.with_name("link")
    link.symlink_to(folder)
    return str(link)


def as_hub_cache(folder: Path) -> str:
    snapshot = folder.with_name("snapshots") / "abc"
    blobs = folder.with_name("blobs")
    snapshot.mkdir(parents=True)
    folder.rename(blobs)
    for number, path in enumerate(sorted(blobs.iterdir())):
        blob = path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(blob)
    return str(snapshot)


@pytest.mark.parametrize(
    "place",
    [moved, linked, as_hub_cache, lambda folder: f"{folder}/", lambda folder: f"{folder}/../base"],
)
def test_the_same_base_at_another_place_is_gone_on_with(
    make_config: MakeConfig, base: Path, place: Callable[[Path], str]
) -> None:
    settings = {"base_name": "tiny", "schedule": "constant"}
    whole = run_training(make_config(base=str(base), steps=4, **settings), overwrite=True)
    run_training(make_config(base=str(base), steps=2, **settings), overwrite=True)
    there = place(base)
    again = run_training(make_config(base=there, steps=4, **settings), resume=True)
    assert again.digest == whole.digest


def test_a_relative_base_is_the_same_as_a_full_one(
    make_config: MakeConfig, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_training(make_config(base=str(base), steps=1))
    monkeypatch.chdir(tmp_path)
    assert len(run_training(make_config(base="base", steps=2), resume=True).rows) == 2


def test_files_that_are_not_loaded_are_not_the_base(base: Path) -> None:
    before = base_contents(str(base))
    (base / "README.md").write_text("read me")
    save_file({"x": torch.ones(1)}, base / "consolidated.safetensors")
    assert base_contents(str(base)) == before


def test_shards_are_known_by_their_bytes(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    half = dict(list(tensors.items())[::2])
    rest = {name: tensor for name, tensor in tensors.items() if name not in half}
    for number, part in enumerate((half, rest), start=1):
        save_file(part, base / f"model-0000{number}-of-00002.safetensors")
    digests = base_contents(str(base))
    rest[next(iter(rest))].view(-1)[0] += 1
    save_file(rest, base / "model-00002-of-00002.safetensors")
    changed = base_contents(str(base))
    assert {key for key in digests if digests[key] != changed[key]} == {"base weights"}


def test_rows_are_known_by_the_bytes_of_their_file(make_config: MakeConfig, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "mine.jsonl", ROWS)
    run_training(make_config(data=str(rows), steps=1))
    copy = Path(shutil.copy(rows, tmp_path / "copy.jsonl"))
    assert len(run_training(make_config(data=str(copy), steps=2), resume=True).rows) == 2
    copy.write_bytes(rows.read_bytes() + b"\n")
    with pytest.raises(TrainingError, match=r"was saved with data = [0-9a-f]{12}…, found [0-9a-f]"):
        run_training(make_config(data=str(copy), steps=3), resume=True)


def test_held_out_rows_may_come_and_go_but_not_change(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    held_out = write_rows(tmp_path / "held.jsonl", ROWS[:3])
    run_training(make_config(steps=1))
    run_training(make_config(steps=2, eval_data=str(held_out)), resume=True)
    run_training(make_config(steps=2), resume=True)
    write_rows(held_out, ROWS[:4])
    with pytest.raises(TrainingError, match="was saved with eval_data = "):
        run_training(make_config(steps=3, eval_data=str(held_out)), resume=True)


def test_a_template_with_a_date_goes_on_the_next_day(
    make_config: MakeConfig, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = (base / "chat_template.jinja").read_text()
    dated = "{{ strftime_now('%d %B %Y') }} " + template
    (base / "chat_template.jinja").write_text(dated)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = write_rows(tmp_path / "chat.jsonl", [{"messages": turns}] * 3)
    settings = {"base": str(base), "data": str(rows)}
    run_training(make_config(steps=1, **settings))
    module = "transformers.utils.chat_template_utils.datetime"

    class Tomorrow:
        @staticmethod
        def now() -> Tomorrow:
            return Tomorrow()

        def strftime(self, _: str) -> str:
            return "tomorrow"

    monkeypatch.setattr(module, Tomorrow)
    assert len(run_training(make_config(steps=2, **settings), resume=True).rows) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "float32"},
        {"threads": 2},
        {"base_name": "other/name"},
        {"checkpoint_every": 1},
        {"max_grad_norm": 3.0},
    ],
    ids=str,
)
def test_settings_that_are_not_the_run_may_change(
    make_config: MakeConfig, settings: dict[str, object]
) -> None:
    run_training(make_config(steps=1))
    assert len(run_training(make_config(steps=2, **settings), resume=True).rows) == 2


def test_a_state_of_another_version_is_refused(make_config: MakeConfig) -> None:
    config = make_config(steps=1)
    run_training(config)
    (state,) = state_files(config.output / STATE)
    save_file(load_file(state), state, metadata={"step": "1", "run": '{"base": "x"}'})
    with pytest.raises(TrainingError, match="found a state of another version") as caught:
        run_training(make_config(steps=2), resume=True)
    assert "\n" not in str(caught.value)


def test_the_recipe_may_lie_anywhere(make_config: MakeConfig, tmp_path: Path, base: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(
            "base: ../base\ndata: ../rows.jsonl\noutput: ../run\nsteps: 1\nnum_experts: 2\n"
            "top_k: 1\nr: 1\nthreads: 1\n"
        )
    write_rows(tmp_path / "rows.jsonl", ROWS)
    run_training(load_config(tmp_path / "one" / "recipe.yaml"))
    again = run_training(load_config(tmp_path / "two" / "recipe.yaml"), resume=True)
    assert len(again.rows) == 1
