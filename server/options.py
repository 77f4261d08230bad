"""The options of `remix serve`: fields of the server's and the engines' settings, with the texts
that stand there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer
from pydantic import SecretStr

from server.engines import CONFIGS
from server.settings import ServerSettings

F = TypeVar("F", bound=Callable[..., None])

_PANELS = {
    "embedded": "Embedded engine",
    "vllm": "vLLM engine",
    "ray": "Ray engine",
    "fake": "Fake engine",
}


def server_options() -> dict[str, Any]:
    """The options of `settings` by name, annotated for typer. A setting without a description is no
    option."""
    options = {}
    for name, field in ServerSettings.model_fields.items():
        if field.description is not None:
            assert isinstance(field.json_schema_extra, dict)
            panel = str(field.json_schema_extra["panel"])
            default = _shown(name, field.default)
            options[name] = _option(field.annotation, field.description, panel, default)
    return options


def engine_options() -> dict[str, Any]:
    """The options of all engines, as `server_options`; `model` is `--base`. An option that engines
    share has the text of the first one."""
    hints: dict[str, Any] = {}
    defaults: dict[str, dict[str, str]] = {}
    for engine, config in CONFIGS.items():
        hints = get_type_hints(config, include_extras=True) | hints
        for field in fields(config):
            defaults.setdefault(field.name, {})[engine] = _shown(field.name, field.default)
    del defaults["model"]
    return {name: _engine_option(hints[name], found) for name, found in defaults.items()}


def take_options(options: Mapping[str, Any]) -> Callable[[F], F]:
    """Gives a command these options in the place of its `**options`. What is not given is None:
    then the environment has it, or the default."""

    def decorate(command: F) -> F:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[:-1]
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in options.items()
        ]
        signature = inspect.Signature([*own, *more])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return command

    return decorate


def _engine_option(hint: Any, defaults: Mapping[str, str]) -> Any:
    """Makes one option. `defaults`: by the names of the engines that have it."""
    kind, text = get_args(hint)
    engine, default = next(iter(defaults.items()))
    panel = "Engine" if len(defaults) > 1 else _PANELS[engine]
    if len(set(defaults.values())) > 1:
        default = ", ".join(f"{name}: {shown or 'its choice'}" for name, shown in defaults.items())
    return _option(kind, text, panel, default)


def _option(kind: Any, text: str, panel: str, default: str) -> Any:
    option = typer.Option(help=text, show_default=default or False, rich_help_panel=panel)
    return Annotated[_given_as(kind) | None, option]


def _given_as(kind: Any) -> Any:
    """The type on the command line for a field's type."""
    if isinstance(kind, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not NoneType)
    if kind is SecretStr or get_origin(kind) is Mapping:
        return str
    return list[str] if get_origin(kind) is tuple else kind


def _shown(name: str, default: object) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, int) and name.endswith("_bytes"):
        return f"{default >> 30} GiB" if default >= 1 << 30 else f"{default >> 20} MiB"
    if isinstance(default, float):
        return f"{default:g}"
    return "" if default in (None, MISSING, ()) else str(default)
