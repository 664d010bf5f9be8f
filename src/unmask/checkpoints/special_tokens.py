"""Which ids are the mask, the end of text, and the rest: what a folder's files say, and who wins if they disagree."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from unmask.errors import UnmaskError

# <mask>, [MASK], <|mask|>, <|mdm_mask|>, <[MASK_TOKEN]>, |<MASK>|, and Open-dCoder's <M>
MASK_NAME = re.compile(r"\W*(\w+_)?mask(_token)?\W*|<M>", re.IGNORECASE)


@dataclass(frozen=True)
class TokenFiles:
    """What the files beside config.json say; empty where there are none."""

    added: Mapping[int, str] = field(default_factory=dict)  # tokens added to the vocabulary, tokenizer.json
    control: frozenset[int] = frozenset()  # those of them that no text holds
    named: Mapping[str, int] = field(default_factory=dict)  # mask, eos, bos, pad: tokenizer_config.json
    ends: tuple[int, ...] = ()  # eos_token_id of generation_config.json
    size: int = 0  # tokens of tokenizer.json's own vocabulary; 0: not known


@dataclass(frozen=True)
class Tokens:
    """Special ids as settled, where each comes from, and what the files disagree about."""

    mask: Any
    eos: Any
    bos: Any
    pad: Any
    ends: tuple[int, ...]  # others that end an answer
    origins: Mapping[str, str]
    notes: tuple[str, ...]


def resolve(
    raw: Mapping[str, Any],
    fields: Mapping[str, Any],
    files: TokenFiles,
    usual: tuple[int | None, int | None, int | None],
    source: str,
) -> Tokens:
    """Settles the special ids of a model.

    config.json comes first (the network was trained with it), then generation_config.json, then the tokenizer's
    files, then the family's usual ids (mask, eos, turn). `fields` is what config.json was read to, `raw` the file.
    Values of a wrong type are handed on for the config's own check. Raises UnmaskError for a mask outside the
    vocabulary.
    """
    size: int = fields["vocab_size"] if _is_id(fields.get("vocab_size")) else 0
    if files.size > size > 0:
        raise UnmaskError(f"{source}: its tokenizer has {files.size} tokens, the network's vocabulary {size}")
    found: dict[str, Any] = {}
    origins: dict[str, str] = {}
    notes: list[str] = []
    masks = [token for token, name in files.added.items() if MASK_NAME.fullmatch(name)]
    named = {**({"mask": masks[0]} if len(masks) == 1 else {}), **files.named}
    uniform = fields.get("corruption") == "uniform"  # it writes over random tokens; none means "not written yet"
    for role, standard in (("mask", usual[0]), ("eos", usual[1]), ("bos", None), ("pad", None)):
        own, generation = fields.get(f"{role}_token_id"), files.ends[0] if role == "eos" and files.ends else None
        follows = role == "mask" and raw.get("mask_token_id") is None
        options = [(own, "the sizes in config.json" if follows else "config.json")]
        if role != "mask" or not uniform:
            others = (
                (generation, "generation_config.json"),
                (named.get(role), "the tokenizer"),
                (standard, "the family's usual id"),
            )
            options += [(value, origin) for value, origin in others if value is not None and value < size]
        found[role], origins[role] = next(((v, o) for v, o in options if v is not None), (None, "nowhere"))
        told = named.get(role)
        if told is not None and found[role] != told and _is_id(found[role]):
            notes.append(f"{role} is {found[role]} by {origins[role]}, {told} by the tokenizer; the first is used")
    mask = found["mask"]
    if _is_id(mask) and mask >= size > 0:
        raise UnmaskError(f"{source}: mask_token_id {mask} is outside the vocabulary of {size}")
    listed, turn = raw.get("eos_token_id"), usual[2] if not files.added or usual[2] in files.added else None
    ends = [*(listed if isinstance(listed, list) else []), *files.ends, files.named.get("eos"), turn]
    rest = tuple(sorted({end for end in ends if _is_id(end) and end < size and end != found["eos"]}))
    return Tokens(mask, found["eos"], found["bos"], found["pad"], rest, origins, tuple(notes))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def free_token(special: Mapping[int, str], used: Collection[int | None], template: str | None, source: str) -> int:
    """Id of the token to mask with: one named like a mask, else the last control token with no other use.

    special: id to name of the control tokens. used: ids with a meaning (start, end, padding). A token that the
    chat template writes is in use as well. Raises UnmaskError where none is free.
    """
    named = [token for token, name in special.items() if MASK_NAME.fullmatch(name)]
    if named:
        return named[0]
    free = [token for token, name in special.items() if token not in used and not (template and name in template)]
    if not free:
        raise UnmaskError(
            f"{source}: all {len(special)} control tokens are in use, so none can be the mask; "
            "put a config.json with a mask_token_id beside it"
        )
    return max(free)
