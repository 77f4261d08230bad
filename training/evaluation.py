"""`remix eval`: an adapter beside its base on rows, by loss and by their greedy answers.

Both are asked of the serving engine, in the same batches: what is scored is what is served.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from remix_runtime.adapter.checkpoint import AdapterConfig, LoraConfig, read_checkpoint
from remix_runtime.base.config import read_config
from remix_runtime.base.folder import find_base
from remix_runtime.contracts import Engine, GenerationRequest, SamplingParams, TokenEvent
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.engines.spelling import spelling_of
from remix_runtime.engines.text import TextStream
from remix_runtime.errors import ConfigError, DataError
from training.base import load_tokenizer_of, row_limit
from training.data import NO_COLUMNS, Rows
from training.encoding import Example
from training.judges import Judge, JudgeName, judge_of
from training.progress import Move, stage
from training.sources import is_hub_name, open_rows

SPARE_TOKENS = 8
"""Tokens that an answer may take beyond its reference's, which it may spell differently."""
ANSWER_TOKENS = 256
"""The most of an answer that need not be the reference's text."""
MAX_LENGTH = 2048
SILENT = Console(quiet=True)
_NUMBERS = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Scores of a model on a data set."""

    loss: float
    """Mean over rows of their mean completion-token loss, in nats: the training objective."""
    accuracy: float
    """Share of rows whose greedy answer is right, as the judge has it."""
    rows: int
    """The number of sequences: a row may be several, see `encoding.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One sequence that a model is scored on."""

    example: Example
    judge: Judge
    max_tokens: int
    """Of an answer."""


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
    subset: str | None = None,
    judge: JudgeName = "exact",
    max_tokens: int | None = None,
    console: Console = SILENT,
) -> dict[str, Score]:
    """Scores of "base" and "adapter" on rows, whose fields may have other names, as `columns` says.
    `max_length` is by default 2,048 tokens, or the context of the base where that is less;
    `max_tokens` of an answer is by default little more than its reference has, or 256 where it need
    not be the same text.

    Raises `CheckpointError`, `ConfigError`, `DataError`.
    """
    found = read_checkpoint(adapter)
    if not (data.exists() or is_hub_name(data)):  # known before a model is loaded
        raise DataError(f"{data}: there is no such file")
    folder = find_base(named_base(found.config) if base is None else base, download=True)
    tokenizer = load_tokenizer_of(folder, chat_template=found.defaults.chat_template)
    longest = row_limit(read_config(folder), max_length, default=MAX_LENGTH)

    async def compared() -> dict[str, Score]:
        async with serving(str(folder), console, max_running=batch_size) as engine:
            digest = (await engine.load_adapter(adapter)).digest
            rows = Rows(
                open_rows(data, split=split, subset=subset),
                tokenizer,
                max_length=longest,
                end_ids=frozenset(engine.model.eos_token_ids),
                columns=columns,
                to_fit="--max-length may be more, up to the base's context",
            )
            every = questions_of(rows, tokenizer, judge, limit=limit, max_tokens=max_tokens)
            questions = list(every)
            with stage(console, f"asking {2 * len(questions)} questions") as move:
                return await score(
                    engine,
                    {"base": None, "adapter": digest},
                    questions,
                    batch_size=batch_size,
                    move=move,
                )

    return asyncio.run(compared())


@asynccontextmanager
async def serving(
    base: str, console: Console = SILENT, **settings: Any
) -> AsyncIterator[EmbeddedEngine]:
    """The serving engine on a base's folder, with settings of `EmbeddedConfig`."""
    engine = EmbeddedEngine(EmbeddedConfig(model=base, **settings))
    with stage(console, f"loading the base {base}"):
        await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def questions_of(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    judge: JudgeName,
    *,
    limit: int | None = None,
    max_tokens: int | None = None,
) -> Iterator[Question]:
    """The sequences of rows, or of the first `limit` rows, with their judges. Raises `DataError`
    for a row that the judge cannot use."""
    for index, row in enumerate(itertools.islice(rows, limit)):
        for example in row:
            context, learned = split_at_answer(example)
            is_whole = learned[-1] in rows.end_ids
            reference = said_after(tokenizer, context, learned, rows.end_ids)
            try:
                judging = judge_of(judge, reference, rows.fields(index), is_whole=is_whole)
            except DataError as error:
                raise DataError(f"{rows.where(index)}: {error}") from None
            enough = len(learned) + SPARE_TOKENS if judge == "exact" else ANSWER_TOKENS
            yield Question(example=example, judge=judging, max_tokens=max_tokens or enough)


async def score(
    engine: Engine,
    models: Mapping[str, str | None],
    questions: Sequence[Question],
    *,
    batch_size: int,
    move: Move = lambda _: None,
) -> dict[str, Score]:
    """The scores of some models of an engine by their names: adapters by their digests, None is the
    base. `batch_size` requests are asked at a time."""
    places = asyncio.Semaphore(batch_size)
    numbers = itertools.count(1)
    total = 2 * len(models) * len(questions)

    async def ask(prompt: Sequence[int], digest: str | None, **params: Any) -> list[TokenEvent]:
        request = GenerationRequest(
            request_id=f"eval-{next(numbers)}",
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(temperature=0.0, **params),
            digest=digest,
        )
        async with places:
            events = [event async for event in engine.generate(request)]
        move(next(ended) / total)
        return events

    async def answer(question: Question, digest: str | None) -> bool:
        context, _ = split_at_answer(question.example)
        room = engine.model.max_model_len - len(context)
        events = await ask(context, digest, max_tokens=min(question.max_tokens, room))
        said = "".join(event.text for event in events)
        return await asyncio.to_thread(question.judge, said)  # which may run tests

    async def loss(question: Question, digest: str | None) -> float:
        async with places:
            found = await completion_loss(engine, question.example, digest)
        move(next(ended) / total)
        return found

    async def scored(digest: str | None) -> Score:
        right = asyncio.gather(*(answer(question, digest) for question in questions))
        losses = await asyncio.gather(*(loss(question, digest) for question in questions))
        return Score(
            loss=sum(losses) / len(losses),
            accuracy=sum(await right) / len(questions),
            rows=len(questions),
        )

    ended = itertools.count(1)
    found = await asyncio.gather(*map(scored, models.values()))
    return dict(zip(models, found, strict=True))


async def completion_loss(engine: Engine, example: Example, digest: str | None) -> float:
    """The mean loss of a sequence's learned tokens, in nats."""
    request = GenerationRequest(
        request_id=f"loss-{next(_NUMBERS)}",
        prompt_token_ids=tuple(example.tokens),
        params=SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=0),
        digest=digest,
    )
    (event,) = [event async for event in engine.generate(request)]
    assert event.prompt_logprobs is not None
    learned = [
        -position.chosen.logprob
        for position, is_target in zip(event.prompt_logprobs, example.is_target, strict=True)
        if is_target and position is not None
    ]
    return sum(learned) / len(learned)


def split_at_answer(example: Example) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens before the last completion, and its own."""
    return example.tokens[: example.prompt_length], example.tokens[example.prompt_length :]


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


def named_base(config: AdapterConfig | LoraConfig) -> str:
    """The base that an adapter names. Raises `ConfigError`."""
    if config.revision is not None:  # a path or hub id alone may stand for other weights
        raise ConfigError(
            f"revision: the adapter names revision {config.revision!r} of "
            f"{config.base_model_name_or_path!r}, expected --base with the folder of that one"
        )
    if not config.base_model_name_or_path:
        raise ConfigError("base_model_name_or_path: the adapter names no base, expected --base")
    return config.base_model_name_or_path
