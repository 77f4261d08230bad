"""The trunk: the blocks below the first adapted one. What they compute is the same for all
selections of an example and in all epochs: it is computed once for each example, not M times, and
may be kept.

Shape suffixes: B sequences, T positions, D width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from remix_runtime.errors import TrainingError
from training.blocks import blocks_of
from training.data import Batch
from training.state import UNFINISHED

_PROBE = (0, 1)
"""Tokens that every vocabulary has."""
_STATES = "states_TD"


class Trunk:
    """A model's trunk, which `of` finds. The rest of the model is run by itself within
    `skipped`."""

    def __init__(
        self, below: tuple[nn.Module, ...], first: nn.Module, folder: Path | None = None
    ) -> None:
        self._below = below
        self._first = first
        self._folder = folder
        self._in_tuple = False
        """Whether a block hands its hidden states on in a tuple."""

    @classmethod
    def of(cls, model: PreTrainedModel, folder: Path | None = None) -> Trunk | None:
        """The trunk of a model with an adapter attached. None where no block is below the adapter,
        or where the model without its trunk is not the same one: a few blocks read more of those
        below them than hidden states. `folder` keeps what was computed, a file for each sequence;
        it belongs to this base and this adapter's place in it.
        """
        blocks = blocks_of(model)
        if not blocks.below:
            return None
        trunk = cls(blocks.below, blocks.above[0], folder)
        return trunk if trunk._is_whole(model) else None

    def states(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """What the trunk hands on for each row of a batch, [B, T, D] in the base's type.

        Where it is kept, each sequence is run alone: the bits are then those of the sequence, and
        not of the batch that it happened to be in first. Raises `TrainingError` where no file can
        be written.
        """
        if self._folder is None:
            return self._run(model, batch.inputs_BT)
        rows = zip(batch.inputs_BT, batch.mask_BT, strict=True)
        kept = [self._kept(self._folder, model, inputs_T[mask_T]) for inputs_T, mask_T in rows]
        return pad_sequence(kept, batch_first=True)

    @contextmanager
    def skipped(self, states_BTD: Tensor) -> Iterator[None]:
        """Inside, the model goes on from `states_BTD` where its trunk would end."""

        def begin(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (states_BTD, *args[1:])

        def hand_on(hidden_BTD: Tensor, *_: Any, **__: Any) -> Any:
            return (hidden_BTD,) if self._in_tuple else hidden_BTD

        for block in self._below:
            block.forward = hand_on
        try:
            with self._first.register_forward_pre_hook(begin):
                yield
        finally:
            for block in self._below:
                del block.forward

    def _kept(self, folder: Path, model: PreTrainedModel, inputs_T: Tensor) -> Tensor:
        """The states [T, D] of one sequence, from its file if there is one."""
        name = sha256(inputs_T.cpu().numpy().tobytes()).hexdigest()
        path = folder / f"{name}.safetensors"
        try:
            kept_TD: Tensor = load_file(path, device=str(model.device))[_STATES]
            return kept_TD
        except (FileNotFoundError, SafetensorError, KeyError):  # not yet, or not whole
            states_TD = self._run(model, inputs_T[None])[0]
        unfinished = path.with_suffix(f".{os.getpid()}{UNFINISHED}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({_STATES: states_TD.contiguous()}, unfinished)
            unfinished.replace(path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                unfinished.unlink()
            raise TrainingError(
                f"{path}: cannot be written: {error}; make room, or set cache_trunk: false"
            ) from None
        return states_TD

    @torch.no_grad()
    def _run(self, model: PreTrainedModel, inputs_BT: Tensor) -> Tensor:
        def reached(_: nn.Module, args: tuple[Any, ...]) -> None:
            raise _Reached(*args[:1])

        with self._first.register_forward_pre_hook(reached):
            try:
                model(input_ids=inputs_BT, use_cache=False)
            except _Reached as end:
                return end.states_BTD
        raise AssertionError("the model ran without its first adapted block")

    @torch.no_grad()
    def _is_whole(self, model: PreTrainedModel) -> bool:
        """Tries the model with and without its trunk: equal bits, since the sums are the same.
        Other tokens go through it in between, so that nothing is left of the first pass."""
        inputs_BT = torch.tensor([_PROBE], device=model.device)

        def look(_: nn.Module, __: Any, output: Any) -> None:
            self._in_tuple = isinstance(output, tuple)

        with self._below[-1].register_forward_hook(look):
            whole = model(input_ids=inputs_BT, use_cache=False).logits
        try:
            states_BTD = self._run(model, inputs_BT)
            model(input_ids=inputs_BT.flip(1), use_cache=False)
            with self.skipped(states_BTD):
                rest = model(input_ids=inputs_BT, use_cache=False).logits
        except (TypeError, AttributeError):  # hidden states go another way than from block to block
            return False
        return torch.equal(whole, rest)


def beyond(
    trunk: Trunk | None, model: PreTrainedModel, batch: Batch, seen: Batch
) -> AbstractContextManager[None]:
    """Runs the trunk over a batch, if there is one; inside, the rest of the model sees `seen`, the
    same rows, or copies of them side by side, perhaps packed."""
    if trunk is None:
        return nullcontext()
    copies = len(seen.inputs_BT) // len(batch.inputs_BT)
    states_BTD = trunk.states(model, batch).repeat_interleave(copies, dim=0)
    return trunk.skipped(seen.side_by_side(states_BTD))


class _Reached(Exception):  # noqa: N818 - no error
    """The model has reached the end of its trunk."""

    def __init__(self, states_BTD: Tensor) -> None:
        self.states_BTD = states_BTD
