"""`defaults.json`, which an adapter may have: what a request has where it says nothing else.

One JSON object, every field optional: `chat_template` (Jinja, in the place of the base's),
`temperature`, `top_p`, `top_k`, `min_p`, `presence_penalty`, `frequency_penalty`,
`repetition_penalty`, `max_tokens` and `stop`, with the meaning and the limits of the API's fields.
The file belongs to the adapter's identity: other defaults give other answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from jinja2 import TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from remix_runtime.adapter.checkpoint.folder import Folder, open_folder
from remix_runtime.adapter.checkpoint.strict_json import parse_object, show
from remix_runtime.contracts import AdapterDefaults
from remix_runtime.errors import CheckpointFormatError

DEFAULTS_FILE = "defaults.json"
MAX_BYTES = 256 << 10

_Stop = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    chat_template: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    stop: Annotated[list[_Stop], Field(max_length=16)] = []


def defaults_in(files: Folder) -> AdapterDefaults:
    """The defaults in an open adapter folder; empty ones where there is no such file. Raises
    `CheckpointFormatError` that names the field."""
    if not files.has(DEFAULTS_FILE):
        return AdapterDefaults()
    return parse_defaults(files.read(DEFAULTS_FILE, max_bytes=MAX_BYTES))


def read_defaults(folder: Path) -> AdapterDefaults:
    """`defaults_in` for a path."""
    with open_folder(folder) as files:
        return defaults_in(files)


def parse_defaults(data: bytes) -> AdapterDefaults:
    """The content of the file. Raises `CheckpointFormatError`."""
    given = parse_object(data, file=DEFAULTS_FILE)
    try:
        fields = _Fields.model_validate({n: v for n, v in given.items() if v is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise CheckpointFormatError(
                f"{DEFAULTS_FILE}: found field {show(name)}, expected only "
                f"{', '.join(_Fields.model_fields)}"
            ) from None
        raise CheckpointFormatError(
            f"{DEFAULTS_FILE}: {name}: found {show(first['input'])}; {first['msg']}"
        ) from None
    if fields.chat_template is not None:
        _check_template(fields.chat_template)
    return AdapterDefaults(**{**fields.model_dump(), "stop": tuple(fields.stop)})


def canonical_defaults(defaults: AdapterDefaults) -> bytes:
    """The byte string that stands for `defaults` in the digest: the fields that are set, keys
    sorted, no spaces, ASCII; nothing where none is set, so that an adapter without defaults has
    the digest of its configuration and tensors alone."""
    fields = defaults.given()
    if not fields:
        return b""
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


def emit_defaults(defaults: AdapterDefaults) -> bytes:
    """The file's content. Raises `CheckpointFormatError` where `parse_defaults` would."""
    data = canonical_defaults(defaults) or b"{}"
    parse_defaults(data)
    return json.dumps(json.loads(data), indent=2, sort_keys=True).encode("ascii") + b"\n"


def _check_template(source: str) -> None:
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        environment.parse(source)
    except TemplateSyntaxError as error:
        if "unknown tag 'generation'" in str(error.message):
            return  # transformers' own tag, which marks what is learned
        raise CheckpointFormatError(
            f"{DEFAULTS_FILE}: chat_template: line {error.lineno}: {error.message}"
        ) from None
