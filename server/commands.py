"""`remix serve`."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from remix_runtime.errors import ConfigError

if TYPE_CHECKING:
    from remix_runtime.contracts import Engine
    from server.state import Services


def _http(text: str, default: str) -> Any:
    return typer.Option(help=text, show_default=default, rich_help_panel="HTTP")


def _tenants(text: str, default: str) -> Any:
    return typer.Option(help=text, show_default=default, rich_help_panel="Tenants")


def _engine(text: str, default: str | bool = True) -> Any:
    return typer.Option(help=text, show_default=default, rich_help_panel="Embedded engine")


def serve(
    base: Annotated[str, typer.Option(help="Base model: a folder, or an id in the local cache.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="An adapter to serve, as NAME=DIR; repeat for more.", metavar="NAME=DIR"),
    ] = None,
    engine: Annotated[
        Literal["embedded", "fake"],
        typer.Option(help="`fake` answers nonsense without any model, to test clients with."),
    ] = "embedded",
    host: Annotated[str | None, _http("Address to listen on.", "127.0.0.1")] = None,
    port: Annotated[int | None, _http("Port; 0 takes a free one.", "8000")] = None,
    api_key: Annotated[
        str | None, _http("Key that clients must send; better given as REMIX_API_KEY.", "no key")
    ] = None,
    default_max_tokens: Annotated[
        int | None, _http("Length of a chat's answer if the request sets no max_tokens.", "512")
    ] = None,
    max_body_bytes: Annotated[int | None, _http("Largest request body.", "4 MiB")] = None,
    max_choices: Annotated[int | None, _http("Most prompts times n of a request.", "64")] = None,
    drain_seconds: Annotated[
        float | None, _http("Time that running requests have after SIGTERM.", "30")
    ] = None,
    log_level: Annotated[
        str | None, _http("critical, error, warning, info or debug.", "info")
    ] = None,
    data_dir: Annotated[
        Path | None,
        _tenants("Serve tenants, and keep them, their adapters and sets here.", "no tenants"),
    ] = None,
    database_url: Annotated[
        str | None, _tenants("postgresql://… or sqlite:///…, for what is not adapters.", "SQLite")
    ] = None,
    admin_host: Annotated[str | None, _tenants("Address of the admin API.", "127.0.0.1")] = None,
    admin_port: Annotated[int | None, _tenants("Its port; 0 takes a free one.", "8001")] = None,
    import_root: Annotated[
        Path | None, _tenants("Local adapters are imported from under it only.", "this folder")
    ] = None,
    served_model_name: Annotated[
        str | None, _engine("The base's name in the API.", "last part of --base")
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], _engine("Where the model runs.")] = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        _engine("auto is float32 on the CPU and bfloat16 on CUDA."),
    ] = "auto",
    max_running: Annotated[
        int | None, _engine("Requests that generate at the same time.", "32")
    ] = None,
    max_waiting: Annotated[
        int | None, _engine("Requests in the queue; one more gets 503.", "256")
    ] = None,
    max_tokens_per_step: Annotated[
        int | None, _engine("Prompt and decode tokens of one step.", "256")
    ] = None,
    max_model_len: Annotated[
        int | None, _engine("Prompt and completion tokens of a request.", "the model's")
    ] = None,
    kv_cache_bytes: Annotated[int | None, _engine("Memory for keys and values.", "1 GiB")] = None,
    adapter_slots: Annotated[
        int | None, _engine("Adapters on the device at the same time.", "16")
    ] = None,
    adapter_bytes: Annotated[int | None, _engine("Device memory for adapters.", "1 GiB")] = None,
    host_adapter_bytes: Annotated[int | None, _engine("Host memory for adapters.", "4 GiB")] = None,
    threads: Annotated[int | None, _engine("CPU threads.", "PyTorch's choice")] = None,
) -> None:
    """Serve a base model and its adapters through the OpenAI API.

    A request's `model` is an adapter's name, or the base model's for the base alone. Every setting
    but the engine's can also be an environment variable: REMIX_PORT, REMIX_API_KEY and so on.
    With --data-dir there is an admin API beside, whose key is REMIX_ADMIN_KEY; `remix tenant`,
    `remix adapter` and `remix set` use it.
    """
    import asyncio
    import logging

    from server.app import create_app
    from server.runner import bind, run, url_of
    from server.settings import load_settings
    from server.single_user import parse_adapters

    settings = load_settings(
        host=host,
        port=port,
        api_key=api_key,
        default_max_tokens=default_max_tokens,
        max_body_bytes=max_body_bytes,
        max_choices=max_choices,
        drain_seconds=drain_seconds,
        log_level=log_level,
        data_dir=data_dir,
        database_url=database_url,
        admin_host=admin_host,
        admin_port=admin_port,
        import_root=import_root,
    )
    logging.basicConfig(format="%(levelname)s: %(name)s: %(message)s")
    for room in ("server", "remix_runtime"):
        logging.getLogger(room).setLevel(settings.log_level.upper())
    folders = parse_adapters(adapter or ())
    if folders and settings.data_dir is not None:
        raise ConfigError("--adapter: with --data-dir adapters belong to tenants: remix set apply")
    with ExitStack() as stack:
        listener = stack.enter_context(bind(settings.host, settings.port))
        if engine == "fake":
            backend = _fake_engine(served_model_name or Path(base).name)
        else:
            backend = _embedded_engine(
                model=base,
                served_model_name=served_model_name,
                device=device,
                dtype=dtype,
                max_running=max_running,
                max_waiting=max_waiting,
                max_tokens_per_step=max_tokens_per_step,
                max_model_len=max_model_len,
                kv_cache_bytes=kv_cache_bytes,
                adapter_slots=adapter_slots,
                adapter_bytes=adapter_bytes,
                host_adapter_bytes=host_adapter_bytes,
                threads=threads,
            )
        if settings.data_dir is None:
            app = create_app(backend, settings, folders)
            asyncio.run(run(app, settings, listener, on_ready=_announce))
            return
        from server.tenants import create_tenant_apps

        apps = create_tenant_apps(backend, settings, settings.data_dir)
        admin_listener = stack.enter_context(bind(settings.admin_host, settings.admin_port))
        admin_url = url_of(admin_listener)
        asyncio.run(
            run(
                apps.data,
                settings,
                listener,
                on_ready=lambda services, url: _announce_tenants(services, url, admin_url),
                admin=(apps.admin, admin_listener),
            )
        )


def _embedded_engine(**given: Any) -> Engine:
    from transformers.utils.logging import disable_progress_bar

    from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine

    if not sys.stderr.isatty():
        disable_progress_bar()  # a log wants lines
    # What is not given keeps the engine's own default.
    return EmbeddedEngine(EmbeddedConfig(**{k: v for k, v in given.items() if v is not None}))


def _fake_engine(name: str) -> Engine:
    from remix_runtime.engines.fake import FakeConfig, FakeEngine

    return FakeEngine(FakeConfig(model_name=name, token_seconds=0.02))


def _announce_tenants(services: Services, url: str, admin_url: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads, and that is no reason not to serve
        tenants = len(services.sets.all)
        typer.echo(f"Serving {tenants} tenants at {url}, the admin API at {admin_url}")
        if not tenants:
            typer.echo("Try: remix tenant create NAME, then remix tenant key NAME")


def _announce(services: Services, url: str) -> None:
    """The line that says where, and one to try at once."""
    from server.access import SINGLE_USER

    names = [t.name for t in services.sets.targets(SINGLE_USER, may_use_base=True)]
    key = '-H "Authorization: Bearer $REMIX_API_KEY" ' if services.settings.api_key else ""
    body = shlex.quote(json.dumps({"model": names[-1], "prompt": "Hello", "max_tokens": 32}))
    with contextlib.suppress(OSError):  # nobody reads, and that is no reason not to serve
        typer.echo(f"Serving {', '.join(names)} at {url}")
        typer.echo(
            f"Try: curl {url}/v1/completions {key}-H 'Content-Type: application/json' -d {body}"
        )
