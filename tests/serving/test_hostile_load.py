"""Costly and hostile requests beside a watcher of /health and of a small request: neither waits for them."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HEALTH_SECONDS = 0.1
SMALL_SECONDS = 1.0  # that a small request may take longer than alone
MIB = 1 << 20
HELLO = [{"role": "user", "content": "the cat"}]
SMALL = {"model": "canvas", "prompt": "the cat", "max_tokens": 2, "seed": 1}


def text_of(**fields: Any) -> bytes:
    return json.dumps({"model": "canvas", "prompt": "a", "max_tokens": 2, **fields}).encode()


def chat_of(**fields: Any) -> bytes:
    return json.dumps({"model": "talker", "messages": HELLO, "max_tokens": 2, **fields}).encode()


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema, "b": schema}, "required": ["a"]}
    return schema


NAMES = [f"n{i}" for i in range(20_000)]
TEXT, CHAT, FILL = "/v1/completions", "/v1/chat/completions", "/v1/infill"
BOUNDED = {"type": "string", "maxLength": 400}
HOSTILE: dict[str, Callable[[], tuple[str, bytes]]] = {
    "a name that stands twice behind 20,000 others": lambda: (
        TEXT,
        ("{" + ",".join(f'"{name}":1' for name in NAMES) + ',"n0":1}').encode(),
    ),
    "unknown fields": lambda: (TEXT, json.dumps(dict.fromkeys(NAMES * 2, 1)).encode()),
    "a list of ones": lambda: (TEXT, text_of(prompt=[1] * 300_000)),
    "a list of lists": lambda: (TEXT, text_of(prompt=[[1]] * 150_000)),
    "a list of mixed kinds": lambda: (TEXT, text_of(prompt=[1, "a"] * 100_000)),
    "a list of texts": lambda: (TEXT, text_of(prompt=["a"] * 200_000)),
    "objects where lists should be": lambda: (TEXT, text_of(stop=[{}] * 200_000)),
    "messages without anything": lambda: (CHAT, chat_of(messages=[{}] * 250_000)),
    "many messages": lambda: (CHAT, chat_of(messages=[{"role": "user", "content": "a"}] * 4096)),
    "parts without anything": lambda: (CHAT, chat_of(messages=[{"role": "user", "content": [{}] * 250_000}])),
    "tools without anything": lambda: (CHAT, chat_of(tools=[{}] * 250_000)),
    "names of bias": lambda: (TEXT, text_of(logit_bias={name: 1.0 for name in NAMES * 2})),
    "labels": lambda: (TEXT, text_of(metadata={name: "a" for name in NAMES * 2})),
    "a long word": lambda: (TEXT, text_of(prompt="a" * (MIB - 100))),
    "a long text": lambda: (TEXT, text_of(prompt="the cat sat " * 80_000)),
    "long special tokens": lambda: (TEXT, text_of(prompt="<|endoftext|>" * 75_000)),
    "a long message": lambda: (CHAT, chat_of(messages=[{"role": "user", "content": "é☕猫 " * 80_000}])),
    "escapes": lambda: (TEXT, b'{"prompt": "' + b"\\u00e9" * 170_000 + b'"}'),
    "gaps": lambda: (FILL, json.dumps({"model": "canvas", "template": "[[mask:1-2]]" * 70_000}).encode()),
    "segments": lambda: (FILL, json.dumps({"model": "canvas", "segments": ["a", {"mask": 1}] * 2048}).encode()),
    "a deep schema": lambda: (TEXT, text_of(guided_json=nested(14))),
    "a wide schema": lambda: (TEXT, text_of(guided_json={"enum": NAMES[:5000]})),
    "a regex that explodes": lambda: (TEXT, text_of(guided_regex="(a|b)*a" + "(a|b)" * 400)),
    "a regex of bounds": lambda: (TEXT, text_of(guided_regex="((a{1,90}){1,90}){1,90}")),
    "a regex of bounds on any character": lambda: (TEXT, text_of(guided_regex="(.{1,90} ){1,90}")),
    "many strings with bounds": lambda: (
        TEXT,
        text_of(guided_json={"type": "object", "properties": dict.fromkeys(NAMES[:20], BOUNDED)}),
    ),
    "a set of strings": lambda: (
        TEXT,
        text_of(guided_json={"type": "array", "uniqueItems": True, "items": {"type": "string", "maxLength": 64}}),
    ),
    "long names": lambda: (TEXT, text_of(guided_json={"enum": [f"{n}{'x' * 50}{n}" for n in NAMES[:5000]]})),
    "many optional members": lambda: (
        TEXT,
        text_of(
            guided_json={
                "type": "object",
                "properties": dict.fromkeys(NAMES[:300], BOUNDED),
                "minProperties": 20,
            }
        ),
    ),
    "brackets": lambda: (TEXT, b"[" * MIB),
    "digits": lambda: (TEXT, b'{"seed": ' + b"9" * MIB + b"}"),
    "quotation marks": lambda: (TEXT, b'"' * MIB),
    "empty lists": lambda: (TEXT, b"[" + b"[]," * 340_000 + b"0]"),
}


def post(port: int, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, json.loads(data)


class Watcher:
    """Asks for /health, and for a small text, again and again; keeps how long each took."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.health: list[float] = []
        self.small: list[float] = []
        self.stopping = False
        self.threads = [threading.Thread(target=self._health), threading.Thread(target=self._small)]

    def __enter__(self) -> Watcher:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping = True
        for thread in self.threads:
            thread.join()

    def _health(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self.stopping:
            began = time.perf_counter()
            connection.request("GET", "/health")
            connection.getresponse().read()
            self.health.append(time.perf_counter() - began)
            time.sleep(0.01)

    def _small(self) -> None:
        while not self.stopping:
            began = time.perf_counter()
            assert post(self.port, TEXT, json.dumps(SMALL).encode())[0] == 200
            self.small.append(time.perf_counter() - began)
            time.sleep(0.02)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    program = Path(__file__).with_name("small_models.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(program), "--port", str(free)], env=environment, stderr=-3)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", free), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        post(free, TEXT, json.dumps(SMALL).encode())
        yield free
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def alone(port: int) -> float:
    """How long a small request takes when nobody else asks."""
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        post(port, TEXT, json.dumps(SMALL).encode())
        seconds.append(time.perf_counter() - began)
    return max(seconds)


@pytest.fixture
def noise(port: int) -> float:
    """What /health takes at the worst while nobody asks anything costly: other work of this machine."""
    with Watcher(port) as watcher:
        time.sleep(0.3)
    return max(watcher.health)


@pytest.mark.parametrize("name", HOSTILE)
def test_nobody_waits_for_a_hostile_request(port: int, alone: float, noise: float, name: str) -> None:
    path, body = HOSTILE[name]()
    # the machine may do something else for a moment; a grammar is compiled but once
    for _ in range(1 if b"guided" in body else 3):
        with Watcher(port) as watcher:
            time.sleep(0.05)
            status, reply = post(port, path, body)
            time.sleep(0.05)
        if max(watcher.health) < HEALTH_SECONDS:
            break
    assert status in (200, 400, 413), reply
    assert max(watcher.health) < HEALTH_SECONDS + noise, sorted(watcher.health)[-5:]
    assert sorted(watcher.small)[-1] < alone + SMALL_SECONDS


def test_a_small_schema_does_not_wait_for_costly_ones(port: int, alone: float) -> None:
    taken = []
    for attempt in range(3):  # the machine may do something else for a moment
        lengths = range(400 + 6 * attempt, 406 + 6 * attempt)
        bodies = [text_of(guided_regex=f"(a|b)*a{'(a|b)' * length}") for length in lengths]
        costly = [threading.Thread(target=post, args=(port, TEXT, body)) for body in bodies]
        for thread in costly:
            thread.start()
        time.sleep(0.1)
        began = time.perf_counter()
        assert post(port, TEXT, text_of(guided_json={"enum": [1, int(time.time()) + attempt]}, max_tokens=20))[0] == 200
        taken.append(time.perf_counter() - began)
        for thread in costly:
            thread.join()
        if taken[-1] < alone + SMALL_SECONDS:
            break
    assert min(taken) < alone + SMALL_SECONDS


def test_half_sent_heads_keep_nobody_out(port: int) -> None:
    held = []
    for _ in range(300):
        connection = socket.create_connection(("127.0.0.1", port), 5)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: ")
        held.append(connection)
    with Watcher(port) as watcher:
        time.sleep(0.5)
    assert len(watcher.health) > 5
    for connection in held:
        connection.close()


def test_a_bomb_of_gzip_is_refused_before_it_is_unpacked(port: int) -> None:
    packed = gzip.compress(json.dumps(SMALL).encode())
    assert post(port, TEXT, packed, **{"Content-Encoding": "gzip"})[0] == 200
    bomb = gzip.compress(b" " * (200 << 20))
    assert len(bomb) < MIB
    with Watcher(port) as watcher:
        assert post(port, TEXT, bomb, **{"Content-Encoding": "gzip"})[0] == 413
    assert max(watcher.health) < 1.0
    assert post(port, TEXT, b"no gzip", **{"Content-Encoding": "gzip"})[0] == 400
    assert post(port, TEXT, b"{}", **{"Content-Encoding": "br"})[0] == 415
