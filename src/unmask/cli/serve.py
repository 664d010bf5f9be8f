"""`unmask serve`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.cli.options import Backend, Device, Dtype, Quantize, check_least
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from unmask.serving.replicas import Fleet
    from unmask.serving.server import Closing, ServerConfig


def serve(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models, folders, or NAME=MODEL to give one a name; the first answers.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="UNMASK_API_KEY", help="A key that requests must carry.", show_envvar=True)
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(envvar="UNMASK_API_KEY_FILE", help="Such keys, one a line.", show_envvar=True)
    ] = None,
    max_concurrent: Annotated[int, typer.Option(help="Requests decoded together.")] = 32,
    queue: Annotated[int, typer.Option(help="Requests that may wait; the next one is answered with 429.")] = 128,
    cache_gb: Annotated[float, typer.Option(help="Memory for keys and values, GiB.")] = 4.0,
    prefill_chunk: Annotated[int, typer.Option(help="Prompt tokens that a request reads in one forward.")] = 256,
    prefix_mb: Annotated[
        int, typer.Option(help="Of that memory, MiB that keep earlier texts for requests that begin alike.")
    ] = 256,
    grace: Annotated[float, typer.Option(help="Seconds that running requests have after SIGTERM.")] = 30.0,
    timeout: Annotated[float, typer.Option(help="Seconds that one request may take, waiting included.")] = 300.0,
    max_body: Annotated[int, typer.Option(help="Bytes of a request's body.")] = 1 << 20,
    max_prompt: Annotated[int, typer.Option(help="Tokens of a prompt; the model's length is a limit too.")] = 1 << 20,
    max_n: Annotated[int, typer.Option(help="Texts that one request may ask for.")] = 8,
    max_schema: Annotated[int, typer.Option(help="Characters of a schema, of all tools, or of a regex.")] = 1 << 16,
    max_schema_depth: Annotated[int, typer.Option(help="Objects and lists in each other in a schema.")] = 32,
    schema_seconds: Annotated[float, typer.Option(help="Seconds that compiling a schema may take.")] = 5.0,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Web origin whose pages may ask; several times for several.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Further host name to answer under, such as a reverse proxy's.")
    ] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write requests' bodies to the log.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Serve by replicas on Ray; limits hold for each.")] = False,
    min_replicas: Annotated[int | None, typer.Option(help="With --ray: replicas that are always there [1].")] = None,
    max_replicas: Annotated[int | None, typer.Option(help="With --ray: and under load [as many].")] = None,
    replica_cpus: Annotated[float | None, typer.Option(help="With --ray: CPUs of each [1].")] = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    backend: Backend = "auto",
    quantize: Quantize = None,
) -> None:
    """Serve models to OpenAI clients, and fill gaps at /v1/infill.

    Example: `unmask serve default austen --port 8000`, then point a client at http://127.0.0.1:8000/v1
    """
    check_least(1, max_schema=max_schema, max_schema_depth=max_schema_depth, max_body=max_body, max_prompt=max_prompt)
    check_least(1, max_concurrent=max_concurrent, prefill_chunk=prefill_chunk)
    check_least(0, queue=queue, grace=grace, timeout=timeout, cache_gb=cache_gb, prefix_mb=prefix_mb)
    check_least(0, schema_seconds=schema_seconds)
    if not 1 <= max_n <= max_concurrent + queue:
        raise UnmaskError(f"--max-n must be 1 to {max_concurrent + queue}, what the server holds, got {max_n}")
    need("uvicorn", "serve")
    fleet = fleet_of(ray, min_replicas, max_replicas, replica_cpus)
    from unmask.serving.api.access import check_origins, local_hosts, read_keys
    from unmask.serving.api.settings import Settings
    from unmask.serving.engine import Limits
    from unmask.serving.server import Server, ServerConfig, bind
    from unmask.serving.server import serve as run

    keys = [] if api_key is None else [api_key]
    keys += [] if api_key_file is None else read_keys(api_key_file)
    settings = Settings(
        keys=tuple(keys),
        hosts=local_hosts(host, allow_host or ()),
        origins=check_origins(allow_origin or ()),
        log_prompts=log_prompts,
        seconds=timeout,
        body_bytes=max_body,
        n=max_n,
        prompt_tokens=max_prompt,
        schema_characters=max_schema,
        schema_depth=max_schema_depth,
        schema_seconds=schema_seconds,
    )
    limits = Limits(max_concurrent, queue, int(cache_gb * 2**30), prefill_chunk, prefix_mb << 20)
    named = names(models or ["default"])
    listener = bind(host, port)  # before models are read: it may be taken
    config = ServerConfig(named, limits, settings, device, dtype, backend, quantize)
    with running(config, fleet) as (app, engine):
        run(Server(app, engine, grace), named, listener)


@contextmanager
def running(config: ServerConfig, fleet: Fleet | None) -> Iterator[tuple[ASGIApp, Closing]]:
    """What answers, and what closes it: an engine of this process, or replicas on Ray."""
    if fleet is not None:
        from unmask.serving import replicas

        with replicas.fleet(config, fleet) as made:
            yield made
        return
    app, engine = config.start()
    try:
        yield app, engine
    finally:
        engine.close()


def fleet_of(ray: bool, least: int | None, most: int | None, cpus: float | None) -> Fleet | None:
    """How many replicas are asked for; None for this process alone."""
    if not ray:
        for name, value in {"min-replicas": least, "max-replicas": most, "replica-cpus": cpus}.items():
            if value is not None:
                raise UnmaskError(f"--{name} is of replicas on Ray; give --ray too")
        return None
    need("ray", "ray")
    from unmask.serving.replicas import Fleet

    least = 1 if least is None else least
    size = Fleet(least, max(1, least) if most is None else most, 1.0 if cpus is None else cpus)
    if not 1 <= size.least <= size.most or not 0 < size.cpus < 1e6:
        raise UnmaskError("--min-replicas must be at least 1, --max-replicas no less, and --replica-cpus above 0")
    return size


def need(package: str, extra: str) -> None:
    """Raises UnmaskError where a package is not installed."""
    if find_spec(package) is None:
        raise UnmaskError(f"this needs '{package}'; run: pip install 'unmask[{extra}]'")


def names(models: list[str]) -> dict[str, str]:
    """What each model is called: NAME=MODEL, or as it is called everywhere."""
    from unmask.checkpoints.hub import ENTRIES
    from unmask.checkpoints.open import name_of

    out: dict[str, str] = {}
    for model in models:
        name, given, source = model.partition("=")
        if not given:
            name = name_of(Path(model)) if model not in ENTRIES and Path(model).exists() else model
            source = model
        if not name or not source:
            raise UnmaskError(f"'{model}' names no model; write MODEL or NAME=MODEL")
        if name in out:
            raise UnmaskError(f"two models are called '{name}'; give one another name with NAME={source}")
        out[name] = source
    return out
