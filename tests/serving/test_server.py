"""The server around the endpoints: keys, clients that vanish, a full house, metrics, leaving in order."""

from __future__ import annotations

import html
import http.client
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from live_server import Live, value

from unmask.errors import UnmaskError
from unmask.serving.api import openapi
from unmask.serving.api.access import local_hosts, read_keys
from unmask.serving.api.settings import Settings
from unmask.serving.engine import Limits

TEXT: dict[str, Any] = {"model": "canvas", "prompt": "the cat", "max_tokens": 4}
LONG: dict[str, Any] = {
    "model": "talker", "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 300, "mode": "ar", "seed": 1,
    "temperature": 0.3,
}  # fmt: skip


def begin(live: Live, stream: bool) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
    body = json.dumps({**LONG, "stream": stream})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    return connection


def wait_until(holds: Any, seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_slot(live: Live, stream: bool) -> None:
    live.idle()
    engine = live.server.engine
    connections = [begin(live, stream) for _ in range(5)]
    if stream:
        for connection in connections:
            connection.getresponse().read(60)
    wait_until(lambda: engine.running == 5)
    for connection in connections:
        assert connection.sock is not None or stream
        connection.close()
    steps = value(engine.metrics.steps, "_total", model="talker")
    live.idle(5.0)
    assert (
        value(engine.metrics.steps, "_total", model="talker") - steps < 150
    )  # long before their 300 tokens are written
    assert live.send("/v1/completions", TEXT)[0] == 200


def test_a_full_house_is_a_429_and_nobody_waits_for_ever(start: Any) -> None:
    live = start(Limits(slots=2, queue=1))
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(live.send("/v1/chat/completions", {**LONG, "max_tokens": 120})[0])

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 3
    live.idle()
    status, reply = live.send("/v1/completions", {**TEXT, "n": 4})
    assert (status, "holds 3" in reply["error"]["message"]) == (400, True)
    assert live.send("/v1/completions", TEXT)[0] == 200


def test_keys(start: Any, key_file: Path, tmp_path: Path) -> None:
    live = start(settings=Settings(keys=read_keys(key_file)))
    assert live.send("/health")[0] == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "open-sesame"}, {"Authorization": "é"}):
        raw = {name: value.encode("latin-1").decode("latin-1") for name, value in headers.items()}
        for path in ("/v1/models", "/metrics", "/tokenize", "/v1/nothing"):
            status, reply = live.send(path, headers=raw)
            assert (status, reply["error"]["code"]) == (401, "invalid_api_key")
    for key in ("open-sesame", "second-key"):
        assert live.send("/v1/completions", TEXT, headers={"Authorization": f"Bearer {key}"})[0] == 200
    (tmp_path / "empty").write_text("# nothing\n")
    for path in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(UnmaskError, match="key"):
            read_keys(path)


def test_loopback_answers_to_local_names_only() -> None:
    assert "localhost" in local_hosts("127.0.0.1")
    assert "[::1]" in local_hosts("::1")
    assert local_hosts("0.0.0.0") == ()
    assert local_hosts("example.org") == ()


def test_other_origins_are_let_in_only_if_asked(start: Any) -> None:
    live = start(settings=Settings(origins=("http://app.example",)))
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
    connection.request(
        "OPTIONS", "/v1/completions",
        headers={"Origin": "http://app.example", "Access-Control-Request-Method": "POST"},
    )  # fmt: skip
    assert connection.getresponse().headers["access-control-allow-origin"] == "http://app.example"


def test_metrics_and_health_and_docs(live: Live) -> None:
    live.send("/v1/completions", TEXT)
    live.send("/v1/chat/completions", {**LONG, "mode": "verify", "max_tokens": 20, "stream": True})
    status, text = live.send("/metrics")
    assert status == 200
    samples = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            samples[name] = float(value)
    assert samples['unmask_useful_tokens_total{model="canvas"}'] >= 1
    assert samples['unmask_requests_total{path="/v1/completions",status="200"}'] >= 1
    assert samples["unmask_running"] == samples["unmask_waiting"] == 0
    assert samples['unmask_batch_size_bucket{le="+Inf"}'] == samples["unmask_batch_size_count"] > 0
    assert samples["unmask_first_text_seconds_count"] >= 1
    assert samples["unmask_drafts_kept_count"] > 0
    status, health = live.send("/health")
    assert (status, health["status"]) == (200, "ok")
    status, page = live.send("/docs")
    assert status == 200
    assert "http" not in page.replace("/openapi.json", "")  # nothing is loaded from elsewhere


def test_every_example_of_the_description_is_answered_in_its_shape(live: Live) -> None:
    _, api = live.send("/openapi.json")
    _, page = live.send("/docs")
    for path, methods in api["paths"].items():
        assert page.count(f'<h2 id="{path}">') == 1
        (what,) = methods.values()
        body = None
        if "requestBody" in what:
            body = what["requestBody"]["content"]["application/json"]["example"]
            assert html.escape(json.dumps(body, indent=2)) in page
            fills = any(word in path for word in ("infill", "fim", "edit"))
            body = body | {"model": "canvas" if fills else "talker"}
        status, answer = live.send(path.replace("{name}", "canvas"), body)
        assert status == 200, (path, answer)
        told = what["responses"]["200"].get("content", {}).get("application/json", {}).get("schema")
        wanted = openapi.shape(told, api["components"]["schemas"]) if told else ""
        assert _fits(answer, wanted), (path, answer, wanted)


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value has the fields of a shape, and no others."""
    if isinstance(wanted, dict) and wanted and value is not None:
        return set(value) <= set(wanted) and all(_fits(value[name], wanted[name]) for name in value)
    if isinstance(wanted, list) and value is not None:
        return all(_fits(item, wanted[0]) for item in value)
    return True


def test_prompts_are_logged_only_if_asked(start: Any, live: Live, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="unmask.serving"):
        live.send("/v1/completions", {**TEXT, "prompt": "a secret cat", "user": "me\nmyself"})
        wait_until(lambda: "tokens=" in caplog.text)
        assert "secret" not in caplog.text
        assert '"me\\nmyself"' in caplog.text
        talkative = start(settings=Settings(log_prompts=True))
        talkative.send("/v1/completions", {**TEXT, "prompt": "a secret cat"})
        wait_until(lambda: "secret" in caplog.text)


def test_a_server_that_leaves_lets_requests_finish(start: Any) -> None:
    live = start(grace=30.0)
    results: list[tuple[int, Any]] = []
    asked = {**LONG, "max_tokens": 60}
    threads = [
        threading.Thread(target=lambda: results.append(live.send("/v1/chat/completions", asked))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: live.server.engine.running >= 6)
    live.server.leave()
    for thread in [*threads, live.thread]:
        thread.join(timeout=60)
    assert [status for status, _ in results] == [200] * 6
    assert len({reply["choices"][0]["message"]["content"] for _, reply in results}) == 1
    assert not live.thread.is_alive()


def test_a_server_that_leaves_gives_up_after_the_grace_time(start: Any) -> None:
    live = start(grace=0.0)
    connection = begin(live, True)
    answer = connection.getresponse()
    answer.read(40)
    live.server.leave()
    rest = answer.read().decode()
    assert "shutting down" in rest
    live.thread.join(timeout=20)
    assert not live.thread.is_alive()


def test_a_stream_without_news_shows_that_it_lives(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.serving.api import streaming

    asked = {**TEXT, "max_tokens": 100, "max_denoising_steps": 100, "remask_budget": 5, "seed": 1}
    _, whole = live.send("/v1/completions", asked)
    monkeypatch.setattr(streaming, "HEARTBEAT", 0.005)
    _, body = live.send("/v1/completions", {**asked, "stream": True})
    assert ": still at it\n\n" in body
    parts = [json.loads(line[6:]) for line in body.split("\n\n") if line.startswith("data: {")]
    assert "".join(part["choices"][0]["text"] for part in parts) == whole["choices"][0]["text"]
    assert body.endswith("data: [DONE]\n\n")


def test_a_failing_model_is_a_500_and_the_next_request_is_served(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.backends import torch as torch_backend

    live.idle()

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("secret path /root")

    with monkeypatch.context() as patch:
        patch.setattr(torch_backend.TorchBackend, "forward", broken)
        status, reply = live.send("/v1/completions", TEXT)
        assert status == 500
        assert "secret" not in str(reply)
        _, body = live.send("/v1/completions", {**TEXT, "stream": True})
        assert '"server_error"' in body
    assert live.send("/v1/completions", TEXT)[0] == 200


@pytest.fixture(scope="module")
def process_environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_the_command_serves_and_leaves_with_status_0(process_environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unmask", "serve", "austen", "small=austen-ar", "--port", "0", "--grace", "20"]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(command, stderr=log, env=process_environment)
        try:
            wait_until(lambda: "serving" in (tmp_path / "log").read_text() or process.poll() is not None, 60)
            line = (tmp_path / "log").read_text()
            assert "serving austen, small at http://127.0.0.1:" in line
            port = int(line.split("127.0.0.1:")[1].split()[0])
            live = Live(None, "", port, {}, threading.current_thread())  # type: ignore[arg-type]
            status, reply = live.send("/v1/completions", {"model": "small", "prompt": "Emma was", "max_tokens": 8})
            assert (status, reply["usage"]["completion_tokens"]) == (200, 8)
            results: list[int] = []
            asked = {"model": "austen", "prompt": "Emma was", "max_tokens": 100, "remask_budget": 0}
            thread = threading.Thread(target=lambda: results.append(live.send("/v1/completions", asked)[0]))
            thread.start()
            wait_until(lambda: live.send("/health")[1]["running"] == 1)
            process.send_signal(signal.SIGTERM)
            thread.join(timeout=60)
            assert results == [200]
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["austen", "austen"], "two models are called"),
        (["no-such-model"], "no-such-model"),
        (["austen", "--port", "99999"], "cannot listen"),
        (["austen", "--host", "203.0.113.1"], "cannot listen"),
        (["austen", "--max-concurrent", "0"], "max-concurrent"),
        (["austen", "--queue", "-1"], "queue"),
        (["austen", "--max-n", "1000"], "max-n"),
        (["austen", "--api-key-file", "/nowhere"], "API keys"),
        (["=austen"], "names no model"),
    ],
)
def test_the_command_refuses_in_one_line(arguments: list[str], says: str, run: Any) -> None:
    code, _, err = run("serve", *arguments)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
