"""`unmask bench serve`: a server of its own under load, beside the same requests alone and without a server."""

from __future__ import annotations

import os
import statistics
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from benchmarks.own_server import Answer, OwnServer, own_server
from benchmarks.speed import PROMPTS

from unmask.cli.options import Dtype, Json, Length, Mode, Served, numbers
from unmask.cli.report import print_record
from unmask.errors import UnmaskError
from unmask.picture import picture


@dataclass(frozen=True)
class Load:
    """A number of clients that ask one after another."""

    clients: int
    requests: int
    tokens_per_second: float
    first_p50: float
    first_p95: float
    whole_p50: float
    whole_p95: float
    identical: int  # answers that are what one client alone got


@dataclass(frozen=True)
class Report:
    """All loads, the first of which is one client."""

    title: str
    loads: list[Load]

    def to_dict(self) -> dict[str, Any]:
        first = self.loads[0].tokens_per_second
        return {
            "title": self.title,
            "loads": [asdict(load) | {"times": load.tokens_per_second / first} for load in self.loads],
        }


def bench(
    model: str,
    concurrency: list[int],
    requests: int,
    length: int,
    mode: str | None,
    dtype: str | None,
    progress: Callable[[str], None],
) -> Report:
    """Asks a server of its own for the same `requests` answers by each number of clients; one client comes first."""
    bodies = requests_of(requests, length, mode)
    # the same requests come at every number of clients: none may profit from the ones before
    options = ["--max-concurrent", str(max(concurrency)), "--prefix-mb", "0", *(["--dtype", dtype] if dtype else [])]
    progress("starting the server")
    loads: list[Load] = []
    with own_server(model, *options) as server:
        alone: list[Answer] = []
        for clients in sorted({1, *concurrency}):
            answers, seconds = crowd(server, bodies, clients, progress)
            alone = alone or answers
            loads.append(_load(clients, answers, alone, seconds))
    kind = f"{dtype or 'its own dtype'}, {os.cpu_count()} cores"
    sampling = "temperature 0, tokens counted to the end of text, streamed"
    asked = f"{requests} requests of at most {length} tokens, mode {mode or 'of the model'}"
    return Report(f"serve {model}, {asked}, {sampling}, {kind}", loads)


def requests_of(count: int, length: int, mode: str | None) -> list[dict[str, Any]]:
    """Bodies over the prompts in turn."""
    own = {"max_tokens": length, "temperature": 0.0, **({"mode": mode} if mode else {})}
    return [{"prompt": PROMPTS[i % len(PROMPTS)], "seed": i, **own} for i in range(count)]


def crowd(
    server: OwnServer, bodies: list[dict[str, Any]], clients: int, progress: Callable[[str], None], frames: bool = False
) -> tuple[list[Answer], float]:
    """All answers, asked for by so many clients at once, each as soon as its last one is whole; and the seconds
    they took. What is done for the first time at this width is done before, and not counted."""
    with ThreadPoolExecutor(clients) as pool:
        progress(f"{clients} clients, warming up")
        short = [{**body, "max_tokens": min(body["max_tokens"], 16)} for body in bodies]
        list(pool.map(server.ask, (short * clients)[:clients]))
        began = time.perf_counter()
        answers = list[Answer]()
        for answer in pool.map(lambda body: server.ask(body, frames=frames), bodies):
            answers.append(answer)
            progress(f"{clients} clients, {len(answers)} of {len(bodies)} requests")
        return answers, time.perf_counter() - began


def _load(clients: int, answers: list[Answer], alone: list[Answer], seconds: float) -> Load:
    first = sorted(a.first for a in answers)
    whole = sorted(a.whole for a in answers)
    return Load(
        clients,
        len(answers),
        sum(a.tokens for a in answers) / seconds,
        statistics.median(first),
        first[int(0.95 * (len(first) - 1))],
        statistics.median(whole),
        whole[int(0.95 * (len(whole) - 1))],
        sum(a.text == b.text for a, b in zip(answers, alone, strict=True)),
    )


def draw(report: Report, path: Path) -> None:
    """Tokens per second and seconds to text against the number of clients, as a PNG."""
    with picture(path, size=(9, 4), panels=2, title=textwrap.fill(report.title, 100)) as (rates, waits):
        clients = [load.clients for load in report.loads]
        first = report.loads[0].tokens_per_second
        rates.plot(clients, [load.tokens_per_second for load in report.loads], "o-", color="#2a8c6a")
        for load in report.loads[1:]:
            times = f"{load.tokens_per_second / first:.1f} times  "
            rates.annotate(times, (load.clients, load.tokens_per_second), ha="right", fontsize=8)
        rates.set(xlabel="clients", ylabel="useful tokens per second")
        for name, colour in (("first", "#30507a"), ("whole", "#c1440e")):
            for share, style in (("p50", "o-"), ("p95", "o--")):
                seconds = [getattr(load, f"{name}_{share}") for load in report.loads]
                waits.plot(clients, seconds, style, color=colour, label=f"{name} text, {share}")
        waits.set(xlabel="clients", ylabel="seconds")
        for axes in (rates, waits):
            axes.set(xscale="log", ylim=(0, None))
            axes.set_xticks(clients, [str(n) for n in clients])
            axes.minorticks_off()


def command(
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

    if requests < 1 or max_new_tokens < 1:
        raise UnmaskError("--requests and --max-new-tokens must be at least 1")
    with Console(stderr=True).status("starting") as status:
        report = bench(
            model, numbers("--concurrency", concurrency), requests, max_new_tokens, mode, dtype, status.update
        )
    if picture is not None:
        draw(report, picture)
    if as_json:
        print_record(report.to_dict())
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
