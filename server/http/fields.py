"""Field types of the requests: strict, finite, bounded, without NUL characters.

Strict means what JSON says: `true` is no number, `"1"` is no number, 1.5 is no integer. 3.0 is one:
some languages have no other numbers.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 128
MAX_ALLOWED_TOKEN_IDS = 1 << 16
MAX_BAD_WORDS = 128
MAX_LOGIT_BIAS = 1024
"""Entries of `logit_bias`; OpenAI takes 300. Whoever wants a few of all tokens has
`allowed_token_ids`."""
MAX_PARTS = 4096
"""Messages of a chat, parts of a message."""
MAX_LOGPROBS = 20
MAX_CHOICES = 128
"""The largest `n`, and the most prompts; the setting `max_choices` bounds their product."""

_LAST_INT64 = (1 << 63) - 1
_INT32 = 1 << 31


def invalid(message: str) -> PydanticCustomError:
    """A validation error whose message goes to the client as it is."""
    return PydanticCustomError("remix_invalid", "{reason}", {"reason": message})


def without_nul(text: str) -> str:
    if "\0" in text:
        raise invalid("contains a NUL character, expected text without it")
    return text


Text = Annotated[str, AfterValidator(without_nul)]


def _whole(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""An integer, 3.0 too."""

Seed = Annotated[Whole, Field(ge=-_LAST_INT64 - 1, le=_LAST_INT64)]
TokenId = Annotated[Whole, Field(ge=0, lt=_INT32)]
TokenCount = Annotated[Whole, Field(ge=1, lt=_INT32)]
CountFromZero = Annotated[Whole, Field(ge=0, lt=_INT32)]
"""A count that may be 0."""
NumLogprobs = Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)]

PromptInput = str | list[str] | list[int] | list[list[int]]
_PROMPT_FORMS = "a string, a list of strings, a list of token ids or a list of such lists"


def parse_prompts(value: Any) -> list[str | list[int]]:
    """Reads every form of `prompt` as a list of texts or token id lists."""
    if isinstance(value, str):
        value = [value]
    elif (ids := _token_ids(value)) is not None:
        return [ids]
    if not isinstance(value, list) or not value:
        raise invalid(f"expected {_PROMPT_FORMS}, not empty")
    if len(value) > MAX_CHOICES:  # before a look at each of them
        raise invalid(f"found {len(value)} prompts, expected at most {MAX_CHOICES}")
    prompts: list[str | list[int]] = []
    for item in value:
        prompt = without_nul(item) if isinstance(item, str) else _token_ids(item)
        if prompt is None or type(prompt) is not type((prompts or [prompt])[0]):
            raise invalid(f"expected {_PROMPT_FORMS}; token ids are 0 or more")
        prompts.append(prompt)
    return prompts


def _token_ids(value: Any) -> list[int] | None:
    """The token ids of a list that has nothing else in it."""
    if not isinstance(value, list) or not value:
        return None
    ids = [_whole(item) for item in value]
    return ids if all(type(item) is int and 0 <= item < _INT32 for item in ids) else None


Prompts = Annotated[
    list[str | list[int]], PlainValidator(parse_prompts, json_schema_input_type=PromptInput)
]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopStrings = Annotated[
    list[Annotated[Text, Field(min_length=1, max_length=1000)]],
    Field(max_length=MAX_STOP_STRINGS, fail_fast=True),
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
]


def _parse_logit_bias(value: Any) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid("expected an object of token ids to biases")
    if len(value) > MAX_LOGIT_BIAS:  # before a look at each of them
        raise invalid(f"found {len(value)} biases, expected at most {MAX_LOGIT_BIAS}")
    return {_bias_token(key): _bias(bias) for key, bias in value.items()}


def _bias_token(key: Any) -> int:
    # isdecimal alone would let other scripts' digits and endless numbers through.
    if not (isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) <= 9):
        raise invalid("expected token ids as keys")
    return int(key)


def _bias(value: Any) -> float:
    if type(value) not in (int, float) or not -100 <= value <= 100:
        raise invalid("expected biases from -100 to 100")
    return float(value)


LogitBias = Annotated[
    dict[int, float],
    PlainValidator(_parse_logit_bias, json_schema_input_type=dict[str, float] | None),
]
