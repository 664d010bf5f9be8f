"""Templates with gaps: "The [[mask:4]] sat on the [[mask:1-3]]." to canvases, and which lengths to take."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_GAP = re.compile(r"\[\[mask:(\d{1,6})(?:-(\d{1,6}))?\]\]")


@dataclass(frozen=True)
class Template:
    """Given texts as token ids and, between them, gaps of `shortest` to `longest` tokens."""

    segments: list[list[int]]  # one more than there are gaps
    shortest: list[int]
    longest: list[int]

    def canvas(self, lengths: list[int], mask_id: int) -> tuple[list[int], list[bool]]:
        """Ids with masks in the gaps, and which of them are given."""
        ids, given = list(self.segments[0]), [True] * len(self.segments[0])
        for length, segment in zip(lengths, self.segments[1:], strict=True):
            ids += [mask_id] * length + segment
            given += [False] * length + [True] * len(segment)
        return ids, given

    def gaps(self, canvas: list[int], lengths: list[int]) -> list[list[int]]:
        """The ids that fill each gap of a written canvas."""
        out, place = [], len(self.segments[0])
        for length, segment in zip(lengths, self.segments[1:], strict=True):
            out.append(canvas[place : place + length])
            place += length + len(segment)
        return out


def parse_template(text: str, tokenizer: Tokenizer) -> Template:
    """Reads a template; one without gaps, or with an impossible length, raises UnmaskError."""
    matches = list(_GAP.finditer(text))
    if not matches:
        raise UnmaskError("the template has no gap; write [[mask:4]] or [[mask:1-3]] where text is wanted")
    bounds = [0, *(edge for m in matches for edge in m.span()), len(text)]
    pieces = [text[a:b] for a, b in zip(bounds[::2], bounds[1::2], strict=True)]
    if _spaces_lead_words(tokenizer):
        # byte-level words carry the space before them, so a gap begins with its own space
        pieces = [p[:-1] if p.endswith(" ") else p for p in pieces[:-1]] + pieces[-1:]
    shortest = [int(m[1]) for m in matches]
    longest = [int(m[2] or m[1]) for m in matches]
    for low, high, match in zip(shortest, longest, matches, strict=True):
        if not 1 <= low <= high:
            raise UnmaskError(
                f"gap {match[0]} is impossible: lengths are at least 1 and the first not above the second"
            )
    segments = [tokenizer.encode(p, add_special_tokens=False).ids for p in pieces]
    return Template(segments, shortest, longest)


def _spaces_lead_words(tokenizer: Tokenizer) -> bool:
    token = tokenizer.id_to_token(tokenizer.encode(" the", add_special_tokens=False).ids[0]) or ""
    return len(token) > 1 and token[0] in "Ġ▁"
