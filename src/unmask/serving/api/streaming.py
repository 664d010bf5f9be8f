"""Answers that come while they are written, as server-sent events.

By default only text that no later step can change, from the left, to be appended. With `diffusing` every chunk is the
whole text so far, to replace the last one (Mercury's way). With `stream_options.frames` chunks also say what each
step did.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from unmask.serving.api import errors
from unmask.serving.api.answers import Answer, event, range_of
from unmask.serving.api.errors import APIError
from unmask.serving.api.execution import Execution, Tick
from unmask.serving.api.schema import Steering, StreamOptions
from unmask.serving.api.tool_calls import CallReader
from unmask.serving.api.writer import Writer, Written
from unmask.serving.engine import Step

HEARTBEAT = 10.0  # seconds of silence after which a comment is sent, so that a vanished client is noticed


class Encoder:
    """Chunks of a stream as OpenAI's clients read them; other APIs have encoders of their own."""

    media_type = "text/event-stream"
    silence = b": still at it\n\n"

    def push(self, chunk: dict[str, Any]) -> Iterable[bytes]:
        return [event(chunk)]

    def end(self) -> Iterable[bytes]:
        return [b"data: [DONE]\n\n"]

    def failed(self, error: APIError) -> Iterable[bytes]:
        """The status is already sent: the error is the last event."""
        return [event(error.body())]


class EventStream(StreamingResponse):
    """Server-sent events of running jobs, whose slots are free as soon as the client has gone."""

    def __init__(self, stream: Stream, encoder: Encoder, over: Callable[[], None]) -> None:
        self.stream = stream
        self.encoder = encoder
        self.over = over
        super().__init__(self._parts(), media_type=encoder.media_type, headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.stream.execution.cancel()
            self.over()

    async def _parts(self) -> AsyncIterator[bytes]:
        encoder = self.encoder
        try:
            async for chunk in self.stream.chunks():
                for part in [encoder.silence] if chunk is None else encoder.push(chunk):
                    yield part
            for part in encoder.end():
                yield part
        except Exception as error:
            for part in encoder.failed(errors.of(error)):
                yield part


class Stream:
    """One streamed answer."""

    def __init__(
        self, answer: Answer, body: Steering, execution: Execution, writers: list[Writer], seconds: float
    ) -> None:
        self.answer = answer
        self.execution = execution
        self.writers = writers
        self.seconds = seconds
        self.options = body.stream_options or StreamOptions()
        self.diffusing = bool(body.diffusing)
        self.outcomes: dict[int, Written] = {}
        self.logged = [0] * len(writers)  # tokens whose log-probabilities were sent
        self.characters = [0] * len(writers)
        calls = answer.plan.calls
        self.on_first_text: Callable[[], None] | None = None
        self.readers = [] if calls is None else [CallReader(calls) for _ in writers]

    async def chunks(self) -> AsyncIterator[dict[str, Any] | None]:
        """Chunks as OpenAI has them; None where nothing has happened for a while. What goes wrong is raised."""
        async with self.execution:
            for part in self._opening():
                yield self._with_usage(part)
            until = time.monotonic() + self.seconds
            silent = True
            self.execution.beat(min(HEARTBEAT, self.seconds))
            while (reached := await self.execution.next()) is not None:
                if isinstance(reached[1], Tick):
                    left = until - time.monotonic()
                    if left <= 0:
                        raise TimeoutError
                    self.execution.beat(min(HEARTBEAT, left))
                    if silent:
                        yield None
                    silent = True
                    continue
                for part in self._of(*reached):
                    silent = False
                    if self.on_first_text is not None:
                        self.on_first_text()
                        self.on_first_text = None
                    yield self._with_usage(part)
        if self.options.include_usage:
            outcomes = [self.outcomes[i] for i in sorted(self.outcomes)]
            head = self.answer.head(self.answer.format.chunk)
            yield {**head, "choices": [], "usage": self.answer.usage(outcomes)}

    def _with_usage(self, part: dict[str, Any]) -> dict[str, Any]:
        return {**part, "usage": None} if self.options.include_usage else part

    def _opening(self) -> list[dict[str, Any]]:
        parts = []
        for index, writer in enumerate(self.writers):
            more: dict[str, Any] = {"canvas": self.answer.canvas(writer)} if self.options.frames else {}
            if self.answer.format.chat:
                parts.append(self.answer.part(index, None, delta={"role": "assistant", "content": ""}, **more))
            elif more:
                parts.append(self.answer.part(index, "", **more))
        return parts

    def _of(self, index: int, reached: Any) -> list[dict[str, Any]]:
        """Chunks of one event of the engine."""
        writer = self.writers[index]
        answer = self.answer
        if isinstance(reached, Step):
            text = writer.take(reached)
            more: dict[str, Any] = {}
            if self.options.frames:
                more["frame"] = answer.frame(reached.frame, writer.region.start)
            if self.answer.plan.wrap is not None:
                text = ""  # what is made of it is known when all of it is
            elif self.diffusing:
                text = writer.snapshot()
            elif answer.plan.logprobs is not None and not writer.closed:
                more |= self._logprobs(index, range(writer.region.start, writer.read))
            return self._parts(index, text, more)
        rest, written = writer.finish(reached)
        self.outcomes[index] = written
        more = {}
        if self.diffusing or answer.plan.wrap is not None:
            rest = answer.text(written)
        elif answer.plan.logprobs is not None:
            more = self._logprobs(index, range_of(written, writer))
        if answer.format.gaps:
            more["gaps"] = answer.gaps(written)
        parts = self._parts(index, rest, more, last=True)
        reason = written.finish_reason
        if self.readers:
            reason = self.readers[index].reason(written)
        return [*parts, answer.part(index, None, finish_reason=reason)]

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
