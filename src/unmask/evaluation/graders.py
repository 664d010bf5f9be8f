"""Verdicts on a reply, by code alone: an item's `check` names rules and their arguments, and all must hold."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from unmask.errors import UnmaskError

_STRAIGHT = str.maketrans("\u201c\u201d\u201e\u00ab\u00bb\u2018\u2019", '"""""\'\'')  # curly quotes and guillemets
_STOP = re.compile(r"(?<![.!?])[.!?]++[\"')*]*+(?=\s|$)")  # possessive, so that a run of dots takes linear time
_BULLET = re.compile(r"[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t]+(?=\S)")


def score(check: Mapping[str, Any], reply: str) -> bool:
    """Whether the reply meets every rule of the check; an empty one never does.

    Raises UnmaskError for a rule that does not exist.
    """
    reply = unicodedata.normalize("NFC", reply.translate(_STRAIGHT)).strip()
    return bool(reply) and all(_rule(name)(argument, reply) for name, argument in check.items())


def _rule(name: str) -> Callable[[Any, str], bool]:
    if name not in RULES:
        raise UnmaskError(f"unknown rule '{name}' in a check; rules: {', '.join(RULES)}")
    return RULES[name]


def words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits; an apostrophe inside a word stays."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.translate(_STRAIGHT).casefold())


def sentences(text: str) -> int:
    """Pieces that end in . ! or ? before a blank, or with their line, and hold a word; bullets are not counted.

    An abbreviation such as "Dr. " ends a piece too.
    """
    parts = (part for line in text.split("\n") for part in _STOP.split(_unbulleted(line)))
    return sum(1 for part in parts if words(part))


def _unbulleted(line: str) -> str:
    return _BULLET.sub("", line, count=1) if _BULLET.match(line) else line


def _has(needle: str, reply: str) -> bool:
    """The needle's words, one after the other and in any case, so that "art" is not found in "start"."""
    return f" {' '.join(words(needle))} " in f" {' '.join(words(reply))} "


def _within(limits: list[int | None], count: int) -> bool:
    """Least and most, either of which may be None."""
    least, most = limits
    return (least is None or count >= least) and (most is None or count <= most)


def _prose(least: int, reply: str) -> bool:
    """At least so many words, half of them distinct: a reply that loops passes no rule of form by accident."""
    found = words(reply)
    return len(found) >= least and 2 * len(set(found)) >= len(found)


def _count(argument: list[Any], reply: str) -> bool:
    """[word, least, most]: how often a word or phrase stands in the reply."""
    target = words(argument[0])
    hay = words(reply)
    found = sum(hay[i : i + len(target)] == target for i in range(len(hay) - len(target) + 1))
    return _within(argument[1:], found)


def _lines(wanted: list[str], reply: str) -> bool:
    """These lines in this order, bullets aside and in any case, with nothing else on them."""
    rest = iter([words(_unbulleted(line)) for line in reply.split("\n")])
    return all(words(line) in rest for line in wanted)


RULES: dict[str, Callable[[Any, str], bool]] = {
    "says": lambda accepted, reply: any(_has(one, reply) for one in accepted),
    "says_all": lambda wanted, reply: all(_has(one, reply) for one in wanted),
    # the rivals of an answer, so that naming everything earns nothing
    "lacks": lambda unwanted, reply: not any(_has(one, reply) for one in unwanted),
    # case and punctuation included; how blanks are laid out does not matter
    "exact": lambda text, reply: " ".join(text.split()) in " ".join(reply.split()),
    # any word that begins with one of these: a topic in any inflection
    "mentions": lambda stems, reply: any(word.startswith(tuple(stems)) for word in words(reply)),
    "prose": _prose,
    "case": lambda which, reply: reply.islower() if which == "lower" else reply.isupper(),
    "without": lambda characters, reply: not any(c in reply for c in characters),
    "count": _count,
    "starts": lambda phrase, reply: reply.strip('"* ').casefold().startswith(phrase.casefold()),
    "ends": lambda phrase, reply: reply.strip('"* ').casefold().endswith(phrase.casefold()),
    # the whole reply in double quotation marks, and something in them
    "quoted": lambda _, reply: len(reply) > 2 and reply[0] == reply[-1] == '"' and bool(words(reply)),
    "title": lambda _, reply: any(words(title) for title in re.findall(r"<<([^\n<>]*)>>", reply)),
    # lines that begin with -, *, • or a number
    "bullets": lambda limits, reply: _within(limits, sum(bool(_BULLET.match(line)) for line in reply.split("\n"))),
    "lines": _lines,
    "words": lambda limits, reply: _within(limits, len(words(reply))),
    "sentences": lambda limits, reply: _within(limits, sentences(reply)),
}
