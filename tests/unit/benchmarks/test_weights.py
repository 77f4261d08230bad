"""`benchmarks.quality.weights` on a tiny model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import typer
from typer.testing import CliRunner

from benchmarks.quality import weights
from remix_runtime.base.model import load_model
from remix_runtime.base.tokenizer import load_tokenizer
from remix_runtime.errors import ConfigError
from remix_runtime.kernels import native
from tests.models import save_tiny_base

ROWS = [{"question": "the rain in the tin", "answer": "another one is here", "number": 3}] * 9


@pytest.mark.skipif(native.lib() is None, reason="no C compiler")
def test_perplexity_is_that_of_the_model_and_int8_is_near_it(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base", dtype=torch.bfloat16)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    app = typer.Typer()
    app.command()(weights.main)
    stem = tmp_path / "found"
    options = ["--base", base, "--data", data, "--windows", 3, "--length", 20, "--out", stem]
    arguments = [str(a) for a in (*options, "--new-tokens", 4)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document = json.loads(stem.with_suffix(".json").read_text())
    _, stored, int8 = next(part for part in document["result"] if isinstance(part, list))

    ids = load_tokenizer(str(base))(weights.text_of(data)).input_ids
    windows_WT = torch.tensor(weights.windows_of(ids, 3, 20))
    with torch.no_grad():
        logits_WTV = load_model(str(base))(windows_WT).logits
    loss = F.cross_entropy(logits_WTV[:, :-1].flatten(0, 1), windows_WT[:, 1:].flatten())
    assert stored[0] == "stored"
    assert float(stored[1]) == pytest.approx(math.exp(loss), rel=1e-4)
    assert stored[2:] == ["+0.000%", "100.00%", "100.00%"]
    assert int8[0] == "int8"
    assert int8[1] != stored[1]
    assert float(int8[1]) == pytest.approx(float(stored[1]), rel=0.05)


def test_windows_are_spread_over_the_text_and_do_not_overlap() -> None:
    assert weights.windows_of(list(range(100)), 3, 10) == [
        list(range(start, start + 10)) for start in (0, 30, 60)
    ]
    assert len(weights.windows_of(list(range(25)), 16, 10)) == 2
    with pytest.raises(
        ConfigError, match=r"data: found 9 tokens, expected at least --length \(10\)"
    ):
        weights.windows_of(list(range(9)), 1, 10)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": \n')
    with pytest.raises(ConfigError, match=r"data: .*rows\.jsonl"):
        weights.text_of(tmp_path / "rows.jsonl")
    with pytest.raises(ConfigError, match=r"data: .*none\.txt"):
        weights.text_of(tmp_path / "none.txt")
