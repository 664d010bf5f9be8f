"""Prompts of every kind, to token ids: text, chat messages, ids."""

from __future__ import annotations

import json
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, cast

from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    Prompt = str | list[str] | list[int] | list[list[int]] | list[dict[str, str]] | Tensor
else:
    Prompt = Any


def is_single(prompt: Prompt) -> bool:
    """Whether a prompt asks for one text."""
    if not isinstance(prompt, str | list):
        return prompt.dim() == 1
    return isinstance(prompt, str) or not prompt or isinstance(prompt[0], int | dict)


def encode(
    prompt: Prompt, tokenizer: Tokenizer | None, template: str | None, config: ModelConfig, name: str
) -> list[list[int]]:
    """Token rows of a prompt; an empty one is the start of a text. Raises UnmaskError naming what is wrong."""
    start = [] if config.bos_token_id is None else [config.bos_token_id]
    if not isinstance(prompt, str | list):
        prompt = cast(Any, prompt.tolist() if hasattr(prompt, "tolist") else prompt)
    if isinstance(prompt, str):
        return [_text(prompt, tokenizer, name) or start]
    if not isinstance(prompt, list):
        raise UnmaskError(f"a prompt is text, a list of texts, messages or token ids, not {type(prompt).__name__}")
    if prompt and isinstance(prompt[0], dict):
        return [_text(render_chat(cast(Any, prompt), template, name), tokenizer, name)]
    if prompt and all(isinstance(p, str) for p in prompt):
        return [_text(str(p), tokenizer, name) or start for p in prompt]
    rows = cast(list[list[int]], prompt if prompt and isinstance(prompt[0], list) else [prompt])
    for row in rows:
        if not isinstance(row, list) or not all(
            isinstance(token, int) and not isinstance(token, bool) for token in row
        ):
            raise UnmaskError("a prompt of token ids must hold integers only")
        if row and not 0 <= min(row) <= max(row) < config.vocab_size:
            raise UnmaskError(f"the prompt holds an id outside the vocabulary of {config.vocab_size}")
    return [row or start for row in rows]


def render_chat(
    messages: list[dict[str, Any]], template: str | None, name: str, tools: list[dict[str, Any]] | None = None
) -> str:
    """Chat messages as the model's own template writes them, up to where the answer begins. tools: of OpenAI's shape,
    for a template that renders them."""
    if template is None:
        raise UnmaskError(f"model '{name}' has no chat template; give it plain text")
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise UnmaskError("a chat message needs 'role' and 'content'")
        if not isinstance(message["role"], str) or not isinstance(message["content"], str):
            raise UnmaskError("a chat message's 'role' and 'content' must be text")
    try:
        return str(_compiled(template).render(messages=messages, tools=tools, add_generation_prompt=True))
    except Exception as error:  # a template is foreign code: it can raise whatever Python can
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnmaskError(f"model '{name}': its chat template refuses these messages ({reason})") from None


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    # as templates of the hub expect it: Jinja's own filter escapes for HTML
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    return environment.from_string(template)


def _text(text: str, tokenizer: Tokenizer | None, name: str) -> list[int]:
    if tokenizer is None:
        raise UnmaskError(f"model '{name}' has no tokenizer.json; give it token ids instead of text")
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
