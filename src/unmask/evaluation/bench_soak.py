"""`unmask bench soak`: a server asked for more than it can do by clients some of whom vanish, then told to stop."""

from __future__ import annotations

import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from unmask.errors import UnmaskError
from unmask.evaluation.bench_serve import wait_for_server
from unmask.evaluation.bench_speed import PROMPTS

GRACE = 30  # seconds that requests have to finish after SIGTERM


@dataclass(frozen=True)
class Soak:
    """What became of every request, and what the server held before and after."""

    minutes: float
    clients: int
    outcomes: dict[str, int]  # answered, refused (429), vanished; anything else is a fault
    memory_before: int  # bytes resident, once warm
    memory_after: int  # of the idle server, afterwards
    running_after: int
    waiting_after: int
    stopped_outcomes: dict[str, int]  # of the requests under way or sent when SIGTERM came
    exit_status: int
    seconds_to_stop: float

    @property
    def faults(self) -> int:
        """Requests that neither were answered, refused, nor given up by their client."""
        fine = {"answered", "refused", "vanished"}
        after = {"answered", "refused", "stopping"}
        faults = sum(n for what, n in self.outcomes.items() if what not in fine)
        return faults + sum(n for what, n in self.stopped_outcomes.items() if what not in after)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "faults": self.faults}


def bench_soak(
    model: str, minutes: float, concurrent: int, queue: int, vanish: float, length: int, progress: Callable[[str], None]
) -> Soak:
    """Keeps a server of its own at twice its capacity (slots and line) for some minutes, then stops it under load."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "unmask", "serve", f"soak={model}", "--port", str(port), "--grace", str(GRACE)]
    command += ["--max-concurrent", str(concurrent), "--queue", str(queue), "--max-n", "1"]
    progress("starting the server")
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    clients = 2 * (concurrent + queue)
    try:
        wait_for_server(port, process)
        _crowd(port, clients, 10.0, 0.0, length, lambda done: progress(f"warming up, {done} requests"))
        before = _settled(port, process)
        began = time.monotonic()

        def told(done: int) -> None:
            progress(f"{(time.monotonic() - began) / 60:.1f} of {minutes:g} min, {done} requests")

        outcomes = _crowd(port, clients, 60 * minutes, vanish, length, told)
        after = _settled(port, process)
        figures = _gauges(port)
        progress("SIGTERM under load")
        stopped: Counter[str] = Counter()
        crowd = threading.Thread(
            target=lambda: stopped.update(_crowd(port, concurrent, 3.0, 0.0, length, lambda done: None))
        )
        crowd.start()
        time.sleep(2)
        began_stop = time.monotonic()
        process.send_signal(signal.SIGTERM)
        crowd.join()
        status = process.wait(timeout=GRACE + 30)
        seconds = time.monotonic() - began_stop
    finally:
        process.kill()
    waits = (figures["unmask_running"], figures["unmask_waiting"])
    return Soak(minutes, clients, dict(outcomes), before, after, *waits, dict(stopped), status, seconds)


def _crowd(
    port: int, clients: int, seconds: float, vanish: float, length: int, told: Callable[[int], None]
) -> Counter[str]:
    """Clients that ask one request after another until the time is up; what became of all."""
    outcomes: Counter[str] = Counter()
    until, lock = time.monotonic() + seconds, threading.Lock()

    def client(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < until:
            what = _ask(port, rng, vanish, length)
            with lock:
                outcomes[what] += 1
            if what == "refused":
                time.sleep(0.2 + 0.3 * rng.random())
            elif what not in ("answered", "vanished"):
                time.sleep(0.5)

    threads = [threading.Thread(target=client, args=(n,), daemon=True) for n in range(clients)]
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
        lines, done = 0, False
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


def _settled(port: int, process: subprocess.Popen[bytes]) -> int:
    """Resident bytes once nothing runs or waits; a server that does not come to rest within a minute is said so."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        figures = _gauges(port)
        if figures["unmask_running"] == figures["unmask_waiting"] == 0:
            break
        time.sleep(0.2)
    time.sleep(1)
    with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def _gauges(port: int) -> dict[str, int]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    client.request("GET", "/metrics")
    text = client.getresponse().read().decode()
    client.close()
    out = {}
    for name in ("unmask_running", "unmask_waiting"):
        line = next((line for line in text.splitlines() if line.startswith(name + " ")), None)
        if line is None:
            raise UnmaskError(f"the server's /metrics has no {name}")
        out[name] = int(float(line.split()[1]))
    return out
