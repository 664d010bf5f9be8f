"""What the items made by rule are drawn from: tables of words, and draws that every Python repeats."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]  # one line of an items file

_TABLES = {
    "name": "Alma Boris Carmen Dario Edith Felix Greta Hugo Irene Jonas Klara Lukas Mona Nils Olga Pavel Rita Simon "
    "Tessa Viktor",
    "job": "baker doctor farmer gardener lawyer nurse painter pilot plumber singer tailor teacher",
    "town": "Brenholm Caldera Dunmarsh Feldport Grenwick Harlow Kestral Lindale Marvik Norbury Ostrin Pelham Rivenna "
    "Selmore Tarvin Velden",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "month": "January February March April May June July August September October November December",
    "color": "black blue brown green grey pink purple red white yellow",
    "pet": "cat dog duck goat hamster horse parrot rabbit",
    "thing": "bicycle boat car guitar lamp piano scarf table",
    "food": "apples bread cheese eggs honey rice soup",
    "crop": "beans carrots grapes onions potatoes tomatoes",
    "number": "12 14 15 18 20 25 30 35 40 45 50 60 70 80 90",
    "year": "1821 1834 1847 1856 1863 1872 1888 1893 1905 1912 1927 1938",
    "hour": "six seven eight nine ten eleven",
    "ride": "bus train tram ferry",
    "tale": "Storm River Winter Garden Mirror Island",
    "word": "apple bag ball bird book chair clock cup door egg flower hat key lamp pen ring",
    "who": "boy cat child dog farmer girl man nurse teacher woman",
    "did": "jumped ran slept stood waited walked",
    "where": "behind the house,by the river,in the garden,near the bridge,on the hill,under the tree",
    "when": "all day,at night,in the morning,last week,on Sunday,yesterday",
}
TABLES = {name: text.split("," if "," in text else None) for name, text in _TABLES.items()}


class Draw:
    """Draws that are the same on every Python: of `random` only `Random.random()` promises that."""

    def __init__(self, seed: int) -> None:
        self._next = random.Random(seed).random

    def some(self, options: Iterable[str], count: int) -> list[str]:
        """So many different ones, in random order."""
        left = list(options)
        return [left.pop(int(self._next() * len(left))) for _ in range(count)]

    def slots(self) -> dict[str, str]:
        """Four different words of every table: name1, name2, ... job1, ..."""
        return {
            f"{table}{n}": word
            for table, options in TABLES.items()
            for n, word in enumerate(self.some(options, 4), start=1)
        }


def row(kind: str, name: str, number: int, prompt: str, tokens: int, check: Row) -> Row:
    return {"id": f"{kind}/{name}/{number}", "kind": kind, "prompt": prompt, "max_new_tokens": tokens, "check": check}


def opening(prompt: str) -> str:
    """Its first four words, which no reply should say."""
    return " ".join(prompt.split()[:4])
