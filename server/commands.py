"""`remix serve`."""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remix_runtime.errors import ConfigError, InvalidRequestError
from remix_runtime.imports import large_imports
from server.engines import EngineName, make_engine, parse_engine_args
from server.options import engine_options, server_options, take_options
from server.settings import load_settings

if TYPE_CHECKING:
    from server.services import Services
    from server.settings import ServerSettings


log = logging.getLogger(__name__)

_SERVER_OPTIONS = server_options()
_ENGINE_OPTIONS = engine_options()


@take_options(_SERVER_OPTIONS | _ENGINE_OPTIONS)
def serve(
    base: Annotated[
        str | None,
        typer.Option(
            help="Base model: a folder, or an id in the local cache. Only --engine fake needs none."
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="An adapter to serve, as NAME=DIR; repeat for more.", metavar="NAME=DIR"),
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option(
            help="`embedded` runs everywhere; `vllm` is for GPU nodes; `ray` runs replicas of "
            "either on one machine or many; `fake` answers nonsense without any model, within "
            "limits, to test clients with."
        ),
    ] = "embedded",
    **options: Any,
) -> None:
    """Serve a base model and its adapters through the OpenAI API.

    A request's `model` is an adapter's name, or the base model's for the base alone. Every setting
    but the engine's can also be an environment variable: REMIX_PORT, REMIX_API_KEY and so on.
    With --data-dir there is an admin API beside, whose key is REMIX_ADMIN_KEY; `remix tenant`,
    `remix adapter` and `remix set` use it.
    """
    from rich.console import Console

    from server.http.logs import configure_logging

    settings = load_settings(**{name: options[name] for name in _SERVER_OPTIONS})
    configure_logging(settings.log_level, as_json=settings.log_format == "json")
    if adapter and settings.data_dir is not None:
        raise ConfigError("--adapter: with --data-dir adapters belong to tenants: remix set apply")
    console = Console(stderr=True)
    loading = console.status(f"loading {base or engine}")
    if not console.is_terminal:  # then nobody sees the spinner
        log.info("loading the %s engine with %s", engine, base or "no base")
    with loading, ExitStack() as stack:
        # Not before somebody knows what they wait for.
        import asyncio

        with large_imports():
            from server.app import create_app, create_tenant_apps
            from server.live.single_user import parse_adapters
            from server.runner import bind, run, url_of, with_short_waits, without_long_collections

            folders = parse_adapters(adapter or ())
            listener = stack.enter_context(bind(settings.host, settings.port))
            given = {name: options[name] for name in _ENGINE_OPTIONS}
            given["engine_args"] = parse_engine_args(given["engine_args"])
            given["target_modules"] = tuple(given["target_modules"] or ()) or None
            settings = _fit_memory(engine, base, given, settings)
            backend = make_engine(engine, base, given)
        admin = None
        if settings.data_dir is None:
            app = create_app(backend, settings, folders)
        else:
            apps = create_tenant_apps(backend, settings, settings.data_dir)
            app = apps.data
            admin = apps.admin, stack.enter_context(bind(settings.admin_host, settings.admin_port))

        # Made once, and not while requests wait.
        app.openapi()
        if admin is not None:
            admin[0].openapi()
        settle = stack.enter_context(without_long_collections())
        stack.enter_context(with_short_waits())

        def announce(services: Services, url: str) -> None:
            settle()
            loading.stop()
            if admin is None:
                _announce(services, url)
            else:
                _announce_tenants(services, url, url_of(admin[1]))

        asyncio.run(run(app, settings, listener, on_ready=announce, admin=admin))


def _fit_memory(
    engine: EngineName, base: str | None, given: dict[str, Any], settings: ServerSettings
) -> ServerSettings:
    """Makes defaults smaller where memory is short: in `given`, and in the settings, which are
    returned. Raises `ConfigError` where that does not do."""
    from server.budget import changed, fit, memory_limit, parts_of

    parts = parts_of(engine, base, given, settings)
    limit, source = memory_limit()
    if settings.memory_bytes is not None:
        limit, source = settings.memory_bytes, "as REMIX_MEMORY_BYTES says"
    fitting = fit(parts, limit, source)
    log.info("memory in MiB: %s; %d are there", ", ".join(map(str, fitting)), limit >> 20)
    smaller = changed(parts, fitting)
    given |= {name: value for name, value in smaller.items() if name in given}
    return settings.model_copy(update={n: v for n, v in smaller.items() if n in _SERVER_OPTIONS})


def _announce_tenants(services: Services, url: str, admin_url: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads, and that is no reason not to serve
        tenants = len(services.sets.all)
        typer.echo(f"Serving {tenants} tenants at {url}, the admin API at {admin_url}")
        if not tenants:
            typer.echo("Try: remix tenant create NAME, then remix tenant key NAME")


def _announce(services: Services, url: str) -> None:
    """Prints where the server is, and a request to try."""
    from server.live.access import SINGLE_USER

    names = [t.name for t in services.sets.targets(SINGLE_USER, may_use_base=True)]
    key = '-H "Authorization: Bearer $REMIX_API_KEY" ' if services.settings.api_key else ""
    path, request = _request_to_try(services, names[-1])
    body = shlex.quote(json.dumps(request))
    address = shlex.quote(f"{url}/v1/{path}")
    with contextlib.suppress(OSError):  # nobody reads, and that is no reason not to serve
        typer.echo(f"Serving {', '.join(names)} at {url}")
        typer.echo(f"Try: curl {address} {key}-H 'Content-Type: application/json' -d {body}")


def _request_to_try(services: Services, model: str) -> tuple[str, dict[str, Any]]:
    """Path and body: a chat, unless the base has no template for one."""
    messages = [{"role": "user", "content": "Hello"}]
    try:
        services.engine.tokenizer.apply_chat_template(messages)
    except InvalidRequestError:
        return "completions", {"model": model, "prompt": "Hello", "max_tokens": 32}
    return "chat/completions", {"model": model, "messages": messages, "max_tokens": 32}
