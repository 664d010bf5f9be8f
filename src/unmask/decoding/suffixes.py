"""What followed the last tokens when they stood before: drafts that need no network (prompt lookup decoding)."""

from __future__ import annotations

LONGEST = 8  # tokens that a suffix is matched by


class Suffixes:
    """Where each run of 1 to LONGEST tokens stood last, of a text that grows."""

    def __init__(self) -> None:
        self.tokens = list[int]()
        self.after: dict[tuple[int, ...], int] = {}  # a run, to the place behind it

    def extend(self, tokens: list[int]) -> None:
        for token in tokens:
            end = len(self.tokens)
            for size in range(1, min(LONGEST, end) + 1):  # what ends here is known once something follows
                self.after[tuple(self.tokens[end - size :])] = end
            self.tokens.append(token)

    def follow(self, most: int) -> tuple[list[int], int]:
        """What followed the longest run at the end that stood before, and how long that run is; nothing where none
        did."""
        end = len(self.tokens)
        for size in range(min(LONGEST, end), 0, -1):
            place = self.after.get(tuple(self.tokens[end - size :]))
            if place is not None:
                return self.tokens[place : place + most], size
        return [], 0
