"""Grammars that hold an answer to calls of tools, in the form that the model's family has."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

from remix_runtime.chats.families import Family, Form
from remix_runtime.chats.reads import END_OF_THOUGHT, THINK
from remix_runtime.contracts import Grammar, GrammarKind
from remix_runtime.engines.recursion import require_finite
from remix_runtime.errors import InvalidRequestError
from server.api.tools.call_text import EXACT_BEGINNING
from server.api.wire.tools import Function

_SPACES = r"[ \n\t]{1,20}"
"""Between the parts of JSON: as much as models write, and no more, else small ones write nothing
else."""

_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_TEXT = r"/(.|\n)*/"
_WHITE = r"/[ \n\t\r]*/"


class Thought(Enum):
    """Whether thoughts come before an answer."""

    NEVER = auto()
    MAYBE = auto()
    BEGUN = auto()
    """The prompt ends in one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarForm:
    """What all grammars of a chat have in common."""

    family: Family
    thought: Thought
    tokens: Mapping[str, int]
    """Texts that the tokenizer has tokens for, special or not: a grammar allows these by their
    numbers, since special tokens are no text to it."""

    def must_call(
        self, functions: Sequence[Function], *, many: bool, answer: Grammar | None = None
    ) -> Grammar:
        """One call or more, and nothing else, or else `answer`."""
        rules = [_call_rule(i, function, self.family) for i, function in enumerate(functions)]
        rules.append(f"calls: {self._calls(functions, many=many)}")
        if answer is None:
            return self._grammar("body: calls", *rules)
        return self._grammar("body: calls | answer", f"answer: {_as_rule(answer)}", *rules)

    def must_answer(self, answer: Grammar) -> Grammar:
        """`answer`, with thoughts before it."""
        return self._grammar(f"body: {_as_rule(answer)}")

    def strict_calls(self, functions: Sequence[Function]) -> Grammar:
        """Any text in which calls of strict tools fit their schemas."""
        rules = []
        named = self.family.form is Form.NAMED
        marks: Sequence[str] = () if named else self.family.marks
        free = [
            f"<[{self.tokens[m]}]>" for m in (*marks, THINK, END_OF_THOUGHT) if m in self.tokens
        ]
        if free:
            rules.append(f"mark: TEXT ({' | '.join(free)})")
        pieces = ["mark"] if free else []
        for i, function in enumerate(functions):
            if not (named or function.strict):
                continue
            rules.append(f"args_{i}: {_json(_arguments(function))}")
            if named:
                rules += self._named_in_text(i, function.name)
                pieces.append(f"named_{i}")
            if function.strict:
                expression = EXACT_BEGINNING.format(name=function.name)
                rules.append(f"begin_{i}[lazy]: /(.|\\n)*{expression}/")
                rules.append(f'call_{i}: begin_{i} WHITE args_{i} WHITE "}}"')
                pieces.append(f"call_{i}")
        return _lark(f"start: ({' | '.join(pieces)})* TEXT", *rules)

    def _named_in_text(self, number: int, name: str) -> list[str]:
        opener, begin = self.family.opener, f"opened_{number}"
        expression = re.escape(opener + name) + r"\[ARGS\]"
        rules = [f"{begin}[lazy]: /(.|\\n)*{expression}/"]
        if opener in self.tokens:
            by_tokens = f"TEXT <[{self.tokens[opener]}]> {_quoted(name)} {self._mark('[ARGS]')}"
            begin = f"({begin} | {by_tokens})"
        return [*rules, f"named_{number}: {begin} args_{number}"]

    def _calls(self, functions: Sequence[Function], *, many: bool) -> str:
        family = self.family
        opener = self._mark(family.opener) if family.opener else ""
        closer = self._mark(family.closer) if family.closer else ""
        after = _quoted(family.after_opener) if family.after_opener else ""
        call = "(" + " | ".join(f"call_{i}" for i in range(len(functions))) + ")"
        if family.form is Form.NAMED:
            arguments = self._mark("[ARGS]")
            named = (f"{_quoted(f.name)} {arguments} call_{i}" for i, f in enumerate(functions))
            call = f"({' | '.join(named)})"
        each = call if family.one_opener else f"{opener} {after} {call} {after} {closer}"
        separator = _quoted(family.separator) if family.separator else ""
        calls = f"{each} ({separator} {each})*" if many else each
        if family.in_list:
            return f'{opener} "[" {calls} "]"'
        # Llama's models also write calls without a mark.
        return f"{opener}? {calls}" if family.one_opener else calls

    def _grammar(self, *rules: str) -> Grammar:
        match self.thought:
            case Thought.NEVER:
                return _lark("start: body", *rules)
            case Thought.MAYBE:
                start = f"start: ({self._mark(THINK)} thought WHITE)? body"
            case Thought.BEGUN:
                start = "start: thought WHITE body"
        end = r"end_of_thought[lazy]: /(.|\n)*<\/think>/"
        by_token = (
            f" | TEXT <[{self.tokens[END_OF_THOUGHT]}]>" if END_OF_THOUGHT in self.tokens else ""
        )
        return _lark(start, f"thought: end_of_thought{by_token}", end, *rules)

    def _mark(self, text: str) -> str:
        if text in self.tokens:
            return f"(<[{self.tokens[text]}]> | {_quoted(text)})"
        return _quoted(text)


def require_usable(function: Function, param: str) -> None:
    """Raises `InvalidRequestError` where no grammar can be made of a function's parameters."""
    problem = _problem(json.dumps(_arguments(function)))
    if problem:
        raise InvalidRequestError(f"{param}: invalid 'parameters' schema: {problem}", param=param)


@lru_cache(maxsize=256)
def _problem(schema: str) -> str:
    found = LLMatcher.validate_grammar(f"start: %json {schema}")
    if not found:
        try:
            require_finite(schema)
        except ValueError as error:
            return str(error)
    return found.partition("\n")[0].partition("JSON schema: ")[2] or found.partition("\n")[0]


def _call_rule(number: int, function: Function, family: Family) -> str:
    arguments = _arguments(function)
    if family.form is Form.NAMED:
        return f"call_{number}: {_json(arguments)}"
    key = family.arguments_key
    options = arguments.pop("x-guidance")
    call = {
        "type": "object",
        "properties": {"name": {"const": function.name}, key: {"$ref": "#/$defs/arguments"}},
        "required": ["name", key],
        "additionalProperties": False,
        "$defs": {"arguments": _moved(arguments)},
        "x-guidance": options,
    }
    return f"call_{number}: {_json(call)}"


def _arguments(function: Function) -> dict[str, Any]:
    """The schema of the arguments, of which a tool that is not strict is held to what can be."""
    schema = {k: v for k, v in function.arguments_schema.items() if k not in ("$id", "$schema")}
    return {
        **schema,
        "x-guidance": {"whitespace_pattern": _SPACES, "lenient": not function.strict},
    }


def _moved(schema: Any) -> Any:
    """A schema that lies under `#/$defs/arguments` of another one, with its references."""
    match schema:
        case list():
            return [_moved(item) for item in schema]
        case dict():
            return {key: _moved_value(key, value) for key, value in schema.items()}
    return schema


def _moved_value(key: str, value: Any) -> Any:
    if key in ("const", "enum", "default", "examples"):
        return value
    if key in ("properties", "patternProperties", "$defs", "definitions") and isinstance(
        value, dict
    ):
        return {name: _moved(schema) for name, schema in value.items()}
    if key == "$ref" and isinstance(value, str) and value.startswith("#"):
        return "#/$defs/arguments" + value[1:]
    return _moved(value)


def _as_rule(grammar: Grammar) -> str:
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return f"%json {grammar.text}"
        case GrammarKind.REGEX:
            inside = grammar.text.replace("\\/", "/").replace("/", "\\/").replace("\n", "\\n")
            return f"/{inside}/"
    raise InvalidRequestError(
        "structured_outputs: a grammar is not allowed together with tools or with a chat template "
        "that begins a thought; give a JSON schema or a regular expression",
        param="structured_outputs",
    )


def _lark(*rules: str) -> Grammar:
    lines = [*rules, f"TEXT: {_TEXT}", f"WHITE: {_WHITE}", ""]
    return Grammar(GrammarKind.LARK, "\n".join(lines))


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps(schema)}"


def _quoted(text: str) -> str:
    return json.dumps(text)
