"""Templates with gaps: "The [[mask:4]] sat on the [[mask:1-3]]." to canvases, and which lengths to take."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unmask.canvas import Frame
from unmask.decoding.detokenize import carries_space, ids_after, text_after
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_GAP = re.compile(r"\[\[mask:(\d{1,6})(?:-(\d{1,6}))?\]\]")


@dataclass(frozen=True)
class Template:
    """Given texts as token ids and, between them, gaps of `shortest` to `longest` tokens."""

    segments: list[list[int]]  # one more than there are gaps
    choices: list[Sequence[int]]  # of each gap: the lengths it may have, ascending
    pieces: list[str]  # the given texts themselves

    def canvas(self, lengths: list[int], mask_id: int) -> tuple[list[int], list[bool]]:
        """Ids with masks in the gaps, and which of them are given."""
        ids = list(self.segments[0])
        given = [True] * len(ids)
        for length, segment in zip(lengths, self.segments[1:], strict=True):
            ids += [mask_id] * length + segment
            given += [False] * length + [True] * len(segment)
        return ids, given

    def length(self, lengths: list[int]) -> int:
        """Tokens of the canvas with gaps of these lengths."""
        return sum(map(len, self.segments)) + sum(lengths)

    @property
    def longest(self) -> list[int]:
        return [lengths[-1] for lengths in self.choices]

    def gaps(self, canvas: list[int], lengths: list[int]) -> list[list[int]]:
        """The ids that fill each gap of a written canvas."""
        out = []
        place = len(self.segments[0])
        for length, segment in zip(lengths, self.segments[1:], strict=True):
            out.append(canvas[place : place + length])
            place += length + len(segment)
        return out

    def text(self, canvas: list[int], lengths: list[int], tokenizer: Tokenizer) -> tuple[str, list[str]]:
        """A written canvas as text, the given parts as they were given; and the text of each gap."""
        before = list(self.segments[0])
        text = self.pieces[0]
        gaps = []
        for gap, segment, piece in zip(self.gaps(canvas, lengths), self.segments[1:], self.pieces[1:], strict=True):
            gaps.append(text_after(tokenizer, before, gap))
            before += [*gap, *segment]
            text += gaps[-1] + piece
        return text, gaps


def parse_template(text: str, tokenizer: Tokenizer) -> Template:
    """Reads a template; one without gaps, or with an impossible length, raises UnmaskError."""
    matches = list(_GAP.finditer(text))
    if not matches:
        raise UnmaskError("the template has no gap; write [[mask:4]] or [[mask:1-3]] where text is wanted")
    gaps = list[Sequence[int]]()
    for match in matches:
        low = int(match[1])
        high = int(match[2] or low)
        if not 1 <= low <= high:
            raise UnmaskError(
                f"gap {match[0]} is impossible: lengths are at least 1 and the first not above the second"
            )
        gaps.append(range(low, high + 1))
    bounds = [0, *(edge for m in matches for edge in m.span()), len(text)]
    return make_template([text[a:b] for a, b in zip(bounds[::2], bounds[1::2], strict=True)], gaps, tokenizer)


def make_template(pieces: list[str], choices: list[Sequence[int]], tokenizer: Tokenizer) -> Template:
    """Given texts, one more than there are gaps, and the lengths that each gap may have."""
    if carries_space(tokenizer):  # a gap then begins with its own space
        pieces = [p[:-1] if p.endswith(" ") else p for p in pieces[:-1]] + pieces[-1:]
    first = tokenizer.encode(pieces[0], add_special_tokens=False).ids
    return Template([first, *(ids_after(tokenizer, piece) for piece in pieces[1:])], choices, pieces)


def settle_lengths(template: Template) -> Generator[list[list[int]], list[float], list[int]]:
    """Settles the gaps from left to right. Yields the lengths of all gaps to try next, one list a candidate; is sent
    how sure the model was of each; returns the lengths that were taken."""
    lengths = [choices[0] for choices in template.choices]
    for gap, choices in enumerate(template.choices):
        if len(choices) > 1:
            tried = [[*lengths[:gap], n, *lengths[gap + 1 :]] for n in choices]
            sure = yield tried
            lengths = tried[max(range(len(tried)), key=sure.__getitem__)]
    return lengths


def mean_log_confidence(frames: list[Frame]) -> float:
    """Over the tokens that stayed: how sure the model was of what it wrote."""
    last: dict[int, float] = {}
    for frame in frames:
        last.update(zip(frame.positions, frame.confidences, strict=True))
    return float(np.log(np.maximum(list(last.values()), 1e-30)).mean())
