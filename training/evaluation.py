"""Held-out loss and exact match of greedy answers, with the readable layers.

Loss is the training objective: the mean over rows of their mean completion-token loss, in nats.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from remix_runtime.adapter.checkpoint import AdapterConfig, read_checkpoint
from remix_runtime.adapter.layers import attach_checkpoint, base_shapes
from remix_runtime.base.model import end_token_ids
from remix_runtime.engines.spelling import spelling_of
from remix_runtime.engines.text import TextStream
from remix_runtime.errors import ConfigError, DataError
from training.base import load_base, row_limit
from training.completion_loss import completion_shares
from training.data import NO_COLUMNS, collate, read_examples
from training.encoding import Example
from training.sources import is_hub_name

SPARE_TOKENS = 8
"""Tokens that an answer may take beyond its reference's, which it may spell differently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Scores of a model on a data set."""

    loss: float
    exact_match: float
    """Share of rows whose greedy answer is the learned one, letter for letter."""
    rows: int
    """The number of sequences: a row may be several, see `encoding.py`."""


def _by_length(examples: Sequence[Example], batch_size: int) -> list[list[int]]:
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].tokens), i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


@torch.no_grad()
def held_out_losses(
    model: PreTrainedModel, examples: Sequence[Example], *, batch_size: int = 16
) -> list[float]:
    """The mean completion loss of each row, in the order of `examples`."""
    losses = [0.0] * len(examples)
    for indices in _by_length(examples, batch_size):
        batch = collate([examples[i] for i in indices], device=model.device)
        for index, loss in zip(
            indices, completion_shares(model, batch).sum(-1).tolist(), strict=True
        ):
            losses[index] = loss
    return losses


def held_out_loss(
    model: PreTrainedModel, examples: Sequence[Example], *, batch_size: int = 16
) -> float:
    losses = held_out_losses(model, examples, batch_size=batch_size)
    return sum(losses) / len(losses)


@contextmanager
def _without_defaults(model: PreTrainedModel) -> Iterator[None]:
    """A generation config with nothing but greedy search in it. `generate` would fill other fields
    from the model's own file, a repetition penalty for example, and the server does not."""
    defaults = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = defaults


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int = 16,
) -> list[str]:
    """The model's greedy continuation of each row's prompt, as the server says it.

    An answer is cut a little after its batch's longest reference: it can no longer match.
    """
    ends = end_token_ids(model, tokenizer.eos_token_id)
    pad = tokenizer.pad_token_id
    pad = tokenizer.eos_token_id if pad is None else pad
    answers = [""] * len(examples)
    for indices in _by_length(examples, batch_size):
        prompts = [examples[i].tokens[: examples[i].prompt_length] for i in indices]
        width = max(map(len, prompts))
        longest = max(len(examples[i].tokens) - examples[i].prompt_length for i in indices)
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=longest + SPARE_TOKENS,
            eos_token_id=sorted(ends),
            pad_token_id=pad,
        )
        inputs = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
        attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        with _without_defaults(model):
            output = model.generate(
                inputs.to(model.device),
                attention_mask=attention.to(model.device),
                generation_config=settings,
            )
        for index, row in zip(indices, output[:, width:].tolist(), strict=True):
            context = examples[index].tokens[: examples[index].prompt_length]
            answers[index] = said_after(tokenizer, context, row, ends)
    return answers


def said_after(
    tokenizer: PreTrainedTokenizerBase,
    context: Sequence[int],
    token_ids: Sequence[int],
    ends: frozenset[int],
) -> str:
    """The text that the server sends for generated tokens, up to the first that ends them."""
    stream = TextStream(spelling_of(tokenizer), context)
    answer = itertools.takewhile(lambda token: token not in ends, token_ids)
    return "".join(map(stream.push, answer)) + stream.flush()


def _is_match(
    answer: str, example: Example, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]
) -> bool:
    """Whether an answer is what the row teaches. That of a row which lost its end may go on."""
    context, learned = (
        example.tokens[: example.prompt_length],
        example.tokens[example.prompt_length :],
    )
    reference = said_after(tokenizer, context, learned, ends)
    if learned and learned[-1] in ends:
        return answer == reference
    return answer.startswith(reference)


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int = 16,
) -> Score:
    """Loss and exact match of the model as it stands, with or without an adapter attached."""
    answers = greedy_answers(model, tokenizer, examples, batch_size=batch_size)
    ends = end_token_ids(model, tokenizer.eos_token_id)
    hits = sum(_is_match(a, e, tokenizer, ends) for a, e in zip(answers, examples, strict=True))
    return Score(
        loss=held_out_loss(model, examples, batch_size=batch_size),
        exact_match=hits / len(examples),
        rows=len(examples),
    )


def compare_with_base(
    adapter: Path,
    data: Path,
    *,
    base: str | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    columns: Mapping[str, str] = NO_COLUMNS,
    split: str | None = None,
) -> dict[str, Score]:
    """Scores of "base" and "adapter" on rows, whose fields may have other names, as `columns` says.
    `max_length` is by default 2,048 tokens, or the context of the base where that is less.

    Raises `CheckpointError`, `ConfigError`, `DataError`.
    """
    found = read_checkpoint(adapter)
    if not (data.exists() or is_hub_name(data)):  # known before a model is loaded
        raise DataError(f"{data}: there is no such file")
    model, tokenizer = load_base(
        _named_base(found.config) if base is None else base,
        chat_template=found.defaults.chat_template,
    )
    checkpoint = read_checkpoint(adapter, base=base_shapes(model))
    examples, _ = read_examples(
        data,
        tokenizer,
        max_length=row_limit(model.config, max_length, default=2048),
        end_ids=end_token_ids(model, tokenizer.eos_token_id),
        columns=columns,
        split=split,
    )
    rows = examples[:limit]
    scores = {"base": score(model, tokenizer, rows, batch_size=batch_size)}
    attach_checkpoint(model, checkpoint)
    scores["adapter"] = score(model, tokenizer, rows, batch_size=batch_size)
    return scores


def _named_base(config: AdapterConfig) -> str:
    if config.revision is not None:  # a path or hub id alone may stand for other weights
        raise ConfigError(
            f"revision: the adapter names revision {config.revision!r} of "
            f"{config.base_model_name_or_path!r}, expected --base with the folder of that one"
        )
    return config.base_model_name_or_path
