"""What every token spells, in bytes, and all tokens as one tree of prefixes.

Shapes: V tokens, N nodes of one depth of the tree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from unmask.canvas import Array
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Level:
    """The nodes of one depth: `parent` [N] in the level above, `byte` [N] that leads here, and the tokens that end
    here with their nodes."""

    parent: Array
    byte: Array
    token: Array
    node: Array


@dataclass(frozen=True)
class Vocabulary:
    """spelled: bytes of each of the V tokens, None for those that write no text (control tokens, the mask).
    ends: tokens that end the text. fillers: tokens that may follow an end, besides ends."""

    spelled: Sequence[bytes | None]
    ends: frozenset[int] = frozenset()
    fillers: frozenset[int] = frozenset()

    @cached_property
    def levels(self) -> list[Level]:
        """The tree of prefixes, from depth 1 on."""
        return list(_levels(self.spelled, self.ends | self.fillers))

    @cached_property
    def digest(self) -> bytes:
        """Tells vocabularies apart."""
        sizes = [-1 if text is None else len(text) for text in self.spelled]
        digest = hashlib.sha256(repr((sizes, sorted(self.ends), sorted(self.fillers))).encode())
        digest.update(b"".join(text or b"" for text in self.spelled))
        return digest.digest()

    @cached_property
    def of_byte(self) -> dict[int, int]:
        """The token of each single byte; a vocabulary may lack those that no text holds."""
        found = ((byte, self._tokens.get(bytes([byte]))) for byte in range(256))
        return {byte: token for byte, token in found if token is not None}

    @cached_property
    def _tokens(self) -> dict[bytes, int]:
        """The token that spells a text; of several the last."""
        beside = self.ends | self.fillers
        return {text: token for token, text in enumerate(self.spelled) if text and token not in beside}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._tokens), default=0)

    def split(self, text: bytes) -> tuple[int, ...]:
        """Tokens that spell a text, each the longest that fits; as far as there are any."""
        out = list[int]()
        while text:
            size = next((n for n in range(min(len(text), self._longest), 0, -1) if text[:n] in self._tokens), 0)
            if size == 0:
                break
            out.append(self._tokens[text[:size]])
            text = text[size:]
        return tuple(out)

    def __len__(self) -> int:
        return len(self.spelled)

    @staticmethod
    def of(
        tokenizer: Tokenizer, size: int, ends: Iterable[int] = (), pad: int | None = None, mask: int | None = None
    ) -> Vocabulary:
        """The vocabulary of a tokenizer, for logits of `size` tokens. Raises UnmaskError for a tokenizer whose text
        is not what its tokens spell one after another."""
        kind = _decoder(tokenizer)
        if kind not in ("ByteLevel", "Fuse"):
            raise UnmaskError(
                f"structured output needs a byte-level tokenizer, or one of characters; this one decodes by '{kind}'"
            )
        of_letter = {letter: byte for byte, letter in byte_letters().items()} if kind == "ByteLevel" else {}
        control = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        spelled: list[bytes | None] = [None] * size
        for token in range(size):  # one by one, so that other threads run meanwhile
            name = tokenizer.id_to_token(token)
            if token not in control and token != mask and name:
                known = kind == "ByteLevel" and all(letter in of_letter for letter in name)
                spelled[token] = bytes(of_letter[letter] for letter in name) if known else name.encode()
        return Vocabulary(spelled, frozenset(ends), frozenset([] if pad is None else [pad]))


def _decoder(tokenizer: Tokenizer) -> str:
    """The kind of a tokenizer's decoder: of steps that drop tokens of their own and then decode, the last."""
    found = type(tokenizer.decoder).__name__
    if found != "Sequence":
        return found
    *first, last = json.loads(tokenizer.decoder.__getstate__())["decoders"]
    dropped = [step.get("pattern", {}).get("String", "") for step in first if step.get("content") == ""]
    whole = len(dropped) == len(first) and all(tokenizer.token_to_id(token) is not None for token in dropped)
    return last["type"] if whole else found


def byte_letters() -> dict[int, str]:
    """The letter that byte-level tokenizers write for each byte (GPT-2's table): itself where it shows."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def _levels(spelled: Sequence[bytes | None], without: frozenset[int]) -> Iterable[Level]:
    """Levels from depth 1 on; the root is node 0 of the level above the first."""
    tokens = np.array([i for i, text in enumerate(spelled) if text and i not in without], np.int64)
    texts = [spelled[i] or b"" for i in tokens.tolist()]
    length = np.array([len(text) for text in texts], np.int64)
    node = np.zeros(len(tokens), np.int64)
    place = np.arange(len(tokens))
    depth = 0
    while len(place):
        letter = np.array([texts[i][depth] for i in place.tolist()], np.int64)
        key, inverse = np.unique(node[place] * 256 + letter, return_inverse=True)
        node[place] = inverse
        depth += 1
        ended = length[place] == depth
        yield Level(key // 256, key % 256, tokens[place[ended]], node[place[ended]])
        place = place[~ended]
