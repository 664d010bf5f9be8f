"""How an API says what is asked and answered: its bodies to OpenAI's, OpenAI's answers to its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from unmask.serving.api.errors import APIError


def event(data: dict[str, Any], kind: str = "") -> bytes:
    """A server-sent event."""
    name = f"event: {kind}\n" if kind else ""
    return f"{name}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def function_call(id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call as messages of a chat have it."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


class Dialect:
    """OpenAI's own, where everything stays as it is; one for each request."""

    media_type = "text/event-stream"  # of streams
    silence = b": still at it\n\n"  # what is sent where nothing has happened for a while

    def __init__(self, sent: Any) -> None:
        self.sent = sent  # the body

    def request(self) -> Any:
        """The body that is planned."""
        return self.sent

    def whole(self, reply: dict[str, Any]) -> dict[str, Any]:
        """An answer in one piece."""
        return reply

    def push(self, chunk: dict[str, Any]) -> Iterable[bytes]:
        """What a stream's chunk becomes."""
        return [event(chunk)]

    def end(self) -> Iterable[bytes]:
        return [b"data: [DONE]\n\n"]

    def failed(self, error: APIError) -> Iterable[bytes]:
        """The status is already sent: the error is the last event."""
        return [event(error.body())]


@dataclass
class Part:
    """A part of an answer: text, or with an id a call of a tool, whose text are its arguments."""

    id: str = ""
    name: str = ""
    text: str = ""


class PartsDialect(Dialect):
    """An API whose answers are parts that begin, grow and end. An answer in one piece is a stream's last state."""

    def __init__(self, sent: Any) -> None:
        super().__init__(sent)
        self.head: dict[str, Any] = {}  # the first chunk: id, model and time
        self.parts: list[Part] = []
        self.open = False  # the last part is being written
        self.reason = "stop"
        self.stop: str | None = None  # the text at which the answer was cut
        self.usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

    def answer(self) -> dict[str, Any]:
        """The answer as far as it has come."""
        raise NotImplementedError

    def begun(self) -> Iterable[bytes]:
        """What a stream sends first; the next three are for each part."""
        return ()

    def opened(self, part: Part) -> Iterable[bytes]:
        return ()

    def grown(self, part: Part, piece: str) -> Iterable[bytes]:
        return ()

    def closed(self, part: Part) -> Iterable[bytes]:
        return ()

    def whole(self, reply: dict[str, Any]) -> dict[str, Any]:
        choice = reply["choices"][0]
        list(self.push({**reply, "choices": [{**choice, "delta": choice.get("message", choice)}]}))
        return self.answer()

    def push(self, chunk: dict[str, Any]) -> Iterator[bytes]:
        if not self.head:
            self.head = chunk
            yield from self.begun()
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk["choices"]:
            self.reason = choice["finish_reason"] or self.reason
            self.stop = choice.get("stop_reason")
            delta = choice.get("delta", choice)
            text = delta.get("content") or delta.get("text")
            if text:
                if not self.open:
                    yield from self._begin(Part())
                yield from self._grow(text)
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    yield from self._begin(Part(call["id"], call["function"]["name"]))
                if call["function"].get("arguments"):
                    yield from self._grow(call["function"]["arguments"])

    def end(self) -> Iterator[bytes]:
        if self.open:
            self.open = False
            yield from self.closed(self.parts[-1])

    def _begin(self, part: Part) -> Iterator[bytes]:
        yield from PartsDialect.end(self)
        self.open = True
        self.parts.append(part)
        yield from self.opened(part)

    def _grow(self, piece: str) -> Iterator[bytes]:
        self.parts[-1].text += piece
        yield from self.grown(self.parts[-1], piece)
