"""OpenAI's Responses API, of which nothing is stored: bodies, answers and events as its clients have them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from unmask.serving.api.dialect import Dialect
from unmask.serving.api.errors import APIError, refuse
from unmask.serving.api.schema import ChatRequest, FunctionName, Labels, Steering, Strict
from unmask.serving.api.streaming import Encoder


class InputText(Strict):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=64)] | None = None
    logprobs: Annotated[list[Any], Field(max_length=4096)] | None = None


class Item(Strict):
    """A part of the input: a message, a call of a function, or the result of one."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | Annotated[list[InputText], Field(fail_fast=True, max_length=4096)] | None = None
    id: str | None = Field(None, max_length=256)
    status: str | None = Field(None, max_length=32)
    phase: str | None = Field(None, max_length=32)
    call_id: str | None = Field(None, max_length=256)
    name: FunctionName | None = None
    arguments: str | None = None
    output: str | Annotated[list[InputText], Field(fail_fast=True, max_length=4096)] | None = None
    summary: Annotated[list[Any], Field(max_length=64)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        """Clients send items of an answer back with all the fields that they know, most of them null."""
        return {name: part for name, part in value.items() if part is not None} if isinstance(value, dict) else value


class ResponsesTool(Strict):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Strict):
    type: Literal["function"]
    name: FunctionName


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, max_length=256)
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    description: str | None = None


class TextOptions(Strict):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Strict):
    effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    summary: None = None


class ResponsesRequest(Steering):
    """Body of /v1/responses."""

    input: str | Annotated[list[Item], Field(fail_fast=True, min_length=1, max_length=4096)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=2**20)
    tools: Annotated[list[ResponsesTool], Field(fail_fast=True, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    metadata: Labels | None = Field(None, max_length=16)
    store: bool | None = Field(None, description="Taken; nothing is stored.")
    background: Literal[False] | None = None
    previous_response_id: None = Field(None, description="Nothing is stored: send the whole dialogue.")
    conversation: None = None
    include: Annotated[list[str], Field(max_length=16)] | None = Field(None, description="Taken, and not read.")
    truncation: Literal["disabled"] | None = None
    top_logprobs: Literal[0] | None = None


class ResponsesReply(BaseModel):
    """An answer of /v1/responses."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None


def _text(content: str | list[InputText] | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def _messages(body: ResponsesRequest) -> Iterator[dict[str, Any]]:
    """The input as messages of a chat."""
    if body.instructions is not None:
        yield {"role": "system", "content": body.instructions}
    if isinstance(body.input, str):
        yield {"role": "user", "content": body.input}
        return
    for item in body.input:
        if item.type == "function_call_output":
            yield {"role": "tool", "tool_call_id": item.call_id or "", "content": _text(item.output)}
        elif item.type == "function_call":
            function = {"name": item.name or "", "arguments": item.arguments or ""}
            call = {"id": item.call_id or "", "type": "function", "function": function}
            yield {"role": "assistant", "content": None, "tool_calls": [call]}
        elif item.type == "message":
            if item.role is None:
                raise refuse("input", "holds a message without a role")
            yield {"role": item.role, "content": _text(item.content)}


class Responses(Dialect):
    """OpenAI's newer one."""

    def request(self, body: ResponsesRequest) -> ChatRequest:
        names = {*Steering.model_fields, "parallel_tool_calls"} - {"metadata", "store", "n"}
        given: dict[str, Any] = {name: getattr(body, name) for name in names if name in body.model_fields_set}
        given |= {"messages": list(_messages(body)), "max_tokens": body.max_output_tokens}
        if body.tools:
            given["tools"] = [
                {"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in body.tools
            ]
        choice = body.tool_choice
        if isinstance(choice, NamedTool):
            given["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        elif body.tools:
            given["tool_choice"] = choice
        asked = body.text.format if body.text is not None else None
        if asked is not None and asked.type == "json_schema":
            schema = {"name": asked.name or "schema", "schema": asked.schema_, "strict": asked.strict}
            given["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif asked is not None:
            given["response_format"] = {"type": asked.type}
        if body.reasoning is not None and body.reasoning.effort is not None:
            given["reasoning_effort"] = body.reasoning.effort
        return ChatRequest.model_validate(given)

    def whole(self, reply: dict[str, Any], body: Any) -> dict[str, Any]:
        choice = reply["choices"][0]
        message = choice["message"]
        output = [_message(reply["id"], message["content"])] if message["content"] else []
        for call in message.get("tool_calls", ()):
            output.append(_call(call["id"], call["function"]["name"], call["function"]["arguments"]))
        return _response(reply, body, output, choice["finish_reason"], reply["usage"])

    def encoder(self, body: Any) -> Encoder:
        return ResponseEvents(body)


def _message(id: str, text: str, status: str = "completed") -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"id": f"msg_{id[-24:]}", "type": "message", "role": "assistant", "status": status, "content": content}


def _call(id: str, name: str, arguments: str, status: str = "completed") -> dict[str, Any]:
    call = {"id": f"fc_{id[-24:]}", "type": "function_call", "call_id": id, "name": name, "arguments": arguments}
    return {**call, "status": status}


def _response(
    reply: dict[str, Any], body: Any, output: list[dict[str, Any]], reason: str | None, usage: dict[str, Any] | None
) -> dict[str, Any]:
    """A response; `reason` is None while it is being written."""
    status = {None: "in_progress", "length": "incomplete"}.get(reason, "completed")
    tokens = None
    if usage is not None:
        tokens = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
    return {
        "id": f"resp_{reply['id'][-24:]}",
        "object": "response",
        "created_at": reply["created"],
        "status": status,
        "model": reply["model"],
        "output": output,
        "usage": tokens,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if reason == "length" else None,
        "instructions": body.instructions,
        "metadata": body.metadata or {},
        "parallel_tool_calls": bool(body.parallel_tool_calls),
        "temperature": body.temperature,
        "top_p": body.top_p,
        "tool_choice": "auto",
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "store": False,
    }


class ResponseEvents(Encoder):
    """Chunks of a stream as events of a response: items that are added, grow and are done."""

    def __init__(self, body: Any) -> None:
        self.body = body
        self.number = -1  # of events
        self.chunk: dict[str, Any] = {}
        self.output: list[dict[str, Any]] = []
        self.open = False  # the last item is being written
        self.reason = "stop"
        self.usage: dict[str, Any] | None = None

    def push(self, chunk: dict[str, Any]) -> Iterator[bytes]:
        if not self.chunk:
            self.chunk = chunk
            begun = _response(chunk, self.body, [], None, None)
            yield self._event("response.created", response=begun)
            yield self._event("response.in_progress", response=begun)
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk["choices"]:
            self.reason = choice["finish_reason"] or self.reason
            if choice["delta"].get("content"):
                yield from self._say(choice["delta"]["content"])
            for call in choice["delta"].get("tool_calls", ()):
                yield from self._call(call)

    def _say(self, text: str) -> Iterator[bytes]:
        if not self.open:
            message = {**_message(self.chunk["id"], "", "in_progress"), "content": []}
            yield from self._add(message)
            part = {"type": "output_text", "text": "", "annotations": []}
            message["content"] = [part]
            yield self._event("response.content_part.added", content_index=0, part=part, **self._place())
        self.output[-1]["content"][0]["text"] += text
        yield self._event("response.output_text.delta", content_index=0, delta=text, logprobs=[], **self._place())

    def _call(self, call: dict[str, Any]) -> Iterator[bytes]:
        function = call["function"]
        if "id" in call:
            yield from self._close()
            yield from self._add(_call(call["id"], function["name"], "", "in_progress"))
        if function.get("arguments"):
            self.output[-1]["arguments"] += function["arguments"]
            delta = function["arguments"]
            yield self._event("response.function_call_arguments.delta", delta=delta, **self._place())

    def _add(self, item: dict[str, Any]) -> Iterator[bytes]:
        self.output.append(item)
        self.open = True
        yield self._event("response.output_item.added", output_index=len(self.output) - 1, item=item)

    def _close(self) -> Iterator[bytes]:
        if not self.open:
            return
        self.open = False
        item = self.output[-1]
        item["status"] = "completed"
        if item["type"] == "message":
            part = item["content"][0]
            done = {"text": part["text"], "logprobs": []}
            yield self._event("response.output_text.done", content_index=0, **done, **self._place())
            yield self._event("response.content_part.done", content_index=0, part=part, **self._place())
        else:
            told = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("response.function_call_arguments.done", **told, **self._place())
        yield self._event("response.output_item.done", output_index=len(self.output) - 1, item=item)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}

    def end(self) -> Iterator[bytes]:
        yield from self._close()
        last = _response(self.chunk, self.body, self.output, self.reason, self.usage)
        yield self._event(f"response.{last['status']}", response=last)

    def failed(self, error: APIError) -> Iterator[bytes]:
        yield self._event("error", **error.body()["error"])

    def _event(self, kind: str, **data: Any) -> bytes:
        self.number += 1
        data = {**data, "type": kind, "sequence_number": self.number}
        return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()
