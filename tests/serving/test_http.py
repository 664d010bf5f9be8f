"""The server as an HTTP server: forged lines, connections that ask nothing, methods, encodings, proxies, panics."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from live_server import Live

from unmask.errors import UnmaskError
from unmask.serving import server
from unmask.serving.api.access import check_origins, local_hosts
from unmask.serving.api.settings import Settings

TEXT: dict[str, Any] = {"model": "canvas", "prompt": "the cat", "max_tokens": 4}
ORIGIN = {"Origin": "https://app.example"}


def fetch(
    live: Live, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer, data


def raw(live: Live, head: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", live.port), 10) as connection:
        connection.sendall(head)
        data = b""
        while part := connection.recv(65536):
            data += part
    return data


@pytest.mark.parametrize("path", ["/x%0a2026-01-01 POST /v1 200", "/%1b[31m", "/%00", "/%e2%80%ae", "/%0d", "/%c2%85"])
def test_a_path_makes_one_escaped_line_of_the_log(live: Live, caplog: pytest.LogCaptureFixture, path: str) -> None:
    with caplog.at_level(logging.INFO, logger="unmask.serving"):
        fetch(live, path.replace(" ", "%20"))
        until = time.monotonic() + 5
        while "GET" not in caplog.text and time.monotonic() < until:
            time.sleep(0.01)
    message = caplog.records[-1].getMessage()
    assert message.startswith("GET /")
    assert message.isascii()
    assert message.isprintable()


def test_connections_that_ask_nothing_are_closed(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    live = start()
    for head in (b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        began = time.monotonic()
        answered = raw(live, head)
        assert time.monotonic() - began < 3
        assert (b"200 OK" in answered) == (head[-1:] == b"\n")


def test_connections_are_bounded_and_the_longest_without_a_request_goes(start: Any) -> None:
    live = start()
    live.server.config.http_protocol_class.most = 20
    held = []
    for _ in range(60):
        held.append(socket.create_connection(("127.0.0.1", live.port), 5))
        held[-1].sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
        time.sleep(0.002)
    assert fetch(live, "/health")[0].status == 200
    assert len(live.server.server_state.connections) <= 20
    for connection in held:
        connection.close()


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/docs", "/metrics", "/", "/v1/models/canvas"])
def test_head_is_get_without_a_body(live: Live, path: str) -> None:
    head, nothing = fetch(live, path, "HEAD")
    get, body = fetch(live, path)
    assert (head.status, nothing, get.status) == (200, b"", 200)
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    assert body


def test_a_request_line_with_the_whole_address(live: Live) -> None:
    line = f"GET http://localhost:{live.port}/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert b"200 OK" in raw(live, line.encode())
    other = b"GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert b"421" in raw(live, other)


@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        ("/v1/models", {}, None, 401),
        ("/v1/completions", {"Authorization": "Bearer k", "Content-Type": "text/plain"}, b"{}", 415),
        ("/v1/completions", {"Authorization": "Bearer k", "Content-Type": "application/json"}, b" " * 3000, 413),
        ("/v1/models", {"Host": "evil.example"}, None, 421),
        ("/v1/nothing", {"Authorization": "Bearer k"}, None, 404),
        ("/health", {}, None, 200),
    ],
)
def test_pages_of_an_allowed_origin_can_read_every_answer(
    start: Any, path: str, headers: dict[str, str], body: bytes | None, status: int
) -> None:
    rules = {"keys": ("k",), "body_bytes": 2000, "hosts": local_hosts("127.0.0.1")}
    live = start(settings=Settings(**rules, origins=("https://app.example",)))
    answer, _ = fetch(live, path, "GET" if body is None else "POST", body, **ORIGIN, **headers)
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == "https://app.example"


def test_origins_and_hosts_are_checked() -> None:
    assert check_origins(["https://a.example", "http://localhost:3000", "*"])
    for origin in ("app.example", "https://a.example/path", "file://x", ""):
        with pytest.raises(UnmaskError, match="origin"):
            check_origins([origin])
    assert "proxy.example" in local_hosts("127.0.0.1", ["Proxy.Example"])


def test_a_proxy_is_answered_under_its_name(start: Any) -> None:
    live = start(settings=Settings(hosts=local_hosts("127.0.0.1", ["proxy.example"])))
    assert fetch(live, "/health", Host="proxy.example")[0].status == 200
    assert fetch(live, "/health", Host="evil.example")[0].status == 421


class PanicException(BaseException):
    """As libraries in Rust raise it."""


def test_a_fault_of_ours_is_an_error_in_the_clients_shape(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.serving.api import planner

    def fails(*_: Any) -> Any:
        raise KeyError("secret")

    with monkeypatch.context() as patch:
        patch.setattr(planner, "encode", fails)
        status, reply = live.send("/v1/completions", TEXT)
        assert (status, reply["error"]["type"]) == (500, "server_error")
        assert "secret" not in str(reply)


def test_a_panic_of_a_library_is_a_500_of_its_request_alone(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.serving.api import planner

    def panics(*_: Any) -> Any:
        raise PanicException("index out of range: secret")

    with monkeypatch.context() as patch:
        patch.setattr(planner, "encode", panics)
        status, reply = live.send("/v1/completions", TEXT)
        assert (status, reply["error"]["type"]) == (500, "server_error")
        assert "secret" not in str(reply)
    assert live.send("/v1/completions", TEXT)[0] == 200


def test_health_is_shown_while_closing(start: Any) -> None:
    live = start(grace=30.0)
    long = {"model": "talker", "messages": [{"role": "user", "content": "a"}], "max_tokens": 300, "mode": "ar"}
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(long), {"Content-Type": "application/json"})
    until = time.monotonic() + 10
    while live.send("/health")[1]["running"] == 0 and time.monotonic() < until:
        time.sleep(0.005)
    live.server.leave()
    while (shown := live.send("/health"))[0] == 200 and time.monotonic() < until:
        time.sleep(0.005)
    assert (shown[0], shown[1]["status"]) == (503, "closing")
    assert live.send("/v1/completions", TEXT)[0] == 503
    assert connection.getresponse().status == 200
    live.thread.join(timeout=30)
    assert not live.thread.is_alive()


def test_few_files_are_enough_for_many_half_sent_heads() -> None:
    """A server that may have 128 files open, and 200 connections that ask nothing."""
    program = Path(__file__).with_name("small_models.py")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = f'ulimit -n 128; exec "{sys.executable}" "{program}" --port {port}'
    process = subprocess.Popen(["bash", "-c", command], stderr=subprocess.PIPE)
    held = []
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        for _ in range(200):
            held.append(socket.create_connection(("127.0.0.1", port), 5))
            held[-1].sendall(b"GET /health HTTP/1.1\r\nHost: ")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
    finally:
        process.terminate()
        log = process.communicate(timeout=30)[1]
        for one in held:
            one.close()
    assert b"Traceback" not in log
    assert len(log.splitlines()) < 20
