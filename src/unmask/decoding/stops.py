"""Texts at which a request stops."""

from __future__ import annotations

from collections.abc import Callable


class Stops:
    """Says whether finished tokens hold one of some texts, decoding only the newest of them; one for each request."""

    def __init__(self, stops: list[str], decode: Callable[[list[int]], str]) -> None:
        self.stops = stops
        self.decode = decode
        self.seen = 0  # tokens that hold no stop
        # every token is a byte of text at least; those without text (control tokens) are why there are some more
        self.margin = max(len(stop.encode(errors="replace")) for stop in stops) + 16

    def __call__(self, ids: list[int]) -> bool:
        self.seen = min(self.seen, len(ids))  # tokens may have been masked again
        text = self.decode(ids[max(0, self.seen - self.margin) :])
        self.seen = len(ids)
        return any(stop in text for stop in self.stops)


def cut(text: str, stops: list[str]) -> str:
    """A text up to its first stop."""
    stop = first(text, stops)
    return text if stop is None else text[: text.find(stop)]


def first(text: str, stops: list[str]) -> str | None:
    """The stop that comes first in a text; of those at one place the one that is named first."""
    return min((stop for stop in stops if stop in text), key=text.find, default=None)
