"""JSONL rows to token sequences with a loss on completions, and their order in training.

A row is either `{"prompt": ..., "completion": ...}` (raw text, the tokenizer's end token is
appended to the completion) or `{"messages": [{"role": ..., "content": ...}, ...]}` (the base's
chat template; loss on assistant turns up to their end token). Other keys are left alone.
Prompt and completion are tokenised apart, exactly as a server sees a prompt and continues it.

Shape suffixes: B sequences, T positions, R positions that carry a loss in some row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from remix_runtime.errors import ConfigError, DataError
from training.losses import IGNORED
from training.seeds import generator

TooLong = Literal["refuse", "truncate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row. `is_target[i]` says whether predicting token i is part of the loss."""

    tokens: tuple[int, ...]
    is_target: tuple[bool, ...]
    prompt_length: int
    """Tokens before the last completion: what `remix eval` gives the model to continue."""
    reference: str
    """The text of the last completion."""


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
            example = _encode(row, tokenizer, end_ids | {tokenizer.eos_token_id})
        except DataError as error:
            raise DataError(f"{path}:{line}: {error}") from None
        if len(example.tokens) > max_length:
            if too_long == "refuse":
                raise DataError(
                    f"{path}:{line}: found {len(example.tokens)} tokens, expected at most "
                    f"max_length = {max_length}; raise it or set too_long: truncate"
                )
            truncated += 1
            example = _truncate(example, max_length)
            if not any(example.is_target[1:]):
                raise DataError(
                    f"{path}:{line}: found no completion within the first {max_length} tokens, "
                    "expected a prompt shorter than max_length"
                )
        examples.append(example)
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
            raise DataError(f"{path}:{number}: expected a JSON object, found {_kind(row)}")
        yield number, row


def _encode(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int]
) -> Example:
    """Turns a row into an example. Raises `DataError` without file and line."""
    if "messages" in row and ("prompt" in row or "completion" in row):
        raise DataError("expected prompt and completion, or messages; found both")
    if "messages" in row:
        return _encode_chat(row["messages"], tokenizer, end_ids)
    prompt, completion = (_text(row, key, key) for key in ("prompt", "completion"))
    prompt_ids: list[int] = tokenizer.encode(prompt)
    if not prompt_ids:
        raise DataError("prompt: found no tokens, expected at least one to continue from")
    completion_ids: list[int] = tokenizer.encode(completion, add_special_tokens=False)
    if not completion_ids:
        raise DataError("completion: found no tokens, expected at least one")
    if completion_ids[-1] != tokenizer.eos_token_id:
        completion_ids.append(tokenizer.eos_token_id)
    return Example(
        tokens=(*prompt_ids, *completion_ids),
        is_target=(False,) * len(prompt_ids) + (True,) * len(completion_ids),
        prompt_length=len(prompt_ids),
        reference=completion.removesuffix(tokenizer.eos_token),
    )


def _encode_chat(
    messages: Any, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int]
) -> Example:
    turns = _checked_turns(messages)
    if tokenizer.chat_template is None:
        raise DataError("messages: the base has no chat template; use prompt and completion")
    tokens: list[int] = []
    is_target: list[bool] = []
    done = ""
    prompt_length = 0
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        prompt = _render(tokenizer, turns[:index], add_generation_prompt=True)
        whole = _render(tokenizer, turns[: index + 1], add_generation_prompt=False)
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            raise DataError(
                f"messages[{index}]: the chat template rewrites earlier turns, "
                "expected each turn to be appended; train on single-turn rows"
            )
        context_ids = tokenizer.encode(prompt[len(done) :], add_special_tokens=False)
        answer_ids = tokenizer.encode(whole[len(prompt) :], add_special_tokens=False)
        # What the template writes after the end token is never generated: no loss on it.
        ends = (at for at, token in enumerate(answer_ids, start=1) if token in end_ids)
        learned = next(ends, len(answer_ids))
        tokens += context_ids
        prompt_length = len(tokens)
        tokens += answer_ids
        is_target += [False] * len(context_ids) + [True] * learned
        is_target += [False] * (len(answer_ids) - learned)
        done = whole
    end = len(is_target) - is_target[::-1].index(True)
    return Example(
        tokens=tuple(tokens[:end]),
        is_target=tuple(is_target[:end]),
        prompt_length=prompt_length,
        reference=next(t["content"] for t in reversed(turns) if t["role"] == "assistant"),
    )


def _checked_turns(messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"messages: found {_kind(messages)}, expected a list of turns")
    turns = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise DataError(f"{where}: found {_kind(message)}, expected an object")
        role = _text(message, "role", f"{where}.role")
        if role not in ("system", "user", "assistant"):
            raise DataError(f"{where}.role: found {role!r}, expected system, user or assistant")
        content = _text(message, "content", f"{where}.content")
        if role == "assistant" and not content:
            raise DataError(f"{where}.content: found an empty string, expected an answer")
        turns.append({"role": role, "content": content})
    if all(turn["role"] != "assistant" for turn in turns):
        raise DataError("messages: found no assistant turn, expected one to learn from")
    return turns


def _render(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, add_generation_prompt: bool
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (jinja2.TemplateError, ValueError) as error:
        raise DataError(f"messages: the chat template refuses them: {error}") from None
    assert isinstance(text, str)
    return text


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise DataError(f"{where}: found nothing, expected a string")
    value = row[key]
    if not isinstance(value, str):
        raise DataError(f"{where}: found {_kind(value)}, expected a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: found a lone surrogate, expected valid Unicode") from None
    return value


def _truncate(example: Example, length: int) -> Example:
    return Example(
        tokens=example.tokens[:length],
        is_target=example.is_target[:length],
        prompt_length=min(example.prompt_length, length),
        reference=example.reference,
    )


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    return kinds.get(type(value), "a number")
