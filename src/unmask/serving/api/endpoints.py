"""The addresses that decode: for each the body it takes, how it is planned, and how it is answered.

A new one is an entry here, and a module of its own where its bodies and answers are not OpenAI's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from unmask.serving.api import anthropic, edits, ollama, openai_responses
from unmask.serving.api.answers import APPLY, CHAT, EDIT, INFILL, TEXT, AnswerFormat
from unmask.serving.api.dialect import Dialect
from unmask.serving.api.planner import Plan, Planner
from unmask.serving.api.replies import ChatReply, InfillReply, TextReply
from unmask.serving.api.schema import ChatRequest, CompletionRequest, EditRequest, InfillRequest


@dataclass(frozen=True)
class Endpoint:
    """One address, by default as that of a dialogue. `plan` is given what the dialect made of a body."""

    path: str
    summary: str
    body: type[BaseModel]
    example: dict[str, Any]
    reply: type[BaseModel] = ChatReply
    plan: Callable[[Planner, Any], Plan] = Planner.dialogue
    format: AnswerFormat = CHAT
    dialect: type[Dialect] = Dialect


HELLO = [{"role": "user", "content": "Why is the sky blue?"}]
EDITED = "<|code_to_edit|>\ndef add(a, b):\n    <|cursor|>\n<|/code_to_edit|>"
APPLIED = "<|original_code|>\na = 1\n<|/original_code|>\n<|update_snippet|>\na = 2\n<|/update_snippet|>"
ENDPOINTS = (
    Endpoint(
        path="/v1/chat/completions",
        summary="Answer a dialogue",
        body=ChatRequest,
        example={"messages": HELLO, "max_tokens": 64},
    ),
    Endpoint(
        path="/v1/completions",
        summary="Continue text, or fill the gap before a suffix",
        body=CompletionRequest,
        reply=TextReply,
        plan=Planner.completion,
        format=TEXT,
        example={"prompt": "Emma was", "max_tokens": 16, "seed": 1},
    ),
    Endpoint(
        path="/v1/fim/completions",
        summary="Fill in the middle, as Mercury's clients ask",
        body=CompletionRequest,
        reply=TextReply,
        plan=Planner.fim,
        format=TEXT,
        example={"prompt": "def add(a, b):", "suffix": "return c", "max_tokens": 16},
    ),
    Endpoint(
        path="/v1/infill",
        summary="Fill a template with any gaps",
        body=InfillRequest,
        reply=InfillReply,
        plan=Planner.infill,
        format=INFILL,
        example={"segments": ["Mr. Darcy was ", {"mask": {"min": 2, "max": 6}}, "."]},
    ),
    Endpoint(
        path="/v1/edit/completions",
        summary="Rewrite the marked region of a file",
        body=EditRequest,
        plan=edits.plan_edit,
        format=EDIT,
        example={"messages": [{"role": "user", "content": EDITED}]},
    ),
    Endpoint(
        path="/v1/apply/completions",
        summary="Merge an update into a file",
        body=EditRequest,
        plan=edits.plan_apply,
        format=APPLY,
        example={"messages": [{"role": "user", "content": APPLIED}]},
    ),
    Endpoint(
        path="/v1/responses",
        summary="Answer a dialogue, as OpenAI's Responses API; nothing is stored",
        body=openai_responses.ResponsesRequest,
        reply=openai_responses.ResponsesReply,
        example={"input": "Why is the sky blue?", "max_output_tokens": 64},
        dialect=openai_responses.Responses,
    ),
    Endpoint(
        path="/v1/messages",
        summary="Answer a dialogue, as Anthropic's API",
        body=anthropic.MessagesRequest,
        reply=anthropic.MessagesReply,
        example={"messages": HELLO, "max_tokens": 64},
        dialect=anthropic.Messages,
    ),
    Endpoint(
        path="/api/chat",
        summary="Answer a dialogue, as Ollama's API; streams unless told not to",
        body=ollama.ChatBody,
        reply=ollama.Reply,
        example={"messages": HELLO, "stream": False, "options": {"num_predict": 64}},
        dialect=ollama.Chat,
    ),
    Endpoint(
        path="/api/generate",
        summary="Continue a prompt, as Ollama's API; streams unless told not to",
        body=ollama.GenerateBody,
        reply=ollama.Reply,
        plan=ollama.plan_generate,
        format=TEXT,
        example={"prompt": "Emma was", "stream": False, "options": {"num_predict": 16}},
        dialect=ollama.Generate,
    ),
)
