"""Models on Ray: replicas of the whole application on any machines of a cluster, and one in front that asks them.

The one in front runs in the process that holds the clients' connections, so a replica that dies costs no connection.
Ray Serve starts, counts and replaces the replicas; what one was answering when it died is asked of another.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from fastapi import Request
from ray import serve
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unmask.engine.scheduler import Refused
from unmask.errors import UnmaskError
from unmask.server import errors
from unmask.server.asgi import NOTES, Asked, messages, whole
from unmask.server.errors import BUSY, APIError
from unmask.server.guard import Guard, Rules, note
from unmask.server.metrics import CONTENT_TYPE, Metrics
from unmask.server.running import ClientGone, unless_gone
from unmask.server.served import Served
from unmask.server.shapes import event
from unmask.server.strictjson import parse

log = logging.getLogger("unmask.server")
TRIES = 3  # replicas that one request may outlive
DEAD = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError)
STORE = 1 << 28  # bytes of the object store of a cluster of our own: bodies and answers are small
EVENTS = b"text/event-stream"
KEPT = (b"authorization", b"content-length", b"host")  # headers that are checked in front and not sent on


@dataclass(frozen=True)
class Fleet:
    """How many replicas there are. `cpus`: of each; a GPU each where the device is one."""

    least: int = 1
    most: int = 1
    cpus: float = 1.0


class Replica:
    """The application, in a process of Ray's."""

    def __init__(self, served: Served) -> None:
        self.app, self.engine = served.start()

    async def answer(self, asked: Asked) -> AsyncIterator[Message]:
        """What the application sends."""
        async for message in messages(self.app, asked):
            yield message


class Front:
    """An ASGI application that has every request answered by a replica, and by another one where that dies."""

    def __init__(self, handle: Any, names: list[str], seconds: float, metrics: Metrics) -> None:
        """handle: of a deployment of Replica, for streams. seconds: within which an answer has to begin."""
        self.handle, self.names, self.seconds, self.metrics = handle, names, seconds, metrics
        self.closing = self.failing = False
        self.tasks: set[asyncio.Task[None]] = set()
        self.loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/health":
            return await self._say(self._health(), 503 if self.closing else 200, b"application/json", send)
        if scope["path"] == "/metrics":
            return await self._say(self.metrics.render(None).encode(), 200, CONTENT_TYPE.encode(), send)
        asked, self.loop = await _asked(scope, receive), asyncio.get_running_loop()
        task = asyncio.ensure_future(self._answer(asked, scope, send))
        self.tasks.add(task)
        try:
            await unless_gone(Request(scope, receive), task)
        except ClientGone:
            pass
        except Exception as error:
            if not isinstance(error, APIError):
                log.exception("a request failed")
            await errors.of(error).response()(scope, receive, send)
        finally:
            self.tasks.discard(task)

    async def _answer(self, asked: Asked, scope: Scope, send: Send) -> None:
        """Asks replicas until one has answered. What is begun is not begun again: it ends with an error event."""
        if self.closing:
            raise Refused("the server is shutting down", "closing")
        held: list[Message] = []
        async with asyncio.timeout(self.seconds) as limit:
            for _ in range(TRIES):
                held.clear()
                begun, answer = False, self.handle.answer.remote(asked)
                try:
                    async for message in answer:
                        if message["type"] == NOTES:
                            self._note(scope, message["notes"])
                            continue
                        held.append(message)
                        if begun or _can_begin(held):
                            begun = True
                            limit.reschedule(None)  # the replica has a limit of its own
                            for part in held:
                                await send(part)
                            held.clear()
                    return
                except BackPressureError:
                    raise Refused("all replicas are full; try again later", "full") from None
                except (*DEAD, asyncio.CancelledError) as error:
                    if isinstance(error, asyncio.CancelledError):
                        answer.cancel()  # the replica has its slot back
                        if not self.failing:
                            raise
                    reason = "the server is shutting down" if self.failing else "the replica that wrote this has died"
                    failed = APIError(503, reason, BUSY)
                    if begun:
                        return await send({"type": "http.response.body", "body": event(failed.body())})
                    if self.failing:
                        raise failed from None
                    self.metrics.retried += 1
                    log.warning("a replica died; what it was answering is asked of another")
        raise APIError(503, f"{TRIES} replicas died while they answered this request", BUSY)

    def _note(self, scope: Scope, notes: dict[str, Any]) -> None:
        note(scope, **notes)
        if "tokens" in notes:
            usage = {"prompt_tokens": notes["prompt"], "completion_tokens": notes["tokens"]}
            self.metrics.used(notes["model"], usage)

    def _health(self) -> bytes:
        state = {"status": "closing" if self.closing else "ok", "models": self.names}
        return json.dumps({**state, "running": len(self.tasks), "waiting": 0}).encode()

    @staticmethod
    async def _say(body: bytes, status: int, kind: bytes, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": body})

    def close(self, grace: float = 0.0) -> bool:
        """Takes nothing more, lets what there is finish for `grace` seconds, fails the rest. Whether all finished."""
        self.closing, until = True, time.monotonic() + grace
        while self.tasks and time.monotonic() < until:
            time.sleep(0.01)
        finished = not self.tasks
        if self.loop is not None and not finished:
            self.failing = True
            self.loop.call_soon_threadsafe(lambda: [task.cancel() for task in self.tasks])
        return finished


def _can_begin(held: list[Message]) -> bool:
    """Whether an answer may be sent on: a stream with its first event, anything else when it is complete."""
    last = held[-1]
    if last["type"] != "http.response.body":
        return False
    kind = dict(held[0]["headers"]).get(b"content-type", b"")
    return kind.startswith(EVENTS) or not last.get("more_body", False)


async def _asked(scope: Scope, receive: Receive) -> Asked:
    """The request, with a seed: whichever replica answers, the text is the same."""
    body = (await receive()).get("body", b"") if scope["method"] in ("POST", "PUT", "PATCH") else b""
    if body:
        try:
            value = parse(body)
        except APIError:
            value = None  # the replica says what is wrong
        if isinstance(value, dict) and value.get("seed") is None:
            body = json.dumps({**value, "seed": secrets.randbits(31)}).encode()
    headers = tuple((name, value) for name, value in scope["headers"] if name not in KEPT)
    return Asked(scope["path"], body, scope["method"], scope["query_string"], headers)


@contextmanager
def fleet(served: Served, size: Fleet, rules: Rules | None = None) -> Iterator[tuple[ASGIApp, Front]]:
    """Replicas on Ray, one of them ready, behind one application and what closes it; gone when this is left.

    RAY_ADDRESS names a running cluster; without it, one of this machine is started, on its loopback address. Raises
    UnmaskError where there is no such cluster or it is too small.
    """
    own = _connect(size)
    settings = replace(served.settings, rules=replace(served.settings.rules, keys=(), hosts=()))
    name = f"unmask-{secrets.token_hex(4)}"
    options: dict[str, Any] = {"num_replicas": size.least}
    if size.most > size.least:
        target = max(1, served.limits.slots * 3 // 4)
        scaling = {"min_replicas": size.least, "max_replicas": size.most, "target_ongoing_requests": target}
        options = {"autoscaling_config": scaling}
    needs = {"num_cpus": size.cpus, "num_gpus": float(served.device.startswith("cuda"))}
    deployment: Any = serve.deployment(Replica).options(
        name="models",
        ray_actor_options=needs,
        max_ongoing_requests=served.limits.slots,
        max_queued_requests=served.limits.queue,
        graceful_shutdown_timeout_s=min(served.settings.seconds, 3600.0),  # whoever is no longer needed finishes
        **options,
    )
    try:
        serve.start(proxy_location="Disabled")
        handle = serve.run(deployment.bind(replace(served, settings=settings)), name=name, route_prefix=None)
        metrics = Metrics()
        front = Front(handle.options(stream=True), list(served.models), served.settings.seconds, metrics)
        described = asyncio.run(whole(front, Asked("/openapi.json", method="GET")))[1]
        metrics.paths |= set(json.loads(described)["paths"])
        yield Guard(front, rules or Rules(body_bytes=served.settings.rules.body_bytes), metrics), front
    finally:
        if own:
            ray.shutdown()
        else:
            serve.delete(name, _blocking=False)


def _connect(size: Fleet) -> bool:
    """Joins the cluster of RAY_ADDRESS, or starts one: whether it is our own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"logging_level": logging.WARNING, "ignore_reinit_error": True}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=STORE,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UnmaskError(f"Ray cannot be used at {address or 'this machine'}: {str(error).splitlines()[0]}") from None
    there = ray.cluster_resources().get("CPU", 0.0)
    if there < size.least * size.cpus:
        if not address:
            ray.shutdown()
        raise UnmaskError(
            f"{size.least} replicas with {size.cpus:g} CPUs each need more than the {there:g} CPUs that Ray has here; "
            "ask for fewer, or give each less"
        )
    return not address
