"""One row of training data to the tokens of a sequence, with a loss on its completions.

A row is either `{"prompt": ..., "completion": ...}` (raw text, the tokenizer's end token is
appended to the completion) or `{"messages": [{"role": ..., "content": ...}, ...]}` (the base's
chat template; loss on assistant turns up to their end token). Other keys are left alone.
Prompt and completion are tokenised apart, exactly as a server sees a prompt and continues it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from remix_runtime.base.template import render
from remix_runtime.errors import ChatTemplateError, DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row. `is_target[i]` says whether predicting token i is part of the loss."""

    tokens: tuple[int, ...]
    is_target: tuple[bool, ...]
    prompt_length: int
    """Tokens before the last completion: what `remix eval` gives the model to continue."""
    reference: str
    """The text of the last completion."""


def encode_row(
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
        raise DataError(f"messages: found {kind_of(messages)}, expected a list of turns")
    turns = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise DataError(f"{where}: found {kind_of(message)}, expected an object")
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
        return render(tokenizer, turns, add_generation_prompt=add_generation_prompt)
    except ChatTemplateError as error:
        raise DataError(f"messages: the chat template refuses them: {error}") from None


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise DataError(f"{where}: found nothing, expected a string")
    value = row[key]
    if not isinstance(value, str):
        raise DataError(f"{where}: found {kind_of(value)}, expected a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: found a lone surrogate, expected valid Unicode") from None
    return value


def kind_of(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    return kinds.get(type(value), "a number")
