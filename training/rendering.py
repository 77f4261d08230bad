"""Turns as the text that the server's model gets for them, and what it is to write of calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from remix_runtime.base.template import render, template_of
from remix_runtime.chats.prompt import ChatForm
from remix_runtime.errors import ChatTemplateError, DataError
from training.answers import said_after_thoughts
from training.fields import Turn


@dataclass(frozen=True, slots=True)
class Rendering:
    """A base's chat template, told of the tools of a row."""

    tokenizer: PreTrainedTokenizerBase
    form: ChatForm

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]]) -> Self:
        """Raises `DataError` for a base without a chat template."""
        template = template_of(tokenizer)
        if template is None:
            raise DataError("messages: the base has no chat template; use prompt and completion")
        return cls(tokenizer, ChatForm.of(template, tools))

    def text(self, turns: Sequence[Turn], add_generation_prompt: bool) -> str:
        """Raises `DataError` for turns that the template refuses."""
        rendered = partial(render, self.tokenizer, add_generation_prompt=add_generation_prompt)
        try:
            return self.form.render(rendered, [turn.message for turn in turns])
        except ChatTemplateError as error:
            raise DataError(f"messages: the chat template refuses them: {error}") from None

    def shows_tools(self, turns: Sequence[Turn], prompt: str) -> bool:
        """Whether the prompt of these turns would be another one without tools."""
        if not self.form.tools:
            return True
        plain = Rendering.of(self.tokenizer, ())
        try:
            return plain.text(turns, True) != prompt
        except DataError:
            return True

    def require_calls(self, turns: Sequence[Turn], answer: str | None, where: str) -> None:
        """Raises `DataError` if the text to learn has not all of the last turn's calls, or lacks
        its content beside them. `answer`: None if the template writes none after its prompt."""
        turn = turns[-1]
        if not turn.functions:
            return
        if answer is None:
            if self.text(turns, False) != self.text(turns[:-1], False):
                return  # it writes something that does not follow its prompt
            answer = ""
        for name, count in Counter(function["name"] for function in turn.functions).items():
            if answer.count(name) < turn.content.count(name) + count:
                raise DataError(
                    f"{where}.tool_calls: the base's chat template does not write the call of "
                    f"{name!r:.100}, expected one that does; train on rows of prompt and "
                    "completion that hold the text of the call"
                )
        if said_after_thoughts(turn.content).strip() not in answer:
            raise DataError(
                f"{where}.content: the base's chat template leaves it out beside tool_calls, "
                "expected none"
            )
