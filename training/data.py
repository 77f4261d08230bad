"""Rows as token sequences, made when they are needed; batches of them, and their order in training.

Shape suffixes: B sequences, T positions, R positions that carry a loss in some row.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, overload

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from remix_runtime.errors import ConfigError, DataError
from training.encoding import Example, encode_row
from training.losses import IGNORED
from training.seeds import generator
from training.shapes import renamed
from training.sources import RowSource, open_rows

TooLong = Literal["refuse", "truncate"]
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


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

    def model_inputs(self) -> dict[str, Tensor]:
        """What the model is called with."""
        return {"input_ids": self.inputs_BT}

    def side_by_side(self, x_BT: Tensor, *, fill: float = 0) -> Tensor:
        """Something of each token, [B, T, ...], where the model has that token; `fill` is what
        padding has."""
        return x_BT

    def apart(self, x_PL: Tensor) -> Tensor:
        """The way back, [B, T, ...]."""
        return x_PL


def require_rows(name: str, x: Tensor, shape: torch.Size) -> None:
    """Raises `ConfigError` if a layer has not something of each position in each row."""
    if x.shape[:2] != shape or x.dim() != 3:
        raise ConfigError(
            f"target_modules: found {name}, which sees {list(x.shape)} of a batch of "
            f"{list(shape)} tokens; expected linears that see every token of a row in its place"
        )


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
    """Which rows batch number i holds: a pure function of seed and i.

    Each epoch is a new permutation, cut into pools that are sorted by length and cut into
    batches of similar length, in random order. Rows that do not fill a last batch wait for
    another epoch. A batch needs the lengths of its own pool and of no other row.
    """

    POOL = 16
    """So many batches are sorted by length together."""

    def __init__(
        self, count: int, length: Callable[[int], int], *, batch_size: int, seed: int
    ) -> None:
        """`length` gives the length of a row by its index, for `count` of them."""
        assert count
        self._count = count
        self._length = length
        self._batch_size = min(batch_size, count)
        self._seed = seed
        self._epoch = -1

    @property
    def batches_per_epoch(self) -> int:
        return self._count // self._batch_size

    def __getitem__(self, index: int) -> list[int]:
        epoch, within = divmod(index, self.batches_per_epoch)
        if epoch != self._epoch:
            self._shuffle(epoch)
        batch = int(self._batches[within])
        pool = batch // self.POOL * self.POOL
        size = self._batch_size
        end = min(pool + self.POOL, self.batches_per_epoch)
        rows = sorted(self._rows[pool * size : end * size].tolist(), key=self._length)
        return rows[(batch - pool) * size :][:size]

    def _shuffle(self, epoch: int) -> None:
        random = generator(self._seed, "epoch", epoch)
        self._epoch = epoch
        self._rows = torch.randperm(self._count, generator=random)
        self._batches = torch.randperm(self.batches_per_epoch, generator=random)


class Rows(Sequence[Sequence[Example]]):
    """The rows of a source as sequences: encoded when they are first asked for, then kept, packed.

    The first wrong row that is met raises `DataError` with file and line. `read_on` goes through
    the source from its beginning, so that every row is met some time.
    """

    def __init__(
        self,
        rows: RowSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        too_long: TooLong = "refuse",
        end_ids: frozenset[int] = frozenset(),
        columns: Mapping[str, str] = NO_COLUMNS,
        to_fit: str = "raise it or set too_long: truncate",
    ) -> None:
        """A row of more than `max_length` tokens is wrong, unless `too_long` is "truncate": then it
        loses its end. A chat's answer is learned up to the first of `end_ids`, the tokens that end
        it when it is served; the tokenizer's own end token is always one of them. `columns` maps
        the names of fields to those that they have in the file. `to_fit` says in an error what
        makes a longer row fit.
        """
        if tokenizer.eos_token_id is None:
            raise ConfigError("base: found a tokenizer without an end token, expected eos_token")
        self.path = rows.path
        self.max_length = max_length
        self._rows = rows
        self._tokenizer = tokenizer
        self._too_long = too_long
        self.end_ids = end_ids | {tokenizer.eos_token_id}
        self._columns = columns
        self._to_fit = to_fit
        self._kept: list[tuple[_Packed, ...] | None] = [None] * len(rows)
        self._met = 0
        self.truncated = 0
        """Rows that lost their end, of those that were met."""

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> list[Example]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[Example]]: ...
    def __getitem__(self, index: int | slice) -> list[Example] | list[list[Example]]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return [packed.example() for packed in self.packed(index)]

    def fields(self, index: int) -> dict[str, Any]:
        """A row as it stands in the source, under our names."""
        return renamed(self._rows[index], self._columns)

    def where(self, index: int) -> str:
        """What a row is called in errors."""
        return self._rows.where(index)

    def packed(self, index: int) -> tuple[_Packed, ...]:
        """The sequences of a row as they are kept."""
        kept = self._kept[index]
        if kept is None:
            kept = self._kept[index] = tuple(map(_Packed.of, self._encoded(index)))
        return kept

    @property
    def share_met(self) -> float:
        """1 when every row was met, and none is wrong."""
        return self._met / len(self)

    def read_on(self, count: int) -> None:
        """Meets the next `count` rows of the file."""
        for index in range(self._met, min(self._met + count, len(self))):
            self.packed(index)
            self._met = index + 1
            if self._met == len(self):
                self._rows.require_unchanged()

    def _encoded(self, index: int) -> list[Example]:
        where = self.where(index)
        try:
            row = self.fields(index)
            encoded = encode_row(row, self._tokenizer, self.end_ids)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        fitting = [self._fitting(each, where) for each in encoded]
        self.truncated += fitting != encoded
        return fitting

    def _fitting(self, example: Example, where: str) -> Example:
        """The sequence, or its beginning if it is too long. Raises `DataError`."""
        limit = self.max_length
        if len(example.tokens) <= limit:
            return example
        if self._too_long == "refuse":
            raise DataError(
                f"{where}: found {len(example.tokens)} tokens, expected at most "
                f"max_length = {limit}; {self._to_fit}"
            )
        if not any(example.is_target[1:limit]):
            raise DataError(
                f"{where}: found no completion within the first {limit} tokens, "
                "expected a prompt shorter than max_length"
            )
        return replace(
            example,
            tokens=example.tokens[:limit],
            is_target=example.is_target[:limit],
            prompt_length=min(example.prompt_length, limit),
        )


class Sequences(Sequence[Example]):
    """All sequences of some rows, one after the other. They are counted, and so encoded, when
    something is first asked."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [packed.example() for packed in self._packed[index]]
        return self._packed[index].example()

    @functools.cached_property
    def _packed(self) -> list[_Packed]:
        return [packed for i in range(len(self._rows)) for packed in self._rows.packed(i)]


def sequences_of(row: Example | Sequence[Example]) -> Sequence[Example]:
    """A row's sequences; where there are no rows, a sequence is one."""
    return (row,) if isinstance(row, Example) else row


def read_examples(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    too_long: TooLong = "refuse",
    end_ids: frozenset[int] = frozenset(),
    columns: Mapping[str, str] = NO_COLUMNS,
    split: str | None = None,
) -> tuple[list[Example], int]:
    """The sequences of all rows of a source, and how many rows were truncated. Arguments and errors
    are those of `open_rows` and `Rows`."""
    rows = Rows(
        open_rows(path, split=split),
        tokenizer,
        max_length=max_length,
        too_long=too_long,
        end_ids=end_ids,
        columns=columns,
    )
    rows.read_on(len(rows))
    return list(Sequences(rows)), rows.truncated


@dataclass(frozen=True, slots=True)
class _Packed:
    """A sequence in a fifth of its memory: four bytes a token and one for its target."""

    rest: Example
    tokens: array[int]
    is_target: bytes

    @classmethod
    def of(cls, example: Example) -> _Packed:
        rest = replace(example, tokens=(), is_target=())
        return cls(rest, array("i", example.tokens), bytes(example.is_target))

    def example(self) -> Example:
        targets = tuple(map(bool, self.is_target))
        return replace(self.rest, tokens=tuple(self.tokens), is_target=targets)
