"""instructor: its default mode (tools) and the others that OpenAI's API has."""

from __future__ import annotations

from typing import Any

import instructor
from calls import API_KEY, BASE_URL, MODEL, QUESTION, call, run
from openai import OpenAI
from pydantic import BaseModel

plain = OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)
ask: Any = [{"role": "user", "content": QUESTION + " Answer as JSON: name and country."}]


class City(BaseModel):
    """A city."""

    name: str
    country: str


def extract(client: Any, method: str = "create") -> str:
    found = getattr(client, method)(
        model=MODEL,
        response_model=City,
        messages=ask,
        max_tokens=200,
        temperature=0,
        max_retries=0,
    )
    if method == "create_partial":
        *_, found = found
    assert isinstance(found, City)
    return str(found)


@call("default mode")
def default_mode() -> str:
    return extract(instructor.from_openai(plain))


@call("default mode, partial stream")
def partial() -> str:
    return extract(instructor.from_openai(plain), "create_partial")


@call("JSON mode")
def json_mode() -> str:
    return extract(instructor.from_openai(plain, mode=instructor.Mode.JSON))


@call("JSON schema mode")
def json_schema_mode() -> str:
    return extract(instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA))


@call("strict tools mode")
def strict_tools_mode() -> str:
    return extract(instructor.from_openai(plain, mode=instructor.Mode.TOOLS_STRICT))


run()
