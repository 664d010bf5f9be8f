"""Replicas on Ray Serve, on any machines of a cluster: each is the whole application.

Ray starts, counts and replaces them. The router is not one of them: it runs in the process that holds the clients'
connections, so a replica that dies takes no connection with it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

# read by Ray when it is imported; what the user has set stands
os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_worker_niceness": "0",  # by default the last in line for the CPU: they are the work here
        # seconds for a replica to say how busy it is: a forward may be in the way
        "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1",
        "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "5",
    }
    | os.environ
)
if not os.environ.get("RAY_ADDRESS"):  # Ray's word for: listen on the loopback address only
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import ray
from grpc.aio._server import Server
from ray import serve
from ray._private import ray_constants
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError
from starlette.types import ASGIApp, Message

from unmask.errors import UnmaskError
from unmask.serving.api.access import AccessControl
from unmask.serving.asgi import Asked, messages, whole
from unmask.serving.engine import Refused
from unmask.serving.metrics import Metrics
from unmask.serving.router import ReplicaDied, Router
from unmask.serving.server import ServerConfig

DEAD = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError)
STORE = 1 << 28  # bytes of the object store of a cluster of our own: bodies and answers are small


@dataclass(frozen=True)
class Fleet:
    """How many replicas there are. `cpus`: of each; where the device is a GPU, each has one too."""

    least: int = 1
    most: int = 1
    cpus: float = 1.0


class Replica:
    """The application, in a process of Ray's. `alone`: on this machine only, so its ports are on loopback too."""

    def __init__(self, config: ServerConfig, alone: bool) -> None:
        if alone:
            _listen_on_loopback()
        self.app, self.engine = config.start()

    async def answer(self, asked: Asked) -> AsyncGenerator[Message, None]:
        """What the application sends."""
        async for message in messages(self.app, asked):
            yield message


def _listen_on_loopback() -> None:
    """Ray opens a port of every replica to others' calls, on every interface, and has no setting for where."""
    add = Server.add_insecure_port
    Server.add_insecure_port = lambda server, address: add(server, address.replace("[::]", "127.0.0.1"))


async def ask(handle: Any, asked: Asked) -> AsyncGenerator[Message, None]:
    """What a replica sends; see Router. handle: of a deployment of Replica, for streams. Closing this is hanging up."""
    answer = handle.answer.remote(asked)
    try:
        async for message in answer:
            yield message
    except BackPressureError:
        raise Refused("all replicas are full; try again later", "full") from None
    except DEAD as error:
        raise ReplicaDied from error
    finally:
        answer.cancel()


@contextmanager
def fleet(config: ServerConfig, size: Fleet) -> Iterator[tuple[ASGIApp, Router]]:
    """Replicas on Ray, ready, behind one application and what closes it; they are gone when this is left.

    RAY_ADDRESS names a running cluster; without it, one of this machine is started, on its loopback address. Raises
    UnmaskError where there is no such cluster or it is too small.
    """
    own = _connect(size)
    settings = config.settings
    limits = config.limits
    inner = replace(config, settings=replace(settings, keys=(), hosts=(), origins=()))
    name = f"unmask-{secrets.token_hex(4)}"
    options: dict[str, Any] = {"num_replicas": size.least}
    if size.most > size.least:
        target = max(1, limits.slots * 3 // 4)
        scaling = {"min_replicas": size.least, "max_replicas": size.most, "target_ongoing_requests": target}
        options = {"autoscaling_config": scaling}
    deployment: Any = serve.deployment(Replica).options(
        name="models",
        ray_actor_options={"num_cpus": size.cpus, "num_gpus": float(config.device.startswith("cuda"))},
        max_ongoing_requests=limits.slots,
        max_queued_requests=limits.queue,
        graceful_shutdown_timeout_s=min(settings.seconds, 3600.0),  # one that is no longer needed finishes
        logging_config={"log_level": "WARNING", "enable_access_log": False},
        **options,
    )
    try:
        serve.start(proxy_location="Disabled")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        handle = _run(deployment.bind(inner, own), name).options(stream=True)
        metrics = Metrics()
        router = Router(lambda asked: ask(handle, asked), list(config.models), settings.seconds, metrics)
        described = asyncio.run(whole(router, Asked("/openapi.json", method="GET")))[1]
        metrics.paths |= set(json.loads(described)["paths"])
        yield AccessControl.around(router, settings, metrics), router
    finally:
        if own:
            ray.shutdown()
        else:
            serve.delete(name, _blocking=False)


def _run(application: Any, name: str) -> Any:
    """A handle of a running application; raises UnmaskError with the reason that its replicas gave."""
    try:
        return serve.run(application, name=name, route_prefix=None)
    except RuntimeError as error:
        about = serve.status().applications.get(name)
        deployments = about.deployments.values() if about is not None else ()
        said = [str(error), *(deployment.message for deployment in deployments)]
        lines = [line.strip() for text in said for line in text.splitlines() if line.strip()]
        told = [line.partition("UnmaskError: ")[2] for line in lines if "UnmaskError: " in line]
        raise UnmaskError(told[-1] if told else f"no replica could be started: {lines[-1][:300]}") from None


def _connect(size: Fleet) -> bool:
    """Joins the cluster of RAY_ADDRESS, or starts one: whether it is our own."""
    address = os.environ.get("RAY_ADDRESS")
    # others may have imported Ray before us, as if a cluster were wanted
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR) != "0"
    local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE}
    try:
        ray.init(address or "local", logging_level=logging.ERROR, **({} if address else local))
    except Exception as error:  # Ray raises plain ones too
        raise UnmaskError(f"Ray cannot be used at {address or 'this machine'}: {str(error).splitlines()[0]}") from None
    there = ray.cluster_resources().get("CPU", 0.0)
    if there < size.least * size.cpus:
        ray.shutdown()
        raise UnmaskError(
            f"{size.least} replicas with {size.cpus:g} CPUs each need more than the {there:g} CPUs that Ray has here; "
            "ask for fewer, or give each less"
        )
    return not address
