"""The trunk is computed once for each example, and the rest of the model does not see that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from remix_runtime.errors import ConfigError, TrainingError
from tests.models import FAMILIES, VOCAB_SIZE, tiny_model
from tests.unit.training.conftest import ROWS, MakeConfig
from tests.unit.training.passes import assert_same_gradients, gradients, random_examples, set_up
from training import losses
from training.config import TrainConfig
from training.data import Batch, collate, read_examples
from training.log import RunLog
from training.objective import Layers, attach_method, pass_loss
from training.run import STATE, TRUNK, run_training
from training.state import state_files
from training.trainer import StepReport
from training.trunk import Trunk

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")

UPPER = ["layers.1.mlp.up_proj", "layers.1.mlp.down_proj"]
M = 3


@pytest.fixture
def upper(make_config: MakeConfig) -> TrainConfig:
    return make_config(target_modules=UPPER, selections=M)


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(3)
    return collate(random_examples(3))


def rows_of(block: nn.Module) -> list[int]:
    """The rows of each pass through a block, from now on."""
    rows: list[int] = []
    block.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    return rows


def trained(
    model: PreTrainedModel, layers: Layers, batch: Batch, config: TrainConfig, trunk: Trunk | None
) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(1)
    pass_loss(model, layers, batch, config, draws, trunk)[0].backward()
    return gradients(layers)


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
def test_a_shared_trunk_gives_the_same_gradients(
    upper: TrainConfig, batch: Batch, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "ROUNDING", 0.0)  # which has a test of its own
    torch.manual_seed(4)
    model, layers = set_up(upper, family=family)
    whole = trained(model, layers, batch, upper, None)
    trunk = Trunk.of(model)
    assert trunk is not None
    below, first = (rows_of(block) for block in model.model.layers)
    shared = trained(model, layers, batch, upper, trunk)
    # The first pass ends before the adapted block; in the second nothing is left of the trunk.
    assert below[0] == 3
    assert first == [3 * M]
    assert_same_gradients(shared, whole)
    again = trained(model, layers, batch, upper, None)
    assert all(torch.equal(again[key], gradient) for key, gradient in whole.items())


def test_blocks_that_hand_on_tuples(make_config: MakeConfig, batch: Batch) -> None:
    config = make_config(target_modules=["h.1.mlp.dense_4h_to_h"], selections=M)
    shape = FalconConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32).eval()
    layers = attach_method(model, config)
    for layer in layers.values():
        nn.init.normal_(layer.b_nOr, std=0.5)
    trunk = Trunk.of(model)
    assert trunk is not None
    whole = trained(model, layers, batch, config, None)
    assert_same_gradients(trained(model, layers, batch, config, trunk), whole)


def test_there_is_no_trunk_below_the_first_block(make_config: MakeConfig) -> None:
    model, _ = set_up(make_config())
    assert Trunk.of(model) is None


def test_blocks_that_read_more_than_hidden_states_are_not_skipped(upper: TrainConfig) -> None:
    model, _ = set_up(upper)
    below, above = model.model.layers
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], __: Any) -> None:
        seen[:] = [args[0].mean()]

    below.mlp.register_forward_hook(note)
    above.mlp.register_forward_hook(lambda _, __, output: output + seen[0])
    assert Trunk.of(model) is None


def test_kept_states_are_those_of_the_sequence_alone(
    upper: TrainConfig, batch: Batch, tmp_path: Path
) -> None:
    model, _ = set_up(upper)
    trunk = Trunk.of(model, tmp_path / "trunk")
    plain = Trunk.of(model)
    assert trunk is not None
    assert plain is not None
    states_BTD = trunk.states(model, batch)
    torch.testing.assert_close(
        states_BTD[batch.mask_BT], plain.states(model, batch)[batch.mask_BT], rtol=1e-4, atol=1e-5
    )
    files = sorted((tmp_path / "trunk").iterdir())
    assert len(files) == 3
    passes = rows_of(model.model.layers[0])
    one = collate(random_examples(1))
    for rows in ([0], [2, 1]):
        some = Batch(batch.inputs_BT[rows], batch.labels_BT[rows], batch.mask_BT[rows])
        kept_BTD = trunk.states(model, some)
        mask_BT = some.mask_BT[:, : kept_BTD.shape[1]]
        assert torch.equal(kept_BTD[mask_BT], states_BTD[rows][some.mask_BT])
    assert passes == []
    trunk.states(model, one)
    assert passes == [1]
    # A file that is not whole is written again.
    files[0].write_bytes(files[0].read_bytes()[:-4])
    assert torch.equal(trunk.states(model, batch), states_BTD)
    assert load_file(files[0])


def test_a_place_that_cannot_be_written_is_named(
    upper: TrainConfig, batch: Batch, tmp_path: Path
) -> None:
    model, _ = set_up(upper)
    (tmp_path / "file").write_text("")
    trunk = Trunk.of(model, tmp_path / "file" / "trunk")
    assert trunk is not None
    with pytest.raises(TrainingError, match="make room, or set cache_trunk: false"):
        trunk.states(model, batch)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "settings",
    [{}, {"method": "lora"}, {"gradient_checkpointing": True}],
    ids=["remix", "lora", "recomputed"],
)
def test_a_run_with_kept_states(
    make_config: MakeConfig,
    tmp_path: Path,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in its second epoch, which begins from what the first has kept, it ends the same."""
    settings = {"target_modules": UPPER, "steps": 8, "cache_trunk": True, **settings}
    killed = make_config(output=str(tmp_path / "killed"), **settings)
    whole = make_config(output=str(tmp_path / "whole"), **settings)
    with monkeypatch.context() as patch:
        write, written = RunLog.write, []

        def stop(log: RunLog, report: StepReport) -> None:
            write(log, report)
            written.append(report)
            if len(written) == 7:
                raise _Killed

        patch.setattr(RunLog, "write", stop)
        with pytest.raises(_Killed):
            run_training(killed)
    assert len(list((killed.output / TRUNK).iterdir())) == len(ROWS)
    run_training(killed, resume=True)
    run_training(whole)
    ends = [load_file(state_files(c.output / STATE)[-1]) for c in (killed, whole)]
    assert all(torch.equal(ends[0][key], value) for key, value in ends[1].items())
    assert not (whole.output / TRUNK).exists()
    assert not (killed.output / TRUNK).exists()


def test_states_of_another_run_are_not_used(
    make_config: MakeConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = make_config(target_modules=UPPER, cache_trunk=True)
    model = tiny_model("llama", seed=9)
    attach_method(model, config)
    other = Trunk.of(model, config.output / TRUNK)
    assert other is not None
    examples, _ = read_examples(config.data, tokenizer, max_length=64)
    other.states(model, collate(examples))
    plain = run_training(make_config(target_modules=UPPER, output=str(tmp_path / "plain")))
    found = run_training(config)
    assert found.rows[0]["loss"] == pytest.approx(plain.rows[0]["loss"], rel=1e-5)


def test_no_trunk_to_keep_is_an_error(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="cache_trunk: found true where no block is below"):
        run_training(make_config(cache_trunk=True))
