r"""Regular expressions as languages: what Python's `re` and ECMA-262 (the patterns of JSON Schema) agree on.

Honoured: literals, `.`, classes, `\d \w \s \D \W \S`, escapes, groups, `|`, `* + ?`, `{n} {n,} {n,m}` (lazy or not),
and `^ $` at the edges of the expression or of its alternatives. Where the two dialects differ on which characters
match, only those that match in both are written: `\d` and `\w` are ASCII, and so are `\D` and `\W`; `.` writes no line
break of any kind. Look-ahead may stand at the start. Refused:
any other look-around, back-references, `\b`, inline flags, possessive quantifiers, `\p`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from unmask.errors import UnmaskError
from unmask.structured.dfa import intersection, without
from unmask.structured.effort import Effort
from unmask.structured.language import EMPTY, LAST, Alt, Chars, Language, Ranges, Repeat, Seq, complement, union

MOST_CHARACTERS = 20_000  # of an expression, and groups within groups
MOST_GROUPS = 50
ALL: Ranges = ((0, LAST),)
_NOT_ASCII: Ranges = ((0x80, LAST),)
_SPACES = ((0x9, 0xD), (0x20, 0x20))
_ANY_SPACES = union((
    (0x9, 0xD), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x180E, 0x180E), (0x2000, 0x200A),
    (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
))  # fmt: skip
_DIGITS: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_NO_BREAK = complement(((0xA, 0xA), (0xD, 0xD), (0x2028, 0x2029)))
# what a shorthand surely matches, and all that it may match in some dialect
_SHORTHANDS: dict[str, tuple[Ranges, Ranges]] = {
    "d": (_DIGITS, union((*_DIGITS, *_NOT_ASCII))),
    "w": (_WORD, union((*_WORD, *_NOT_ASCII))),
    "s": (_SPACES, _ANY_SPACES),
}
_SHORTHANDS |= {k.upper(): (complement(outer), complement(inner)) for k, (inner, outer) in _SHORTHANDS.items()}
_CONTROLS = {"n": 0xA, "t": 0x9, "r": 0xD, "f": 0xC, "v": 0xB, "0": 0x0}
_REPEATS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_QUANTIFIER = re.compile(r"\{(\d{1,9})(,?)(\d{0,9})\}")


@dataclass(frozen=True)
class _Branch:
    """One alternative: what it writes and which of its edges are anchored."""

    node: Language
    from_start: bool
    to_end: bool
    ahead: tuple[tuple[bool, Language], ...] = ()  # texts that it must (True) or must not begin with


def read_regex(
    pattern: str,
    search: bool = False,
    write: Callable[[Ranges], Language] = Chars,
    effort: Effort | None = None,
) -> Language:
    """The texts that match the whole pattern or, where `search`, that hold a match anywhere.

    write: how a character out of some ranges is written. effort: what look-ahead may cost. Raises UnmaskError for
    what is malformed or refused.
    """
    if len(pattern) > MOST_CHARACTERS:
        raise UnmaskError(f"the regular expression has {len(pattern)} characters, more than {MOST_CHARACTERS}")
    reader = _Reader(pattern, write)
    branches = reader.branches(0)
    if reader.at < len(pattern):
        raise reader.error("a ')' that closes nothing", reader.at)
    anything = Repeat(write(ALL))
    sides: list[Language] = []
    for branch in branches:
        before = [anything] if search and not branch.from_start else []
        side: Language = Seq((*before, branch.node, *([anything] if search and not branch.to_end else [])))
        if branch.ahead and before:
            raise reader.error("look-ahead without '^' before it", 0)
        for wanted, ahead in branch.ahead:
            effort = effort or Effort()
            side = intersection([side, ahead], effort) if wanted else without(side, ahead, effort)
        sides.append(side)
    return Alt(tuple(sides))


class _Reader:
    """Reads an expression by recursive descent."""

    def __init__(self, pattern: str, write: Callable[[Ranges], Language]) -> None:
        self.pattern = pattern
        self.write = write
        self.at = 0

    def error(self, what: str, at: int) -> UnmaskError:
        shown = self.pattern if len(self.pattern) <= 60 else self.pattern[:57] + "..."
        return UnmaskError(f"regular expression {shown!r}: {what} (character {at + 1}) cannot be used")

    def branches(self, depth: int) -> list[_Branch]:
        """Alternatives up to a closing parenthesis or the end."""
        if depth > MOST_GROUPS:
            raise self.error(f"groups nested deeper than {MOST_GROUPS}", self.at)
        out = self._branch(depth)
        while self._take("|"):
            out += self._branch(depth)
        return out

    def _branch(self, depth: int) -> list[_Branch]:
        """One alternative; one that is nothing but a group gives the group's own, which may be anchored."""
        parts: list[Language] = []
        alone: list[_Branch] | None = None
        ahead: list[tuple[bool, Language]] = []
        from_start = to_end = False
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            place = self.at
            if self._take("^"):
                if parts or to_end or self._quantified():
                    raise self.error("'^' anywhere but at the start", place)
                from_start = True
                continue
            if self._take("$"):
                if self._quantified():
                    raise self.error("a repeated '$'", place)
                to_end = True
                continue
            if to_end:
                raise self.error("'$' anywhere but at the end", place - 1)
            if depth == 0 and not parts and self.pattern.startswith(("(?=", "(?!"), self.at):
                ahead.append(self._look_ahead())
                continue
            inner = self._group(depth) if self._take("(") else None
            part = self._character() if inner is None else Alt(tuple(branch.node for branch in inner))
            repeated = self._quantifier(part)
            if inner is not None and any(branch.from_start or branch.to_end for branch in inner):
                if parts or repeated is not part or self.pattern[self.at : self.at + 1] not in ("", "|", ")", "$"):
                    raise self.error("'^' or '$' anywhere but at the edges", place)
                alone = inner
            parts.append(repeated)
        if alone is not None:
            return [_Branch(b.node, b.from_start or from_start, b.to_end or to_end, tuple(ahead)) for b in alone]
        return [_Branch(Seq(tuple(parts)) if parts else EMPTY, from_start, to_end, tuple(ahead))]

    def _look_ahead(self) -> tuple[bool, Language]:
        """Look-ahead at the start of the expression: whether it is wanted, and all texts that begin so."""
        opened = self.at
        wanted = self.pattern[opened + 2] == "="
        self.at += 3
        inner = self.branches(1)
        if not self._take(")"):
            raise self.error("a '(' that is never closed", opened)
        if self._quantified():
            raise self.error("a repeated look-ahead", opened)
        anything = Repeat(self.write(ALL))
        return wanted, Alt(tuple(Seq((b.node, *([] if b.to_end else [anything]))) for b in inner))

    def _take(self, text: str) -> bool:
        taken = self.pattern.startswith(text, self.at)
        self.at += len(text) * taken
        return taken

    def _quantified(self) -> bool:
        return self.pattern[self.at : self.at + 1] in _REPEATS or bool(_QUANTIFIER.match(self.pattern, self.at))

    def _group(self, depth: int) -> list[_Branch]:
        opened = self.at - 1
        if self._take("?"):
            name = re.compile(r"P?<[A-Za-z_]\w*>").match(self.pattern, self.at)
            if name:
                self.at = name.end()
            elif not self._take(":"):
                raise self.error(f"'(?{self.pattern[self.at : self.at + 2]}'", opened)
        inner = self.branches(depth + 1)
        if not self._take(")"):
            raise self.error("a '(' that is never closed", opened)
        return inner

    def _quantifier(self, part: Language) -> Language:
        place = self.at
        sign = self.pattern[self.at : self.at + 1]
        braces = _QUANTIFIER.match(self.pattern, self.at)
        if sign in _REPEATS:
            self.at += 1
            low, high = _REPEATS[sign]
        elif braces:
            self.at = braces.end()
            low = int(braces[1])
            high = int(braces[3]) if braces[3] else None if braces[2] else low
        else:
            return part
        if high is not None and high < low:
            raise self.error("a repetition whose bounds are the wrong way round", place)
        self._take("?")  # lazy: the same texts match
        if self._quantified() or self.pattern.startswith("+", self.at):
            raise self.error("a repeated repetition", self.at)
        return Repeat(part, low, high)

    def _character(self) -> Language:
        place = self.at
        char = self.pattern[self.at]
        self.at += 1
        if char == ".":
            return self.write(_NO_BREAK)
        if char == "[":
            return self.write(self._class())
        if char == "\\":
            return self.write(self._escape()[0])
        if char in "*+?" or (char == "{" and _QUANTIFIER.match(self.pattern, place)):
            raise self.error("a repetition of nothing", place)
        if char == "{" and re.compile(r"\{,\d*\}").match(self.pattern, place):
            raise self.error("'{,' without a lower bound", place)
        return self.write(_one(ord(char))[0])

    def _escape(self) -> tuple[Ranges, Ranges]:
        """After a backslash: what is surely matched, and what may be."""
        place = self.at - 1
        char = self.pattern[self.at : self.at + 1]
        self.at += 1
        if char in _SHORTHANDS:
            return _SHORTHANDS[char]
        if char in ("x", "u"):
            digits = 2 if char == "x" else 4
            code = re.compile(rf"[0-9a-fA-F]{{{digits}}}").match(self.pattern, self.at)
            if code and not 0xD800 <= int(code[0], 16) <= 0xDFFF:
                self.at = code.end()
                return _one(int(code[0], 16))
        elif char in _CONTROLS and not (char == "0" and self.pattern[self.at : self.at + 1].isdigit()):
            return _one(_CONTROLS[char])
        elif char and not char.isalnum() and char != "_":
            return _one(ord(char))
        raise self.error(f"'\\{char}'", place)

    def _class(self) -> Ranges:
        """A class in brackets, of which the first is read."""
        opened = self.at - 1
        negated = self._take("^")
        if self.pattern.startswith("]", self.at):
            raise self.error("a class without characters; write '\\]' for a bracket", opened)
        sure: list[tuple[int, int]] = []
        maybe: list[tuple[int, int]] = []
        while not self._take("]"):
            low, widest = self._class_item(opened)
            place = self.at
            if self.pattern.startswith("-", self.at) and not self.pattern.startswith("-]", self.at):
                self.at += 1
                high, _ = self._class_item(opened)
                single = len(low) == len(high) == 1 and low[0][0] == low[0][1] and high[0][0] == high[0][1]
                if not single or low[0][0] > high[0][0]:
                    raise self.error("a range of characters whose ends are the wrong way round or not single", place)
                low = widest = ((low[0][0], high[0][0]),)
            sure += low
            maybe += widest
        return complement(tuple(maybe)) if negated else union(tuple(sure))

    def _class_item(self, opened: int) -> tuple[Ranges, Ranges]:
        char = self.pattern[self.at : self.at + 1]
        self.at += 1
        if not char:
            raise self.error("a '[' that is never closed", opened)
        if char != "\\":
            return _one(ord(char))
        return _one(8) if self._take("b") else self._escape()  # in a class, \b is a backspace


def _one(code: int) -> tuple[Ranges, Ranges]:
    """A character that is sure to be matched, and all that may be."""
    return ((code, code),), ((code, code),)
