"""OpenAI's Responses API, of which nothing is stored: bodies, answers and events as its clients have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from unmask.serving.api.dialect import Part, PartsDialect, event, function_call
from unmask.serving.api.errors import APIError, refuse
from unmask.serving.api.schema import ChatRequest, FunctionName, Labels, Steering, Strict, Tagged, text_of


class InputText(Strict):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=64)] | None = None
    logprobs: Annotated[list[Any], Field(max_length=4096)] | None = None


class Item(Tagged):
    """A part of the input: a message, a call of a function, or the result of one."""

    NEEDS = {  # noqa: RUF012
        "message": "role content", "function_call": "call_id name arguments", "function_call_output": "call_id output",
    }  # fmt: skip
    TAKES = {  # noqa: RUF012
        "message": "id status phase", "function_call": "id status", "function_call_output": "id status",
        "reasoning": "id status summary content",
    }  # fmt: skip
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


class ResponsesTool(Strict):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Strict):
    type: Literal["function"]
    name: FunctionName


class TextFormat(Tagged):
    NEEDS = {"json_schema": "schema"}  # noqa: RUF012
    TAKES = {"json_schema": "name strict description"}  # noqa: RUF012
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
    summary: Literal["auto", "concise", "detailed"] | None = Field(None, description="There is none to make.")


Included = Literal[
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


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
    include: Annotated[list[Included], Field(max_length=16)] | None = Field(
        None, description="There is nothing of these to include."
    )
    n: Literal[1] | None = None
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
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    instructions: str | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    temperature: float | None
    top_p: float | None
    tool_choice: str
    tools: list[dict[str, Any]]
    store: bool


def _messages(body: ResponsesRequest) -> Iterator[dict[str, Any]]:
    """The input as messages of a chat."""
    if body.instructions is not None:
        yield {"role": "system", "content": body.instructions}
    if isinstance(body.input, str):
        yield {"role": "user", "content": body.input}
    else:
        yield from messages_of(body.input)


def messages_of(items: list[Item]) -> Iterator[dict[str, Any]]:
    """Items as messages of a chat."""
    if all(item.type == "reasoning" for item in items):
        raise refuse("input", "holds no message")
    for item in items:
        if item.type == "function_call_output":
            yield {"role": "tool", "tool_call_id": item.call_id, "content": text_of(item.output)}
        elif item.type == "function_call":
            call = function_call(str(item.call_id), str(item.name), str(item.arguments))
            yield {"role": "assistant", "content": None, "tool_calls": [call]}
        elif item.type == "message":
            yield {"role": item.role, "content": text_of(item.content)}


class Responses(PartsDialect):
    """OpenAI's newer one."""

    sent: ResponsesRequest

    def __init__(self, sent: Any) -> None:
        super().__init__(sent)
        self.number = -1  # of events

    def request(self) -> ChatRequest:
        body = self.sent
        names = {*Steering.model_fields, "parallel_tool_calls"} - {"metadata", "store"}
        given: dict[str, Any] = {name: getattr(body, name) for name in names if name in body.model_fields_set}
        given |= {"messages": list(_messages(body)), "max_tokens": body.max_output_tokens}
        choice = body.tool_choice
        if body.tools:
            given["tools"] = [
                {"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in body.tools
            ]
        if body.tools or choice == "required":
            given["tool_choice"] = choice
        if isinstance(choice, NamedTool):
            given["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        asked = body.text.format if body.text is not None else None
        if asked is not None:
            given["response_format"] = {"type": asked.type}
            if asked.type == "json_schema":
                schema = {"name": asked.name or "schema", "schema": asked.schema_}
                given["response_format"]["json_schema"] = schema
        if body.reasoning is not None and body.reasoning.effort is not None:
            given["reasoning_effort"] = body.reasoning.effort
        return ChatRequest.model_validate(given)

    def answer(self, status: str = "") -> dict[str, Any]:
        """The response; `status`: of one that is being written."""
        body = self.sent
        cut = self.reason == "length"
        return {
            "id": f"resp_{self.head['id'][-24:]}",
            "object": "response",
            "created_at": self.head["created"],
            "status": status or ("incomplete" if cut else "completed"),
            "model": self.head["model"],
            "output": [self._item(part) for part in self.parts],
            "usage": None
            if status
            else {
                "input_tokens": self.usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": self.usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.usage["total_tokens"],
            },
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": body.instructions,
            "metadata": body.metadata or {},
            "parallel_tool_calls": bool(body.parallel_tool_calls),
            "temperature": body.temperature,
            "top_p": body.top_p,
            "tool_choice": "auto",
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "store": False,
        }

    def _item(self, part: Part, status: str = "completed") -> dict[str, Any]:
        kind = "function_call" if part.id else "message"
        item = {"id": self._place(part)["item_id"], "type": kind, "status": status}
        if part.id:
            return {**item, "call_id": part.id, "name": part.name, "arguments": part.text}
        return {**item, "role": "assistant", "content": [_content(part)] if part.text else []}

    def _place(self, part: Part) -> dict[str, Any]:
        id = f"fc_{part.id[-24:]}" if part.id else f"msg_{self.head['id'][-24:]}"
        return {"item_id": id, "output_index": len(self.parts) - 1}

    def begun(self) -> Iterator[bytes]:
        for kind in ("created", "in_progress"):
            yield self._event(kind, response=self.answer("in_progress"))

    def opened(self, part: Part) -> Iterator[bytes]:
        item = self._item(part, "in_progress")
        yield self._event("output_item.added", output_index=len(self.parts) - 1, item=item)
        if not part.id:
            yield self._event("content_part.added", content_index=0, part=_content(part), **self._place(part))

    def grown(self, part: Part, piece: str) -> Iterator[bytes]:
        if part.id:
            yield self._event("function_call_arguments.delta", delta=piece, **self._place(part))
        else:
            said = {"content_index": 0, "delta": piece, "logprobs": []}
            yield self._event("output_text.delta", **said, **self._place(part))

    def closed(self, part: Part) -> Iterator[bytes]:
        place = self._place(part)
        if part.id:
            told = {"name": part.name, "arguments": part.text}
            yield self._event("function_call_arguments.done", **told, **place)
        else:
            yield self._event("output_text.done", content_index=0, text=part.text, logprobs=[], **place)
            yield self._event("content_part.done", content_index=0, part=_content(part), **place)
        yield self._event("output_item.done", output_index=len(self.parts) - 1, item=self._item(part))

    def end(self) -> Iterator[bytes]:
        yield from super().end()
        last = self.answer()
        yield self._event(last["status"], response=last)

    def failed(self, error: APIError) -> Iterator[bytes]:
        yield self._event("", **error.body()["error"])

    def _event(self, kind: str, **data: Any) -> bytes:
        """An event of a response; no kind: an error."""
        self.number += 1
        kind = f"response.{kind}" if kind else "error"
        return event({**data, "type": kind, "sequence_number": self.number}, kind)


def _content(part: Part) -> dict[str, Any]:
    return {"type": "output_text", "text": part.text, "annotations": []}
