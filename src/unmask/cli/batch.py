"""`unmask batch`."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.options import Backend, Device, Dtype, Json, Quantize, check_least
from unmask.cli.report import print_record
from unmask.cli.serve import fleet_of, names, need, running
from unmask.errors import UnmaskError


def batch(
    requests: Annotated[Path, typer.Argument(help="Requests, one a line, as OpenAI's batches have them.")],
    answers: Annotated[Path, typer.Argument(help="Where answers go, one a line. What is there already stays.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="Model, folder, or NAME=MODEL; several times for several. The first answers."
        ),
    ] = None,
    max_concurrent: Annotated[int, typer.Option(help="Requests decoded together, on each worker.")] = 32,
    cache_gb: Annotated[float, typer.Option(help="Memory for keys and values, GiB, of each worker.")] = 4.0,
    workers: Annotated[int, typer.Option(help="Replicas on Ray; 0 answers in this process.")] = 0,
    worker_cpus: Annotated[float, typer.Option(help="CPUs of each worker.")] = 1.0,
    dtype: Dtype = None,
    device: Device = "cpu",
    backend: Backend = "auto",
    quantize: Quantize = None,
    as_json: Json = False,
) -> None:
    """Answer a file of requests; started again, it goes on where it stopped.

    Lines are {"custom_id": ..., "method": "POST", "url": "/v1/chat/completions", "body": {...}}, with any address and
    body that `unmask serve` takes. Exit status 1: lines failed; the output says which and why.

    Example: `unmask batch requests.jsonl answers.jsonl -m austen`
    """
    check_least(1, max_concurrent=max_concurrent)
    check_least(0, workers=workers, cache_gb=cache_gb)
    need("uvicorn", "serve")
    fleet = fleet_of(True, workers, workers, worker_cpus) if workers else None
    from rich.console import Console
    from rich.progress import Progress

    from unmask.serving import batch as batches
    from unmask.serving.api.settings import Settings
    from unmask.serving.engine import Limits
    from unmask.serving.server import ServerConfig

    asked = batches.survey(requests)
    if answers.exists() and answers.samefile(requests):
        raise UnmaskError(f"{answers} holds the requests; choose another output file")
    written = batches.Answers(answers, asked)
    began = time.perf_counter()
    before = len(written.done)
    tokens = written.tokens
    console = Console(stderr=True)
    # no line of a batch is turned away because others wait
    limits = Limits(max_concurrent, 1 << 30, int(cache_gb * 2**30))
    settings = Settings(body_bytes=1 << 30, seconds=math.inf)
    config = ServerConfig(names(model or ["default"]), limits, settings, device, dtype, backend, quantize)
    try:
        if before < len(asked):
            with running(config, fleet) as (app, _):
                began = time.perf_counter()
                with Progress(console=console, transient=True, disable=as_json) as progress:
                    task = progress.add_task("answering", total=len(asked), completed=before)
                    at_once = 2 * max_concurrent * max(1, workers)
                    work = batches.run(app, batches.read(requests), written, at_once, lambda: progress.advance(task))
                    asyncio.run(work)
    except KeyboardInterrupt:
        done = f"{len(written.done)} of {len(asked)} lines are answered in {answers}"
        print(f"unmask: stopped; {done}; the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        written.close()
    seconds = time.perf_counter() - began
    made = written.tokens - tokens
    figures = {"lines": len(asked), "answered_before": before, "failed": written.failed, "seconds": round(seconds, 3)}
    figures |= {"completion_tokens": made, "tokens_per_second": round(made / seconds, 1)}
    if as_json:
        print_record(figures)
    else:
        earlier = f", {before} of them before" if before else ""
        failed = f", {written.failed} of them failed" if written.failed else ""
        print(
            f"{len(asked)} lines answered{earlier}{failed}; {made} tokens in {seconds:.1f} s, "
            f"{figures['tokens_per_second']} tokens/s; written to {answers}"
        )
    if written.failed:
        raise typer.Exit(1)
