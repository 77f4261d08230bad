"""Settings of the HTTP server. Environment variables: `REMIX_` and the field's name."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from remix_runtime.chats.families import ToolParserName
from remix_runtime.errors import ConfigError
from remix_runtime.given_keys import USABLE_KEY, is_usable_key

_HOST = re.compile(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", re.ASCII)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@*A-Z]+")


def _http(text: str, **limits: Any) -> Any:
    return Field(description=text, json_schema_extra={"panel": "HTTP"}, **limits)


def _tenants(text: str, **limits: Any) -> Any:
    return Field(description=text, json_schema_extra={"panel": "Tenants"}, **limits)


class ServerSettings(BaseSettings):
    """A field with a description is an option of `remix serve` too."""

    model_config = SettingsConfigDict(env_prefix="REMIX_", frozen=True, extra="ignore")

    host: Annotated[str, _http("Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _http("Port; 0: any free one.", ge=0, le=65535)] = 8000
    api_key: Annotated[
        SecretStr | None,
        _http("Key that clients must send; better given as REMIX_API_KEY. No key by default."),
    ] = None
    default_max_tokens: Annotated[
        int, _http("Length of a chat's answer if the request sets no max_tokens.", ge=1)
    ] = 512
    long_max_tokens: Annotated[
        Literal["cut", "refuse"],
        _http(
            "What becomes of a max_tokens that the context has no room for: the answer is cut to "
            "the room, or the request is refused."
        ),
    ] = "cut"
    max_body_bytes: Annotated[int, _http("Largest request body.", ge=1024)] = 4 << 20
    bodies_bytes: Annotated[
        int | None,
        _http(
            "Memory for the bodies of all requests that are not answered; 64 times the largest "
            "body by default.",
            ge=4096,
        ),
    ] = None
    max_connections: Annotated[
        int,
        _http(
            "Connections open at once, at most what the limit on open files leaves. One more takes "
            "the place of the one that has waited longest for a request.",
            ge=1,
        ),
    ] = 10_000
    max_choices: Annotated[
        int, _http("Sequences that a request may ask for: prompts times n.", ge=1)
    ] = 64
    tool_parser: Annotated[
        ToolParserName,
        _http("How the model writes calls of tools; auto: by its chat template."),
    ] = "auto"
    drain_seconds: Annotated[
        float,
        _http("Time that running requests have after SIGTERM.", ge=0, allow_inf_nan=False),
    ] = 30.0
    drain_delay_seconds: Annotated[
        float,
        _http(
            "Time between SIGTERM and the drain: /ready says no, and new requests are still "
            "answered, until load balancers have seen it.",
            ge=0,
            allow_inf_nan=False,
        ),
    ] = 0.0
    keep_alive_seconds: Annotated[
        float,
        _http(
            "Silence of a stream after which it gets a comment, so that no proxy takes it for "
            "dead; 0: never.",
            ge=0,
            allow_inf_nan=False,
        ),
    ] = 10.0
    cors_origin: Annotated[
        tuple[str, ...],
        NoDecode,
        _http(
            "A web origin whose pages may ask, as https://app.example; repeat for more. `*` is "
            "every one. In REMIX_CORS_ORIGIN: separated by commas. None by default."
        ),
    ] = ()
    allowed_host: Annotated[
        tuple[str, ...],
        NoDecode,
        _http(
            "A name that requests may have as their Host, as models.example; repeat for more, `*` "
            "is every one. localhost and loopback addresses always may. Any by default, but none "
            "where a server without keys listens on a loopback address. In REMIX_ALLOWED_HOST: "
            "separated by commas."
        ),
    ] = ()
    memory_bytes: Annotated[
        int | None,
        _http(
            "Memory that the server may take; by default the limit of its control group, or the "
            "machine's. Defaults of other settings become smaller to fit, numbers that do not are "
            "refused.",
            ge=1,
        ),
    ] = None
    log_level: Annotated[str, _http("critical, error, warning, info or debug.")] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        _http("Lines of the log: text, or json, where each is a JSON object."),
    ] = "text"
    access_log: Annotated[
        bool, _http("Log a line for each request, at the level info; probes at debug.")
    ] = True
    otlp_endpoint: Annotated[
        str | None,
        _http(
            "OpenTelemetry collector that gets a trace of each request, as http://localhost:4318; "
            "OTEL_EXPORTER_OTLP_ENDPOINT says it too. No traces by default."
        ),
    ] = None

    data_dir: Annotated[
        Path | None, _tenants("Serve tenants, and keep them, their adapters and sets here.")
    ] = None
    database_url: Annotated[
        SecretStr | None,
        _tenants(
            "postgresql://… or sqlite:///…, for all but the adapters. A file in the data folder by "
            "default."
        ),
    ] = None
    admin_host: Annotated[str, _tenants("Address of the admin API.")] = "127.0.0.1"
    admin_port: Annotated[
        int, _tenants("Port of the admin API; 0: any free one.", ge=0, le=65535)
    ] = 8001
    import_root: Annotated[Path, _tenants("Folder under which local adapters must be.")] = Path()
    import_http: Annotated[
        bool, _tenants("Import adapters from http:// too, which anybody on the way can change.")
    ] = False
    import_network: Annotated[
        tuple[str, ...],
        NoDecode,
        _tenants(
            "A network whose web servers adapters may be imported from, as 10.0.0.0/8, though its "
            "addresses are not of the internet; repeat for more. In REMIX_IMPORT_NETWORK: "
            "separated by commas. None by default."
        ),
    ] = ()
    import_seconds: Annotated[
        float,
        _tenants("Time that an import may take; again, it goes on.", gt=0, allow_inf_nan=False),
    ] = 3600.0
    max_import_bytes: Annotated[
        int, _tenants("Largest adapter that is imported, its tensors as float32.", ge=1 << 20)
    ] = 4 << 30
    admin_key: SecretStr | None = None
    """Key of the admin API. Given in the environment only: others can read a command line."""
    poll_seconds: Annotated[float, Field(gt=0, le=60)] = 1.0
    """Seconds after which a change by another server is seen, if the database does not tell at
    once."""
    key_grace_seconds: Annotated[float, Field(ge=10, allow_inf_nan=False)] = 300.0
    """Seconds that known keys stay good while the database does not answer."""

    @property
    def room_for_bodies(self) -> int:
        """Bytes; a body of the largest size finds room where no other is."""
        return max(self.bodies_bytes or 64 * self.max_body_bytes, 2 * self.max_body_bytes)

    @field_validator("api_key", "admin_key")
    @classmethod
    def _usable_key(cls, key: SecretStr | None) -> SecretStr | None:
        # An empty variable must not open a server that its owner believes closed.
        text = None if key is None else key.get_secret_value()
        if text is not None and not is_usable_key(text):
            raise ValueError(f"expected {USABLE_KEY}")
        return key

    @field_validator("cors_origin", "allowed_host", "import_network", mode="before")
    @classmethod
    def _split(cls, given: object) -> object:
        return tuple(given.replace(",", " ").split()) if isinstance(given, str) else given

    @field_validator("allowed_host")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if host != "*" and not _HOST.fullmatch(host):
                raise ValueError(
                    f"found {host!r}, expected * or a name or address without a port, as "
                    "models.example, 10.0.0.5 or [fd00::5]"
                )
        return tuple(host.lower() for host in hosts)

    @field_validator("import_network")
    @classmethod
    def _networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            try:
                ip_network(network)
            except ValueError as error:
                raise ValueError(
                    f"{error}; expected a network as 10.0.0.0/8 or an address"
                ) from None
        return networks

    @field_validator("cors_origin")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            # What a browser sends, by the letter: with a path or in capitals none would ever match.
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"found {origin!r}, expected * or an origin in small letters without a path, "
                    "as https://app.example or http://localhost:3000"
                )
        return origins

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, level: str) -> str:
        levels = ("critical", "error", "warning", "info", "debug")
        if level.lower() not in levels:
            raise ValueError(f"expected one of {', '.join(levels)}")
        return level.lower()


def load_settings(**given: object) -> ServerSettings:
    """Reads the settings from the environment, overridden by what is given and not None.

    Raises `ConfigError` that names the first wrong field.
    """
    try:
        return ServerSettings(**{n: v for n, v in given.items() if v is not None and v != []})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{field} (environment: REMIX_{field.upper()}): {message}") from None
