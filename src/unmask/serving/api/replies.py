"""What the server answers, for the OpenAPI description."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from unmask.serving.api.schema import ToolCall

FinishReason = Literal["stop", "length", "tool_calls"]


class Usage(BaseModel):
    """Tokens to the end of text, and the forward passes they took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    steps: int
    prefill_steps: int
    tokens_per_step: float
    drafts_kept_per_step: float | None


class Reply(BaseModel):
    """What all answers have."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None
    seed: int
    usage: Usage


class ChatMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    finish_reason: FinishReason
    stop_reason: str | None = Field(description="The text of `stop` at which it was cut.")
    logprobs: dict[str, Any] | None


class ChatReply(Reply):
    """An answer in a message; with stream, chunks with a delta instead."""

    choices: list[ChatChoice]


class TextChoice(BaseModel):
    index: int
    text: str
    finish_reason: FinishReason
    stop_reason: str | None = Field(description="The text of `stop` at which it was cut.")
    logprobs: dict[str, Any] | None


class TextReply(Reply):
    """Text after a prompt, or between a prompt and a suffix."""

    choices: list[TextChoice]


class InfillChoice(TextChoice):
    gaps: list[str]


class InfillReply(Reply):
    """A filled template: `text` is all of it, `gaps` what was written into each gap."""

    choices: list[InfillChoice]


class Offer(BaseModel):
    """The fields that requests to a model may carry in a mode and under a rule, or (`fill`) when gaps are filled.

    `rule` is null where no rule is read; otherwise it holds for requests that name this rule. `options` are further
    fields that choose this way of decoding.
    """

    fill: bool
    mode: str | None
    rule: str | None
    sampler: str | None
    options: dict[str, Any]
    fields: list[str]


class ModelCard(BaseModel):
    """A model being served and what it can do."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    layout: str
    modes: list[str]
    max_length: int
    max_model_len: int
    can_chat: bool
    can_fill: bool
    block_length: int | None
    grid: list[int] | None = Field(description="Rows and columns of the canvas, and of a box; null for text.")
    defaults: dict[str, Any]
    parameters: dict[str, Any]
    offers: list[Offer]


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class Tag(BaseModel):
    """A model, as Ollama's clients read it."""

    name: str
    model: str
    size: int
    digest: str
    modified_at: str
    details: dict[str, Any]


class Tags(BaseModel):
    models: list[Tag]


class Tokenized(BaseModel):
    """A text's token ids."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(BaseModel):
    """The text of token ids."""

    prompt: str


class Version(BaseModel):
    version: str


class Health(BaseModel):
    """Whether requests are taken, and how many there are."""

    status: Literal["ok", "closing"]
    models: list[str]
    running: int
    waiting: int
