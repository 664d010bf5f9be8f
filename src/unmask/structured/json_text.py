"""How JSON values are written: strings, numbers within bounds, literals, and the formats of JSON Schema.

Each value has one spelling only, apart from one optional space after ',' and ':'. Characters stand for themselves;
only '"', the backslash and five control characters are escaped, and other control characters are never written.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import numpy as np

from unmask.structured.language import (
    EMPTY,
    LAST,
    NOTHING,
    Alt,
    Chars,
    Dfa,
    Language,
    Ranges,
    Repeat,
    Seq,
    Text,
    optional,
    overlap,
    text,
)
from unmask.structured.regex import read_regex

_ESCAPES = {0x22: '\\"', 0x5C: "\\\\", 0x8: "\\b", 0x9: "\\t", 0xA: "\\n", 0xC: "\\f", 0xD: "\\r"}
_PLAIN: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, LAST))
COMMA = Seq((Text(b","), optional(Text(b" "))))
COLON = Seq((Text(b":"), optional(Text(b" "))))
DIGITS = 15  # most that are written: a number of 15 digits survives binary floating point
DECIMALS = 6
INTEGER = read_regex(rf"-?(0|[1-9]\d{{0,{DIGITS - 1}}})")
NUMBER = Seq((INTEGER, read_regex(rf"(\.\d{{1,{DIGITS}}})?([eE][+-]?\d{{1,2}})?")))
MOST_MULTIPLE = 1000

_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_DATE = r"[12]\d{3}-((0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
_HOST = r"[a-z0-9]{1,20}(-[a-z0-9]{1,20})?(\.[a-z0-9]{1,20})?\.[a-z]{2,6}"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"({_DATE})T{_TIME}",
    "email": rf"[A-Za-z0-9]+([._+-][A-Za-z0-9]+){{0,4}}@{_HOST}",
    "hostname": _HOST,
    "ipv4": rf"{_BYTE}(\.{_BYTE}){{3}}",
    "ipv6": r"[0-9a-f]{1,4}(:[0-9a-f]{1,4}){7}",
    "uri": rf"https?://{_HOST}(:[1-9]\d{{0,3}})?(/[A-Za-z0-9._~-]+)*/?(\?[A-Za-z0-9._~=&-]+)?(#[A-Za-z0-9._~-]+)?",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}


def character(ranges: Ranges) -> Language:
    """One character of a JSON string out of ranges of code points."""
    escaped = [text(escape) for code, escape in _ESCAPES.items() if overlap(ranges, ((code, code),))]
    plain = overlap(ranges, _PLAIN)
    return Alt((*([Chars(plain)] if plain else []), *escaped))


ANY_CHARACTER = character(((0, LAST),))


def quoted(content: Language) -> Language:
    return Seq((Text(b'"'), content, Text(b'"')))


def literal(value: Any) -> Language:
    """Exactly this JSON value. Raises ValueError for what JSON has no spelling of."""
    if isinstance(value, list):
        return array([literal(item) for item in value])
    if isinstance(value, dict):
        return Seq((Text(b"{"), *_separated([member(key, literal(item)) for key, item in value.items()]), Text(b"}")))
    try:
        return Text(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except UnicodeEncodeError:  # half a surrogate pair
        return Text(json.dumps(value).encode())


def array(items: list[Language]) -> Language:
    return Seq((Text(b"["), *_separated(items), Text(b"]")))


def _separated(parts: list[Language]) -> list[Language]:
    return [piece for i, part in enumerate(parts) for piece in ([COMMA, part] if i else [part])]


def member(name: str, value: Language) -> Language:
    return Seq((literal(name), COLON, value))


def integers(low: int | None, high: int | None) -> Language:
    """Whole numbers from low to high (None: no bound of the schema's; as many digits as are usual)."""
    if low is None and high is None:
        return INTEGER
    return decimals(low, high, 0)


def decimals(low: int | None, high: int | None, places: int) -> Language:
    """Numbers from low to high, both in units of 10^-places, without exponent; at least one bound is given."""
    # without the other bound: some digits more than the one that is there
    length = max(len(str(abs(bound))) for bound in (low, high) if bound is not None)
    most = 10 ** max(length + 1, DIGITS if places == 0 else places + 9) - 1
    low = -most if low is None else low
    high = most if high is None else high
    parts: list[Language] = []
    if low < 0:
        parts.append(Seq((Text(b"-"), _positive(max(1, -high), -low, places))))
    parts.append(_positive(max(0, low), high, places))
    return Alt(tuple(parts))


def _positive(low: int, high: int, places: int) -> Language:
    if low > high:
        return NOTHING
    unit = 10**places
    (first, rest) = divmod(low, unit)
    (last, most) = divmod(high, unit)
    if first == last:
        return Seq((text(str(first)), _fraction(rest, most, places)))
    parts = [Seq((text(str(first)), _fraction(rest, unit - 1, places)))]
    parts.append(Seq((text(str(last)), _fraction(0, most, places))))
    inside = []
    for length in range(len(str(first + 1)), len(str(last - 1)) + 1):
        begin = max(first + 1, 10 ** (length - 1) if length > 1 else 0)
        end = min(last - 1, 10**length - 1)
        if begin <= end:
            inside.append(_between(str(begin), str(end)))
    return Alt((*parts, Seq((Alt(tuple(inside)), _fraction(0, unit - 1, places)))))


def _between(low: str, high: str) -> Language:
    """Digits from low to high, which are of one length."""
    if not low:
        return EMPTY
    if low[0] == high[0]:
        return Seq((text(low[0]), _between(low[1:], high[1:])))
    length = len(low) - 1
    least = "0" * length
    most = "9" * length
    first = int(low[0]) + (low[1:] != least)
    last = int(high[0]) - (high[1:] != most)
    parts: list[Language] = [Seq((_digit(first, last), Repeat(_digit(0, 9), length, length)))]
    if low[1:] != least:
        parts.append(Seq((text(low[0]), _between(low[1:], most))))
    if high[1:] != most:
        parts.append(Seq((text(high[0]), _between(least, high[1:]))))
    return Alt(tuple(parts))


def _digit(first: int, last: int) -> Language:
    return Chars(((0x30 + first, 0x30 + last),)) if first <= last else NOTHING


def _fraction(low: int, high: int, places: int) -> Language:
    """A point and digits, or neither: fractions from low to high in units of 10^-places."""
    if not places:
        return EMPTY
    some = Seq((Text(b"."), _decimals(str(low).zfill(places), str(high).zfill(places), False)))
    return Alt((some, EMPTY)) if low == 0 else some


def _decimals(low: str, high: str, may_stop: bool = True) -> Language:
    """Digits of a fraction from low to high, of which zeros at the end may be left out."""
    if not low:
        return EMPTY
    least = "0" * (len(low) - 1)
    most = "9" * (len(low) - 1)
    if low == least + "0" and high == most + "9":
        return Repeat(_digit(0, 9), int(not may_stop), len(low))
    if low[0] == high[0]:
        parts: list[Language] = [Seq((text(low[0]), _decimals(low[1:], high[1:])))]
    else:
        parts = [
            Seq((text(low[0]), _decimals(low[1:], most))),
            Seq((_digit(int(low[0]) + 1, int(high[0]) - 1), _decimals(least, most))),
            Seq((text(high[0]), _decimals(least, high[1:]))),
        ]
    if may_stop and low == least + "0":
        parts.append(EMPTY)
    return Alt(tuple(parts))


def multiples(factor: int) -> Dfa:
    """Whole numbers that the factor divides: a state for each remainder, one for '-', one for the start, one for 0."""
    # states: 0 dead, 1 start, 2 after '-', 3 after a leading zero, 4 + r remainder r
    group = np.zeros(256, np.uint8)
    group[ord("-")] = 1
    group[ord("0") : ord("9") + 1] = 2 + np.arange(10)
    table = np.zeros((4 + factor, 12), np.int32)
    table[1, 1] = 2
    table[1, 2] = 3
    table[1:3, 3:] = 4 + np.arange(1, 10) % factor
    table[4:, 2:] = 4 + (10 * np.arange(factor)[:, None] + np.arange(10)) % factor
    final = np.zeros(4 + factor, bool)
    final[3] = final[4] = True
    return Dfa(table, group, final)


def whole(value: Decimal, places: int, up: bool) -> int:
    """A bound in units of 10^-places, rounded inwards."""
    scaled = value.scaleb(places)
    return int(scaled.to_integral_value("ROUND_CEILING" if up else "ROUND_FLOOR"))
