"""The trunk: the blocks below the first adapted one. What they compute is the same for all
selections of an example and in all epochs: it is computed once for each example, not M times, and
may be kept.

Shape suffixes: B sequences, T positions, D width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
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
from training.forwards import runs
from training.ranks import ALONE, Ranks
from training.state import UNFINISHED

_PROBE = (0, 1)
"""Tokens that every vocabulary has."""
_STATES = "states_TD"


class Trunk:
    """A model's trunk, which `of` finds. The rest of the model is run by itself within
    `skipped`."""

    def __init__(
        self,
        below: Mapping[str, nn.Module],
        first: nn.Module,
        folder: Path | None = None,
        together: Ranks = ALONE,
    ) -> None:
        self._below = below
        self._first = first
        self._folder = folder
        self._together = together
        self._in_tuple = False
        """Whether a block hands its hidden states on in a tuple."""

    @classmethod
    def of(
        cls, model: PreTrainedModel, folder: Path | None = None, together: Ranks = ALONE
    ) -> Trunk | None:
        """The trunk of a model with an adapter attached. None where no block is below the adapter,
        or where the model without its trunk is not the same one: a few blocks read more of those
        below them than hidden states. `folder` keeps what was computed, a file for each sequence;
        it belongs to this base and this adapter's place in it. `together` are the processes that
        a sharded base is in: each runs its trunk as often as any.
        """
        blocks = blocks_of(model)
        if not blocks.below:
            return None
        names = {module: name for name, module in model.named_modules()}
        below = {names[block]: block for block in blocks.below}
        trunk = cls(below, blocks.above[0], folder, together)
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
        sequences = [inputs_T[mask_T] for inputs_T, mask_T in rows]
        files = [self._folder / _name(inputs_T) for inputs_T in sequences]
        found = [_read(file, model.device) for file in files]
        lacking = found.count(None)
        in_others = self._together.most(lacking, model.device) - lacking
        for index, inputs_T in enumerate(sequences):
            if found[index] is None:
                states_TD = self._run(model, inputs_T[None])[0]
                _write(files[index], states_TD)
                found[index] = states_TD
        for _ in range(in_others):
            self._run(model, batch.inputs_BT[:1])
        return pad_sequence([states_TD for states_TD in found if states_TD is not None], True)

    @contextmanager
    def skipped(self, model: PreTrainedModel, states_BTD: Tensor) -> Iterator[None]:
        """Inside, the model goes on from `states_BTD` where its trunk would end."""

        def begin(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (states_BTD, *args[1:])

        for name, block in self._below.items():
            model.set_submodule(name, _HandOn(block, in_tuple=self._in_tuple))
        try:
            with self._first.register_forward_pre_hook(begin):
                yield
        finally:
            for name, block in self._below.items():
                model.set_submodule(name, block)

    @torch.no_grad()
    def _run(self, model: PreTrainedModel, inputs_BT: Tensor) -> Tensor:
        whole = model.forward

        def reached(_: nn.Module, args: tuple[Any, ...]) -> None:
            raise _Reached(*args[:1])

        def trunk(**inputs: Any) -> Tensor:
            try:
                whole(**inputs)
            except _Reached as end:
                return end.states_BTD
            raise AssertionError("the model ran without its first adapted block")

        # Caught within the model and raised before other hooks of the block, so that a sharded base
        # sees a pass that has ended, and gathers nothing of that block.
        with (
            self._first.register_forward_pre_hook(reached, prepend=True),
            runs(model, trunk),
        ):
            states_BTD: Tensor = model(input_ids=inputs_BT, use_cache=False)
        return states_BTD

    @torch.no_grad()
    def _is_whole(self, model: PreTrainedModel) -> bool:
        """Tries the model with and without its trunk: equal bits, since the sums are the same.
        Other tokens go through it in between, so that nothing is left of the first pass."""
        inputs_BT = torch.tensor([_PROBE], device=model.device)

        def look(_: nn.Module, __: Any, output: Any) -> None:
            self._in_tuple = isinstance(output, tuple)

        last = [*self._below.values()][-1]
        with last.register_forward_hook(look):
            whole = model(input_ids=inputs_BT, use_cache=False).logits
        try:
            states_BTD = self._run(model, inputs_BT)
            model(input_ids=inputs_BT.flip(1), use_cache=False)
            with self.skipped(model, states_BTD):
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
    return trunk.skipped(model, seen.side_by_side(states_BTD))


def _name(inputs_T: Tensor) -> str:
    """The file of one sequence."""
    return f"{sha256(inputs_T.cpu().numpy().tobytes()).hexdigest()}.safetensors"


def _read(path: Path, device: torch.device) -> Tensor | None:
    """The states [T, D] of one sequence; None where there is no file yet, or not all of it."""
    try:
        states_TD: Tensor = load_file(path, device=str(device))[_STATES]
        return states_TD
    except (FileNotFoundError, SafetensorError, KeyError):
        return None


def _write(path: Path, states_TD: Tensor) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}{UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({_STATES: states_TD.contiguous()}, unfinished)
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            unfinished.unlink()
        raise TrainingError(
            f"{path}: cannot be written: {error}; make room, or set cache_trunk: false"
        ) from None


class _HandOn(nn.Module):
    """Stands in a block's place and hands on what it gets. Nothing of the block runs, its hooks
    neither: they would gather the weights of a sharded one."""

    def __init__(self, block: nn.Module, *, in_tuple: bool) -> None:
        super().__init__()
        self.__dict__["_block"] = block  # no child
        self._in_tuple = in_tuple

    def __getattr__(self, name: str) -> Any:  # a model asks its blocks for their kind of attention
        return getattr(self.__dict__["_block"], name)

    def forward(self, hidden_BTD: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_BTD,) if self._in_tuple else hidden_BTD


class _Reached(Exception):  # noqa: N818 - no error
    """The model has reached the end of its trunk."""

    def __init__(self, states_BTD: Tensor) -> None:
        self.states_BTD = states_BTD
