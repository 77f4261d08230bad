"""What an adapter tells of its training, `training.json`: the load of its experts on the training
data, with which servers compare their traffic, and the curves of the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

import torch
from torch import nn

from remix_runtime.adapter.checkpoint import Curves, TrainingRecord
from remix_runtime.adapter.checkpoint.training_file import HELD_OUT, MAX_POINTS
from remix_runtime.adapter.counting import count_load
from training.data import sequences_of
from training.encoding import Example
from training.log import Row
from training.objective import Layers
from training.seeds import generator

LOAD_TOKENS = 8192
"""Tokens of training rows that the load is counted over: some seconds on the CPU for a small base,
and more than enough for shares of a few percent."""

_CURVES = ("loss", "router_entropy", "effective_support_size", "tokens_per_second")


def training_record(
    model: nn.Module,
    layers: Layers,
    rows: Sequence[Example | Sequence[Example]],
    log: Sequence[Row],
) -> TrainingRecord:
    """The record of an adapter that is attached to `model` as it will be served. An adapter that
    always activates all its experts has no load."""
    routed = any(layer.top_k < len(layer.router_nD) for layer in layers.values())
    load = count_load(model, layers, load_sample(rows)) if routed else None
    return TrainingRecord(load=load, curves=curves_of(log))


def load_sample(rows: Sequence[Example | Sequence[Example]]) -> Iterator[list[int]]:
    """Prompts with their completions, of rows in a random order, the same in every run, up to
    `LOAD_TOKENS`. Without the last token of each, which a server draws and never computes."""
    left = LOAD_TOKENS
    for i in torch.randperm(len(rows), generator=generator("expert load")).tolist():
        for example in sequences_of(rows[i]):
            tokens = list(example.tokens[:-1][:left])
            if tokens:
                yield tokens
            left -= len(tokens)
            if not left:
                return


def curves_of(log: Sequence[Row]) -> Curves:
    """The curves of a run's rows: of a long run means over neighbouring steps, each at the last of
    them, and held-out losses at regular distances back from the last one. Steps with a value that
    is no number are left out."""
    good = [row for row in log if all(math.isfinite(row[name]) for name in _CURVES if name in row)]
    size = max(1, math.ceil(len(good) / MAX_POINTS))
    parts = [good[i : i + size] for i in range(0, len(good), size)]
    curves: Curves = {}
    if parts:
        curves["step"] = [part[-1]["step"] for part in parts]
    for name in _CURVES:
        if parts and all(name in row for row in good):
            curves[name] = [fmean(row[name] for row in part) for part in parts]
    held_out = [(row["step"], row[HELD_OUT]) for row in log if HELD_OUT in row]
    finite = [(step, loss) for step, loss in held_out if math.isfinite(loss)]
    if finite:
        stride = math.ceil(len(finite) / MAX_POINTS)
        curves[HELD_OUT] = finite[::-1][::stride][::-1]
    return curves
