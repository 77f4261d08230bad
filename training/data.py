"""A JSONL file of rows as batches of token sequences, and their order in training.

Shape suffixes: B sequences, T positions, R positions that carry a loss in some row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from remix_runtime.errors import ConfigError, DataError
from training.encoding import Example, encode_row
from training.fields import kind_of
from training.losses import IGNORED
from training.seeds import generator

TooLong = Literal["refuse", "truncate"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows, without the last token, which predicts nothing.

    Causal attention never looks at padding on the right, so no attention mask is needed.
    """

    inputs_BT: Tensor
    labels_BT: Tensor
    """The next token where it is a target, `IGNORED` elsewhere."""
    mask_BT: Tensor
    """True where an input is a token of the row, and not padding."""

    def repeat(self, times: int) -> Batch:
        """Repeats every row `times` times, copies side by side."""
        b, labels, mask = (
            t.repeat_interleave(times, dim=0)
            for t in (self.inputs_BT, self.labels_BT, self.mask_BT)
        )
        return Batch(b, labels, mask)

    @property
    def loss_positions(self) -> Tensor:
        return (self.labels_BT != IGNORED).any(0).nonzero().squeeze(-1)


def collate(examples: Sequence[Example], *, device: torch.device | str = "cpu") -> Batch:
    width = max(len(example.tokens) for example in examples) - 1
    inputs_BT = torch.zeros(len(examples), width, dtype=torch.int64)
    labels_BT = torch.full((len(examples), width), IGNORED)
    mask_BT = torch.zeros(len(examples), width, dtype=torch.bool)
    for row, example in enumerate(examples):
        tokens = torch.tensor(example.tokens)
        target = torch.tensor(example.is_target)
        length = len(tokens) - 1
        inputs_BT[row, :length] = tokens[:-1]
        labels_BT[row, :length] = tokens[1:].where(target[1:], IGNORED)
        mask_BT[row, :length] = True
    return Batch(inputs_BT.to(device), labels_BT.to(device), mask_BT.to(device))


class BatchOrder:
    """Which examples batch number i holds: a pure function of seed and i.

    Each epoch is a new permutation, cut into pools that are sorted by length and cut into
    batches of similar length, in random order. Examples that do not fill a last batch wait for
    another epoch.
    """

    POOL = 16
    """So many batches are sorted by length together."""

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        assert lengths
        self._lengths = lengths
        self._batch_size = min(batch_size, len(lengths))
        self._seed = seed
        self._epoch = -1
        self._batches: list[list[int]] = []

    @property
    def batches_per_epoch(self) -> int:
        return len(self._lengths) // self._batch_size

    def __getitem__(self, index: int) -> list[int]:
        epoch, within = divmod(index, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[within]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        random = generator(self._seed, "epoch", epoch)
        size, count = self._batch_size, self.batches_per_epoch
        order = torch.randperm(len(self._lengths), generator=random).tolist()[: count * size]
        batches: list[list[int]] = []
        for start in range(0, len(order), size * self.POOL):
            pool = sorted(order[start : start + size * self.POOL], key=self._lengths.__getitem__)
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        return [batches[i] for i in torch.randperm(count, generator=random).tolist()]


def read_examples(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    too_long: TooLong = "refuse",
    end_ids: frozenset[int] = frozenset(),
) -> tuple[list[Example], int]:
    """All rows of a JSONL file, and how many of them were truncated.

    A chat's answer is learned up to the first of `end_ids`, the tokens that end it when it is
    served; the tokenizer's own end token is always one of them.

    Raises `DataError` with file, line and field, also for a row of more than `max_length`
    tokens, unless `too_long` is "truncate": then the row loses its end.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("base: found a tokenizer without an end token, expected eos_token")
    examples: list[Example] = []
    truncated = 0
    for line, row in _rows(path):
        try:
            encoded = encode_row(row, tokenizer, end_ids | {tokenizer.eos_token_id})
        except DataError as error:
            raise DataError(f"{path}:{line}: {error}") from None
        fitting = [_fitting(example, max_length, too_long, f"{path}:{line}") for example in encoded]
        truncated += fitting != encoded
        examples += fitting
    if not examples:
        raise DataError(f"{path}: found no rows, expected at least one JSON object per line")
    return examples, truncated


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError:
            raise DataError(f"{path}:{number}: found bytes that are not UTF-8") from None
        except (ValueError, RecursionError) as error:  # of JSON, or a number of 5,000 digits
            raise DataError(f"{path}:{number}: expected one JSON object, found {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, found {kind_of(row)}")
        yield number, row


def _fitting(example: Example, max_length: int, too_long: TooLong, where: str) -> Example:
    """The sequence, or its beginning if it is too long. Raises `DataError`."""
    if len(example.tokens) <= max_length:
        return example
    if too_long == "refuse":
        raise DataError(
            f"{where}: found {len(example.tokens)} tokens, expected at most "
            f"max_length = {max_length}; raise it or set too_long: truncate"
        )
    if not any(example.is_target[1:max_length]):
        raise DataError(
            f"{where}: found no completion within the first {max_length} tokens, "
            "expected a prompt shorter than max_length"
        )
    return Example(
        tokens=example.tokens[:max_length],
        is_target=example.is_target[:max_length],
        prompt_length=min(example.prompt_length, max_length),
    )
