"""A server of our own in another process, on loopback, and one request of it: what the benches of serving share."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, Any

from unmask.errors import UnmaskError

START_SECONDS = 300.0  # weights may have to be fetched and packed, or a graph compiled
STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Answer:
    """One request as its client saw it."""

    text: str
    tokens: int  # to the end of text
    first: float  # seconds to the first text
    whole: float
    ids: dict[int, int] = field(default_factory=dict)  # what the frames wrote at each position, where asked for


@dataclass(frozen=True)
class OwnServer:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]
    chats: bool

    def ask(self, asked: dict[str, Any], stream: bool = True, frames: bool = False) -> Answer:
        """Answers a prompt, as a dialogue where the model chats; anything but a whole answer raises UnmaskError."""
        body = {**asked, "stream": stream}
        began = time.perf_counter()
        if stream:
            body["stream_options"] = {"include_usage": True, **({"frames": True} if frames else {})}
        if self.chats:
            body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            path = "/v1/chat/completions" if self.chats else "/v1/completions"
            client.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            reply = client.getresponse()
            if reply.status != 200:
                raise UnmaskError(f"the server answered {reply.status}: {reply.read().decode()[:200]}")
            return self._streamed(reply, began) if stream else self._whole(reply, began)
        finally:
            client.close()

    def _whole(self, reply: http.client.HTTPResponse, began: float) -> Answer:
        answer = json.loads(reply.read())
        whole = time.perf_counter() - began
        choice = answer["choices"][0]
        text = choice["message"]["content"] if self.chats else choice["text"]
        return Answer(text, answer["usage"]["completion_tokens"], whole, whole)

    def _streamed(self, reply: http.client.HTTPResponse, began: float) -> Answer:
        first = None
        text = ""
        tokens = 0
        done = False
        ids = dict[int, int]()
        for line in reply:
            done = done or line.startswith(b"data: [DONE]")
            if not line.startswith(b"data: {"):
                continue
            part = json.loads(line[6:])
            if "error" in part:
                raise UnmaskError(f"the server failed: {part['error']['message']}")
            for choice in part["choices"]:
                said = (choice["delta"].get("content") if self.chats else choice["text"]) or ""
                first = time.perf_counter() - began if said and first is None else first
                text += said
                frame = choice.get("frame") or {"positions": [], "tokens": []}
                ids.update(zip(frame["positions"], frame["tokens"], strict=True))
            tokens = (part.get("usage") or {}).get("completion_tokens", tokens)
        if not done:
            raise UnmaskError("the server cut an answer short")
        whole = time.perf_counter() - began
        return Answer(text, tokens, whole if first is None else first, whole, ids)

    def gauges(self) -> dict[str, float]:
        """What /metrics says, by name and labels."""
        lines = [line for line in self.get("/metrics").splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def get(self, path: str) -> str:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            client.request("GET", path)
            return client.getresponse().read().decode()
        finally:
            client.close()

    def held(self) -> dict[str, int]:
        """What the process holds: bytes resident, threads, files open."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        files = len(os.listdir(f"/proc/{self.process.pid}/fd"))
        return {"memory": int(fields["VmRSS"].split()[0]) * 1024, "threads": int(fields["Threads"]), "files": files}

    def settled(self, seconds: float = 60.0) -> dict[str, float]:
        """Waits until nothing runs or is in line, at most so long; what /metrics says then."""
        until = time.monotonic() + seconds
        while True:
            gauges = self.gauges()
            if gauges["unmask_running"] == gauges["unmask_waiting"] == 0 or time.monotonic() > until:
                return gauges
            time.sleep(0.2)


@contextmanager
def own_server(model: str, *options: str, command: list[str] | None = None) -> Iterator[OwnServer]:
    """Starts `unmask serve` on a free port of loopback, and stops it afterwards if it still runs, on SIGTERM too."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    serve = command or [sys.executable, "-m", "unmask", "serve", f"bench={model}"]
    with tempfile.TemporaryFile() as log, _ending_on_sigterm():
        process = subprocess.Popen([*serve, "--port", str(port), *options], stderr=log)
        try:
            _wait(port, process, log)
            server = OwnServer(port, process, False)
            models = json.loads(server.get("/v1/models"))["data"]
            yield OwnServer(port, process, bool(models[0]["can_chat"]))
        finally:
            _stop(process)


def _wait(port: int, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            client.request("GET", "/health")
            if client.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
        finally:
            client.close()
    log.seek(0)
    last = (log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    raise UnmaskError(f"the server did not start: {last.removeprefix('unmask: ')}")


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """SIGTERM is an exception meanwhile, so that the server does not outlive who started it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
