"""From what the engine tells of a job to text that a client can show: append-only, or a snapshot of the canvas."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from unmask.decoding.request import Alternatives
from unmask.decoding.stops import cut, first
from unmask.output import up_to_end
from unmask.serving.engine import Done, Step

Decode = Callable[[list[int]], str]
BROKEN = "\ufffd"  # what a decoder makes of half a character
SHADE = "░"  # a position that is still noise, in a snapshot
CONTEXT = 8  # tokens that are decoded again with the next ones, for decoders that look back


@dataclass(frozen=True)
class Region:
    """The part of a canvas that is answered with, and how it ends."""

    start: int
    end: int
    mask_id: int
    eos_ids: frozenset[int]
    stops: tuple[str, ...] = ()
    complete: bool = False  # wherever it ends: a gap that was filled, or a text under a grammar


@dataclass(frozen=True)
class Written:
    """What a job came to."""

    text: str
    ids: list[int]  # up to an end of text or the token in which a stop ends
    finish_reason: str
    done: Done
    stop: str | None = None  # at which it was cut


class Detokenizer:
    """Text of a growing list of tokens; only what no later token can change is given out."""

    def __init__(self, decode: Decode) -> None:
        self.decode = decode
        self.window: list[int] = []
        self.given = ""

    def push(self, ids: list[int]) -> str:
        """Takes more tokens; returns the text that has become certain."""
        self.window += ids
        text = self.decode(self.window)
        certain = text.rstrip(BROKEN)
        if not certain.startswith(self.given):
            return ""  # this decoder changed what stood: wait for what it makes of it
        new = certain[len(self.given) :]
        self.given = certain
        if certain == text and len(self.window) > 4 * CONTEXT:
            kept = self.decode(self.window[-CONTEXT:])
            if kept and not kept.startswith(BROKEN) and text.endswith(kept):
                self.window = self.window[-CONTEXT:]
                self.given = kept
        return new


class Writer:
    """Follows one job. Positions of frames count from the region's start."""

    def __init__(self, canvas: list[int], region: Region, decode: Decode) -> None:
        self.canvas = list(canvas)
        self.region = region
        self.decode = decode
        self.logprobs: dict[int, Alternatives] = {}
        self.detokenizer = Detokenizer(decode)
        self.read = region.start  # tokens before it went into the detokenizer
        self.sent = self.held = ""  # held: may be the beginning of a stop
        self.closed = False  # a stop or an end of text was reached

    def take(self, step: Step) -> str:
        """Follows a step; returns the text to append."""
        self.canvas = step.frame.written(self.canvas, self.region.mask_id)
        self.logprobs.update(step.logprobs)
        return self._append(min(step.final, self.region.end))

    def _append(self, final: int) -> str:
        if self.closed or final <= self.read:
            return ""
        fresh = self.canvas[self.read : final]
        ids = up_to_end(fresh, self.region.eos_ids, self.region.mask_id)
        self.read += len(ids)
        text = self.held + self.detokenizer.push(ids)
        self.closed = len(ids) < len(fresh)
        if self.region.stops:
            whole = text
            text = cut(text, list(self.region.stops))
            if len(text) < len(whole):
                self.closed = True
            else:
                keep = _beginning_of_a_stop(text, self.region.stops)
                self.held = text[len(text) - keep :]
                text = text[: len(text) - keep]
        self.sent += text
        return text

    def snapshot(self) -> str:
        """The region as it stands, noise shown as shade."""
        text = ""
        run = list[int]()
        region = self.region
        for token in [*self.canvas[region.start : region.end], -1]:
            noise = token == region.mask_id
            if noise or token == -1 or token in region.eos_ids:
                text += self.decode(run).replace(BROKEN, "") if run else ""
                run = []
            if noise:
                text += SHADE
            elif token in region.eos_ids:
                break
            else:
                run.append(token)
        return cut(text, list(region.stops))

    def finish(self, done: Done) -> tuple[str, Written]:
        """The text that is still to be appended, and the whole outcome."""
        self.canvas = done.ids
        region = self.region
        stops = list(self.region.stops)
        written = done.ids[region.start : min(region.end, done.edge)]
        ids = up_to_end(written, region.eos_ids, region.mask_id)
        whole = self.decode(ids)
        stop = first(whole, stops)
        text = cut(whole, stops)
        if stop is not None:  # tokens up to the one that completed a stop
            ids = ids[: bisect_left(range(len(ids)), True, key=lambda n: self._stops_within(ids[:n]))]
        ended = stop is not None or (len(ids) < len(written) and written[len(ids)] in region.eos_ids)
        rest = text[len(self.sent) :] if text.startswith(self.sent) else ""
        reason = "stop" if ended or region.complete else "length"
        return rest, Written(text, ids, reason, done, stop)

    def _stops_within(self, ids: list[int]) -> bool:
        text = self.decode(ids)
        return any(stop in text for stop in self.region.stops)


def _beginning_of_a_stop(text: str, stops: tuple[str, ...]) -> int:
    """How many characters at the end of a text could become a stop."""
    longest = min(len(text), max(map(len, stops)) - 1)
    return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stops)), 0)
