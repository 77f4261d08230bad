"""`remix serve` has an option for every setting, and each setting is described where it stands."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from server.commands import serve
from server.engines import CONFIGS
from server.options import engine_options, server_options
from server.settings import ServerSettings

ENVIRONMENT_ONLY = {"admin_key", "poll_seconds", "key_grace_seconds"}
ENGINE_FIELDS = {field.name for config in CONFIGS.values() for field in fields(config)} - {"model"}


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(add_completion=False)
    app.command()(serve)
    return app


def options(app: typer.Typer) -> dict[str, Any]:
    return {parameter.name: parameter for parameter in typer.main.get_command(app).params}


def test_every_field_is_an_option(app: typer.Typer) -> None:
    assert set(server_options()) == ServerSettings.model_fields.keys() - ENVIRONMENT_ONLY
    assert set(engine_options()) == ENGINE_FIELDS
    assert options(app).keys() == {
        *("base", "adapter", "engine"),
        *server_options(),
        *engine_options(),
    }


def test_options_tell_texts_and_defaults_of_the_fields(app: typer.Typer) -> None:
    found = options(app)
    for config in CONFIGS.values():
        for name, hint in get_type_hints(config, include_extras=True).items():
            if len(get_args(hint)) == 2 and isinstance(get_args(hint)[1], str):
                assert found[name].help == get_args(hint)[1]
    for name in server_options():
        assert found[name].help == ServerSettings.model_fields[name].description
    shown = {name: option.show_default for name, option in found.items()}
    assert shown["max_body_bytes"] == "4 MiB"
    assert shown["host_adapter_bytes"] == "4 GiB"
    assert shown["drain_seconds"] == "30"
    assert shown["adapter_slots"] == "embedded: 16, vllm: 8"
    assert shown["max_running"] == "embedded: 32, vllm: 32, fake: 4"
    assert shown["access_log"] == "yes"
    assert shown["token_seconds"] == "0"
    assert shown["max_tokens_per_step"] == "embedded: 256, vllm: its choice"
    assert shown["enforce_eager"] == "no"
    assert shown["import_http"] == "no"
    assert shown["threads"] is shown["engine_args"] is False  # the text has it


def test_what_is_not_given_is_left_to_the_environment_and_the_engine(app: typer.Typer) -> None:
    command = typer.main.get_command(app)
    parsed = command.make_context("serve", ["--base", "b"]).params
    assert {name for name, value in parsed.items() if value} == {"base", "engine"}
    given = ["--base", "b", "--port", "1", "--import-root", "/x", "--no-enforce-eager"]
    given += ["--no-access-log", "--cors-origin", "https://a", "--cors-origin", "https://b"]
    given += ["--target-modules", "a", "--target-modules", "b", "--dtype", "float16"]
    parsed = command.make_context("serve", given).params
    assert (parsed["port"], parsed["import_root"], parsed["dtype"]) == (1, Path("/x"), "float16")
    assert (parsed["access_log"], parsed["cors_origin"]) == (False, ["https://a", "https://b"])
    assert (parsed["enforce_eager"], list(parsed["target_modules"])) == (False, ["a", "b"])


@pytest.mark.parametrize("wrong", [["--port", "x"], ["--dtype", "int8"], ["--device", "tpu"]])
def test_types_are_those_of_the_fields(app: typer.Typer, wrong: list[str]) -> None:
    assert CliRunner().invoke(app, ["--base", "b", *wrong]).exit_code == 2


def test_the_options_need_no_engine() -> None:
    code = (
        "import sys, server.commands; "
        "print({'torch', 'transformers', 'fastapi', 'sqlalchemy', 'vllm'} & sys.modules.keys())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
