"""The JSON schema of assist's answers, from its training text: for each intent the arguments that it takes, in order.

python tools/assist/schema.py runs/assist-data/train.jsonl > schema.json
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from typing import Any

from make import ORDER

from unmask.structured.prompt_lists import prompt_lists

RIVALS = {"name": ("areas", "floors"), "area": ("floors",), "floor": ("areas",)}  # lists that may hold the same word
OWN = {"area": "areas", "floor": "floors"}
FREE = {"name", "area", "floor", "zone", "search_query", "item", "message", "conversation_command"}
TEXT = r'^[^"\\\x00-\x1f]+$'  # one state of the automaton, where a bounded length would be one for each character


def argument(name: str, values: set[Any], other_lists: set[str] | None = None) -> dict[str, Any]:
    """What one argument of one intent may be. other_lists: lists of a home that it never comes from, where it always
    comes from one."""
    if other_lists is not None:
        lists = OWN.get(name) or f"(?!({'|'.join(sorted(other_lists))})$).*"  # a home may have lists of its own
        return {"type": "string", "pattern": TEXT, "x-from-prompt": lists}
    if name in FREE:
        return {"type": "string", "pattern": TEXT}
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return {"type": "integer", "minimum": min(0, *values), "maximum": max(values)}
    if all(isinstance(value, int | float) for value in values):
        whole = {"type": "integer", "minimum": 0, "maximum": int(max(values))}
        return {"anyOf": [whole, {"enum": [half + 0.5 for half in range(int(max(values)) + 1)]}]}
    if all(isinstance(value, str) for value in values):
        return {"enum": sorted(values)}
    return {
        "anyOf": [
            {"enum": sorted(v for v in values if isinstance(v, str))},
            argument(name, {v for v in values if not isinstance(v, str)}),
        ]
    }


def main() -> None:
    found: dict[str, dict[str, set[Any]]] = defaultdict(lambda: defaultdict(set))
    known: set[str] = set()  # lists of homes
    sources: dict[tuple[str, str], set[str]] = defaultdict(set)  # lists that an argument's values came from
    unlisted: set[tuple[str, str]] = set()
    with open(sys.argv[1], encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            lists = prompt_lists(row["prompt"])
            known |= lists.keys()
            for call in json.loads(row["response"]):
                found[call["name"]].update({})
                for name, value in call["arguments"].items():
                    found[call["name"]][name].add(value)
                    places = {key for key in lists if value in lists[key] and key not in RIVALS.get(name, ())}
                    sources[call["name"], name] |= places
                    if not places or name not in FREE:
                        unlisted.add((call["name"], name))
    calls = []
    for intent in sorted(found):
        properties = {
            name: argument(
                name,
                found[intent][name],
                None if (intent, name) in unlisted else known - sources[intent, name],
            )
            for name in ORDER
            if name in found[intent]
        }
        arguments = {"type": "object", "properties": properties, "required": [], "additionalProperties": False}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": intent}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    compact = {"whitespace_flexible": False}  # no spaces, so that more of an answer is forced
    print(json.dumps({"x-guidance": compact, "type": "array", "items": {"anyOf": calls}}, separators=(",", ":")))


if __name__ == "__main__":
    main()
