"""`unmask bench soak`: a server asked for more than it can do by clients some of whom vanish, then told to stop."""

from __future__ import annotations

import http.client
import json
import random
import signal
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from benchmarks.own_server import OwnServer, own_server
from benchmarks.speed import PROMPTS

from unmask.cli.options import Json, Length, Served
from unmask.cli.report import print_record
from unmask.errors import UnmaskError

GRACE = 30  # seconds that requests have to finish after SIGTERM
WARM_UP = 15.0  # seconds of the same load before anything is counted: caches grow to their size
GROWTH = 0.05  # share of memory, or SLACK bytes, by which the end may be above the beginning
SLACK = 32 << 20
FINE = {"answered", "refused", "vanished"}


@dataclass(frozen=True)
class Held:
    """What the server holds when nothing runs."""

    memory: int  # bytes resident
    threads: int
    files: int


@dataclass(frozen=True)
class Soak:
    """What became of every request, and what the server held before and after."""

    minutes: float
    clients: int
    outcomes: dict[str, int]  # answered, refused (429), vanished; anything else is a fault
    memory_first: int  # bytes resident under load: median of the first fifth of the time
    memory_last: int  # of the last fifth
    before: Held  # idle, once warm
    after: Held  # idle, afterwards
    running_after: int
    waiting_after: int
    stopped_outcomes: dict[str, int]  # of the requests under way or sent when SIGTERM came
    exit_status: int
    seconds_to_stop: float

    @property
    def faults(self) -> list[str]:
        """What went wrong, in words; empty where nothing did."""
        out = [f"{n} requests: {what}" for what, n in self.outcomes.items() if what not in FINE]
        after = FINE | {"stopping"}
        out += [f"{n} requests after SIGTERM: {what}" for what, n in self.stopped_outcomes.items() if what not in after]
        if self.running_after or self.waiting_after:
            out.append(f"{self.running_after} requests kept their slot and {self.waiting_after} their place in line")
        for first, last in ((self.memory_first, self.memory_last), (self.before.memory, self.after.memory)):
            if last - first > max(SLACK, GROWTH * first):
                out.append(f"memory grew from {first >> 20} to {last >> 20} MiB")
        if self.after.threads > self.before.threads or self.after.files > self.before.files:
            out.append("threads or open files were left behind")
        if self.exit_status:
            out.append(f"exit status {self.exit_status} after SIGTERM")
        return out

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "faults": self.faults}


def bench_soak(
    model: str, minutes: float, concurrent: int, queue: int, vanish: float, length: int, progress: Callable[[str], None]
) -> Soak:
    """Keeps a server of its own at twice its capacity (slots and line) for some minutes, then stops it under load."""
    options = ["--grace", str(GRACE), "--max-concurrent", str(concurrent), "--queue", str(queue), "--max-n", "1"]
    options += ["--prefix-mb", "16"]  # full before memory is looked at
    progress("starting the server")
    clients = 2 * (concurrent + queue)
    memory: list[int] = []
    with own_server(model, *options) as server:
        load = _Load(server, clients, vanish, length)
        load.run(WARM_UP, lambda done: progress(f"warming up, {done} requests"))
        before = _at_rest(server)
        began = time.monotonic()

        def told(done: int) -> None:
            memory.append(server.held()["memory"])
            progress(f"{(time.monotonic() - began) / 60:.1f} of {minutes:g} min, {done} requests")

        outcomes = load.run(60 * minutes, told)
        gauges = server.settled()
        after = _at_rest(server)
        progress("SIGTERM under load")
        stopped: Counter[str] = Counter()
        crowd = threading.Thread(target=lambda: stopped.update(load.run(4.0, lambda done: None)))
        crowd.start()
        time.sleep(2)
        began_stop = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        try:
            status = server.process.wait(timeout=GRACE + 30)
        except subprocess.TimeoutExpired:
            raise UnmaskError(f"the server still ran {GRACE + 30} seconds after SIGTERM") from None
        seconds = time.monotonic() - began_stop
        crowd.join()
    part = max(1, len(memory) // 5)
    under_load = (int(statistics.median(memory[:part])), int(statistics.median(memory[-part:])))
    rest = (int(gauges["unmask_running"]), int(gauges["unmask_waiting"]))
    return Soak(minutes, clients, dict(outcomes), *under_load, before, after, *rest, dict(stopped), status, seconds)


def _at_rest(server: OwnServer) -> Held:
    """What a server holds once nothing runs and its clients' connections are closed."""
    server.settled()
    time.sleep(1)
    return Held(**server.held())


@dataclass(frozen=True)
class _Load:
    """Clients of a server."""

    server: OwnServer
    clients: int
    vanish: float
    length: int

    def run(self, seconds: float, told: Callable[[int], None]) -> Counter[str]:
        """Each asks one request after another until the time is up; what became of all."""
        outcomes: Counter[str] = Counter()
        until = time.monotonic() + seconds
        lock = threading.Lock()

        def client(number: int) -> None:
            rng = random.Random(number)
            while time.monotonic() < until:
                what = _ask(self.server.port, rng, self.vanish, self.length)
                with lock:
                    outcomes[what] += 1
                if what == "refused":
                    time.sleep(0.2 + 0.3 * rng.random())
                elif what not in ("answered", "vanished"):
                    time.sleep(0.5)

        threads = [threading.Thread(target=client, args=(n,), daemon=True) for n in range(self.clients)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            told(sum(outcomes.values()))
            time.sleep(1)
        return outcomes


def _ask(port: int, rng: random.Random, vanish: float, length: int) -> str:
    """One streamed request: answered, refused, vanished, stopping, or what went wrong."""
    body = {
        "messages": [{"role": "user", "content": rng.choice(PROMPTS)}],
        "max_tokens": rng.randint(1, length),
        "mode": rng.choice(["ar", "diffusion", "verify"]),
        "temperature": rng.choice([0.0, 0.8]),
        "stream": rng.random() < 0.8,
    }
    leaves = rng.random() < vanish
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        client.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        if leaves and not body["stream"]:
            return "vanished"
        reply = client.getresponse()
        if reply.status == 429:
            return "refused"
        if reply.status == 503:
            return "stopping"
        if reply.status != 200:
            return f"status {reply.status}"
        if not body["stream"]:
            return "answered" if json.loads(reply.read())["choices"] else "empty"
        lines = 0
        done = False
        for line in reply:
            lines += line.startswith(b"data: ")
            if b'"error"' in line:
                return "stopping" if b"shutting down" in line or b"stopping" in line else f"stream: {line[:100]!r}"
            done = done or line.startswith(b"data: [DONE]")
            if leaves and lines >= rng.randint(1, 5):
                return "vanished"
        return "answered" if done else "cut"
    except ConnectionRefusedError:
        return "stopping"  # the port is closed
    except (OSError, http.client.HTTPException, ValueError) as error:
        return type(error).__name__
    finally:
        client.close()


def command(
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

    if not 0 < minutes < 1e4 or max_concurrent < 1 or queue < 0 or not 0 <= vanish <= 1 or max_new_tokens < 1:
        raise UnmaskError("--minutes, --max-concurrent, -n must be above 0, --queue at least 0, --vanish 0 to 1")
    with Console(stderr=True).status("starting") as status:
        result = bench_soak(model, minutes, max_concurrent, queue, vanish, max_new_tokens, status.update)
    if as_json:
        print_record(result.to_dict())
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
