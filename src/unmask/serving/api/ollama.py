"""Ollama's API: bodies, answers and lines as its clients have them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from unmask.serving.api.dialect import Part, PartsDialect, function_call
from unmask.serving.api.errors import APIError, invalid, refuse
from unmask.serving.api.planner import Plan, Planner, can_fill
from unmask.serving.api.schema import ChatRequest, CompletionRequest, Strict, Tool

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
UNREAD = {
    *("num_ctx", "num_keep", "num_batch", "num_gpu", "num_thread", "main_gpu", "use_mmap", "use_mlock", "numa"),
    *("low_vram", "mirostat_eta", "mirostat_tau"),
}
NEUTRAL = {"mirostat": 0, "tfs_z": 1, "typical_p": 1, "penalize_newline": True, "repeat_last_n": -1}
Images = Annotated[list[str], Field(max_length=0)]


class Body(Strict):
    """What both addresses take."""

    model: Annotated[str, AfterValidator(lambda name: name.removesuffix(":latest"))] | None = Field(
        None, max_length=256
    )
    stream: bool = True
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: dict[str, Any] | None = Field(None, max_length=64)
    keep_alive: str | float | None = Field(None, description="Taken, and not read.")
    think: Literal[False] | None = None

    def shared(self) -> dict[str, Any]:
        """Fields that an OpenAI client would send for the same."""
        out: dict[str, Any] = {"model": self.model, "stream": self.stream}
        options = self.options or {}
        if options.get("repeat_penalty", 1) == 1:  # which alone reads it
            options = {name: value for name, value in options.items() if name != "repeat_last_n"}
        for name, value in options.items():
            if name in OPTIONS and not (name == "num_predict" and value in (-1, -2)):
                out[OPTIONS[name]] = value
            elif name in NEUTRAL and value != NEUTRAL[name]:
                raise refuse(f"options.{name}", f"cannot be honoured but at {NEUTRAL[name]}; leave it out")
            elif name not in OPTIONS and name not in UNREAD and name not in NEUTRAL:
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


class Generate(PartsDialect):
    """Ollama's completion: a prompt in the model's template, unless it is raw or has a suffix.

    A stream is lines of JSON; calls of tools are sent when they are whole.
    """

    media_type = "application/x-ndjson"
    silence = b""

    def request(self) -> Any:
        body: GenerateBody = self.sent
        if body.system is not None:
            raise refuse("system", "is not offered here; ask /api/chat")
        return _made(CompletionRequest, {"prompt": body.prompt, "suffix": body.suffix, **body.shared()})

    def said(self, text: str) -> dict[str, Any]:
        """The field that holds what is written."""
        return {"response": text}

    def answer(self) -> dict[str, Any]:
        return self._last("".join(part.text for part in self.parts if not part.id))

    def _head(self) -> dict[str, Any]:
        created = datetime.fromtimestamp(self.head["created"], UTC).isoformat().replace("+00:00", "Z")
        return {"model": self.head["model"], "created_at": created}

    def _last(self, text: str) -> dict[str, Any]:
        """The end of an answer, with the text that was not sent before."""
        counts = {"prompt_eval_count": self.usage["prompt_tokens"], "eval_count": self.usage["completion_tokens"]}
        reason = "length" if self.reason == "length" else "stop"
        return {**self._head(), **self.said(text), "done": True, "done_reason": reason, **counts}

    def grown(self, part: Part, piece: str) -> Iterator[bytes]:
        if not part.id:
            yield _line({**self._head(), **self.said(piece), "done": False})

    def end(self) -> Iterator[bytes]:
        yield _line(self._last(""))

    def failed(self, error: APIError) -> Iterator[bytes]:
        yield _line(error.body("/api/"))


class Chat(Generate):
    """Ollama's chat."""

    def request(self) -> Any:
        body: ChatBody = self.sent
        messages = []
        for number, message in enumerate(body.messages):
            turn: dict[str, Any] = {"role": message.role, "content": message.content}
            if message.role == "tool":
                turn |= {"tool_call_id": message.tool_call_id or message.tool_name or "call", "name": message.tool_name}
            if message.tool_calls:
                turn["tool_calls"] = [
                    function_call(f"call_{number}_{place}", call.function.name, json.dumps(call.function.arguments))
                    for place, call in enumerate(message.tool_calls)
                ]
            messages.append(turn)
        tools = [tool.model_dump() for tool in body.tools or ()]
        return _made(ChatRequest, {"messages": messages, "tools": tools or None, **body.shared()})

    def said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def _last(self, text: str) -> dict[str, Any]:
        last = super()._last(text)
        calls = [
            {"function": {"name": part.name, "arguments": json.loads(part.text)}} for part in self.parts if part.id
        ]
        if calls:
            last["message"]["tool_calls"] = calls
        return last


def _made(kind: type[Strict], values: dict[str, Any]) -> Any:
    """The body that is planned; what is wrong with an option is said under its name here."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        said = invalid(error, values)
        ours = (said.detail.param or "").partition(".")[0]
        theirs = next((f"options.{name}" for name, own in OPTIONS.items() if own == ours), None)
        if theirs is None:
            raise said from None
        raise APIError(400, said.detail.message.replace(ours, theirs, 1), param=theirs) from None


def plan_generate(planner: Planner, body: CompletionRequest) -> Plan:
    """A plan of a completion; a suffix needs a model that fills."""
    _, lm = planner.models.find(body.model)
    if body.suffix == "" and not can_fill(lm):
        body = body.model_copy(update={"suffix": None})
    return planner.fim(body)


def _line(data: dict[str, Any]) -> bytes:
    return json.dumps(data).encode() + b"\n"
