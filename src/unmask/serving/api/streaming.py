"""Answers that come while they are written, as server-sent events.

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
from unmask.serving.api.execution import Tick, Execution
from unmask.serving.api.schema import Steering, StreamOptions
from unmask.serving.api.answers import Answer, event, range_of
from unmask.serving.api.tool_calls import CallReader
from unmask.serving.api.writer import Writer, Written
from unmask.serving.engine import Step

HEARTBEAT = 10.0  # seconds of silence after which a comment is sent, so that a vanished client is noticed


class EventStream(StreamingResponse):
    """Server-sent events of running jobs, whose slots are free as soon as the client has gone."""

    def __init__(self, running: Execution, parts: AsyncIterator[bytes], over: Callable[[], None]) -> None:
        super().__init__(parts, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.running, self.over = running, over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.running.cancel()
            self.over()


class Stream:
    """One streamed answer."""

    def __init__(self, answer: Answer, body: Steering, running: Execution, follow: list[Writer], seconds: float) -> None:
        self.answer, self.running, self.follow, self.seconds = answer, running, follow, seconds
        self.options, self.diffusing = body.stream_options or StreamOptions(), bool(body.diffusing)
        self.outcomes: dict[int, Written] = {}
        self.told = [0] * len(follow)  # tokens whose log-probabilities were sent
        self.characters = [0] * len(follow)
        calls = answer.plan.calls
        self.readers = [] if calls is None else [CallReader(calls) for _ in follow]
        self.on_text: Callable[[], None] = lambda: None

    async def parts(self) -> AsyncIterator[bytes]:
        """The events of the answer, and an error as the last one if it fails."""
        try:
            async with self.running:
                for part in self._opening():
                    yield self._event(part)
                until, silent = time.monotonic() + self.seconds, True
                self.running.beat(min(HEARTBEAT, self.seconds))
                while (reached := await self.running.next()) is not None:
                    if isinstance(reached[1], Tick):
                        left = until - time.monotonic()
                        if left <= 0:
                            raise TimeoutError
                        self.running.beat(min(HEARTBEAT, left))
                        if silent:
                            yield b": still at it\n\n"
                        silent = True
                        continue
                    for part in self._of(*reached):
                        silent = False
                        yield self._event(part)
            if self.options.include_usage:
                outcomes = [self.outcomes[i] for i in sorted(self.outcomes)]
                head = self.answer.head(self.answer.shape.chunk)
                yield event({**head, "choices": [], "usage": self.answer.usage(outcomes)})
            yield b"data: [DONE]\n\n"
        except Exception as error:  # the status is already sent: the error is the last event
            yield event(errors.of(error).body())

    def _event(self, part: dict[str, Any]) -> bytes:
        return event({**part, "usage": None} if self.options.include_usage else part)

    def _opening(self) -> list[dict[str, Any]]:
        parts = []
        for index, writer in enumerate(self.follow):
            more: dict[str, Any] = {"canvas": self.answer.canvas(writer)} if self.options.frames else {}
            if self.answer.shape.chat:
                parts.append(self.answer.part(index, None, delta={"role": "assistant", "content": ""}, **more))
            elif more:
                parts.append(self.answer.part(index, "", **more))
        return parts

    def _of(self, index: int, reached: Any) -> list[dict[str, Any]]:
        """Chunks of one event of the engine."""
        writer, answer = self.follow[index], self.answer
        if isinstance(reached, Step):
            text = writer.take(reached)
            more: dict[str, Any] = {}
            if self.options.frames:
                more["frame"] = answer.frame(reached.frame, writer.region.start)
            if self.diffusing:
                text = writer.snapshot()
            elif answer.plan.logprobs is not None and not writer.closed:
                more |= self._logprobs(index, range(writer.region.start, writer.read))
            if text:
                self.on_text()
            return self._parts(index, text, more)
        rest, written = writer.finish(reached)
        self.outcomes[index] = written
        more = {}
        if self.diffusing:
            rest = written.text
        elif answer.plan.logprobs is not None:
            more = self._logprobs(index, range_of(written, writer))
        if answer.shape.gaps:
            more["gaps"] = answer.gaps(written)
        parts, reason = self._parts(index, rest, more, last=True), written.finish_reason
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
        fresh = positions[self.told[index] :]
        if not fresh:
            return {}
        out = self.answer.logprobs(self.follow[index], fresh, self.characters[index])
        self.told[index] = len(positions)
        if out is not None and not self.answer.shape.chat:
            self.characters[index] += sum(map(len, out["tokens"]))
        return {"logprobs": out}
