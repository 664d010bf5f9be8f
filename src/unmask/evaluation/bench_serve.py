"""`unmask bench serve`: a server of its own under load, beside the same requests alone and without a server."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from unmask.errors import UnmaskError
from unmask.evaluation.bench_speed import PROMPTS, chat
from unmask.lm import DiffusionLM

START_SECONDS = 300.0  # a graph may have to be compiled


@dataclass(frozen=True)
class Answer:
    """One streamed request as its client saw it."""

    text: str
    tokens: int
    first: float  # seconds to the first text
    whole: float


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
    server_seconds: float  # of all requests one after another
    engine_seconds: float  # of the same without a server

    @property
    def overhead(self) -> float:
        """Share of time that the server adds to the engine."""
        return self.server_seconds / self.engine_seconds - 1

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "overhead": self.overhead}


def bench(
    model: str,
    concurrency: list[int],
    requests: int,
    length: int,
    mode: str | None,
    dtype: str | None,
    progress: Callable[[str], None],
) -> Report:
    """Starts a server, asks it for `requests` answers by each number of clients, stops it, asks an engine."""
    bodies = [_body(i, length, mode) for i in range(requests)]
    widest = max(concurrency)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "unmask", "serve", f"bench={model}", "--port", str(port)]
    command += ["--max-concurrent", str(widest), *(["--dtype", dtype] if dtype else [])]
    progress("starting the server")
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for_server(port, process)
        ask = _asker(port)
        ask(bodies[0])  # what is done for the first time is not counted
        progress("1 client")
        began = time.perf_counter()
        alone = [ask(body) for body in bodies]
        seconds = time.perf_counter() - began
        loads = [_load(1, alone, alone, seconds)]
        for clients in sorted(set(concurrency) - {1}):
            progress(f"{clients} clients")
            with ThreadPoolExecutor(clients) as pool:
                list(pool.map(ask, (bodies * clients)[:clients]))  # caches grow to their size
                began = time.perf_counter()
                answers = list(pool.map(ask, bodies))
                loads.append(_load(clients, answers, alone, time.perf_counter() - began))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
    progress("the engine without a server")
    kind = f"{dtype or 'its own dtype'}, {os.cpu_count()} cores"
    title = f"serve {model}, {requests} requests of {length} tokens, mode {mode or 'of the model'}, {kind}"
    return Report(title, loads, seconds, _engine_seconds(model, dtype, bodies))


def _body(number: int, length: int, mode: str | None) -> dict[str, Any]:
    prompt = PROMPTS[number % len(PROMPTS)]
    body = {"prompt": prompt, "max_tokens": length, "temperature": 0.0, "seed": number}
    return {**body, "mode": mode} if mode else body


def wait_for_server(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise UnmaskError("the server did not start; run `unmask serve` with the same model to see why")


def _asker(port: int) -> Callable[[dict[str, Any]], Answer]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/v1/models")
    chats = bool(json.loads(connection.getresponse().read())["data"][0]["can_chat"])

    def ask(asked: dict[str, Any]) -> Answer:
        body = {**asked, "stream": True, "stream_options": {"include_usage": True}}
        if chats:
            body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
        path = "/v1/chat/completions" if chats else "/v1/completions"
        began, first, text, tokens = time.perf_counter(), None, "", 0
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        client.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        reply = client.getresponse()
        if reply.status != 200:
            raise UnmaskError(f"the server answered {reply.status}: {reply.read().decode()[:200]}")
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            part = json.loads(line[6:])
            if "error" in part:
                raise UnmaskError(f"the server failed: {part['error']['message']}")
            for choice in part["choices"]:
                said = (choice["delta"].get("content") if chats else choice["text"]) or ""
                first = time.perf_counter() - began if said and first is None else first
                text += said
            tokens = (part.get("usage") or {}).get("completion_tokens", tokens)
        client.close()
        whole = time.perf_counter() - began
        return Answer(text, tokens, whole if first is None else first, whole)

    return ask


def _load(clients: int, answers: list[Answer], alone: list[Answer], seconds: float) -> Load:
    first, whole = sorted(a.first for a in answers), sorted(a.whole for a in answers)
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


def _engine_seconds(model: str, dtype: str | None, bodies: list[dict[str, Any]]) -> float:
    """Of the same requests, one after another, by an engine in this process."""
    from unmask.engine.scheduler import Engine, Event, Failed, Job, Limits, Step

    lm = DiffusionLM.from_pretrained(model, dtype=dtype)
    engine, told = Engine({model: lm}, Limits()), SimpleQueue[Event]()

    def run(body: dict[str, Any]) -> None:
        options = {name: body[name] for name in ("temperature", "seed", "mode") if name in body}
        engine.submit(Job.of(model, lm.prepare(chat(lm, body["prompt"]), body["max_tokens"], **options), told.put))
        while isinstance(event := told.get(), Step):
            pass
        if isinstance(event, Failed):
            raise event.error

    run(bodies[0])
    began = time.perf_counter()
    for body in bodies:
        run(body)
    seconds = time.perf_counter() - began
    engine.close()
    return seconds


def draw(report: Report, path: Path) -> None:
    """Tokens per second and seconds to text against the number of clients, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from unmask.files import replacing

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    rates, waits = figure.subplots(1, 2)
    clients = [load.clients for load in report.loads]
    rates.plot(clients, [load.tokens_per_second for load in report.loads], "o-", color="#2a8c6a")
    rates.set(xlabel="clients", ylabel="useful tokens per second", xscale="log", ylim=(0, None))
    for name, colour in (("first", "#30507a"), ("whole", "#c1440e")):
        for share, style in (("p50", "o-"), ("p95", "o--")):
            seconds = [getattr(load, f"{name}_{share}") for load in report.loads]
            waits.plot(clients, seconds, style, color=colour, label=f"{name} text, {share}")
    waits.set(xlabel="clients", ylabel="seconds", xscale="log", yscale="log")
    waits.legend(fontsize=8)
    for axes in (rates, waits):
        axes.set_xticks(clients, [str(n) for n in clients])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.suptitle(report.title, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
