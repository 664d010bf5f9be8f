"""How JSON values are written: strings, literals, and the formats of JSON Schema; numbers are in `json_numbers`.

Each value has one spelling only, apart from one optional space after ',' and ':'. Characters stand for themselves;
only '"', the backslash and five control characters are escaped, and other control characters are never written.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

from unmask.structured.dfa import finite
from unmask.structured.effort import Effort
from unmask.structured.language import (
    EMPTY,
    LAST,
    Alt,
    Chars,
    Language,
    Members,
    Ranges,
    Repeat,
    Seq,
    Text,
    complement,
    optional,
    overlap,
    text,
)

MOST_TEXTS = 16  # listed values that are not yet merged into one automaton
_ESCAPES = {0x22: '\\"', 0x5C: "\\\\", 0x8: "\\b", 0x9: "\\t", 0xA: "\\n", 0xC: "\\f", 0xD: "\\r"}
_PLAIN: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, LAST))
COMMA = Seq((Text(b","), optional(Text(b" "))))
COLON = Seq((Text(b":"), optional(Text(b" "))))

_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_DATE = r"[12]\d{3}-((0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
_CLOCK = r"(\d{1,4}H(\d{1,4}M(\d{1,4}S)?)?|\d{1,4}M(\d{1,4}S)?|\d{1,4}S)"
_DAYS = r"(\d{1,3}D|\d{1,3}M(\d{1,3}D)?|\d{1,3}Y(\d{1,3}M(\d{1,3}D)?)?)"
_HOST = r"[a-z0-9]{1,20}(-[a-z0-9]{1,20})?(\.[a-z0-9]{1,20})?\.[a-z]{2,6}"
_EMAIL = rf"[A-Za-z0-9]+([._+-][A-Za-z0-9]+){{0,4}}@{_HOST}"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"{_BYTE}(\.{_BYTE}){{3}}"
_IPV6 = r"[0-9a-f]{1,4}(:[0-9a-f]{1,4}){7}"
# networks have no bits set behind their prefix
_NETWORK4 = rf"({_IPV4}/32|{_BYTE}\.{_BYTE}\.{_BYTE}\.0/24|{_BYTE}\.{_BYTE}\.0\.0/16|{_BYTE}\.0\.0\.0/8)"
_NETWORK6 = rf"({_IPV6}/128|[0-9a-f]{{1,4}}(:[0-9a-f]{{1,4}}){{3}}::/64)"
_INTERFACE4 = rf"{_IPV4}/(3[0-2]|[12]?\d)"
_INTERFACE6 = rf"{_IPV6}/(12[0-8]|1[01]\d|[1-9]?\d)"
_URI = rf"https?://{_HOST}(:[1-9]\d{{0,3}})?(/[A-Za-z0-9._~-]+)*/?(\?[A-Za-z0-9._~=&-]+)?(#[A-Za-z0-9._~-]+)?"
_POINTER = r"(/[A-Za-z0-9._-]+)*"
# what is written for a format; any other format is an annotation, and so is one without an expression here
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"({_DATE})T{_TIME}",
    "duration": f"P(\\d{{1,3}}W|{_DAYS}(T{_CLOCK})?|T{_CLOCK})",
    **dict.fromkeys(("email", "idn-email", "name-email"), _EMAIL),
    **dict.fromkeys(("hostname", "idn-hostname"), _HOST),
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "ipv4network": _NETWORK4,
    "ipv6network": _NETWORK6,
    "ipv4interface": _INTERFACE4,
    "ipv6interface": _INTERFACE6,
    "ipvanyaddress": f"({_IPV4}|{_IPV6})",
    "ipvanynetwork": f"({_NETWORK4}|{_NETWORK6})",
    "ipvanyinterface": f"({_INTERFACE4}|{_INTERFACE6})",
    **dict.fromkeys(("uri", "iri", "uri-reference", "iri-reference", "uri-template", "multi-host-uri"), _URI),
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    **{
        f"uuid{n}": rf"[0-9a-f]{{8}}-[0-9a-f]{{4}}-{n}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}"
        for n in range(1, 9)
    },
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(0|[1-9]\d?)(#|{_POINTER})",
    "regex": r"\^?([A-Za-z0-9_ ,:@/-]|\.|\.\*|\[(a-z|A-Z|0-9)\][*+]?)*\$?",
    **dict.fromkeys(("byte", "base64"), r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"),
    "base64url": r"([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{2}==|[A-Za-z0-9_-]{3}=)?",
    "color": r"#[0-9a-fA-F]{6}",
}


def character(ranges: Ranges) -> Language:
    """One character of a JSON string out of ranges of code points."""
    escaped = [text(escape) for code, escape in _ESCAPES.items() if overlap(ranges, ((code, code),))]
    plain = overlap(ranges, _PLAIN)
    return Alt((*([Chars(plain)] if plain else []), *escaped))


ANY_CHARACTER = character(((0, LAST),))


# strings that surely differ: by their first character, letters of both cases and all other characters together
_FIRST: list[Ranges] = [((code, code),) for code in range(0x30, 0x3A)]
_FIRST += [((0x41 + letter, 0x41 + letter), (0x61 + letter, 0x61 + letter)) for letter in range(26)]
_FIRST.append(complement(((0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A))))
APART: tuple[Language, ...] = (
    Text(b'""'),
    *(Seq((Text(b'"'), character(first), Repeat(ANY_CHARACTER), Text(b'"'))) for first in _FIRST),
)
BOOLEANS: tuple[Language, ...] = (Text(b"true"), Text(b"false"))


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


def literals(values: list[Any], effort: Effort) -> Language:
    """Any one of these JSON values. Raises ValueError for what JSON has no spelling of."""
    scalars = []
    others: list[Language] = []
    for value in values:
        language = literal(value)
        if isinstance(language, Text):
            scalars.append(language.value)
        else:
            others.append(language)
    return Alt((finite(scalars, effort), *others)) if len(scalars) > MOST_TEXTS else Alt(tuple(map(literal, values)))


def array(items: list[Language], more: Language = EMPTY) -> Language:
    """An array of these items, and what `more` writes behind them."""
    return Seq((Text(b"["), *_separated(items), more, Text(b"]")))


def _separated(parts: list[Language]) -> list[Language]:
    return [piece for i, part in enumerate(parts) for piece in ([COMMA, part] if i else [part])]


def separated_by(value: Any, comma: Language, colon: Language) -> Any:
    """A language with other separators for ',' and ':'; what is an automaton already stays as it is."""
    if value is COMMA or value is COLON:
        return comma if value is COMMA else colon
    if isinstance(value, tuple):
        return tuple(separated_by(part, comma, colon) for part in value)
    if isinstance(value, Seq | Alt | Repeat | Members):
        parts = {part.name: separated_by(getattr(value, part.name), comma, colon) for part in fields(value)}
        return replace(value, **parts)
    return value


def member(name: str, value: Language) -> Language:
    return Seq((literal(name), COLON, value))
