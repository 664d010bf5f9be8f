"""A server in a thread with three small models: one that chats and drafts, a full canvas, and an AR one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import Live
from small_models import small_models

from unmask.lm import DiffusionLM
from unmask.models.transformer import Transformer
from unmask.serving.api.access import local_hosts
from unmask.serving.api.settings import Settings
from unmask.serving.engine import Limits
from unmask.serving.server import Server, bind, make_app

LOCAL = Settings(hosts=local_hosts("127.0.0.1"))
Starter = Callable[..., Live]


@pytest.fixture(scope="session")
def served_models(tiny: Callable[..., Transformer], drafting: Callable[..., Any]) -> dict[str, DiffusionLM]:
    return small_models(tiny, drafting)


@pytest.fixture(scope="session")
def start(served_models: dict[str, DiffusionLM]) -> Iterator[Starter]:
    running: list[Live] = []

    def starting(
        limits: Limits | None = None,
        settings: Settings | None = None,
        models: dict[str, DiffusionLM] | None = None,
        **options: Any,
    ) -> Live:
        listener = bind("127.0.0.1", 0)
        port = listener.getsockname()[1]
        chosen = models or served_models
        server = Server(*make_app(chosen, limits or Limits(slots=8, queue=8), settings or LOCAL), **options)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        running.append(Live(server, f"http://127.0.0.1:{port}/v1", port, chosen, thread))
        return running[-1]

    yield starting
    for live in running:
        live.server.should_exit = True
        live.server.engine.close()
        live.thread.join(timeout=20)


@pytest.fixture(scope="session")
def live(start: Starter) -> Live:
    return start()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# the team's\nopen-sesame\n\nsecond-key\n")
    return path
