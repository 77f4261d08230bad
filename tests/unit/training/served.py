"""A base's tokenizer as training and as the server have it, for the tests of rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

from transformers import LlamaConfig, PreTrainedTokenizerFast

from remix_runtime.base.tokenizer import load_tokenizer
from remix_runtime.engines.text import TextStream
from remix_runtime.engines.tokenizer import ModelTokenizer
from server.api.tools.prepare import render_prompt
from server.api.wire.chat import ChatRequest
from tests.tokenizers import END, EOS, TEMPLATES, tokenizer_of
from training.encoding import Example, encode_row

Row = dict[str, Any]


class Served:
    """A tokenizer as training and as the server have it: both read one folder."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        with TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(folder)
            self.server, self.training = ModelTokenizer(folder), load_tokenizer(folder)
        self.ends = frozenset(self.training.convert_tokens_to_ids([EOS, END]))

    def encode(self, row: Row) -> list[Example]:
        return encode_row(row, self.training, self.ends)

    def said(self, context: tuple[int, ...], answer: tuple[int, ...]) -> str:
        """What a client gets for generated tokens, one by one."""
        assert answer[-1] in self.ends
        assert not self.ends.intersection(answer[:-1])
        stream = TextStream(self.server, context)
        return "".join(map(stream.push, answer[:-1])) + stream.flush()

    def prompt_of(self, messages: list[Row], **fields: Any) -> list[int]:
        """The tokens of a chat request, from its JSON on."""
        body = ChatRequest.model_validate({"model": "m", "messages": messages, **fields})
        return render_prompt(self.server, body)


@cache
def served(
    family: str, template: str | None = None, bos: bool = False, marks: bool = False
) -> Served:
    text = None if template is None else TEMPLATES[template]
    return Served(tokenizer_of(family, text, bos=bos, marks=marks))


def answers(examples: list[Example]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Each learned run of tokens, and all tokens before it."""
    for example in examples:
        edges = [False, *example.is_target, False]
        starts = [i for i in range(len(edges) - 1) if edges[i + 1] and not edges[i]]
        ends = [i for i in range(len(edges) - 1) if edges[i] and not edges[i + 1]]
        runs = list(zip(starts, ends, strict=True))
        assert runs[-1] == (example.prompt_length, len(example.tokens))
        for start, end in runs:
            yield example.tokens[:start], example.tokens[start:end]
