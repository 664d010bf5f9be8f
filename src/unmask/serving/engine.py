"""Continuous batching: one thread that steps decoders over whatever requests there are.

A job is one request. Jobs wait in line, take a slot, and are stepped together with all others of their batch: of the
same model and layout, with one cache and one forward. Between steps jobs join and leave. What happens to a job is told
to its sink, on the engine's thread: a sink must not block.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

from unmask.canvas import Frame
from unmask.decoding.feed import Backend
from unmask.decoding.loop import Decoder
from unmask.decoding.prefixes import Prefixes, Remembering
from unmask.decoding.request import Alternatives, Prepared, Request
from unmask.layout import Layout
from unmask.models.config import ModelConfig
from unmask.serving.metrics import EngineMetrics

log = logging.getLogger("unmask.backends")
PATIENCE = 10.0  # seconds that a job may be passed by later ones
READING = 2  # requests that may read long prompts at once: the others' steps wait for each


class Model(Protocol):
    """What the engine must know of a model."""

    config: ModelConfig

    def new_backend(self) -> Backend: ...


class Refused(Exception):
    """A job that is not taken: the engine is full, closing, or could never hold it."""

    def __init__(self, message: str, reason: Literal["full", "closing", "too_large"]) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Limits:
    """What the engine holds at most."""

    slots: int = 32  # requests decoded together, of all models
    queue: int = 128  # requests waiting for a slot
    cache_bytes: int = 4 << 30  # keys and values of all of them
    prefill_chunk: int = 256  # text tokens that a request reads in one forward before it writes
    prefix_bytes: int = 256 << 20  # of these, what keeps texts of earlier requests while others do not need it


@dataclass(frozen=True)
class Step:
    """A step that changed a job's canvas."""

    frame: Frame
    final: int  # written tokens before this position change no more
    logprobs: dict[int, Alternatives]  # of what was read and written since the last one, where asked for


@dataclass(frozen=True)
class Done:
    """A job came to its end."""

    ids: list[int]  # the whole canvas
    steps: int
    prefills: int
    accepted: tuple[int, ...]
    edge: int  # where noise begins, if the job ended before all was written
    logprobs: dict[int, Alternatives] = field(default_factory=dict)  # of what no step has told


@dataclass(frozen=True)
class Failed:
    """A job went wrong, or was sent away."""

    error: BaseException


Event = Step | Done | Failed


class Key(NamedTuple):
    """Requests with one key share a decoder."""

    model: str
    layout: Layout
    eos_ids: frozenset[int]
    use_cache: bool
    approximate: bool  # a cache of a bidirectional model, opened only if somebody wants it


@dataclass(eq=False)
class Job:
    """One request of a model, and where to tell what becomes of it."""

    key: Key
    request: Request
    sink: Callable[[Event], None]
    cancelled: bool = False
    submitted: float = field(default_factory=time.monotonic)
    unread: bool = False  # its prompt takes several steps to read, or is scored, and it has not begun to write

    @staticmethod
    def of(model: str, prepared: Prepared, sink: Callable[[Event], None]) -> list[Job]:
        """One job for each request."""
        jobs = []
        for request in prepared.requests:
            approximate = request.cache in ("prefix", "dual")
            key = Key(model, prepared.layout, prepared.eos_ids, prepared.use_cache, approximate)
            jobs.append(Job(key, request, sink))
        return jobs


class Batch:
    """The jobs that share a decoder, from the first that joins until the last has left."""

    def __init__(self, key: Key, backend: Backend) -> None:
        self.key = key
        self.backend = backend
        self.decoder = Decoder(backend, key.layout, (), key.eos_ids, key.use_cache, isolate=True)
        self.jobs: dict[int, Job] = {}
        self.rows = 0  # room that the cache has grown to
        self.longest = 0

    def admit(self, job: Job, prefill_chunk: int) -> None:
        self.rows, self.longest = self.with_one_more(job)
        self.jobs[self.decoder.admit(replace(job.request, prefill_chunk=prefill_chunk))] = job

    def with_one_more(self, job: Job) -> tuple[int, int]:
        """Rows and length of the cache after a job has joined."""
        rows = job.request.rows + sum(other.request.rows for other in self.jobs.values())
        return max(self.rows, rows), max(self.longest, len(job.request.ids))


class Engine:
    """Decodes jobs of several models until it is closed. All methods may be called from any thread."""

    def __init__(self, models: Mapping[str, Model], limits: Limits | None = None) -> None:
        self.models = dict(models)
        self.limits = limits or Limits()
        self.metrics = EngineMetrics()
        self.metrics.gauge("running", "Requests in a slot.", lambda: self.running)
        self.metrics.gauge("waiting", "Requests in line.", lambda: self.waiting)
        self.metrics.gauge("kept_prefix_bytes", "Memory of texts of earlier requests.", self._kept)
        self._spare: dict[str, list[Backend]] = {name: [] for name in models}
        self._prefixes: dict[str, Prefixes] = {}  # of models whose backends keep texts
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._batches: list[Batch] = []  # touched by the engine's thread only
        self._held = 0  # jobs in line and in slots
        self._cancels = 0  # not yet looked at
        self.closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="unmask-engine", daemon=True)
        self._thread.start()

    def cache_bytes(self, key: Key, rows: int, length: int) -> int:
        """What the keys and values, or states, of `rows` requests of at most `length` tokens take in one batch."""
        config = self.models[key.model].config
        if not key.use_cache or (key.layout.kind == "bidirectional" and not key.approximate):
            return 0
        slots = -(-length // 128) * 128  # they grow in steps,
        places = 1 << (rows - 1).bit_length()  # and the rows of compiled graphs double
        keys = 2 * sum(heads * width for heads, width in config.key_shapes) * slots
        return 4 * (keys + config.state_values) * places

    def submit(self, jobs: list[Job], resumed: bool = False) -> None:
        """Puts jobs in line, all or none. `resumed` ones belong to a request that was taken before.

        Raises Refused if the line is full, if the engine is closing, or if one can never be held.
        """
        limits = self.limits
        if any(self.cache_bytes(job.key, job.request.rows, len(job.request.ids)) > limits.cache_bytes for job in jobs):
            raise Refused("the request needs more memory for keys and values than the server holds", "too_large")
        with self._changed:
            if self.closing:
                raise Refused("the server is shutting down", "closing")
            most = limits.slots + limits.queue
            if not resumed and len(jobs) > most:
                raise Refused(f"the request is {len(jobs)} texts in one, and the server holds {most}", "too_large")
            if not resumed and self._held + len(jobs) > most:
                full = f"{limits.slots} requests are running and {limits.queue} may wait"
                raise Refused(f"the server is full, {full}; try again later", "full")
            for job in jobs:
                given = job.request.given
                prompt = given.index(False) if False in given else 0
                long = job.key.layout.kind != "bidirectional" and prompt > limits.prefill_chunk
                job.unread = long or job.request.scores_prompt
            self._held += len(jobs)
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, jobs: list[Job]) -> None:
        """Forgets jobs; those that are running give their slots back before the next step."""
        with self._changed:
            for job in jobs:
                if not job.cancelled:
                    job.cancelled = True
                    self._cancels += 1
            self._changed.notify()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return self._held - len(self._waiting)

    @property
    def idle(self) -> bool:
        return self._held == 0

    def close(self, grace: float = 0.0) -> bool:
        """Takes nothing more, lets what there is finish for `grace` seconds, fails the rest, ends the thread.
        Whether everything finished."""
        with self._changed:
            self.closing = True
            self._changed.notify()
        until = time.monotonic() + grace
        while not self.idle and time.monotonic() < until:
            time.sleep(0.01)
        finished = self.idle
        with self._changed:
            self._failing = not finished
            self._changed.notify()
        self._thread.join(timeout=60.0)
        return finished

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._batches or self.closing):
                    self._cancels = 0
                    self._changed.wait()
                if self.closing and self._held == 0:
                    return
            try:
                self._turn()
            except BaseException as error:  # a mistake of the engine or a panic of a library: nobody may wait for ever
                log.exception("the engine failed")
                self._drop_all(error)

    def _turn(self) -> None:
        """Looks at what changed since the last step, then steps every batch."""
        if self._failing:
            return self._drop_all(Refused("the server is shutting down", "closing"))
        if self._cancels:
            self._forget_cancelled()
        self._admit()
        for batch in self._batches:
            self._step(batch)
        self._close_empty()

    def _forget_cancelled(self) -> None:
        with self._changed:
            self._cancels = 0
            left = [job for job in self._waiting if not job.cancelled]
            self._held -= len(self._waiting) - len(left)
            self._waiting = left
        for batch in self._batches:
            for number, job in list(batch.jobs.items()):
                if job.cancelled:
                    self._leave(batch, number)
        self._close_empty()

    def _leave(self, batch: Batch, number: int) -> None:
        del batch.jobs[number]
        batch.decoder.release(number)
        with self._changed:
            self._held -= 1

    def _admit(self) -> None:
        """Takes jobs in: the first in line first, and past those that do not fit yet the ones that do.

        A job that was passed for PATIENCE seconds is passed no more, except by models that have nothing running.
        """
        with self._changed:
            line = list(self._waiting)
        passed = False
        for job in line:
            alone = all(batch.key.model != job.key.model for batch in self._batches)
            if passed and not alone:
                continue
            if not self._place(job, alone):
                passed = passed or time.monotonic() - job.submitted > PATIENCE
                continue
            with self._changed:
                self._waiting.remove(job)
            self.metrics.queued.observe(time.monotonic() - job.submitted)
        self._make_way()

    def _make_way(self) -> None:
        """Leaves texts of earlier requests what the running ones do not need."""
        free = self.limits.cache_bytes - sum(self.cache_bytes(b.key, b.rows, b.longest) for b in self._batches)
        most = max(0, min(free, self.limits.prefix_bytes)) // max(1, len(self._prefixes))
        for prefixes in self._prefixes.values():
            prefixes.shrink(most)

    def _kept(self) -> float:
        return float(sum(prefixes.size for prefixes in list(self._prefixes.values())))

    def _place(self, job: Job, alone: bool) -> bool:
        """Has a job join a batch, where there is a slot, time to read its prompt, and memory for its cache.

        alone: Whether its model has nothing running; it is then given a slot beyond the limit, so that one model's
            requests do not keep another's out.
        """
        if not alone and sum(len(batch.jobs) for batch in self._batches) >= self.limits.slots:
            return False
        if job.unread and sum(other.unread for batch in self._batches for other in batch.jobs.values()) >= READING:
            return False
        held = sum(self.cache_bytes(batch.key, batch.rows, batch.longest) for batch in self._batches)
        free = self.limits.cache_bytes - held
        for batch in self._batches:
            if batch.key == job.key:
                rows, longest = batch.with_one_more(job)
                taken = self.cache_bytes(batch.key, batch.rows, batch.longest)
                if self.cache_bytes(batch.key, rows, longest) - taken <= free:
                    batch.admit(job, self.limits.prefill_chunk)
                    return True
        # a batch pads its cache to the longest: where that does not fit, a job has a batch of its own length
        if self.cache_bytes(job.key, job.request.rows, len(job.request.ids)) > free and self._batches:
            return False
        spare = self._spare[job.key.model]
        batch = Batch(job.key, spare.pop() if spare else self.models[job.key.model].new_backend())
        if isinstance(batch.backend, Remembering):
            self._prefixes[job.key.model] = batch.backend.prefixes
        self._batches.append(batch)
        batch.admit(job, self.limits.prefill_chunk)
        return True

    def _step(self, batch: Batch) -> None:
        began = time.perf_counter()
        model = batch.key.model
        try:
            frames = {frame.row: frame for frame in batch.decoder.step()}
        except BaseException as error:  # of the backend: it may have left anything behind
            log.exception("a forward of model '%s' failed", model)
            with self._changed:
                self._held -= len(batch.jobs)
            for job in batch.jobs.values():
                self._tell(job, Failed(error))
            return batch.jobs.clear()
        self.metrics.stepped(model, time.perf_counter() - began, len(batch.jobs), list(frames.values()))
        going_on = {row.number for row, _ in batch.decoder.active}
        for number, job in list(batch.jobs.items()):
            row = batch.decoder.rows[number]
            over = number not in going_on
            if number in frames and row.error is None:
                frame = frames[number]
                job.unread = False
                told = row.logprobs
                row.logprobs = {}
                self._tell(job, Step(frame, row.length if over else row.final, told))
            if not over:
                continue
            self._leave(batch, number)
            if row.error is not None:
                log.error("a request of model '%s' failed", model, exc_info=row.error)
                self._tell(job, Failed(row.error))
                continue
            self.metrics.shared.labels(model).inc(row.shared)
            for count in row.accepted:
                self.metrics.accepted.observe(count)
            counts = (row.steps, row.prefills, tuple(row.accepted), row.edge)
            self._tell(job, Done(row.canvas.ids[0].tolist(), *counts, row.logprobs))

    def _tell(self, job: Job, event: Event) -> None:
        if job.cancelled:
            return
        try:
            job.sink(event)
        except Exception:  # whoever asked is gone
            log.debug("nobody listens to a job", exc_info=True)
            self.cancel([job])

    def _close_empty(self) -> None:
        """Batches that are empty give their memory back."""
        empty = [batch for batch in self._batches if not batch.jobs]
        self._batches = [batch for batch in self._batches if batch.jobs]
        for batch in empty:
            try:
                batch.backend.open(batch.key.layout, 0, 0, batch.key.use_cache)
            except Exception:
                log.exception("a backend of model '%s' is given up", batch.key.model)
            else:
                self._spare[batch.key.model].append(batch.backend)

    def _drop_all(self, error: BaseException) -> None:
        with self._changed:
            jobs = [*self._waiting, *(job for batch in self._batches for job in batch.jobs.values())]
            self._waiting.clear()
            self._batches.clear()
            self._held = 0
            self._spare = {name: [] for name in self.models}
        for job in jobs:
            self._tell(job, Failed(error))
