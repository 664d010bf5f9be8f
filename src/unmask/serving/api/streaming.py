"""Answers that come while they are written.

By default only text that no later step can change, from the left, to be appended. With `diffusing` every chunk is the
whole text so far, to replace the last one (Mercury's way). With `stream_options.frames` chunks also say what each
step did.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from unmask.serving.api import errors
from unmask.serving.api.answers import Answer, range_of
from unmask.serving.api.dialect import Dialect
from unmask.serving.api.execution import Execution
from unmask.serving.api.schema import Steering, StreamOptions
from unmask.serving.api.tool_calls import CallReader
from unmask.serving.api.writer import Writer, Written
from unmask.serving.engine import Done, Step

HEARTBEAT = 10.0  # seconds of silence after which a comment is sent, so that a vanished client is noticed


class Stream(StreamingResponse):
    """One streamed answer, whose slots are free as soon as the client has gone."""

    def __init__(
        self,
        answer: Answer,
        body: Steering,
        dialect: Dialect,
        execution: Execution,
        writers: list[Writer],
        seconds: float,
        first_text: Callable[[], None],
        finished: Callable[[list[Written]], None],
    ) -> None:
        """first_text, finished: called with the first text, and at the end with the outcomes of all jobs."""
        self.answer = answer
        self.dialect = dialect
        self.execution = execution
        self.writers = writers
        self.seconds = seconds
        self.first_text: Callable[[], None] | None = first_text
        self.finished = finished
        self.options = body.stream_options or StreamOptions()
        self.diffusing = bool(body.diffusing)
        self.outcomes: dict[int, Written] = {}
        self.logged = [0] * len(writers)  # tokens whose log-probabilities were sent
        self.characters = [0] * len(writers)
        calls = answer.plan.calls
        self.readers = [] if calls is None else [CallReader(calls) for _ in writers]
        super().__init__(self._bytes(), media_type=dialect.media_type, headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.execution.close()
            if len(self.outcomes) == len(self.writers):
                self.finished(self._outcomes())

    def _outcomes(self) -> list[Written]:
        return [self.outcomes[i] for i in sorted(self.outcomes)]

    async def _bytes(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._chunks():
                for part in [self.dialect.silence] if chunk is None else self.dialect.push(chunk):
                    yield part
            for part in self.dialect.end():
                yield part
        except Exception as error:
            for part in self.dialect.failed(errors.of(error)):
                yield part

    async def _chunks(self) -> AsyncIterator[dict[str, Any] | None]:
        """Chunks as OpenAI has them; None where nothing has happened for a while. What goes wrong is raised."""
        usage: dict[str, Any] = {"usage": None} if self.options.include_usage else {}
        for part in self._opening():
            yield part | usage
        until = time.monotonic() + self.seconds
        silent = True
        self.execution.beat(min(HEARTBEAT, self.seconds))
        async for index, event in self.execution:
            if event is None:
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self.execution.beat(min(HEARTBEAT, left))
                if silent:
                    yield None
                silent = True
                continue
            for part in self._of(index, event):
                silent = False
                if self.first_text is not None:
                    self.first_text()
                    self.first_text = None
                yield part | usage
        if usage:
            head = self.answer.head(self.answer.format.chunk)
            yield {**head, "choices": [], "usage": self.answer.usage(self._outcomes())}

    def _opening(self) -> list[dict[str, Any]]:
        parts = []
        for index, writer in enumerate(self.writers):
            more: dict[str, Any] = {"canvas": self.answer.canvas(writer)} if self.options.frames else {}
            if self.answer.format.chat:
                parts.append(self.answer.part(index, None, delta={"role": "assistant", "content": ""}, **more))
            elif more:
                parts.append(self.answer.part(index, "", **more))
        return parts

    def _of(self, index: int, event: Step | Done) -> list[dict[str, Any]]:
        """Chunks of one event of the engine."""
        writer = self.writers[index]
        answer = self.answer
        more: dict[str, Any] = {}
        if isinstance(event, Step):
            text = writer.take(event)
            if self.options.frames:
                more["frame"] = answer.frame(event.frame, writer.region.start)
            if answer.plan.wrap is not None:
                text = ""  # what is made of it is known when all of it is
            elif self.diffusing:
                text = writer.snapshot()
            elif answer.plan.logprobs is not None and not writer.closed:
                more |= self._logprobs(index, range(writer.region.start, writer.read))
            return self._parts(index, text, more)
        text, written = writer.finish(event)
        self.outcomes[index] = written
        if self.diffusing or answer.plan.wrap is not None:
            text = answer.text(written)
        elif answer.plan.logprobs is not None:
            more = self._logprobs(index, range_of(written, writer))
        if answer.format.gaps:
            more["gaps"] = answer.filled(written)[1]
        parts = self._parts(index, text, more, last=True)
        reason = self.readers[index].reason(written) if self.readers else written.finish_reason
        return [*parts, answer.part(index, None, finish_reason=reason, stop_reason=written.stop)]

    def _parts(self, index: int, text: str, more: dict[str, Any], last: bool = False) -> list[dict[str, Any]]:
        """Chunks of fresh text; calls of tools in it have chunks of their own."""
        if not self.readers:
            return [self.answer.part(index, text, **more)] if text or more else []
        reader = self.readers[index]
        deltas = [*reader.push(text), *(reader.finish() if last else [])] or ([{}] if more else [])
        parts = [self.answer.part(index, None, delta=delta) for delta in deltas]
        for part in parts[:1]:
            part["choices"][0] |= more
        return parts

    def _logprobs(self, index: int, positions: range) -> dict[str, Any]:
        """Of the positions that were not told of yet; nothing if there are none."""
        fresh = positions[self.logged[index] :]
        if not fresh:
            return {}
        out = self.answer.logprobs(self.writers[index], fresh, self.characters[index])
        self.logged[index] = len(positions)
        if out is not None and not self.answer.format.chat:
            self.characters[index] += sum(map(len, out["tokens"]))
        return {"logprobs": out}
