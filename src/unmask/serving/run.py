"""A server as a process: it says where it is, and leaves in order when told to."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM
from unmask.serving.api.app import Settings, create_app
from unmask.serving.api.planner import Models
from unmask.serving.engine import Engine, Event, Job, Limits, Step

LAST = 5.0  # seconds after the grace time in which answers that failed are still sent


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address; one that is taken or not of this machine raises UnmaskError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        raise UnmaskError(f"cannot listen at {host}:{port} ({error}); choose another --host or --port") from None
    return made


def servable(models: Mapping[str, DiffusionLM]) -> Models:
    """Checks that models can be served: they need a tokenizer and a mask token."""
    for name, lm in models.items():
        if lm.tokenizer is None:
            raise UnmaskError(f"model '{name}' has no tokenizer.json, so it cannot be served")
        if lm.config.mask_token_id is None and lm.config.layout != "canvas":
            raise UnmaskError(f"model '{name}' has no mask token, so it cannot be served")
    return Models(models)


def warm_up(engine: Engine, models: Mapping[str, DiffusionLM]) -> None:
    """One short request of each model, so that no client waits for a graph to be compiled."""
    for name, lm in models.items():
        told: SimpleQueue[Event] = SimpleQueue()
        prompt = [token for token in (lm.config.bos_token_id, 0) if token is not None][:1]
        engine.submit(Job.of(name, lm.prepare([prompt], 2, seed=0), told.put))
        while isinstance(told.get(), Step):
            pass


def make_app(
    models: Mapping[str, DiffusionLM], limits: Limits, settings: Settings | None = None
) -> tuple[ASGIApp, Engine]:
    """The application that answers for models, and the engine behind it, warm; the caller closes the engine."""
    served = servable(models)
    engine = Engine(models, limits)
    warm_up(engine, models)
    return create_app(served, engine, settings), engine


class Closing(Protocol):
    """What a server drains before it ends."""

    def close(self, grace: float = 0.0) -> bool: ...


class Server(uvicorn.Server):
    """Uvicorn that drains on SIGTERM and SIGINT and then returns; a second signal ends it at once."""

    def __init__(
        self, app: ASGIApp, engine: Closing, grace: float, ready: Callable[[str], None] = lambda url: None
    ) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            # the same with and without uvicorn's extras, which come with Ray
            loop="asyncio",
            http="h11",
            timeout_graceful_shutdown=int(grace + LAST),
            server_header=False,
        )
        super().__init__(config)
        self.engine, self.grace, self.ready = engine, grace, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets:
            host, port = sockets[0].getsockname()[:2]
            self.ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.leave) for sig in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def leave(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Takes no more requests, gives those there are the grace time, then ends."""
        if self.should_exit:
            self.force_exit = True
            return
        self.should_exit = True
        threading.Thread(target=self.engine.close, args=(self.grace,), daemon=True).start()


def make_server(
    models: Mapping[str, DiffusionLM],
    limits: Limits,
    settings: Settings,
    grace: float = 30.0,
    ready: Callable[[str], None] = lambda url: None,
) -> Server:
    """A server that is ready to run on a socket."""
    app, engine = make_app(models, limits, settings)
    return Server(app, engine, grace, ready)


def serve(server: Server, names: Iterable[str], listener: socket.socket) -> None:
    """Serves until a signal comes."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("unmask").setLevel(logging.INFO)

    def ready(url: str) -> None:
        print(f"serving {', '.join(names)} at {url}", file=sys.stderr, flush=True)

    server.ready = ready
    try:
        server.run(sockets=[listener])
    finally:
        server.engine.close()
