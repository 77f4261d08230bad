"""Exact match of `remix eval`: the learned text is 1, any other is 0, for every tokenizer and
template."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest

from remix_runtime.contracts import (
    GenerationRequest,
    PositionLogprobs,
    TokenEvent,
    TokenLogprob,
)
from tests.tokenizers import END, EOS, EXACT, FAMILIES, TEMPLATES, tokenizer_of
from training.encoding import Example, encode_row
from training.evaluation import questions_of, said_after, score

Tokens = tuple[int, ...]

CONTENTS = ("sat", " the cat", "b (1)\n", "hello\nyou, so long and so on")


class Oracle:
    """An engine that answers each known prompt with given tokens, in the words of the server."""

    model = SimpleNamespace(max_model_len=1 << 20)

    def __init__(self, tokenizer: Any, answers: Mapping[Tokens, Tokens]) -> None:
        self._tokenizer = tokenizer
        self._answers = answers

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        prompt, params = request.prompt_token_ids, request.params
        if params.prompt_logprobs is not None:
            sure = PositionLogprobs(chosen=TokenLogprob(token_id=0, logprob=-1.5), top=())
            yield TokenEvent(
                token_ids=(), text="", prompt_logprobs=(None, *[sure] * (len(prompt) - 1))
            )
            return
        answer = self._answers[prompt][: params.max_tokens]
        ends = frozenset(self._tokenizer.convert_tokens_to_ids([EOS, END]))
        yield TokenEvent(token_ids=answer, text=said_after(self._tokenizer, prompt, answer, ends))


def exact_match(tokenizer: Any, examples: list[Example], answers: Mapping[Tokens, Tokens]) -> float:
    rows: Any = KnownRows(examples, tokenizer)
    engine: Any = Oracle(tokenizer, answers)
    questions = list(questions_of(rows, tokenizer, "exact"))
    found = asyncio.run(score(engine, {"only": None}, questions, batch_size=3))["only"]
    assert found.loss == pytest.approx(1.5)  # of every learned token, and of no other
    assert found.rows == len(examples)
    return found.accuracy


class KnownRows:
    """Rows of one sequence each."""

    def __init__(self, examples: Sequence[Example], tokenizer: Any) -> None:
        self._examples = examples
        self.end_ids = frozenset(tokenizer.convert_tokens_to_ids([EOS, END]))

    def __iter__(self) -> Iterator[list[Example]]:
        return ([example] for example in self._examples)

    def fields(self, index: int) -> dict[str, Any]:
        return {}

    def where(self, index: int) -> str:
        return f"row {index}"


def parts(example: Example) -> tuple[Tokens, Tokens]:
    return example.tokens[: example.prompt_length], example.tokens[example.prompt_length :]


def encoded(tokenizer: Any, *contents: str) -> list[Example]:
    """A row for each content, as a chat if there is a template, and all of them as one chat."""
    ends = frozenset(tokenizer.convert_tokens_to_ids([EOS, END]))
    if tokenizer.chat_template is None:
        rows: list[dict[str, Any]] = [
            {"prompt": f"{i} where is it?", "completion": text} for i, text in enumerate(contents)
        ]
    else:
        chats = [
            [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": text}]
            for i, text in enumerate(contents)
        ]
        rows = [{"messages": messages} for messages in [*chats, [*chain(*reversed(chats))]]]
    return [example for row in rows for example in encode_row(row, tokenizer, ends)]


@pytest.mark.parametrize("template", [None, *TEMPLATES])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_perfectly_learned_row_is_a_match(family: str, template: str | None) -> None:
    tokenizer = tokenizer_of(family, None if template is None else TEMPLATES[template])
    examples = encoded(tokenizer, *CONTENTS)
    assert exact_match(tokenizer, examples, dict(map(parts, examples))) == 1.0


@pytest.mark.parametrize("change", [" {}", "{} ", "\n{}", "{}\n", "{}.", ""])
@pytest.mark.parametrize("template", [None, "plain", "dated"])
@pytest.mark.parametrize("family", EXACT)
def test_another_text_is_no_match(family: str, template: str | None, change: str) -> None:
    """White space at its ends makes another text, too; so does the end token at once."""
    tokenizer = tokenizer_of(family, None if template is None else TEMPLATES[template])
    right = encoded(tokenizer, "sat")[:1]
    wrong = encoded(tokenizer, change.format("sat") or "x")[:1]
    context, answer = parts(wrong[0])
    assert context == parts(right[0])[0]
    answer = answer if change else answer[-1:]
    assert exact_match(tokenizer, right, {context: answer}) == 0.0


@pytest.mark.parametrize(("family", "space"), [("gpt2", "Ġ"), ("llama 2", "▁"), ("mistral", "▁")])
def test_another_spelling_of_the_text_is_a_match(family: str, space: str) -> None:
    tokenizer = tokenizer_of(family)
    examples = encoded(tokenizer, " the cat")[:1]
    context, answer = parts(examples[0])
    letters = tokenizer.convert_tokens_to_ids([space, *"the", space, *"cat"])
    spelled = (*letters, answer[-1])
    assert spelled != answer
    assert exact_match(tokenizer, examples, {context: spelled}) == 1.0


def test_a_row_that_lost_its_end_is_a_match_as_far_as_it_goes() -> None:
    tokenizer = tokenizer_of("gpt2")
    (whole,) = encoded(tokenizer, " the north is cold")
    cut = Example(
        tokens=whole.tokens[:-3], is_target=whole.is_target[:-3], prompt_length=whole.prompt_length
    )
    context, answer = parts(whole)
    assert exact_match(tokenizer, [cut], {context: answer}) == 1.0
    assert exact_match(tokenizer, [cut], {context: answer[1:]}) == 0.0
