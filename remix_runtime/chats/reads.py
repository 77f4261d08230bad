"""What a chat template reads of a request, from its source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from jinja2 import Environment, TemplateSyntaxError, meta, nodes

THINK, END_OF_THOUGHT = "<think>", "</think>"

_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""transformers' own mark of what a model is trained on, which Jinja does not know."""


@dataclass(frozen=True, slots=True)
class TemplateReads:
    """What a template looks at: what it does not would be dropped in silence."""

    SWITCHES: ClassVar = frozenset({"enable_thinking", "thinking"})

    source: str
    variables: frozenset[str]
    """Names that it takes from outside."""
    words: frozenset[str]
    """Names of attributes and items, and all other texts that stand between quotes."""

    @property
    def tools(self) -> bool:
        return "tools" in self.variables

    @property
    def calls(self) -> bool:
        """Whether it renders the calls of earlier answers."""
        return "tool_calls" in self.words

    @property
    def results(self) -> bool:
        """Whether it knows the role of a call's result."""
        return "tool" in self.words

    @property
    def thoughts(self) -> bool:
        """Whether it renders what was thought before earlier answers."""
        return "reasoning_content" in self.words

    @property
    def switches(self) -> frozenset[str]:
        """Names by which it is told whether to think."""
        return self.variables & self.SWITCHES

    @property
    def thinks(self) -> bool:
        """Whether its model thinks before it answers."""
        return END_OF_THOUGHT in self.source


@lru_cache(maxsize=64)
def read_template(source: str) -> TemplateReads:
    """Raises nothing: what cannot be parsed cannot be rendered either, which says why."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)  # noqa: S701
    try:
        tree = environment.parse(_GENERATION.sub("", source))
        variables = meta.find_undeclared_variables(tree)
    except (TemplateSyntaxError, RecursionError):
        return TemplateReads(source, frozenset(), frozenset())
    # A name that is set in some branches only is read from outside in the others.
    loads = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "load"}
    variables |= loads & {"tools", "documents"}
    words = {node.attr for node in tree.find_all(nodes.Getattr)}
    words |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return TemplateReads(source, frozenset(variables), frozenset(words))
