"""The text that a model is to write as its answer in a chat, by the base's chat template.

The context is what the server renders: the turns before the answer and the generation prompt. What
the template writes after it, when it renders the answer too, is learned. Templates of models that
think may write something else than they prompt for:

- The prompt opens a block (`<think>`) and the answer is rendered without one. Thoughts that the
  content has (`thoughts</think>answer`) are learned as they stand; an answer without any closes the
  block at once, as templates that know empty thoughts do, so that it is no thought itself.
- The template drops the thoughts of an answer, or writes an empty block before them: they are
  taken from the content.
- The prompt ends in a closed block: the answer follows it, and may have no thoughts.

Decision 0010 says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.fields import Turn

Render = Callable[[Sequence[Turn], bool], str]
"""The text of turns, with or without the generation prompt."""

_NAME = r"(?P<name>[\w:]*(?:think|thought|reason)\w*)"
_AT_END = re.compile(
    rf"(?P<left>[<\[◁]){_NAME}(?P<right>[>\]▷])(?P<space>\s*)"
    r"(?P<closed>(?P=left)/(?P=name)(?P=right)\s*)?\Z",
    re.IGNORECASE,
)
"""A block of thoughts at the end of a generation prompt, open or closed."""
_CLOSING = re.compile(rf"(?P<left>[<\[◁])/{_NAME}(?P<right>[>\]▷])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Block:
    """The marks of a block of thoughts, and what the generation prompt has of one."""

    opening: str
    closing: str
    head: str
    """The prompt before its block; all of it without one."""
    prompted: str = ""
    """The white space behind the opening in the prompt."""
    opened: bool = False
    closed: bool = False

    def without_opening(self, text: str) -> str:
        """A text without the opening that the prompt has already."""
        inner = text.lstrip()
        if not self.opened or not inner.startswith(self.opening):
            return text
        return inner.removeprefix(self.opening).removeprefix(self.prompted)


def answer_text(render: Render, turns: Sequence[Turn], index: int) -> tuple[str, str] | None:
    """The prompt of the answer `turns[index]`, and the text to learn after it with what the
    template writes at its end. None when the answer's rendering does not follow its own prompt.
    """
    content = turns[index].content
    prompt, whole = render(turns[:index], True), render(turns[: index + 1], False)
    follows, at_end = whole.startswith(prompt), _AT_END.search(prompt)
    history = "" if follows and at_end is None else render(turns[:index], False)
    # A block that stands in the turns before is somebody's own words.
    if at_end is not None and history.startswith(prompt[: at_end.end("right")]):
        at_end = None
    block = _block_of(prompt, content, at_end)
    if follows:
        text: str | None = whole[len(prompt) :]
    else:
        said = content.rpartition(block.closing)[2] if block else content
        asked = turns[index - 1].content.strip()
        text = _rendered(whole, block.head if block else prompt, history, said, asked)
    if block is not None and text is not None:
        text = _with_thoughts(text, content, block, follows=follows)
    return (prompt, text) if text else None


def said_after_thoughts(content: str) -> str:
    """The content of an answer without its thoughts."""
    *_, end = (0, *(found.end() for found in _CLOSING.finditer(content)))
    return content[end:]


def _block_of(prompt: str, content: str, at_end: re.Match[str] | None) -> _Block | None:
    """The block that the generation prompt ends in, or else the last one that the content has."""
    found = at_end or next(reversed([*_CLOSING.finditer(content)]), None)
    if found is None:
        return None
    left, name, right = found["left"], found["name"], found["right"]
    opening, closing = f"{left}{name}{right}", f"{left}/{name}{right}"
    if at_end is None:
        return _Block(opening, closing, prompt)
    closed = at_end["closed"] is not None
    return _Block(opening, closing, prompt[: at_end.start()], at_end["space"], not closed, closed)


def _with_thoughts(text: str, content: str, block: _Block, *, follows: bool) -> str | None:
    """The rendered answer with the thoughts that belong there; `follows` if the template itself
    writes it after its prompt. None for thoughts where the prompt has closed them."""
    thoughts, has_thoughts, said = content.rpartition(block.closing)
    if not follows:
        text = block.without_opening(text)
    written = text.count(block.closing)
    if block.closed:
        if has_thoughts and not (follows and written):
            return None
        return text if follows else text.rpartition(block.closing)[2].lstrip() if written else text
    if has_thoughts and (not written or written > content.count(block.closing)):
        space = said[: len(said) - len(said.lstrip())]
        rest = text.rpartition(block.closing)[2].lstrip()
        return block.without_opening(thoughts) + block.closing + space + rest
    if follows or written or not block.opened:
        return text
    line = "\n" if block.prompted else ""
    return line + block.closing + line * 2 + text


def _rendered(whole: str, head: str, history: str, said: str, asked: str) -> str | None:
    """What `whole` has after `head`, or, where the template writes the turns before in another way
    once there is an answer, after the last header, or after `asked`, the turn before, with the
    mark that ends it. None if `said` is not in it."""
    tail = head[head.rindex(asked) :] if asked and asked in head else ""
    header = head[len(history) :] if head.startswith(history) else ""
    if whole.startswith(head):
        text = whole[len(head) :]
    elif header and header in whole:
        text = whole[whole.rindex(header) + len(header) :]
    elif head.strip() and whole.startswith(head.rstrip()):  # followed by another white space
        text = whole[len(head.rstrip()) :]
        text = text[text.index(said) :] if said in text else text.lstrip()
    elif tail and tail.rstrip() != asked and tail in whole:
        text = whole[whole.rindex(tail) + len(tail) :]
    else:
        return None
    return text if said.strip() in text else None
