"""`unmask serve` and `unmask bench serve`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from unmask.cli_options import Backend, Device, Dtype, Json, load
from unmask.errors import UnmaskError


def serve(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models, folders, or NAME=MODEL to give one a name; the first answers.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(help="Keys that requests must carry, one a line.")] = None,
    max_concurrent: Annotated[int, typer.Option(help="Requests decoded together.")] = 32,
    queue: Annotated[int, typer.Option(help="Requests that may wait; the next one is answered with 429.")] = 128,
    cache_gb: Annotated[float, typer.Option(help="Memory for keys and values, GiB.")] = 4.0,
    prefill_chunk: Annotated[int, typer.Option(help="Prompt tokens that a request reads in one forward.")] = 256,
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
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write requests' bodies to the log.")] = False,
    dtype: Dtype = None,
    device: Device = "cpu",
    backend: Backend = "auto",
) -> None:
    """Serve models to OpenAI clients, and fill gaps at /v1/infill.

    Example: `unmask serve default austen --port 8000`, then point a client at http://127.0.0.1:8000/v1
    """
    sizes = {"max-schema": max_schema, "max-schema-depth": max_schema_depth, "max-body": max_body}
    for name, value in {**sizes, "max-concurrent": max_concurrent, "prefill-chunk": prefill_chunk}.items():
        if value < 1:
            raise UnmaskError(f"--{name} must be at least 1, got {value}")
    for name, least in {"queue": queue, "grace": grace, "timeout": timeout, "cache-gb": cache_gb}.items():
        if not 0 <= least < 1e9:
            raise UnmaskError(f"--{name} must be at least 0, got {least}")
    if not 1 <= max_n <= max_concurrent + queue:
        raise UnmaskError(f"--max-n must be 1 to {max_concurrent + queue}, what the server holds, got {max_n}")
    try:
        from unmask.server.app import Settings
    except ImportError as error:
        raise UnmaskError(f"serving needs '{error.name}'; run: pip install 'unmask[serve]'") from None
    from unmask.engine.scheduler import Limits
    from unmask.server import run
    from unmask.server.guard import Rules, local_hosts, read_keys
    from unmask.server.plan import Bounds
    from unmask.server.structure import RuleBounds

    keys = () if api_key_file is None else read_keys(api_key_file)
    rules = Rules(keys, max_body, local_hosts(host), log_prompts)
    bounds = Bounds(max_n, max_prompt, rules=RuleBounds(max_schema, max_schema_depth, schema_seconds))
    settings = Settings(rules, bounds, timeout, tuple(allow_origin or ()))
    limits = Limits(max_concurrent, queue, int(cache_gb * 2**30), prefill_chunk)
    named = names(models or ["default"])
    listener = run.bind(host, port)  # before models are read: it may be taken
    lms = {name: load(model, device, dtype, backend) for name, model in named.items()}
    run.serve(lms, limits, settings, listener, grace)


def names(models: list[str]) -> dict[str, str]:
    """What each model is called: NAME=MODEL, or a folder's own name."""
    out: dict[str, str] = {}
    for model in models:
        name, given, source = model.partition("=")
        if not given:
            path = Path(model)
            name, source = (path.resolve().name if path.is_dir() and "/" in model else model), model
        if not name or not source:
            raise UnmaskError(f"'{model}' names no model; write MODEL or NAME=MODEL")
        if name in out:
            raise UnmaskError(f"two models are called '{name}'; give one another name with NAME={source}")
        out[name] = source
    return out


def bench_serve(
    model: Annotated[str, typer.Argument(help="A model's name or folder.")] = "default",
    concurrency: Annotated[str, typer.Option(help="Clients at once, separated by commas.")] = "1,8,32",
    requests: Annotated[int, typer.Option(help="Requests for each number of clients.")] = 64,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Tokens of each answer.")] = 128,
    mode: Annotated[str | None, typer.Option(help="ar, diffusion or verify.")] = None,
    dtype: Dtype = None,
    picture: Annotated[Path | None, typer.Option(help="Write the picture (PNG) here.")] = None,
    as_json: Json = False,
) -> None:
    """A server under load: tokens/s, seconds to the first text and to the whole, and whether company changes answers.

    Example: `unmask bench serve default --concurrency 1,8,32 --picture serving.png`
    """
    from rich.console import Console

    from unmask.cli_bench import _numbers
    from unmask.display import table
    from unmask.evaluation.bench_serve import bench, draw

    if requests < 1 or max_new_tokens < 1:
        raise UnmaskError("--requests and --max-new-tokens must be at least 1")
    with Console(stderr=True).status("starting") as status:
        report = bench(
            model, _numbers("--concurrency", concurrency), requests, max_new_tokens, mode, dtype, status.update
        )
    if picture is not None:
        draw(report, picture)
    if as_json:
        print(json.dumps(report.to_dict()))
        return
    rows = [
        [
            str(r.clients),
            f"{r.tokens_per_second:.1f}",
            f"{r.tokens_per_second / report.loads[0].tokens_per_second:.2f}",
            *(f"{x:.2f}" for x in (r.first_p50, r.first_p95, r.whole_p50, r.whole_p95)),
            f"{r.identical}/{r.requests}",
        ]
        for r in report.loads
    ]
    columns = ["clients", "tokens/s", "times", "first p50 s", "p95", "whole p50 s", "p95", "as alone"]
    Console().print(table(report.title, columns, rows))
    print(f"server over engine at one client: {100 * report.overhead:+.1f}% seconds")


def bench_soak(
    model: Annotated[str, typer.Argument(help="A model's name or folder.")] = "default",
    minutes: Annotated[float, typer.Option(help="How long.")] = 20.0,
    max_concurrent: Annotated[int, typer.Option(help="Slots of the server.")] = 8,
    queue: Annotated[int, typer.Option(help="Its line; twice as many clients ask as both hold.")] = 8,
    vanish: Annotated[float, typer.Option(help="Share of clients that leave in mid-stream.")] = 0.1,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Tokens of an answer at most.")] = 128,
    as_json: Json = False,
) -> None:
    """A server at twice its capacity with clients that vanish, then SIGTERM under load; exits with 1 on any fault.

    Example: `unmask bench soak default --minutes 20`
    """
    from rich.console import Console

    from unmask.display import table
    from unmask.evaluation.bench_soak import bench_soak as run

    if not 0 < minutes < 1e4 or max_concurrent < 1 or queue < 0 or not 0 <= vanish <= 1 or max_new_tokens < 1:
        raise UnmaskError("--minutes, --max-concurrent, -n must be above 0, --queue at least 0, --vanish 0 to 1")
    with Console(stderr=True).status("starting") as status:
        soak = run(model, minutes, max_concurrent, queue, vanish, max_new_tokens, status.update)
    if as_json:
        print(json.dumps(soak.to_dict()))
    else:
        rows = [[what, str(count)] for what, count in sorted(soak.outcomes.items())]
        rows += [
            [f"{what}, once SIGTERM was sent", str(count)] for what, count in sorted(soak.stopped_outcomes.items())
        ]
        rows += [
            ["memory before, after", f"{soak.memory_before / 2**20:.0f}, {soak.memory_after / 2**20:.0f} MiB"],
            ["requests held afterwards", f"{soak.running_after} in slots, {soak.waiting_after} in line"],
            ["SIGTERM under load", f"exit status {soak.exit_status} after {soak.seconds_to_stop:.1f} s"],
        ]
        title = f"{soak.clients} clients for {minutes:g} minutes, {max_concurrent} slots and a line of {queue}"
        Console().print(table(title, ["what became of requests", ""], rows))
    if soak.faults or soak.running_after or soak.waiting_after or soak.exit_status:
        raise typer.Exit(1)


def install(app: typer.Typer, bench: typer.Typer) -> None:
    """Adds the commands."""
    app.command("serve")(serve)
    bench.command("serve")(bench_serve)
    bench.command("soak")(bench_soak)
