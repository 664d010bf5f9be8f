"""Anthropic's Messages API: bodies, answers and events as its clients have them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from unmask.serving.api.dialect import Dialect
from unmask.serving.api.errors import APIError
from unmask.serving.api.schema import ChatRequest, FunctionName, Strict
from unmask.serving.api.streaming import Encoder

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
Cached = dict[str, str] | None


class Block(Strict):
    """A part of a message: text, a call of a tool, or the result of one."""

    type: Literal["text", "tool_use", "tool_result", "thinking", "redacted_thinking"]
    text: str | None = None
    id: str | None = Field(None, max_length=256)
    name: str | None = Field(None, max_length=64)
    input: dict[str, Any] | None = None
    tool_use_id: str | None = Field(None, max_length=256)
    content: str | Annotated[list[TextBlock], Field(fail_fast=True, max_length=4096)] | None = None
    is_error: bool | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    citations: None = None
    cache_control: Cached = Field(None, max_length=4)


class TextBlock(Strict):
    type: Literal["text"]
    text: str
    citations: None = None
    cache_control: Cached = Field(None, max_length=4)


class Turn(Strict):
    role: Literal["user", "assistant"]
    content: str | Annotated[list[Block], Field(fail_fast=True, max_length=4096)]


class AnthropicTool(Strict):
    type: Literal["custom"] | None = None
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any]
    cache_control: Cached = Field(None, max_length=4)


class ToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None


class CountRequest(Strict):
    """Body of /v1/messages/count_tokens."""

    model: str | None = Field(None, max_length=256)
    messages: Annotated[list[Turn], Field(fail_fast=True, min_length=1, max_length=4096)]
    system: str | Annotated[list[TextBlock], Field(fail_fast=True, max_length=64)] | None = None
    tools: Annotated[list[AnthropicTool], Field(fail_fast=True, max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: dict[str, Any] | None = Field(None, max_length=4, description="Only {'type': 'disabled'}.")

    def chat(self, **more: Any) -> ChatRequest:
        """The same dialogue as OpenAI's clients would send it."""
        if self.thinking not in (None, {"type": "disabled"}):
            raise APIError(400, "field 'thinking': this server cannot honour it; leave it out", param="thinking")
        messages = [] if self.system is None else [{"role": "system", "content": _text(self.system)}]
        for turn in self.messages:
            messages += _messages(turn)
        tools = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.input_schema},
            }
            for tool in self.tools or ()
        ]
        given: dict[str, Any] = {"model": self.model, "messages": messages, "tools": tools or None, **more}
        choice = self.tool_choice
        if choice is not None:
            names = {"auto": "auto", "any": "required", "none": "none"}
            one = {"type": "function", "function": {"name": choice.name}}
            given["tool_choice"] = names.get(choice.type, one)
            given["parallel_tool_calls"] = choice.disable_parallel_tool_use is False
        return ChatRequest.model_validate(given)


class MessagesRequest(CountRequest):
    """Body of /v1/messages."""

    max_tokens: int = Field(ge=1, le=2**20)
    stop_sequences: list[str] | None = Field(None, max_length=4)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31)
    stream: bool | None = None
    metadata: dict[str, str | None] | None = Field(None, max_length=4, description="Taken, and not read.")
    service_tier: Literal["auto", "standard_only"] | None = None


class MessagesUsage(BaseModel):
    input_tokens: int
    output_tokens: int


class MessagesReply(BaseModel):
    """An answer of /v1/messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str
    stop_sequence: str | None
    usage: MessagesUsage


class TokenCount(BaseModel):
    """How many tokens a dialogue is."""

    input_tokens: int


def _text(content: str | list[TextBlock] | None) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content or ())


def _messages(turn: Turn) -> Iterator[dict[str, Any]]:
    """A turn as messages: results of tools are messages of their own."""
    if isinstance(turn.content, str):
        yield {"role": turn.role, "content": turn.content}
        return
    text = "".join(block.text or "" for block in turn.content if block.type == "text")
    calls = []
    for block in turn.content:
        if block.type == "tool_result":
            yield {"role": "tool", "tool_call_id": block.tool_use_id or "", "content": _text(block.content)}
        elif block.type == "tool_use":
            function = {"name": block.name or "", "arguments": json.dumps(block.input or {})}
            calls.append({"id": block.id or "", "type": "function", "function": function})
    if calls:
        yield {"role": turn.role, "content": text, "tool_calls": calls}
    elif text or not any(block.type == "tool_result" for block in turn.content):
        yield {"role": turn.role, "content": text}


class Messages(Dialect):
    """Anthropic's."""

    def request(self, body: MessagesRequest) -> ChatRequest:
        names = ("max_tokens", "temperature", "top_p", "top_k", "stream")
        given = {name: getattr(body, name) for name in names}
        return body.chat(stop=body.stop_sequences or None, **given)

    def whole(self, reply: dict[str, Any], body: Any) -> dict[str, Any]:
        choice = reply["choices"][0]
        message = choice["message"]
        content: list[dict[str, Any]] = [{"type": "text", "text": message["content"]}] if message["content"] else []
        for call in message.get("tool_calls", ()):
            function = call["function"]
            arguments = json.loads(function["arguments"])
            content.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments})
        return {
            **_head(reply),
            "content": content,
            "stop_reason": STOP_REASONS[choice["finish_reason"]],
            "stop_sequence": None,
            "usage": _usage(reply["usage"]),
        }

    def encoder(self, body: Any) -> Encoder:
        return MessageEvents()


def _head(reply: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"msg_{reply['id'][-24:]}", "type": "message", "role": "assistant", "model": reply["model"]}


def _usage(usage: dict[str, int]) -> dict[str, int]:
    return {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}


class MessageEvents(Encoder):
    """Chunks of a stream as Anthropic's events: blocks that begin, grow and end."""

    def __init__(self) -> None:
        self.began = False
        self.block = -1  # of those that have begun
        self.kind = ""  # of the block that is open
        self.reason = "end_turn"
        self.usage = {"input_tokens": 0, "output_tokens": 0}

    def push(self, chunk: dict[str, Any]) -> Iterator[bytes]:
        if not self.began:
            self.began = True
            message = {**_head(chunk), "content": [], "stop_reason": None, "stop_sequence": None, "usage": self.usage}
            yield _event("message_start", message=message)
        if chunk.get("usage"):
            self.usage = _usage(chunk["usage"])
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if delta.get("content"):
                yield from self._open("text", {"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": delta["content"]})
            for call in delta.get("tool_calls", ()):
                function = call["function"]
                if "id" in call:
                    block = {"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}}
                    yield from self._open(call["id"], block)
                if function.get("arguments"):
                    yield self._delta({"type": "input_json_delta", "partial_json": function["arguments"]})
            if choice["finish_reason"]:
                self.reason = STOP_REASONS[choice["finish_reason"]]

    def _open(self, kind: str, block: dict[str, Any]) -> Iterator[bytes]:
        if self.kind != kind:
            yield from self._close()
            self.block += 1
            self.kind = kind
            yield _event("content_block_start", index=self.block, content_block=block)

    def _close(self) -> Iterator[bytes]:
        if self.kind:
            self.kind = ""
            yield _event("content_block_stop", index=self.block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self.block, delta=delta)

    def end(self) -> Iterator[bytes]:
        yield from self._close()
        yield _event("message_delta", delta={"stop_reason": self.reason, "stop_sequence": None}, usage=self.usage)
        yield _event("message_stop")

    def failed(self, error: APIError) -> Iterator[bytes]:
        yield _event("error", error=error.body("/v1/messages")["error"])


def _event(kind: str, **data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()
