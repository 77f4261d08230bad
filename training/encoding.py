"""One row of training data to the tokens of its sequences, with a loss on its completions.

A row is `{"prompt": ..., "completion": ...}` (raw text, the tokenizer's end token is appended to
the completion), `{"messages": [{"role": ..., "content": ...}, ...]}` (the base's chat template;
loss on assistant turns, with their calls of `tools`, up to their end token, unless their `weight`
is 0), or `{"text": ...}` (all of it is learned, and its end). `shapes.py` says what else becomes
one of these, `fields.py` which other keys may stand there, `calls.py` what tools and calls are.

The tokens before a completion are, token for token, those that the server's model gets for that
prompt; the tokens of the completion are those that make it say the completion's text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from remix_runtime.errors import DataError
from training.answers import answer_text
from training.calls import checked_tools
from training.continuation import Prompt, continuation, token_text
from training.fields import check_row, checked_turns
from training.rendering import Rendering
from training.shapes import in_our_shape
from training.values import text_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One sequence. `is_target[i]` says whether predicting token i is part of the loss."""

    tokens: tuple[int, ...]
    is_target: tuple[bool, ...]
    prompt_length: int
    """Tokens before the last completion: what `remix eval` gives the model to continue."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """One completion behind what the server sees when it is asked for it."""

    context: list[int]
    completion: list[int]


def encode_row(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int]
) -> list[Example]:
    """Turns a row into one sequence, or into several: an answer whose context does not begin with
    the tokens of the answer before it starts another. So it is with templates that drop the
    thoughts of earlier turns.

    `end_ids` end an answer when it is served; the tokenizer's own end token is one of them. Raises
    `DataError` without file and line.
    """
    ours = in_our_shape(row)
    try:
        return _encoded(ours, tokenizer, end_ids)
    except DataError as error:
        if ours is row:
            raise
        source = "conversations" if "conversations" in row else "prompt and completion"
        raise DataError(f"{error} (messages are made of {source})") from None


def _encoded(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int]
) -> list[Example]:
    match check_row(row):
        case "chat":
            return _joined(_chat_answers(row, tokenizer, end_ids))
        case "raw":
            return _joined([_raw_answer(row, tokenizer, end_ids)])
        case "text":
            return [_text(text_of(row, "text", "text"), tokenizer, end_ids)]


def _text(text: str, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int]) -> Example:
    """A text from its first token to an end. What begins with the tokenizer's own first token, as a
    rendered template may, gets no second one."""
    begin = tokenizer.bos_token
    has_begin = begin is not None and text.startswith(begin)
    ids = list(tokenizer.encode(text, add_special_tokens=not has_begin))
    if tokenizer.unk_token_id in ids and tokenizer.unk_token_id not in end_ids:
        raise DataError("text: found a part that the base's tokenizer has no tokens for")
    if not ids or ids[-1] not in end_ids:
        ids.append(tokenizer.eos_token_id)
    if len(ids) < 2:
        raise DataError("text: found no tokens, expected at least one")
    return Example(tokens=tuple(ids), is_target=(False, *(True,) * (len(ids) - 1)), prompt_length=1)


def _joined(answers: Iterable[_Answer]) -> list[Example]:
    examples: list[Example] = []
    for answer in answers:
        known: tuple[bool, ...] = ()
        if examples and tuple(answer.context[: len(examples[-1].tokens)]) == examples[-1].tokens:
            known = examples.pop().is_target
        unlearned = (False,) * (len(answer.context) - len(known))
        learned = (True,) * len(answer.completion)
        examples.append(
            Example(
                tokens=(*answer.context, *answer.completion),
                is_target=known + unlearned + learned,
                prompt_length=len(answer.context),
            )
        )
    return examples


def _raw_answer(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int]
) -> _Answer:
    text, completion = (text_of(row, key, key) for key in ("prompt", "completion"))
    prompt = Prompt.of(tokenizer, text, add_special_tokens=True)
    if not prompt.context:
        raise DataError("prompt: found no tokens, expected at least one to continue from")
    ids = _completion(tokenizer, prompt, completion, end_ids, "completion")
    rest = completion.partition(token_text(tokenizer, ids[-1]))[2]
    for end in end_ids:  # an end, a line feed, another end: all said after the first is nothing
        rest = rest.replace(token_text(tokenizer, end), "")
    if rest.strip():
        _refuse_end(tokenizer, ids[-1], "completion")
    return _Answer(prompt.context, ids)


def _chat_answers(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int]
) -> Iterator[_Answer]:
    turns = checked_turns(row["messages"])
    rendering = Rendering.of(tokenizer, checked_tools(row))
    shown = False
    for index, turn in enumerate(turns):
        if not turn.learned:
            continue
        where = f"messages[{index}]"
        found = answer_text(rendering.text, turns, index)
        rendering.require_calls(turns[: index + 1], found[1] if found else None, where)
        if found is None:
            raise DataError(
                f"{where}: the chat template rewrites earlier turns or its generation prompt when "
                "it renders this answer, expected its text to follow what the template asks with; "
                "train on rows of prompt and completion that hold the template's text"
            )
        shown = shown or rendering.shows_tools(turns[:index], found[0])
        prompt = Prompt.of(tokenizer, found[0], add_special_tokens=False)
        if not prompt.context:
            raise DataError(f"{where}: the chat template renders nothing before this answer")
        ids = _completion(tokenizer, prompt, found[1], end_ids, f"{where}.content")
        if token_text(tokenizer, ids[-1]) in turn.said:
            _refuse_end(tokenizer, ids[-1], f"{where}.content")
        yield _Answer(prompt.context, ids)
    if not shown:
        raise DataError(
            "tools: the base's chat template shows them before none of these answers, expected "
            "none, or another template"
        )


def _completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    text: str,
    end_ids: frozenset[int],
    where: str,
) -> list[int]:
    """The tokens of a completion with the token that ends it."""
    try:
        ids = continuation(tokenizer, prompt, text, end_ids)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if not ids:
        raise DataError(f"{where}: found no tokens, expected at least one")
    return ids if ids[-1] in end_ids else [*ids, tokenizer.eos_token_id]


def _refuse_end(tokenizer: PreTrainedTokenizerBase, end: int, where: str) -> None:
    raise DataError(
        f"{where}: found {token_text(tokenizer, end)!r} inside, which ends an answer when it is "
        "served; expected it at the end only, where it is added if it is missing"
    )
