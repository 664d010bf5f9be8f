"""What followed the last tokens when they stood before: drafts that need no network (prompt lookup decoding)."""

from __future__ import annotations

LONGEST = 8  # tokens that a suffix is matched by
LOOKS = 64  # places where its last two tokens stood, the latest first, that are looked at


class Suffixes:
    """Where the ends of a text that grows stood before, each place as the number of tokens up to there."""

    def __init__(self) -> None:
        self.tokens = list[int]()
        self.single: dict[int, int] = {}  # a token, to where it stood last
        self.pairs: dict[tuple[int, int], int] = {}
        self.before = list[int]()  # of each token, where it and the one before it stood last before that; 0: nowhere
        self.alone = 0  # where the last token stood last before

    def extend(self, tokens: list[int]) -> None:
        for token in tokens:
            pair = (self.tokens[-1] if self.tokens else -1, token)
            self.tokens.append(token)
            end = len(self.tokens)
            self.alone = self.single.get(token, 0)
            self.single[token] = end
            self.before.append(self.pairs.get(pair, 0))
            self.pairs[pair] = end

    def follow(self, most: int) -> tuple[list[int], int]:
        """What followed the longest run at the end that stood before, of up to LONGEST tokens and where it stood last,
        and how long that run is; nothing where none did."""
        best = self.alone
        if not best:
            return [], 0
        tokens = self.tokens
        end = len(tokens)
        longest = 1
        place = self.before[-1]
        for _ in range(LOOKS):
            if not place or longest == LONGEST:
                break
            size = 2
            while size < min(LONGEST, place) and tokens[place - size - 1] == tokens[end - size - 1]:
                size += 1
            if size > longest:
                best = place
                longest = size
            place = self.before[place - 1]
        return tokens[best : best + most], longest
