"""Anthropic's Messages API: bodies, answers and events as its clients have them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from unmask.serving.api.dialect import Part, PartsDialect, event, function_call
from unmask.serving.api.errors import APIError
from unmask.serving.api.schema import ChatRequest, FunctionName, StopText, Strict, Tagged, text_of

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
Cached = dict[str, str] | None


class Block(Tagged):
    """A part of a message: text, a call of a tool, or the result of one."""

    NEEDS = {  # noqa: RUF012
        "text": "text", "tool_use": "id name input", "tool_result": "tool_use_id", "thinking": "thinking",
        "redacted_thinking": "data",
    }  # fmt: skip
    TAKES = {  # noqa: RUF012
        "text": "citations cache_control", "tool_use": "cache_control", "thinking": "signature",
        "tool_result": "content is_error cache_control",
    }  # fmt: skip

    type: Literal["text", "tool_use", "tool_result", "thinking", "redacted_thinking"]
    text: str | None = None
    id: str | None = Field(None, max_length=256)
    name: FunctionName | None = None
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


class ToolChoice(Tagged):
    NEEDS = {"tool": "name"}  # noqa: RUF012
    TAKES = dict.fromkeys(("auto", "any", "tool"), "disable_parallel_tool_use")
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
        messages = [] if self.system is None else [{"role": "system", "content": text_of(self.system)}]
        for turn in self.messages:
            messages += _messages(turn)
        tools = [
            {
                "type": "function",
                "function": {"name": t.name, "description": t.description, "parameters": t.input_schema},
            }
            for t in self.tools or ()
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
    stop_sequences: Annotated[list[StopText], Field(fail_fast=True, max_length=4)] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31)
    stream: bool | None = None
    metadata: dict[str, str | None] | None = Field(None, max_length=4, description="Taken, and not read.")
    service_tier: Literal["auto", "standard_only"] | None = None
    mcp_servers: Annotated[list[Any], Field(max_length=0)] | None = None


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


def _messages(turn: Turn) -> Iterator[dict[str, Any]]:
    """A turn as messages: results of tools are messages of their own."""
    if isinstance(turn.content, str):
        yield {"role": turn.role, "content": turn.content}
        return
    text = "".join(block.text or "" for block in turn.content if block.type == "text")
    calls = []
    for block in turn.content:
        if block.type == "tool_result":
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": text_of(block.content)}
        elif block.type == "tool_use":
            calls.append(function_call(str(block.id), str(block.name), json.dumps(block.input)))
    if calls:
        yield {"role": turn.role, "content": text, "tool_calls": calls}
    elif text or not any(block.type == "tool_result" for block in turn.content):
        yield {"role": turn.role, "content": text}


class Messages(PartsDialect):
    """Anthropic's."""

    sent: MessagesRequest

    def request(self) -> ChatRequest:
        names = ("max_tokens", "temperature", "top_p", "top_k", "stream")
        given = {name: getattr(self.sent, name) for name in names}
        return self.sent.chat(stop=self.sent.stop_sequences or None, **given)

    def answer(self) -> dict[str, Any]:
        return {
            "id": f"msg_{self.head['id'][-24:]}",
            "type": "message",
            "role": "assistant",
            "model": self.head["model"],
            "content": [_block(part) for part in self.parts],
            **self._ending(),
            "usage": self._usage(),
        }

    def _ending(self) -> dict[str, str | None]:
        reason = STOP_REASONS[self.reason] if self.stop is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": self.stop}

    def _usage(self) -> dict[str, int]:
        return {"input_tokens": self.usage["prompt_tokens"], "output_tokens": self.usage["completion_tokens"]}

    def begun(self) -> Iterator[bytes]:
        yield _event("message_start", message={**self.answer(), "stop_reason": None})

    def opened(self, part: Part) -> Iterator[bytes]:
        yield _event("content_block_start", index=len(self.parts) - 1, content_block=_block(part))

    def grown(self, part: Part, piece: str) -> Iterator[bytes]:
        call = {"type": "input_json_delta", "partial_json": piece}
        delta = call if part.id else {"type": "text_delta", "text": piece}
        yield _event("content_block_delta", index=len(self.parts) - 1, delta=delta)

    def closed(self, part: Part) -> Iterator[bytes]:
        yield _event("content_block_stop", index=len(self.parts) - 1)

    def end(self) -> Iterator[bytes]:
        yield from super().end()
        yield _event("message_delta", delta=self._ending(), usage=self._usage())
        yield _event("message_stop")

    def failed(self, error: APIError) -> Iterator[bytes]:
        yield _event("error", error=error.body("/v1/messages")["error"])


def _block(part: Part) -> dict[str, Any]:
    if not part.id:
        return {"type": "text", "text": part.text}
    return {"type": "tool_use", "id": part.id, "name": part.name, "input": json.loads(part.text or "{}")}


def _event(kind: str, **data: Any) -> bytes:
    return event({"type": kind, **data}, kind)
