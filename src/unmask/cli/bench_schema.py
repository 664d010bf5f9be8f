"""`unmask bench schema`, and how commands read a schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from unmask.cli.options import Backend, Device, Dtype, Json, load
from unmask.errors import UnmaskError

JsonSchema = Annotated[
    Path | None, typer.Option("--json-schema", help="File with a JSON schema that the text will be valid under.")
]
Regex = Annotated[str | None, typer.Option("--regex", help="Regular expression that the whole text will match.")]


def grammar_options(json_schema: Path | None, regex: str | None) -> dict[str, Any]:
    """Options of `generate`; a file that cannot be read raises UnmaskError."""
    if json_schema is None:
        return {} if regex is None else {"regex": regex}
    try:
        text = json_schema.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnmaskError(f"{json_schema} cannot be read as UTF-8 text ({error})") from None
    return {"json_schema": text, "regex": regex}


def bench_schema(
    model: Annotated[str, typer.Argument(help="A model's name or folder.")] = "default",
    requests: Annotated[int, typer.Option(help="Over 30 schemas, all modes and temperatures of 0 to 1.2.")] = 300,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Room of most requests.")] = 128,
    backend: Backend = "auto",
    device: Device = "cpu",
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Texts under 30 JSON schemas: how many are valid, tokens/s with and without the schema, seconds to compile it.

    Exits with 1 if one is not valid. Every fifth request has room for the shortest valid text and no more.

    Example: `unmask bench schema default`, `unmask bench schema austen --requests 30`
    """
    from rich.console import Console

    from unmask.cli.terminal import table
    from unmask.evaluation.bench_schema import bench_schema as run

    if requests < 1 or max_new_tokens < 1:
        raise UnmaskError("--requests and --max-new-tokens must be at least 1")
    lm = load(model, device, dtype, backend)
    with Console(stderr=True).status("starting") as status:
        result = run(lm, requests, max_new_tokens, status.update)
    record = result.to_dict()
    if as_json:
        print(json.dumps(record))
    else:
        rows = [
            [
                name,
                f"{own['valid']:.0f}/{own['requests']:.0f}",
                f"{own['tokens_per_second']:.1f}",
                f"{own['free_tokens_per_second']:.1f}",
                f"{own['tokens_per_step']:.2f}",
            ]
            for name, own in {**record["modes"], "all": record["all"]}.items()
        ]
        columns = ["mode", "valid", "tokens/s", "without schema", "tokens/step"]
        Console().print(table(f"{lm.name}, {requests} requests, {len(result.compile_seconds)} schemas", columns, rows))
        slowest = max(result.compile_seconds, key=lambda name: result.compile_seconds[name])
        print(
            f"compiling a schema: median {record['compile_median']:.3f} s, at most "
            f"{result.compile_seconds[slowest]:.3f} s ({slowest}); "
            f"reading the vocabulary, once: {result.vocabulary_seconds:.2f} s"
        )
        for one in result.faults:
            print(f"not valid: {one.schema}, {one.mode}, temperature {one.temperature}, seed {one.seed}: {one.fault}")
    if result.faults:
        raise typer.Exit(1)


def install(bench: typer.Typer) -> None:
    """Adds the command."""
    bench.command("schema")(bench_schema)
