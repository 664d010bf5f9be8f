"""How JSON numbers are written: within bounds, and multiples of a factor."""

from __future__ import annotations

from decimal import Decimal
from math import lcm

import numpy as np

from unmask.errors import UnmaskError
from unmask.structured.dfa import finite, intersection, trim
from unmask.structured.effort import Effort
from unmask.structured.language import EMPTY, NOTHING, Alt, Chars, Dfa, Language, Repeat, Seq, Text, text
from unmask.structured.regex import read_regex

DIGITS = 15  # most that are written: a number of 15 digits survives binary floating point
DECIMALS = 6
INTEGER = read_regex(rf"-?(0|[1-9]\d{{0,{DIGITS - 1}}})")
NUMBER = Seq((INTEGER, read_regex(rf"(\.\d{{1,{DIGITS}}})?([eE][+-]?\d{{1,2}})?")))
PLAIN = Seq((read_regex(r"-?(0|[1-9]\d{0,8})"), read_regex(rf"(\.\d{{1,{DECIMALS}}})?")))
# numbers that surely differ: by sign, number of digits before the point, and the first of them
_PLACES = rf"(\.\d{{1,{DECIMALS}}})?"
APART = (
    read_regex(rf"0{_PLACES}"),
    *(read_regex(rf"{first}\d{{{more}}}{_PLACES}") for more in range(6) for first in range(1, 10)),
    read_regex(rf"[1-9]\d{{6,8}}{_PLACES}"),
    read_regex(rf"-(0\.0{{0,{DECIMALS - 1}}}[1-9]|[1-9]\d{{0,8}}{_PLACES})"),
)
MOST_REMAINDERS = 12_000  # states of the automaton of multiples
SAFE_ROUNDING = Decimal(2) ** -54  # of a factor: exact multiples then divide without rest in floating point too
CHECKED_MULTIPLES = 10_000  # of a factor that binary floating point rounds, those checked one by one


def decimals(low: int | None, high: int | None, places: int) -> Language:
    """Numbers from low to high, both in units of 10^-places, without exponent; at least one bound is given."""
    # without the other bound: some digits more than the one that is there
    length = max(len(str(abs(bound))) for bound in (low, high) if bound is not None)
    most = 10 ** max(length + 1, DIGITS if places == 0 else places + 9) - 1
    low = -most if low is None else low
    high = most if high is None else high
    parts: list[Language] = [
        Seq((Text(b"-"), _positive(max(1, -high), -low, places))),
        _positive(max(0, low), high, places),
    ]
    return Alt(tuple(parts))


def _positive(low: int, high: int, places: int) -> Language:
    """By the number of digits before the point."""
    parts = []
    for length in range(1, len(str(max(high, 0))) + 1):
        begin = max(low, 10 ** (length - 1 + places) if length > 1 else 0)
        end = min(high, 10 ** (length + places) - 1)
        if begin <= end:
            low_digits, high_digits = (str(bound).zfill(length + places) for bound in (begin, end))
            parts.append(_between(low_digits, high_digits, length))
    return Alt(tuple(parts))


def _between(low: str, high: str, whole: int) -> Language:
    """Digits from low to high, which are of one length, `whole` of them before a point (-1: none, and one is written
    behind it); zeros at the end of a fraction may be left out, and so may the point with nothing behind it."""
    if not low:
        return EMPTY
    may_stop = (EMPTY,) if whole <= 0 and whole != -1 and not low.strip("0") else ()
    if whole == 0:
        return Alt((Seq((Text(b"."), _between(low, high, -1))), *may_stop))
    least = "0" * (len(low) - 1)
    most = "9" * (len(low) - 1)
    if (low, high) == (least + "0", most + "9"):
        if whole < 0:
            return Repeat(_digit(0, 9), int(whole == -1), len(low))
        return Seq((Repeat(_digit(0, 9), whole, whole), _between(low[whole:], high[whole:], 0)))
    if low[0] == high[0]:
        return Alt((Seq((text(low[0]), _between(low[1:], high[1:], whole - 1))), *may_stop))
    first = int(low[0]) + (low[1:] != least)  # from here to `last` any digits may follow
    last = int(high[0]) - (high[1:] != most)
    parts: list[Language] = [Seq((_digit(first, last), _between(least, most, whole - 1)))]
    if low[1:] != least:
        parts.append(Seq((text(low[0]), _between(low[1:], most, whole - 1))))
    if high[1:] != most:
        parts.append(Seq((text(high[0]), _between(least, high[1:], whole - 1))))
    return Alt((*parts, *may_stop))


def _digit(first: int, last: int) -> Language:
    return Chars(((0x30 + first, 0x30 + last),)) if first <= last else NOTHING


def multiples_of(factor: Decimal, whole: bool, effort: Effort) -> Language:
    """Numbers that the factor divides, in decimal and for validators that divide in floating point.

    Where the factor is exact in binary these are all. Otherwise a validator may find 0.07 to be no multiple of 0.01:
    the first multiples are checked one by one, and larger ones are written if floating point holds them exactly.
    """
    places = max(0, -int(factor.normalize().as_tuple().exponent))
    unit = int(factor.scaleb(places))
    rounding = abs(Decimal(float(factor)) / factor - 1)
    if rounding and not (whole and rounding <= SAFE_ROUNDING):
        checked = _checked(factor, places, effort)
        return intersection([INTEGER, checked], effort) if whole else checked
    if whole:
        unit = lcm(unit, 10**places) // 10**places
        places = 0
    zeros = 0 if places else len(str(unit)) - len(str(unit).rstrip("0"))
    unit //= 10**zeros
    if unit * (places + 2) > MOST_REMAINDERS:
        raise UnmaskError(f"JSON schema: 'multipleOf' {factor} has too many remainders; use a rounder number")
    exact = multiples(unit, places)
    if not zeros:
        return exact
    return Alt((Text(b"0"), Seq((intersection([exact, read_regex(r"-?[1-9]\d*")], effort), Text(b"0" * zeros)))))


def _checked(factor: Decimal, places: int, effort: Effort) -> Language:
    """Multiples of a factor that floating point rounds, which it still divides."""
    unit = int(factor.scaleb(places))
    count = np.arange(CHECKED_MULTIPLES)
    values = count * unit / 10**places
    quotient = values / float(factor)
    texts = [f"{Decimal(n * unit).scaleb(-places):f}" for n in count[quotient == np.floor(quotient)].tolist()]
    short = ["0", *(value.rstrip("0").rstrip(".") for value in texts[1:])]
    first = finite([(sign + value).encode() for value in (*texts, *short) for sign in ("", "-")], effort)
    larger = unit * 5**places
    if larger * (places + 2) > MOST_REMAINDERS or abs(Decimal(float(factor)) / factor - 1) > SAFE_ROUNDING:
        return first
    return Alt((first, multiples(larger, places)))


def multiples(factor: int, places: int = 0) -> Dfa:
    """Decimals of at most `places` digits behind the point that factor / 10^places divides."""
    # states: 0 dead, 1 start, 2 after '-', 3 after a leading zero; then each remainder before the point, after the
    # point, and after each digit behind it
    group = np.zeros(256, np.uint8)
    group[ord("-")] = 1
    group[ord("0") : ord("9") + 1] = 2 + np.arange(10)
    group[ord(".")] = 12
    table = np.zeros((4 + factor * (places + 2), 13), np.int32)
    remainder = np.arange(factor)
    table[1, 1] = 2
    table[1:3, 2] = 3
    table[1:3, 3:12] = 4 + np.arange(1, 10) % factor
    final = np.zeros(len(table), bool)
    final[3] = True
    following = (10 * remainder[:, None] + np.arange(10)) % factor
    for digits in range(-1, places + 1):  # behind the point; -1: before it
        here = slice(4 + factor * (digits + 1), 4 + factor * (digits + 2))
        final[here] = remainder * 10 ** (places - max(digits, 0)) % factor == 0
        if digits < places:
            table[here, 2:12] = 4 + factor * (digits + 2 if digits >= 0 else 0) + following
    if places:
        table[4 : 4 + factor, 12] = 4 + factor + remainder
        table[3, 12] = 4 + factor
    final[4 + factor : 4 + 2 * factor] = False
    return trim(Dfa(table, group, final))


def rounded(bound: tuple[Decimal, bool] | None, places: int, up: bool) -> int | None:
    """A bound and whether it is exclusive, in units of 10^-places, rounded inwards."""
    if bound is None:
        return None
    scaled = bound[0].scaleb(places)
    edge = int(scaled.to_integral_value("ROUND_CEILING" if up else "ROUND_FLOOR"))
    return edge + (1 if up else -1) * int(bound[1] and edge == scaled)
