"""Text of tokens that stand behind others: a decoder may strip the space that a text begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTEXT = 8  # tokens before a text that are decoded with it


def text_after(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str:
    """What tokens add to the text of those before them."""
    context = list(before[-CONTEXT:])
    head = tokenizer.decode(context)
    whole = tokenizer.decode([*context, *ids])
    return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(list(ids))


def carries_space(tokenizer: Tokenizer) -> bool:
    """Whether a word's token holds the space before it."""
    spaced = tokenizer.id_to_token(ids_after(tokenizer, " the")[0]) or ""
    return len(spaced) > 1 and spaced[0] in "Ġ▁"


def ids_after(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text that goes on, without the space that a tokenizer puts before one that begins."""
    alone: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    first = tokenizer.encode("x", add_special_tokens=False).tokens[0]
    if not first.startswith("▁"):
        return alone
    anchor: list[int] = tokenizer.encode("\n", add_special_tokens=False).ids
    behind: list[int] = tokenizer.encode("\n" + text, add_special_tokens=False).ids
    return behind[len(anchor) :] if behind[: len(anchor)] == anchor else alone
