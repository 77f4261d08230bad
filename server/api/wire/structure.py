"""Fields that say what an answer must look like: OpenAI's `response_format`, vLLM's
`structured_outputs` and the older `guided_…`. At most one of them may ask for something."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from llguidance.gbnf_to_lark import any_to_lark
from pydantic import BaseModel, Field, PlainValidator, PrivateAttr, model_validator
from pydantic_core import from_json

from remix_runtime.contracts import Grammar, GrammarKind
from server.api.wire.json_size import json_size
from server.api.wire.refusal import refused
from server.api.wire.setting import Setting
from server.http.fields import Text, invalid

MAX_GRAMMAR = 1 << 17
"""Characters of a schema, an expression or a grammar."""
MAX_CHOICES = 1024
MAX_RULES = 1000
"""Of a grammar that is translated: that takes time with the square of them."""


def _bounded(text: str) -> str:
    _require_short(len(text))
    return text


def _require_short(size: int) -> None:
    if size > MAX_GRAMMAR:
        raise invalid(f"found {size} characters, expected at most {MAX_GRAMMAR}")


def _schema(value: Any) -> Grammar:
    if not isinstance(value, dict):
        raise invalid("expected a JSON schema, an object")
    _require_short(json_size(value, ensure_ascii=False))
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(value, ensure_ascii=False))


def _schema_or_text(value: Any) -> Grammar:
    if isinstance(value, str):
        try:
            value = from_json(_bounded(value), allow_inf_nan=False)
        except ValueError as error:
            raise invalid(f"expected a JSON schema, found text that is not JSON: {error}") from None
    return _schema(value)


def _regex(value: Any) -> Grammar:
    return Grammar(GrammarKind.REGEX, _grammar_text(value, "a regular expression"))


def _choice(value: Any) -> Grammar:
    """One of some texts, as a rule of quoted literals."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_CHOICES:
        raise invalid(f"expected 1 to {MAX_CHOICES} texts")
    # Lark's literals are JSON's but for DEL.
    literals = (json.dumps(_grammar_text(item, "texts"), ensure_ascii=False) for item in value)
    rule = "start: " + " | ".join(literals).replace("\x7f", "\\u007f")
    return Grammar(GrammarKind.LARK, _bounded(rule))


def _ebnf(value: Any) -> Grammar:
    """Rules in Lark's notation, or in llama.cpp's, which becomes Lark's."""
    text = _grammar_text(value, "a grammar")
    if text.count("::=") > MAX_RULES:
        raise invalid(f"found more than {MAX_RULES} rules in GBNF")
    try:
        lark = any_to_lark(text)
    except RecursionError:
        raise invalid("the grammar is nested too deeply") from None
    except Exception as error:  # llguidance's own, and whatever its parser stumbles on
        raise invalid(
            f"found neither Lark's notation nor GBNF: {error or 'it ends early'}"
        ) from None
    return Grammar(GrammarKind.LARK, lark)


def _grammar_text(value: Any, expected: str) -> str:
    if not isinstance(value, str) or not value:
        raise invalid(f"expected {expected}, not empty")
    if "\0" in value:
        raise invalid("contains a NUL character, expected text without it")
    return _bounded(value)


def _nothing(value: Any) -> None:
    if value not in (None, False):
        raise invalid("this server does not support it; leave it out")


_Object = dict[str, Any]
Schema = Annotated[Grammar, PlainValidator(_schema, json_schema_input_type=_Object)]
SchemaOrText = Annotated[
    Grammar, PlainValidator(_schema_or_text, json_schema_input_type=_Object | str)
]
Regex = Annotated[Grammar, PlainValidator(_regex, json_schema_input_type=str)]
Choice = Annotated[Grammar, PlainValidator(_choice, json_schema_input_type=list[str])]
Ebnf = Annotated[Grammar, PlainValidator(_ebnf, json_schema_input_type=str)]
Unsupported = Annotated[
    None, PlainValidator(_nothing, json_schema_input_type=Literal[False] | None)
]

ANY_OBJECT = Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}')


class NamedSchema(Setting):
    """OpenAI's. The schema holds whether `strict` is true or not."""

    name: Text | None = None
    description: Text | None = None
    json_schema: Annotated[Schema, Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Setting):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            expected = "expected" if self.type == "json_schema" else "only allowed"
            message = f"{expected} beside the type json_schema"
            raise refused("json_schema", message)
        return self

    @property
    def grammar(self) -> Grammar | None:
        if self.type == "text":
            return None
        return ANY_OBJECT if self.json_schema is None else self.json_schema.json_schema


class StructuredOutputs(Setting):
    """vLLM's: exactly one of the first five."""

    json_schema: Annotated[SchemaOrText | None, Field(alias="json")] = None
    regex: Regex | None = None
    choice: Choice | None = None
    grammar: Ebnf | None = None
    json_object: bool | None = None
    disable_any_whitespace: Unsupported = None
    disable_additional_properties: Unsupported = None
    whitespace_pattern: Unsupported = None
    structural_tag: Unsupported = None

    @property
    def asked(self) -> list[Grammar]:
        given = (self.json_schema, self.regex, self.choice, self.grammar)
        found = [grammar for grammar in given if grammar is not None]
        return [*found, ANY_OBJECT] if self.json_object else found

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (found := len(self.asked)) != 1:
            message = f"expected one of json, regex, choice, grammar and json_object, found {found}"
            raise invalid(message)
        return self


class StructuredBody(BaseModel):
    """Fields of a body that may say what the answer must look like."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaOrText | None = None
    guided_regex: Regex | None = None
    guided_choice: Choice | None = None
    guided_grammar: Ebnf | None = None

    _structure: tuple[str, Grammar] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _find_structure(self) -> Self:
        form, outputs = self.response_format, self.structured_outputs
        asked = {
            "response_format": None if form is None else form.grammar,
            "structured_outputs": None if outputs is None else outputs.asked[0],
            "guided_json": self.guided_json,
            "guided_regex": self.guided_regex,
            "guided_choice": self.guided_choice,
            "guided_grammar": self.guided_grammar,
        }
        found = [(name, grammar) for name, grammar in asked.items() if grammar is not None]
        if len(found) > 1:
            names = [name for name, _ in found]
            raise refused(names[1], f"found {' and '.join(names)}, expected one of them")
        self._structure = found[0] if found else None
        return self

    @property
    def grammar(self) -> Grammar | None:
        return None if self._structure is None else self._structure[1]

    @property
    def engine_fields(self) -> Mapping[str, str]:
        """This body's names for fields that the engine calls otherwise."""
        return {} if self._structure is None else {"response_format": self._structure[0]}
