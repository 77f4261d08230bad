"""What the prefix cache and pages on demand give: chats of many turns, and answers that could
become as long as the context.

    python -m benchmarks.speed.chats [--base FOLDER] [--users 8] [--turns 8] [--rounds 3]

Users talk at the same time and answer at once; all have the same long system prompt. Without the
cache every request has a salt of its own, so it finds nothing. The answers must be the same.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from benchmarks.options import Base, Out
from benchmarks.result import Table, publish
from benchmarks.rounds import from_thread, percentile, ratio, run_rounds
from remix_runtime.contracts import GenerationRequest, SamplingParams
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.threads import available_cores

_NUMBERS = itertools.count()
_TEXT = (
    "the ledger of harbour fees shows that each ship pays by length season cargo and berth while a "
    "clerk who finds an error writes it down with its date and asks the owner for a second paper"
)
SHORT, GENERATED, REQUESTS = 64, 50, 32
"""A `max_tokens` that is little more than what is generated, that, and requests at once."""


@dataclass(frozen=True, slots=True)
class Talk:
    """One run of all chats."""

    seconds: float
    answers: tuple[tuple[str, ...], ...]
    """By user and turn."""
    first_tokens: tuple[tuple[float, ...], ...]
    """Seconds to the first token, by user and turn."""
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(_TEXT.split(), k=words))


class Chats:
    def __init__(self, engine: EmbeddedEngine, users: int, turns: int, system: int) -> None:
        self._engine = engine
        self._users = users
        self._turns = turns
        self._system_tokens = system

    async def run(self, number: int, *, cached: bool, new_tokens: int) -> Talk:
        """The chats of round `number`, which no other round had."""
        rng = random.Random(number)
        system = _text(rng, self._system_tokens)
        ids = self._engine.tokenizer.encode(system, add_special_tokens=False)
        system = self._engine.tokenizer.decode(ids[: self._system_tokens])
        questions = [[_text(rng, 24) for _ in range(self._turns)] for _ in range(self._users)]
        begin = time.perf_counter()
        found = await asyncio.gather(
            *(self._user(system, texts, cached, new_tokens) for texts in questions)
        )
        return Talk(
            seconds=time.perf_counter() - begin,
            answers=tuple(tuple(turn.answer for turn in turns) for turns in found),
            first_tokens=tuple(tuple(turn.first_token for turn in turns) for turns in found),
            prompt_tokens=sum(turn.prompt_tokens for turns in found for turn in turns),
            cached_tokens=sum(turn.cached_tokens for turns in found for turn in turns),
            new_tokens=self._users * self._turns * new_tokens,
        )

    async def _user(
        self, system: str, questions: Sequence[str], cached: bool, new_tokens: int
    ) -> list[_Turn]:
        messages = [{"role": "system", "content": system}]
        turns = []
        for question in questions:
            messages.append({"role": "user", "content": question})
            prompt = self._engine.tokenizer.apply_chat_template(messages)
            turn = await _ask(self._engine, prompt, new_tokens, new_tokens, cached=cached)
            messages.append({"role": "assistant", "content": turn.answer})
            turns.append(turn)
        return turns


@dataclass(frozen=True, slots=True)
class _Turn:
    answer: str
    first_token: float
    prompt_tokens: int
    cached_tokens: int


async def _ask(
    engine: EmbeddedEngine, prompt: Sequence[int], max_tokens: int, leaves_at: int, *, cached: bool
) -> _Turn:
    """A greedy answer; who asks leaves after `leaves_at` tokens."""
    name = f"benchmark-{next(_NUMBERS)}"
    request = GenerationRequest(
        request_id=name,
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True),
        cache_salt="" if cached else name,
    )
    begin, first, found, text, count = time.perf_counter(), None, 0, "", 0
    events = engine.generate(request)
    async for event in events:
        first = time.perf_counter() - begin if first is None else first
        found += event.cached_tokens or 0
        text += event.text
        count += len(event.token_ids)
        if count >= leaves_at:
            break
    await events.aclose()
    assert first is not None
    return _Turn(text, first, len(prompt), found)


async def _long_answers(engine: EmbeddedEngine, max_tokens: int, number: int) -> float:
    """Seconds until all requests have their tokens."""
    rng = random.Random(number)
    vocab = engine.model.vocab_size
    prompts = [[rng.randrange(vocab) for _ in range(16)] for _ in range(REQUESTS)]
    begin = time.perf_counter()
    await asyncio.gather(
        *(_ask(engine, prompt, max_tokens, GENERATED, cached=False) for prompt in prompts)
    )
    return time.perf_counter() - begin


def main(
    base: Base,
    users: Annotated[int, typer.Option(min=1)] = 8,
    turns: Annotated[int, typer.Option(min=2)] = 8,
    system: Annotated[int, typer.Option(min=1, help="Tokens of the system prompt.")] = 1000,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 32,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    out: Out = None,
) -> None:
    """Compare chats with the prefix cache and without, and long `max_tokens` with short ones."""
    asyncio.run(_main(base.name, str(base), users, turns, system, new_tokens, rounds, out))


async def _main(
    name: str,
    base: str,
    users: int,
    turns: int,
    system: int,
    new_tokens: int,
    rounds: int,
    out: Out,
) -> None:
    threads = available_cores()
    engine = EmbeddedEngine(EmbeddedConfig(model=base, threads=threads, proposals=False))
    await engine.start()
    chats, loop = Chats(engine, users, turns, system), asyncio.get_running_loop()
    context = engine.model.max_model_len - 16

    def talk(cached: bool) -> Callable[[int], Talk]:
        return from_thread(loop, lambda n: chats.run(n, cached=cached, new_tokens=new_tokens))

    def answers(max_tokens: int) -> Callable[[int], float]:
        return from_thread(loop, lambda n: _long_answers(engine, max_tokens, n))

    def report(line: str) -> None:
        print(line, flush=True)

    try:
        lengths = (await asyncio.to_thread(
            run_rounds,
            {"": {SHORT: answers(SHORT), context: answers(context)}},
            rounds=2 * rounds + 1, warm_up=1, report=report,
        ))[""]  # fmt: skip
        talks = (await asyncio.to_thread(
            run_rounds, {"": {True: talk(True), False: talk(False)}}, rounds=rounds, report=report
        ))[""]  # fmt: skip
    finally:
        await engine.stop()
    same = all(talks[True][n].answers == talks[False][n].answers for n in talks[True])
    hits = [talk.cached_tokens / talk.prompt_tokens for talk in talks[True].values()]
    longer = ratio(lengths[context], lengths[SHORT])
    assert longer is not None
    publish(
        out,
        f"Chats of {turns} turns, {name}",
        f"{users} users at once, {turns} turns, one system prompt of {system} tokens, answers of "
        f"{new_tokens} tokens, {rounds} rounds, {threads} threads; ratios within the same round, "
        f"median (least to most). The answers are {'the same' if same else 'NOT THE SAME'}; "
        f"{min(hits):.2f} of the prompts' tokens were cached at least.",
        Table(["", "without", "with the cache", "ratio"], _rows(talks)),
        f"{REQUESTS} requests that leave after {GENERATED} tokens, `max_tokens` {context} against "
        f"{SHORT}: {longer.show(3)} of the time.",
        talks={str(cached): [_figures(talk) for talk in found.values()]
               for cached, found in talks.items()},
        long_answers={str(length): list(found.values()) for length, found in lengths.items()},
    )  # fmt: skip
    if not same:
        raise typer.Exit(1)


def _rows(talks: Mapping[bool, Mapping[int, Talk]]) -> list[list[object]]:
    def rate(cached: bool) -> dict[int, float]:
        return {n: talk.new_tokens / talk.seconds for n, talk in talks[cached].items()}

    def first(cached: bool, turn: slice, share: float) -> dict[int, float]:
        return {
            n: percentile([t for user in talk.first_tokens for t in user[turn]], share)
            for n, talk in talks[cached].items()
        }

    def row(
        title: str, plain: dict[int, float], warm: dict[int, float], digits: int
    ) -> list[object]:
        shown = ratio(warm, plain)
        assert shown is not None
        of = [sorted(side.values())[len(side) // 2] for side in (plain, warm)]
        return [title, *(f"{value:.{digits}f}" for value in of), shown.show(3)]

    return [
        row("tokens per second, the whole run", rate(False), rate(True), 1),
        row("first turn, time to first token, p50, s", first(False, slice(0, 1), 0.5),
            first(True, slice(0, 1), 0.5), 3),
        row("later turns, p50, s", first(False, slice(1, None), 0.5),
            first(True, slice(1, None), 0.5), 3),
        row("later turns, p95, s", first(False, slice(1, None), 0.95),
            first(True, slice(1, None), 0.95), 3),
    ]  # fmt: skip


def _figures(talk: Talk) -> dict[str, object]:
    return {name: value for name, value in asdict(talk).items() if name != "answers"}


if __name__ == "__main__":
    typer.run(main)
