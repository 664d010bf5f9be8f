"""Calls of tools as a language: what a model writes when it calls functions, and text beside calls.

A call is one JSON object with the function's name and its arguments, between two markers. Text never holds the first
marker, so where it stands a call begins, and from there on only a valid one can be written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unmask.errors import UnmaskError
from unmask.structured.dfa import intersection
from unmask.structured.effort import Effort
from unmask.structured.json_schema import Sizes, read_schema
from unmask.structured.json_text import COLON, COMMA, literal, member
from unmask.structured.language import EMPTY, Alt, Chars, Dfa, Language, Repeat, Seq, Text, complement, optional, text

_CHARACTERS = Chars(complement(()))


@dataclass(frozen=True)
class CallForm:
    """How a model writes a call: `opens` {"name": ..., `arguments`: {...}} `closes`. Both markers may be empty: then
    an answer that begins with a brace is a call. `listed`: all of the answer is one JSON array of calls, empty where
    none is wanted, and a JSON schema is its rule."""

    opens: str
    closes: str
    arguments: str
    listed: bool = False


def calls_language(
    form: CallForm, functions: Sequence[tuple[str, Any]], free: bool, several: bool, effort: Effort, sizes: Sizes
) -> Language:
    """Calls of functions, each a name and the schema of its arguments. free: or text, or text and then calls.
    several: more than one, a line break between them. Raises UnmaskError for a schema that is refused."""
    call = Seq((
        text(form.opens),
        Text(b"{"),
        Alt(tuple(_call(form, name, schema, effort, sizes) for name, schema in functions)),
        Text(b"}"),
        text(form.closes),
    ))  # fmt: skip
    most = None if several else 1
    calls = Repeat(call, 1, most, Text(b"\n"))
    if not free:
        return calls
    if form.opens:
        return Seq((intersection([Repeat(_CHARACTERS), _without(form.opens.encode())], effort), optional(calls)))
    first = Chars(complement(((0x9, 0xD), (0x20, 0x20), (0x7B, 0x7B))))  # white space might hide a brace
    return Alt((calls, EMPTY, Seq((first, Repeat(_CHARACTERS)))))


def _call(form: CallForm, name: str, schema: Any, effort: Effort, sizes: Sizes) -> Language:
    """The members of a call."""
    try:
        arguments = read_schema(schema, effort, sizes)
    except UnmaskError as error:
        raise type(error)(f"tool '{name}': {error}") from None
    return Seq((member("name", literal(name)), COMMA, literal(form.arguments), COLON, arguments))


def _without(marker: bytes) -> Dfa:
    """Bytes that never hold a marker: state 1 + k has read its first k bytes (Knuth, Morris and Pratt)."""
    count = len(marker)
    table = np.ones((count + 1, 256), np.int32)
    table[0] = 0
    fallback = 1
    for k, byte in enumerate(marker):
        table[1 + k] = table[fallback] if k else 1
        after = int(table[1 + k, byte])
        table[1 + k, byte] = 2 + k if k + 1 < count else 0
        fallback = after if k else 1
    final = np.ones(count + 1, bool)
    final[0] = False
    return Dfa(table, np.arange(256, dtype=np.uint8), final)
