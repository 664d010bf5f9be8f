"""A server as a process: it listens, says where it is, bounds its connections, and leaves in order when told to."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from types import FrameType
from typing import Any, ClassVar, Protocol

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM
from unmask.serving.api.app import create_app
from unmask.serving.api.planner import Models
from unmask.serving.api.settings import Settings
from unmask.serving.engine import Engine, Event, Job, Limits, Step

log = logging.getLogger("unmask.serving")
LAST = 5.0  # seconds after the grace time in which answers that failed are still sent
HEAD_SECONDS = 10.0  # within which a connection has to send the head of a request
CONNECTIONS = 1000  # open at once, as far as the process may have files
OTHER_FILES = 64  # that a process needs besides connections
SWITCH_SECONDS = 0.001  # after which a busy thread lets the event loop's go on; Python's own default is 0.005
WARN_SECONDS = 10.0  # between two lines in the log about too many connections


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


def warm_up(engine: Engine, models: Mapping[str, DiffusionLM]) -> None:
    """One short request of each model, so that no client waits for a graph to be compiled."""
    for name, lm in models.items():
        events: SimpleQueue[Event] = SimpleQueue()
        prompt = [token for token in (lm.config.bos_token_id, 0) if token is not None][:1]
        if lm.config.grid:  # reads whole canvases only
            prompt *= lm.config.grid[0] * lm.config.grid[1] - 2
        engine.submit(Job.of(name, lm.prepare([prompt], 2, seed=0), events.put))
        while isinstance(events.get(), Step):
            pass


def make_app(
    models: Mapping[str, DiffusionLM], limits: Limits, settings: Settings | None = None
) -> tuple[ASGIApp, Engine]:
    """The application that answers for models, and the engine behind it, warm; the caller closes the engine.

    Raises UnmaskError for a model without a tokenizer or a mask token.
    """
    for name, lm in models.items():
        if lm.tokenizer is None:
            raise UnmaskError(f"model '{name}' has no tokenizer.json, so it cannot be served")
        if lm.config.mask_token_id is None and lm.config.layout != "canvas":
            raise UnmaskError(f"model '{name}' has no mask token, so it cannot be served")
    engine = Engine(models, limits)
    warm_up(engine, models)
    return create_app(Models(models), engine, settings), engine


@dataclass(frozen=True)
class ServerConfig:
    """What a process serves: a value that can be sent to another machine.

    `models`: names or paths of models by the names that clients use. Limits and settings hold for one process.
    """

    models: dict[str, str]
    limits: Limits
    settings: Settings
    device: str = "cpu"
    dtype: str | None = None
    backend: str = "auto"
    quantize: str | None = None

    def start(self) -> tuple[ASGIApp, Engine]:
        """Reads the models; the application that answers for them, and its engine, which the caller closes."""
        how = (self.device, self.dtype, self.backend, self.quantize)
        lms = {name: DiffusionLM.from_pretrained(source, *how) for name, source in self.models.items()}
        for name, lm in lms.items():
            lm.name = name  # clients know no other
        return make_app(lms, self.limits, self.settings)


class Connection(H11Protocol):
    """A connection whose heads have to come in time. Where there are too many, the one that has not finished a request
    for the longest is closed."""

    most: ClassVar[int] = CONNECTIONS
    unasked: ClassVar[dict[Connection, None]] = {}  # without a whole request, the longest first
    warned: ClassVar[float] = -WARN_SECONDS
    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.expect_head()
        if len(self.connections) > self.most:
            next(iter(self.unasked)).drop()
            if self.loop.time() > self.warned + WARN_SECONDS:
                type(self).warned = self.loop.time()
                log.warning("more than %d connections: those that ask for nothing are closed", self.most)

    def expect_head(self) -> None:
        self.forget()
        self.unasked[self] = None
        self.timer = self.loop.call_later(HEAD_SECONDS, self.drop)

    def forget(self) -> None:
        """Expects nothing more of this connection."""
        self.unasked.pop(self, None)
        if self.timer is not None:
            self.timer.cancel()

    def drop(self) -> None:
        self.forget()
        self.connections.discard(self)
        self.transport.abort()

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is None or self.cycle.response_complete:
            return
        if self.timer is not None:
            self.timer.cancel()  # the head is there; bodies have a limit of their own
        if not self.cycle.more_body:
            self.forget()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self.expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.forget()
        super().connection_lost(exc)


class Closing(Protocol):
    """What a server drains before it ends."""

    def close(self, grace: float = 0.0) -> bool: ...


class Server(uvicorn.Server):
    """Uvicorn that drains on SIGTERM and SIGINT and then returns; a second signal ends it at once."""

    def __init__(
        self, app: ASGIApp, engine: Closing, grace: float = 30.0, ready: Callable[[str], None] = lambda url: None
    ) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        room = CONNECTIONS if files == resource.RLIM_INFINITY else max(8, min(CONNECTIONS, files - OTHER_FILES))
        protocol = type("BoundedConnection", (Connection,), {"most": room, "unasked": {}})
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            # the same with and without uvicorn's extras, which come with Ray
            loop="asyncio",
            http=protocol,
            backlog=max(8, room // 4),  # so many are accepted before any of them is looked at
            timeout_graceful_shutdown=int(grace + LAST),
            server_header=False,
        )
        super().__init__(config)
        self.engine = engine
        self.grace = grace
        self.ready = ready
        self.leaving = False

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
        """Takes no more requests, gives those there are the grace time, then ends. /health shows it meanwhile."""
        if self.leaving:
            self.should_exit = True
            self.force_exit = True
            return
        self.leaving = True
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        self.engine.close(self.grace)
        self.should_exit = True


def serve(server: Server, names: Iterable[str], listener: socket.socket) -> None:
    """Serves until a signal comes."""
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # what was loaded stays: no later look at all objects, which stops every thread, has to pass it
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("unmask").setLevel(logging.INFO)

    server.ready = lambda url: print(f"serving {', '.join(names)} at {url}", file=sys.stderr, flush=True)
    try:
        server.run(sockets=[listener])
    finally:
        server.engine.close()
