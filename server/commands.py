"""`remix serve`."""

from __future__ import annotations

import contextlib
import json
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from remix_runtime.errors import ConfigError
from server.engines import EngineName, make_engine, parse_engine_args

if TYPE_CHECKING:
    from server.services import Services


def _http(text: str, default: str) -> Any:
    return typer.Option(help=text, show_default=default, rich_help_panel="HTTP")


def _tenants(text: str, default: str) -> Any:
    return typer.Option(help=text, show_default=default, rich_help_panel="Tenants")


def _engine(text: str, default: str) -> Any:
    return typer.Option(help=text, show_default=default, rich_help_panel="Engine")


def _embedded(text: str, default: str) -> Any:
    return typer.Option(help=text, show_default=default, rich_help_panel="Embedded engine")


def _vllm(text: str, default: str) -> Any:
    return typer.Option(help=text, show_default=default, rich_help_panel="vLLM engine")


def serve(
    base: Annotated[str, typer.Option(help="Base model: a folder, or an id in the local cache.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="An adapter to serve, as NAME=DIR; repeat for more.", metavar="NAME=DIR"),
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option(
            help="`embedded` runs everywhere; `vllm` is for GPU nodes; `fake` answers nonsense "
            "without any model, to test clients with."
        ),
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
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        _engine("Of weights and activations.", "float32 on the CPU, bfloat16 on CUDA"),
    ] = None,
    max_running: Annotated[
        int | None, _engine("Requests that generate at the same time.", "32")
    ] = None,
    max_waiting: Annotated[
        int | None, _engine("Requests in the queue; one more gets 503.", "256")
    ] = None,
    max_tokens_per_step: Annotated[
        int | None, _engine("Prompt and decode tokens of one step.", "256, or vLLM's choice")
    ] = None,
    max_model_len: Annotated[
        int | None, _engine("Prompt and completion tokens of a request.", "the model's")
    ] = None,
    adapter_slots: Annotated[
        int | None, _engine("Adapters on the device at the same time.", "16; vLLM: 8")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None, _embedded("Where the model runs.", "auto")
    ] = None,
    kv_cache_bytes: Annotated[int | None, _embedded("Memory for keys and values.", "1 GiB")] = None,
    adapter_bytes: Annotated[int | None, _embedded("Device memory for adapters.", "1 GiB")] = None,
    host_adapter_bytes: Annotated[
        int | None, _embedded("Host memory for adapters.", "4 GiB")
    ] = None,
    threads: Annotated[int | None, _embedded("CPU threads.", "PyTorch's choice")] = None,
    host_adapters: Annotated[int | None, _vllm("Adapters in host memory.", "64")] = None,
    adapter_rows: Annotated[
        int | None, _vllm("Experts times rank that a slot holds; one of vLLM's ranks.", "64")
    ] = None,
    target_modules: Annotated[
        list[str] | None,
        _vllm("A module of vLLM that takes adapters, as gate_up_proj; repeat for more.", "all"),
    ] = None,
    tensor_parallel_size: Annotated[int | None, _vllm("GPUs that share each layer.", "1")] = None,
    pipeline_parallel_size: Annotated[
        int | None, _vllm("GPUs that share the layers out.", "1")
    ] = None,
    executor: Annotated[
        Literal["mp", "ray"] | None, _vllm("ray spans several nodes.", "vLLM's choice")
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, _vllm("The part of a GPU's memory to take.", "vLLM's choice")
    ] = None,
    enforce_eager: Annotated[
        bool | None, _vllm("Neither torch.compile nor CUDA graphs.", "no")
    ] = None,
    engine_args: Annotated[
        str | None, _vllm("More of vLLM's engine arguments, as a JSON object.", "none")
    ] = None,
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
    from server.live.single_user import parse_adapters
    from server.runner import bind, run, url_of
    from server.settings import load_settings

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
        backend = make_engine(
            engine,
            {
                "model": base,
                "served_model_name": served_model_name,
                "dtype": dtype,
                "max_running": max_running,
                "max_waiting": max_waiting,
                "max_tokens_per_step": max_tokens_per_step,
                "max_model_len": max_model_len,
                "adapter_slots": adapter_slots,
                "device": device,
                "kv_cache_bytes": kv_cache_bytes,
                "adapter_bytes": adapter_bytes,
                "host_adapter_bytes": host_adapter_bytes,
                "threads": threads,
                "host_adapters": host_adapters,
                "adapter_rows": adapter_rows,
                "target_modules": tuple(target_modules) if target_modules else None,
                "tensor_parallel_size": tensor_parallel_size,
                "pipeline_parallel_size": pipeline_parallel_size,
                "executor": executor,
                "gpu_memory_utilization": gpu_memory_utilization,
                "enforce_eager": enforce_eager,
                "engine_args": parse_engine_args(engine_args),
            },
        )
        if settings.data_dir is None:
            app = create_app(backend, settings, folders)
            asyncio.run(run(app, settings, listener, on_ready=_announce))
            return
        from server.app import create_tenant_apps

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


def _announce_tenants(services: Services, url: str, admin_url: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads, and that is no reason not to serve
        tenants = len(services.sets.all)
        typer.echo(f"Serving {tenants} tenants at {url}, the admin API at {admin_url}")
        if not tenants:
            typer.echo("Try: remix tenant create NAME, then remix tenant key NAME")


def _announce(services: Services, url: str) -> None:
    """The line that says where, and one to try at once."""
    from server.live.access import SINGLE_USER

    names = [t.name for t in services.sets.targets(SINGLE_USER, may_use_base=True)]
    key = '-H "Authorization: Bearer $REMIX_API_KEY" ' if services.settings.api_key else ""
    body = shlex.quote(json.dumps({"model": names[-1], "prompt": "Hello", "max_tokens": 32}))
    with contextlib.suppress(OSError):  # nobody reads, and that is no reason not to serve
        typer.echo(f"Serving {', '.join(names)} at {url}")
        typer.echo(
            f"Try: curl {url}/v1/completions {key}-H 'Content-Type: application/json' -d {body}"
        )
