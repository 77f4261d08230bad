"""The model's own tokenizer behind the `contracts.Tokenizer` protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from remix_runtime.base.template import render, template_of
from remix_runtime.base.tokenizer import load_tokenizer
from remix_runtime.engines.spelling import Spelling
from remix_runtime.engines.within import encode_within
from remix_runtime.errors import ChatTemplateError, InvalidRequestError


class ModelTokenizer(Spelling):
    """The tokenizer in the model's folder. No code of the model's author is run. Raises
    `ConfigError`."""

    def __init__(self, model: str) -> None:
        super().__init__(load_tokenizer(model))
        self.max_token_chars = max(map(len, self._tokenizer.get_vocab()))

    def __len__(self) -> int:
        return len(self._tokenizer)

    @property
    def chat_template(self) -> str | None:
        return template_of(self._tokenizer)

    @property
    def eos_token_id(self) -> int | None:
        eos: int | None = self._tokenizer.eos_token_id
        return eos

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool,
        at_most: int | None = None,
        keep_end: bool = False,
    ) -> list[int]:
        encode = partial(self._tokenizer.encode, add_special_tokens=add_special_tokens)
        return encode_within(encode, text, at_most, keep_end=keep_end)

    def token_text(self, token_id: int) -> str:
        return self.decode([token_id], skip_special_tokens=False)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        at_most: int | None = None,
        keep_end: bool = False,
        **variables: Any,
    ) -> list[int]:
        if not (template or self._tokenizer.chat_template):
            raise InvalidRequestError(
                "this model has no chat template; use /v1/completions", param="messages"
            )
        if template is not None:
            variables["chat_template"] = template
        if continue_final_message:
            variables["continue_final_message"] = True
        try:
            text = render(
                self._tokenizer, messages, add_generation_prompt=add_generation_prompt, **variables
            )
        except ChatTemplateError as error:
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        return self.encode(text, add_special_tokens=False, at_most=at_most, keep_end=keep_end)
