"""Settings of the HTTP server. Environment variables: `REMIX_` and the field's name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from remix_runtime.errors import ConfigError


class ServerSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="REMIX_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes any free port."""
    api_key: SecretStr | None = None
    """When set, every path but /, /health and /ready wants `Authorization: Bearer <key>`."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 4 << 20
    max_choices: Annotated[int, Field(ge=1)] = 64
    """Prompts times `n` of one request."""
    default_max_tokens: Annotated[int, Field(ge=1)] = 512
    """For chats that set no max_tokens; the rest of the context is the other bound."""
    drain_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    """How long requests in flight may go on after SIGTERM."""
    log_level: str = "info"

    # What follows is for servers with tenants.
    data_dir: Path | None = None
    """Where adapters, and without `database_url` the database too, are kept."""
    database_url: SecretStr | None = None
    admin_host: str = "127.0.0.1"
    admin_port: Annotated[int, Field(ge=0, le=65535)] = 8001
    admin_key: SecretStr | None = None
    import_root: Path = Path()
    """Adapters in local folders are imported from under it only."""
    poll_seconds: Annotated[float, Field(gt=0, le=60)] = 1.0
    """How soon a change by another server is seen, where the database does not tell at once."""
    key_grace_seconds: Annotated[float, Field(ge=10, allow_inf_nan=False)] = 300.0
    """How long known keys stay good while the database does not answer."""

    @field_validator("api_key", "admin_key")
    @classmethod
    def _usable_key(cls, key: SecretStr | None) -> SecretStr | None:
        # An empty variable must not open a server that its owner believes closed.
        text = None if key is None else key.get_secret_value()
        if text is not None and not (text and text.isascii() and text.isprintable()):
            raise ValueError("expected at least one character, printable ASCII only")
        return key

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, level: str) -> str:
        levels = ("critical", "error", "warning", "info", "debug")
        if level.lower() not in levels:
            raise ValueError(f"expected one of {', '.join(levels)}")
        return level.lower()


def load_settings(**given: object) -> ServerSettings:
    """Settings from the environment, overridden by what is given and not None.

    Raises `ConfigError` that names the first wrong field.
    """
    try:
        return ServerSettings(**{name: v for name, v in given.items() if v is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{field} (environment: REMIX_{field.upper()}): {message}") from None
