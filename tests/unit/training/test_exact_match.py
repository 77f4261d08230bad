"""Exact match of `remix eval`: the learned text is 1, any other is 0, for every tokenizer and
template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tokenizers import END, EOS, EXACT, FAMILIES, TEMPLATES, tokenizer_of
from training import evaluation
from training.encoding import Example, encode_row
from training.evaluation import score

Tokens = tuple[int, ...]

CONTENTS = ("sat", " the cat", "b (1)\n", "hello\nyou, so long and so on")


class Oracle:
    """A model that answers each known prompt with given tokens, and any other with nothing."""

    device = torch.device("cpu")
    generation_config = None

    def __init__(self, answers: Mapping[Tokens, Tokens], ends: Sequence[int]) -> None:
        self._answers = answers
        self.config = SimpleNamespace(eos_token_id=list(ends))

    def generate(self, inputs: Tensor, *, attention_mask: Tensor, generation_config: Any) -> Tensor:
        prompts = [
            tuple(row[mask.bool()].tolist())
            for row, mask in zip(inputs, attention_mask, strict=True)
        ]
        answers = [self._answers[prompt] for prompt in prompts]
        width = min(max(map(len, answers)), generation_config.max_new_tokens)
        pad = generation_config.pad_token_id
        rows = [(list(answer) + [pad] * width)[:width] for answer in answers]
        return torch.cat([inputs, torch.tensor(rows)], dim=1)


def exact_match(
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: Any,
    examples: list[Example],
    answers: Mapping[Tokens, Tokens],
) -> float:
    monkeypatch.setattr(evaluation, "held_out_loss", lambda *_args, **_settings: 0.0)
    oracle: Any = Oracle(answers, tokenizer.convert_tokens_to_ids([EOS, END]))
    return score(oracle, tokenizer, examples, batch_size=3).exact_match


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
def test_a_perfectly_learned_row_is_a_match(
    monkeypatch: pytest.MonkeyPatch, family: str, template: str | None
) -> None:
    tokenizer = tokenizer_of(family, None if template is None else TEMPLATES[template])
    examples = encoded(tokenizer, *CONTENTS)
    assert exact_match(monkeypatch, tokenizer, examples, dict(map(parts, examples))) == 1.0


@pytest.mark.parametrize("change", [" {}", "{} ", "\n{}", "{}\n", "{}.", ""])
@pytest.mark.parametrize("template", [None, "plain", "dated"])
@pytest.mark.parametrize("family", EXACT)
def test_another_text_is_no_match(
    monkeypatch: pytest.MonkeyPatch, family: str, template: str | None, change: str
) -> None:
    """White space at its ends makes another text, too; so does the end token at once."""
    tokenizer = tokenizer_of(family, None if template is None else TEMPLATES[template])
    right = encoded(tokenizer, "sat")[:1]
    wrong = encoded(tokenizer, change.format("sat") or "x")[:1]
    context, answer = parts(wrong[0])
    assert context == parts(right[0])[0]
    answer = answer if change else answer[-1:]
    assert exact_match(monkeypatch, tokenizer, right, {context: answer}) == 0.0


@pytest.mark.parametrize(("family", "space"), [("gpt2", "Ġ"), ("llama 2", "▁"), ("mistral", "▁")])
def test_another_spelling_of_the_text_is_a_match(
    monkeypatch: pytest.MonkeyPatch, family: str, space: str
) -> None:
    tokenizer = tokenizer_of(family)
    examples = encoded(tokenizer, " the cat")[:1]
    context, answer = parts(examples[0])
    letters = tokenizer.convert_tokens_to_ids([space, *"the", space, *"cat"])
    spelled = (*letters, answer[-1])
    assert spelled != answer
    assert exact_match(monkeypatch, tokenizer, examples, {context: spelled}) == 1.0


def test_a_row_that_lost_its_end_is_a_match_as_far_as_it_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = tokenizer_of("gpt2")
    (whole,) = encoded(tokenizer, " the north is cold")
    cut = Example(
        tokens=whole.tokens[:-3], is_target=whole.is_target[:-3], prompt_length=whole.prompt_length
    )
    context, answer = parts(whole)
    assert exact_match(monkeypatch, tokenizer, [cut], {context: answer}) == 1.0
    assert exact_match(monkeypatch, tokenizer, [cut], {context: answer[1:]}) == 0.0
