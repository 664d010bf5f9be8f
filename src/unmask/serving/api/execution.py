"""Plans as running jobs: the asyncio side of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TypeVar

from starlette.requests import Request

from unmask.decoding.detokenize import text_after
from unmask.decoding.infill import mean_log_confidence, settle_lengths
from unmask.decoding.request import Prepared
from unmask.serving.api import errors
from unmask.serving.api.errors import APIError
from unmask.serving.api.planner import Plan, mask_of
from unmask.serving.api.writer import Region, Writer, Written
from unmask.serving.engine import Done, Engine, Event, Failed, Job, Step
from unmask.serving.event_queue import EventQueue

T = TypeVar("T")
BACKLOG = 4096  # events that a client may be behind before it is given up


class ClientGone(APIError):
    """Whoever asked has hung up."""

    def __init__(self) -> None:
        super().__init__(499, "the client has gone")


class Execution:
    """Jobs of one request; closing it cancels what still runs. With `quiet` only the ends of jobs are events, and what
    their steps did is in `steps` by then. Iterating gives each job's number and event, and raises a failure; events
    after a `beat` are None."""

    def __init__(
        self, engine: Engine, model: str, prepared: Prepared, resumed: bool = False, quiet: bool = False
    ) -> None:
        """Puts the jobs in line; raises Refused where there is no room."""
        self.engine = engine
        self.left = len(prepared.requests)
        self.quiet = quiet
        self.events: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue()
        self.timer: asyncio.TimerHandle | None = None
        self.queue = EventQueue.of_current_loop()
        self.jobs: list[Job] = []
        self.steps: list[list[Step]] = [[] for _ in prepared.requests]
        for number, request in enumerate(prepared.requests):
            self.jobs += Job.of(model, replace(prepared, requests=[request]), partial(self._tell, number))
        engine.submit(self.jobs, resumed)

    def _tell(self, number: int, event: Event) -> None:
        """On the engine's thread."""
        if self.quiet and isinstance(event, Step):
            self.steps[number].append(event)
        else:
            self.queue.put(partial(self._put, number, event))

    def _put(self, number: int, event: Event) -> None:
        if self.events.qsize() < BACKLOG * len(self.jobs):
            self.events.put_nowait((number, event))
        elif not self.jobs[number].cancelled:
            self.engine.cancel(self.jobs)
            late = APIError(408, "the client reads too slowly", code="slow_client")
            self.events.put_nowait((number, Failed(late)))

    def beat(self, seconds: float) -> None:
        """Makes None an event after so many seconds, once: one timer costs less than a timeout of every event."""
        self.timer = asyncio.get_running_loop().call_later(seconds, self.events.put_nowait, (0, None))

    async def __aiter__(self) -> AsyncIterator[tuple[int, Step | Done | None]]:
        while self.left:
            number, event = await self.events.get()
            if isinstance(event, Failed):
                raise errors.of(event.error)
            self.left -= isinstance(event, Done)
            yield number, event

    def close(self) -> None:
        """Frees the slots of what still runs; harmless when nothing does."""
        if self.timer is not None:
            self.timer.cancel()
        if self.left:
            self.engine.cancel(self.jobs)
            self.left = 0


async def settle(engine: Engine, plan: Plan) -> None:
    """Settles the lengths of a filling plan's gaps, and with that its requests and regions."""
    filling = plan.filling
    if filling is None or plan.regions:
        return
    settling = settle_lengths(filling.template)
    sure: list[float] | None = None
    try:
        while True:
            tried = next(settling) if sure is None else settling.send(sure)
            with closing(Execution(engine, plan.name, filling.prepare(tried), plan.taken, quiet=True)) as execution:
                async for _ in execution:
                    pass
            sure = [mean_log_confidence([step.frame for step in steps]) for steps in execution.steps]
            plan.taken = True
    except StopIteration as settled:
        plan.lengths = settled.value
    prepared = filling.prepare([plan.lengths] * filling.n)
    requests = [
        replace(request, seed=plan.seed + i, logprobs=plan.logprobs) for i, request in enumerate(prepared.requests)
    ]
    plan.prepared = replace(prepared, requests=requests)
    start = 0
    end = len(requests[0].ids)
    if filling.suffix:
        start = len(filling.template.segments[0])
        end = start + plan.lengths[0]
    plan.regions = [Region(start, end, mask_of(plan.lm), frozenset(), plan.stops, complete=True)] * filling.n


def writers(plan: Plan) -> list[Writer]:
    """What follows each job of a plan."""
    made = []
    for request, region in zip(plan.prepared.requests, plan.regions, strict=True):
        decode = partial(text_after, plan.tokenizer, request.ids[: region.start])
        made.append(Writer(request.ids, region, decode))
    return made


async def collect(engine: Engine, plan: Plan, writers: list[Writer]) -> list[Written]:
    """Runs a plan's jobs; their outcomes."""
    out: dict[int, Written] = {}
    with closing(Execution(engine, plan.name, plan.prepared, plan.taken, quiet=True)) as execution:
        async for number, event in execution:
            if isinstance(event, Done):
                for step in execution.steps[number]:
                    writers[number].logprobs.update(step.logprobs)
                out[number] = writers[number].finish(event)[1]
    return [out[number] for number in sorted(out)]


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of some work, which is cancelled if the client hangs up before: ClientGone."""
    gone = asyncio.ensure_future(_hung_up(request))
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([gone, task], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
