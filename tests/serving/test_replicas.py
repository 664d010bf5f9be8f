"""Two replicas on a local Ray, one of which is killed while it works: nothing is lost, nothing is answered twice."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from live_server import value

from unmask.lm import DiffusionLM
from unmask.serving import batch
from unmask.serving.api.access import local_hosts
from unmask.serving.api.settings import Settings
from unmask.serving.asgi import Asked, whole
from unmask.serving.engine import Limits
from unmask.serving.server import Server, ServerConfig, bind

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
KEY = "open-sesame"
WORK = 120  # tokens of an answer, one a step: long enough to be killed in


def children(of: int) -> dict[int, str]:
    """Processes that descend from one, and their command lines."""
    parents, lines = dict[int, int](), dict[int, str]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                lines[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:  # gone meanwhile
                continue
    found, new = {of}, {of}
    while new := {pid for pid, parent in parents.items() if parent in new} - found:
        found |= new
    return {pid: lines[pid] for pid in found - {of}}


def replicas() -> list[int]:
    """Processes of our own replicas that have read their models, the oldest first."""
    lines = children(os.getpid()).items()
    return sorted(
        pid for pid, line in lines if line.startswith("ray::ServeReplica:unmask-") and "initialize" not in line
    )


@pytest.fixture(scope="module")
def served(served_models: dict[str, DiffusionLM], tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    folder = tmp_path_factory.mktemp("models") / "canvas"
    served_models["canvas"].save_pretrained(folder)
    settings = Settings(keys=(KEY,), hosts=local_hosts("127.0.0.1"))
    return ServerConfig({"canvas": str(folder)}, Limits(slots=8, queue=64), settings)


@pytest.fixture(scope="module")
def fleet(served: ServerConfig) -> Iterator[tuple[Any, Any]]:
    pytest.importorskip("ray")
    before = os.environ.pop("RAY_ADDRESS", None), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2] / "src")  # replicas import the package from here
    from unmask.serving.replicas import Fleet, fleet

    with fleet(served, Fleet(2, 2, 0.5)) as made:
        yield made
    for name, old in zip(("RAY_ADDRESS", "PYTHONPATH"), before, strict=True):
        os.environ.pop(name, None)
        if old is not None:
            os.environ[name] = old
    assert not children(os.getpid())


@pytest.fixture(scope="module")
def port(fleet: tuple[Any, Any]) -> Iterator[int]:
    listener = bind("127.0.0.1", 0)
    server = Server(*fleet, grace=5.0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(timeout=20)


@pytest.fixture(scope="module")
def alone(served: ServerConfig) -> Iterator[Callable[..., Any]]:
    """What a server of one process answers."""
    app, engine = ServerConfig(served.models, served.limits, Settings()).start()
    yield lambda body: json.loads(asyncio.run(whole(app, Asked("/v1/completions", json.dumps(body).encode())))[1])
    engine.close()


def wait_for_two() -> list[int]:
    until = time.monotonic() + 120
    while len(replicas()) < 2:
        assert time.monotonic() < until, "no new replica was started"
        time.sleep(0.1)
    return replicas()


def post(port: int, body: dict[str, Any], key: str = KEY) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def wanted(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"the cat {number}", "max_tokens": WORK, "max_denoising_steps": WORK, "seed": number, **more}


def worked(process: int) -> float:
    """Seconds of CPU time that a process has had."""
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def kill_one_at_work() -> threading.Thread:
    """Kills a replica once it has begun to compute what is asked."""
    victim = wait_for_two()[0]
    before = worked(victim)

    def kill() -> None:
        while worked(victim) < before + 0.06:
            time.sleep(0.002)
        os.kill(victim, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def test_same_surface_and_same_answers(fleet: tuple[Any, Any], port: int, alone: Callable[..., Any]) -> None:
    assert post(port, wanted(1), "another")[0] == 401
    status, text = post(port, wanted(1))
    assert status == 200
    assert json.loads(text)["choices"] == alone(wanted(1))["choices"]
    assert json.loads(text)["usage"] == alone(wanted(1))["usage"]
    status, text = post(port, wanted(1, threshhold=1))
    assert (status, json.loads(text)["error"]["param"]) == (400, "threshhold")
    status, text = post(port, wanted(1, stream=True))
    assert (status, text.rstrip().endswith("data: [DONE]")) == (200, True)
    assert b"unmask_useful_tokens_total" in fleet[1].metrics.render(None)


def test_every_port_is_on_loopback(fleet: tuple[Any, Any]) -> None:
    psutil = pytest.importorskip("psutil")
    own = children(os.getpid())
    listening = [c for c in psutil.net_connections("inet") if c.pid in own and c.status == psutil.CONN_LISTEN]
    assert listening
    assert {c.laddr.ip for c in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_batch_survives_a_kill(fleet: tuple[Any, Any], alone: Callable[..., Any], tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    bodies = {f"c{i}": wanted(i) for i in range(40)}
    lines = [{"custom_id": n, "method": "POST", "url": "/v1/completions", "body": b} for n, b in bodies.items()]
    source.write_text("".join(json.dumps(each) + "\n" for each in lines))
    answers = batch.Answers(target, batch.survey(source))
    retried = value(fleet[1].metrics.retries, "_total")
    killing: list[threading.Thread] = []

    def told() -> None:
        if len(answers.done) == 5:
            killing.append(kill_one_at_work())

    asyncio.run(batch.run(fleet[1], batch.read(source), answers, 16, told))
    answers.close()
    assert killing
    assert value(fleet[1].metrics.retries, "_total") > retried  # it was killed while it worked
    records = [json.loads(each) for each in target.read_text().splitlines()]
    assert sorted(record["custom_id"] for record in records) == sorted(bodies)  # each once
    assert all(record["response"]["status_code"] == 200 for record in records)
    for record in records[::6]:
        assert record["response"]["body"]["choices"] == alone(bodies[record["custom_id"]])["choices"]


def test_requests_survive_a_kill(fleet: tuple[Any, Any], port: int, alone: Callable[..., Any]) -> None:
    wait_for_two()
    retried = value(fleet[1].metrics.retries, "_total")
    with ThreadPoolExecutor(12) as pool:
        kill_one_at_work()
        asked = [pool.submit(post, port, wanted(number)) for number in range(12)]
        answers = [future.result() for future in asked]
    assert [status for status, _ in answers] == [200] * 12
    assert value(fleet[1].metrics.retries, "_total") > retried
    for number in range(0, 12, 3):
        assert json.loads(answers[number][1])["choices"] == alone(wanted(number))["choices"]


def test_streams_that_have_begun_end_with_an_error_event(fleet: tuple[Any, Any], port: int) -> None:
    wait_for_two()
    with ThreadPoolExecutor(8) as pool:
        kill_one_at_work()
        asked = [pool.submit(post, port, wanted(n, stream=True, diffusing=True)) for n in range(8)]
        texts = [future.result()[1] for future in asked]
    ends = [text.rstrip().rpartition("data: ")[2] for text in texts]
    cut = [json.loads(end)["error"]["message"] for end in ends if end != "[DONE]"]
    assert cut
    assert all("has died" in message for message in cut)
