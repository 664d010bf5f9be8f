"""Prompts of every kind, to token ids: text, chat messages, ids, and batches of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from torch import Tensor

    Conversation = list[dict[str, Any]]
    Ids = list[int] | NDArray[np.integer[Any]] | Tensor
    Prompt = str | list[str] | Conversation | list[Conversation] | Ids | list[list[int]] | list[Tensor]
else:
    Prompt = Any


REASONING = ("reasoning_content", "thinking", "reasoning")  # names of what an assistant thought before it answered


def is_single(prompt: Prompt) -> bool:
    """Whether a prompt asks for one text."""
    if hasattr(prompt, "ndim"):
        return bool(prompt.ndim == 1)
    return not isinstance(prompt, list) or not prompt or isinstance(prompt[0], dict) or _is_id(prompt[0])


def encode(
    prompt: Prompt,
    tokenizer: Tokenizer | None,
    template: str | Mapping[str, str] | None,
    config: ModelConfig,
    name: str,
    special_tokens: Mapping[str, str] | None = None,
) -> list[list[int]]:
    """Token rows of a prompt; an empty one is the start of a text, and a text that begins with it gets no second one.

    Args:
        template: The model's chat template, or its templates by name; see `render_chat`.
        name: Of the model, for messages.
        special_tokens: What templates may name: `bos_token` and the like, as text.

    Raises:
        UnmaskError: naming what is wrong.
    """
    asked = _plain(prompt)
    if not isinstance(asked, str | list):
        raise UnmaskError(f"a prompt is text, a list of texts, messages or token ids, not {type(asked).__name__}")
    prompts: list[Any] = [asked] if is_single(asked) else cast("list[Any]", asked)
    kinds = {_kind(one) for one in prompts}
    if len(kinds) > 1:
        raise UnmaskError(f"the prompts of a batch are of one kind, not {' and '.join(sorted(kinds))}")
    rows = []
    for one in prompts:
        if kinds == {"token ids"}:
            if not isinstance(one, list) or not all(_is_id(token) for token in one):
                raise UnmaskError("a prompt of token ids must hold integers only")
            if one and not 0 <= min(one) <= max(one) < config.vocab_size:
                raise UnmaskError(f"the prompt holds an id outside the vocabulary of {config.vocab_size}")
            ids = [index(token) for token in one]
        else:
            chat = kinds == {"messages"}
            text = render_chat(one, template, name, special_tokens=special_tokens) if chat else one
            ids = encode_text(text, tokenizer, config, name)
            start = [] if chat or tokenizer is None or not text else start_of(tokenizer)
            ids = ids if ids[: len(start)] == start else frame(start, ids)
        rows.append(ids or ([] if config.bos_token_id is None else [config.bos_token_id]))
    return rows


def frame(start: Sequence[int], text: Sequence[int], answer: Sequence[int] = (), end: int | None = None) -> list[int]:
    """How a text stands before a model, in training and in generation: start, text, what answers it, end.

    Args:
        start: What `start_of` gives for the model's tokenizer.
        text: Ids of the text, or of the prompt that `answer` follows.
        end: The token that ends a text; None where it goes on.
    """
    return [*start, *text, *answer, *([] if end is None else [end])]


def start_of(tokenizer: Tokenizer) -> list[int]:
    """The ids that tokenizer.json's own post-processor puts before a text; empty where it puts none."""
    encoded = tokenizer.encode("a", add_special_tokens=True)
    first = next((i for i, special in enumerate(encoded.special_tokens_mask) if not special), 0)
    return list(encoded.ids[:first])


def render_chat(
    messages: list[dict[str, Any]],
    template: str | Mapping[str, str] | None,
    name: str,
    /,
    tools: list[dict[str, Any]] | None = None,
    special_tokens: Mapping[str, str] | None = None,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    """Chat messages as the model's own template writes them, up to where the answer begins.

    Args:
        template: One template, or several by name: `tool_use` is taken where tools are given, else `default`.
        tools: Of OpenAI's shape, for a template that renders them.
        special_tokens: `bos_token`, `eos_token`, ... as text.
        add_generation_prompt: False leaves out what opens an answer.
        variables: Whatever else the template reads (`enable_thinking`, ...).

    Raises:
        UnmaskError: for a model without a template, for messages that are none, and where the template refuses them.
    """
    if isinstance(template, Mapping):
        template = (tools and template.get("tool_use")) or template.get("default")
    if template is None:
        raise UnmaskError(f"model '{name}' has no chat template; give it plain text")
    said = list(map(_said, messages))
    from unmask import templates  # Jinja takes a while to import

    known = {**(special_tokens or {}), "documents": None, **variables}
    try:
        own = {"messages": said, "tools": tools, "add_generation_prompt": add_generation_prompt}
        return templates.render(template, {**known, **own})
    except Exception as error:  # a template is foreign code: it can raise whatever Python can
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnmaskError(f"model '{name}': its chat template refuses these messages ({reason})") from None


def _said(message: Any) -> dict[str, Any]:
    """A message as transformers hands it to templates: without what is None, its reasoning by both of its names."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UnmaskError("a chat message needs 'role' and 'content', and its role is text")
    said = {name: value for name, value in message.items() if value is not None}
    if not isinstance(said.get("content", "" if said.get("tool_calls") else None), str):
        raise UnmaskError("a chat message's 'role' and 'content' must be text")
    reasoning = next((said[name] for name in REASONING if name in said), None)
    return said if reasoning is None else {"thinking": reasoning, **said, "reasoning_content": reasoning}


def _plain(prompt: Any) -> Any:
    """Arrays and tensors as lists."""
    if isinstance(prompt, list):
        return [_plain(part) for part in prompt] if prompt and hasattr(prompt[0], "tolist") else prompt
    return prompt.tolist() if hasattr(prompt, "tolist") else prompt


def _kind(prompt: Any) -> str:
    if isinstance(prompt, str):
        return "text"
    return "messages" if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict) else "token ids"


def encode_text(text: str, tokenizer: Tokenizer | None, config: ModelConfig, name: str) -> list[int]:
    """The ids of a text alone, with nothing put before it; raises UnmaskError for a token that the model lacks."""
    if tokenizer is None:
        raise UnmaskError(f"model '{name}' has no tokenizer.json; give it token ids instead of text")
    # as a batch: the tokenizer then lets other threads go on meanwhile
    ids: list[int] = tokenizer.encode_batch([text], add_special_tokens=False)[0].ids
    if ids and max(ids) >= config.vocab_size:
        token = tokenizer.id_to_token(max(ids))
        raise UnmaskError(
            f"the prompt holds the token '{token}', which the vocabulary of model '{name}' ({config.vocab_size}) lacks"
        )
    return ids


def _is_id(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
