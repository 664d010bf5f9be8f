"""`unmask bench serve`, `overhead`, `company` and `soak`: what a server of our own does under load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.bench import _numbers
from unmask.cli.options import Dtype, Json
from unmask.errors import UnmaskError

Served = Annotated[str, typer.Argument(help="A model's name or folder.")]
Length = Annotated[int, typer.Option("--max-new-tokens", "-n", help="Tokens of an answer at most.")]
Mode = Annotated[str | None, typer.Option(help="ar, diffusion or verify.")]


def serve(
    model: Served = "default",
    concurrency: Annotated[str, typer.Option(help="Clients at once, separated by commas.")] = "1,8,32",
    requests: Annotated[int, typer.Option(help="Requests for each number of clients.")] = 200,
    max_new_tokens: Length = 128,
    mode: Mode = None,
    dtype: Dtype = None,
    picture: Annotated[Path | None, typer.Option(help="Write the picture (PNG) here.")] = None,
    as_json: Json = False,
) -> None:
    """A server under load: tokens/s, seconds to the first text and to the whole, and whether company changes answers.

    Example: `unmask bench serve default --concurrency 1,8,32 --picture serving.png`
    """
    from rich.console import Console

    from unmask.cli.terminal import table
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


def overhead(
    model: Served = "default",
    requests: Annotated[int, typer.Option(help="Requests; each goes all three ways.")] = 40,
    max_new_tokens: Length = 128,
    mode: Mode = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """What the server costs at one request at a time: the same requests by `generate` in this process and over HTTP,
    whole and streamed, in turn.

    Example: `unmask bench overhead default --mode ar`
    """
    from rich.console import Console

    from unmask.cli.terminal import table
    from unmask.evaluation.bench_overhead import bench_overhead

    if requests < 1 or max_new_tokens < 1:
        raise UnmaskError("--requests and --max-new-tokens must be at least 1")
    with Console(stderr=True).status("starting") as status:
        laps = bench_overhead(model, requests, max_new_tokens, mode, dtype, status.update)
    if as_json:
        print(json.dumps([lap.to_dict() for lap in laps]))
        return
    rows = [
        [lap.name, f"{lap.seconds:.3f}", f"{lap.tokens_per_second:.1f}", f"{lap.over_generate:.3f}"] for lap in laps
    ]
    title = f"{model}, {requests} requests of at most {max_new_tokens} tokens, mode {mode or 'of the model'}"
    Console().print(table(title, ["way", "median s", "tokens/s", "over generate, median"], rows))


def company(
    model: Served = "default",
    requests: Annotated[int, typer.Option(help="Requests, of all modes of the model in turn.")] = 200,
    clients: Annotated[int, typer.Option(help="That ask at once, the second time.")] = 32,
    max_new_tokens: Length = 64,
    dtype: Dtype = None,
    seed: Annotated[int, typer.Option(help="Of the prompts, lengths and temperatures.")] = 0,
    as_json: Json = False,
) -> None:
    """Whether a request's tokens depend on who is decoded beside it: the ids of every step, alone and in company;
    exits with 1 if any differ.

    Example: `unmask bench company default`, `unmask bench company default --dtype float32`
    """
    from rich.console import Console

    from unmask.evaluation.bench_company import bench_company

    if requests < 1 or clients < 1 or max_new_tokens < 1:
        raise UnmaskError("--requests, --clients and --max-new-tokens must be at least 1")
    with Console(stderr=True).status("starting") as status:
        result = bench_company(model, requests, clients, max_new_tokens, dtype, seed, status.update)
    if as_json:
        print(json.dumps(result.to_dict()))
    else:
        modes = ", ".join(f"{mode} {some} of {of}" for mode, (some, of) in result.by_mode.items())
        print(
            f"{result.title}: {result.different} of {result.requests} requests have other ids than alone ({modes}), "
            f"{result.different_texts} another text; {result.before_parting} of {result.tokens} tokens before a parting"
        )
    if result.different:
        raise typer.Exit(1)


def soak(
    model: Served = "default",
    minutes: Annotated[float, typer.Option(help="How long.")] = 20.0,
    max_concurrent: Annotated[int, typer.Option(help="Slots of the server.")] = 8,
    queue: Annotated[int, typer.Option(help="Its line; twice as many clients ask as both hold.")] = 8,
    vanish: Annotated[float, typer.Option(help="Share of clients that leave in mid-stream.")] = 0.1,
    max_new_tokens: Length = 128,
    as_json: Json = False,
) -> None:
    """A server at twice its capacity with clients that vanish, then SIGTERM under load; exits with 1 on any fault.

    Example: `unmask bench soak default --minutes 20`
    """
    from rich.console import Console

    from unmask.cli.terminal import table
    from unmask.evaluation.bench_soak import bench_soak

    if not 0 < minutes < 1e4 or max_concurrent < 1 or queue < 0 or not 0 <= vanish <= 1 or max_new_tokens < 1:
        raise UnmaskError("--minutes, --max-concurrent, -n must be above 0, --queue at least 0, --vanish 0 to 1")
    with Console(stderr=True).status("starting") as status:
        result = bench_soak(model, minutes, max_concurrent, queue, vanish, max_new_tokens, status.update)
    if as_json:
        print(json.dumps(result.to_dict()))
    else:
        rows = [[what, str(count)] for what, count in sorted(result.outcomes.items())]
        rows += [[f"{what}, once SIGTERM was sent", str(n)] for what, n in sorted(result.stopped_outcomes.items())]
        pairs = [("first fifth, last", result.memory_first, result.memory_last)]
        pairs.append(("idle before, after", result.before.memory, result.after.memory))
        rows += [[f"memory, {when}", f"{one / 2**20:.0f}, {other / 2**20:.0f} MiB"] for when, one, other in pairs]
        rows += [
            ["threads, files, before", f"{result.before.threads}, {result.before.files}"],
            ["after", f"{result.after.threads}, {result.after.files}"],
            ["requests held afterwards", f"{result.running_after} in slots, {result.waiting_after} in line"],
            ["SIGTERM under load", f"exit status {result.exit_status} after {result.seconds_to_stop:.1f} s"],
            ["faults", "; ".join(result.faults) or "none"],
        ]
        title = f"{result.clients} clients for {minutes:g} minutes, {max_concurrent} slots and a line of {queue}"
        Console().print(table(title, ["what became of requests", ""], rows))
    if result.faults:
        raise typer.Exit(1)


def install(bench: typer.Typer) -> None:
    """Adds the commands."""
    for command in (serve, overhead, company, soak):
        bench.command(command.__name__)(command)
