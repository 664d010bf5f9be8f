"""Ollama's API: bodies, answers and lines as its clients have them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from unmask.serving.api.dialect import Dialect
from unmask.serving.api.errors import APIError, refuse
from unmask.serving.api.planner import Plan, Planner, can_fill
from unmask.serving.api.schema import ChatRequest, CompletionRequest, Strict, Tool
from unmask.serving.api.streaming import Encoder

OPTIONS = {  # its names for ours
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
UNREAD = frozenset({"num_ctx", "num_keep", "num_batch", "num_gpu", "num_thread", "main_gpu", "use_mmap", "numa"})
Images = Annotated[list[str], Field(max_length=0)]


class Body(Strict):
    """What both addresses take."""

    model: str | None = Field(None, max_length=256)
    stream: bool = True
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: dict[str, Any] | None = Field(None, max_length=64)
    keep_alive: str | float | None = Field(None, description="Taken, and not read.")
    think: Literal[False] | None = None

    def shared(self) -> dict[str, Any]:
        """Fields that an OpenAI client would send for the same."""
        out: dict[str, Any] = {"model": self.model, "stream": self.stream}
        for name, value in (self.options or {}).items():
            if name in OPTIONS and not (name == "num_predict" and value in (-1, -2)):
                out[OPTIONS[name]] = value
            elif name not in OPTIONS and name not in UNREAD:
                raise refuse(f"options.{name}", "is unknown to this server and would be ignored; leave it out")
        if self.format == "json":
            out["response_format"] = {"type": "json_object"}
        elif isinstance(self.format, dict):
            named = {"name": "format", "schema": self.format}
            out["response_format"] = {"type": "json_schema", "json_schema": named}
        return out


class OllamaFunction(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str
    arguments: dict[str, Any]


class OllamaCall(BaseModel):
    model_config = ConfigDict(strict=True)
    function: OllamaFunction


class OllamaMessage(Strict):
    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    images: Images | None = None
    thinking: str | None = None
    tool_name: str | None = Field(None, max_length=64)
    tool_call_id: str | None = Field(None, max_length=256)
    tool_calls: Annotated[list[OllamaCall], Field(fail_fast=True, max_length=128)] | None = None


class ChatBody(Body):
    """Body of /api/chat."""

    messages: Annotated[list[OllamaMessage], Field(fail_fast=True, min_length=1, max_length=4096)]
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=128)] | None = None


class GenerateBody(Body):
    """Body of /api/generate."""

    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    raw: bool = False
    images: Images | None = None


class Reply(BaseModel):
    """An answer of /api/chat, with `message`, or of /api/generate, with `response`."""

    model: str
    created_at: str
    message: dict[str, Any] | None = None
    response: str | None = None
    done: bool
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None


class Chat(Dialect):
    """Ollama's chat."""

    def request(self, body: ChatBody) -> Any:
        messages = []
        for number, message in enumerate(body.messages):
            turn: dict[str, Any] = {"role": message.role, "content": message.content}
            if message.role == "tool":
                turn |= {"tool_call_id": message.tool_call_id or message.tool_name or "call", "name": message.tool_name}
            if message.tool_calls:
                turn["tool_calls"] = [
                    {
                        "id": f"call_{number}_{place}",
                        "type": "function",
                        "function": {"name": call.function.name, "arguments": json.dumps(call.function.arguments)},
                    }
                    for place, call in enumerate(message.tool_calls)
                ]
            messages.append(turn)
        tools = [tool.model_dump() for tool in body.tools or ()]
        return ChatRequest.model_validate({"messages": messages, "tools": tools or None, **body.shared()})

    def whole(self, reply: dict[str, Any], body: Any) -> dict[str, Any]:
        choice = reply["choices"][0]
        message = choice["message"]
        calls = [
            _call(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())
        ]
        told = {"role": "assistant", "content": message["content"] or "", **({"tool_calls": calls} if calls else {})}
        return {**_head(reply), "message": told, **_end(choice["finish_reason"], reply["usage"])}

    def encoder(self, body: Any) -> Encoder:
        return Lines(chat=True)


class Generate(Dialect):
    """Ollama's completion: a prompt in the model's template, unless it is raw or has a suffix."""

    def request(self, body: GenerateBody) -> Any:
        if body.system is not None:
            raise refuse("system", "is not offered here; ask /api/chat")
        return CompletionRequest.model_validate({"prompt": body.prompt, "suffix": body.suffix, **body.shared()})

    def whole(self, reply: dict[str, Any], body: Any) -> dict[str, Any]:
        choice = reply["choices"][0]
        return {**_head(reply), "response": choice["text"], **_end(choice["finish_reason"], reply["usage"])}

    def encoder(self, body: Any) -> Encoder:
        return Lines(chat=False)


def plan_generate(planner: Planner, body: CompletionRequest) -> Plan:
    """A plan of a completion; a suffix needs a model that fills."""
    _, lm = planner.models.find(body.model)
    if body.suffix == "" and not can_fill(lm):
        body = body.model_copy(update={"suffix": None})
    return planner.fim(body)


def _head(reply: dict[str, Any]) -> dict[str, Any]:
    created = datetime.fromtimestamp(reply["created"], UTC).isoformat().replace("+00:00", "Z")
    return {"model": reply["model"], "created_at": created}


def _end(reason: str, usage: dict[str, int]) -> dict[str, Any]:
    counts = {"prompt_eval_count": usage["prompt_tokens"], "eval_count": usage["completion_tokens"]}
    return {"done": True, "done_reason": "length" if reason == "length" else "stop", **counts}


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": json.loads(arguments)}}


class Lines(Encoder):
    """Chunks of a stream as lines of JSON; calls of tools are sent when they are whole."""

    media_type = "application/x-ndjson"
    silence = b""

    def __init__(self, chat: bool) -> None:
        self.chat = chat
        self.calls: list[list[str]] = []  # name and arguments
        self.reason = "stop"
        self.head: dict[str, Any] = {}
        self.usage = {"prompt_tokens": 0, "completion_tokens": 0}

    def push(self, chunk: dict[str, Any]) -> Iterator[bytes]:
        self.head = _head(chunk)
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk["choices"]:
            self.reason = choice["finish_reason"] or self.reason
            delta = choice.get("delta", {})
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    self.calls.append([call["function"]["name"], ""])
                self.calls[-1][1] += call["function"].get("arguments", "")
            text = delta.get("content") if self.chat else choice["text"]
            if text:
                yield self._line({**self._said(text), "done": False})

    def _said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}} if self.chat else {"response": text}

    def _line(self, data: dict[str, Any]) -> bytes:
        return json.dumps({**self.head, **data}).encode() + b"\n"

    def end(self) -> Iterable[bytes]:
        last = self._said("")
        if self.calls:
            last["message"]["tool_calls"] = [_call(name, arguments) for name, arguments in self.calls]
        return [self._line({**last, **_end(self.reason, self.usage)})]

    def failed(self, error: APIError) -> Iterable[bytes]:
        return [json.dumps(error.body("/api/")).encode() + b"\n"]
