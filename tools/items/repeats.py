"""Writes the prompts of `unmask bench repeating`, always the same: `python tools/items/repeats.py`.

Sixty requests whose answers say again what stands in them, fifteen each of edits, extraction, JSON under a schema and
calls of tools. They are no part of the quality set: nothing is scored but speed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from item_words import Draw, Row

from unmask.files import write_text

FILE = Path(__file__).parents[2] / "benchmarks" / "repeating.jsonl"
EACH = 15
STORY = (
    "{name1} is a {job1} from {town1}. Every {day1} {name1} takes the {ride1} to {town2} and sells {crop1} there. "
    "In {month1} of {year1}, {name2} the {job2} bought a {color1} {thing1} for {number1} dollars. {name2} gave it to "
    "{name3}, who lives in {town3} with a {pet1} and two children. Since then the three meet {when1} {where1}."
)
EDITS = (
    "Replace {name1} by {name4} everywhere and write the whole text again.",
    "Write the text again, with {town4} in place of {town2}.",
    "Copy the text, but change the color of the {thing1} to {color2}.",
    "Write the text again without its first sentence.",
    "Correct any spelling mistakes. Write the whole text.",
)
ASKED = (
    "Copy out the sentence about the {thing1}.",
    "List the names of all people and what each does, in the words of the text.",
    "Copy out every sentence that has a town in it.",
    "Quote the first and the last sentence.",
    "Which sentences are about {name2}? Write them again.",
)
TOOLS: dict[str, list[str]] = {  # name: arguments, each a slot of the request
    "send_message": ["recipient", "place", "text"],
    "book_ticket": ["passenger", "vehicle", "from_town", "to_town", "day"],
    "add_reminder": ["person", "day", "hour", "task"],
}
REQUESTS = {
    "send_message": "Send {name1} in {town1} this message: The {color1} {thing1} is {where1}, and the {pet1} has slept.",
    "book_ticket": "Book a {ride1} ticket for {name1} from {town1} to {town2}, leaving on {day1}.",
    "add_reminder": "Remind {name1} on {day1} at {hour1} in the morning to buy {food1} and {crop1} in {town1}.",
}
TEXT = {"type": "string", "maxLength": 80}


def schema_of(names: list[str]) -> Row:
    return {
        "type": "object",
        "properties": dict.fromkeys(names, TEXT),
        "required": names,
        "additionalProperties": False,
    }


def edit(number: int, slots: dict[str, str]) -> Row:
    prompt = f"{STORY}\n\n{EDITS[number % len(EDITS)]}".format(**slots)
    return {"messages": [{"role": "user", "content": prompt}], "max_new_tokens": 96}


def extract(number: int, slots: dict[str, str]) -> Row:
    prompt = f"Text: {STORY}\n\n{ASKED[number % len(ASKED)]}".format(**slots)
    return {"messages": [{"role": "user", "content": prompt}], "max_new_tokens": 64}


def record(number: int, slots: dict[str, str]) -> Row:
    """A list of people as objects: what one says of keys the next says again."""
    names = (["name", "occupation", "home_town"], ["first_name", "lives_in", "likes_to_do"])[number % 2]
    prompt = f"{STORY}\n\nDescribe {{name1}}, {{name2}} and {{name3}} as JSON.".format(**slots)
    schema = {"type": "array", "items": schema_of(names), "minItems": 3, "maxItems": 3}
    return {"messages": [{"role": "user", "content": prompt}], "max_new_tokens": 160, "schema": schema}


def call(number: int, slots: dict[str, str]) -> Row:
    """One call of one of three tools, which the system message describes."""
    asked = list(REQUESTS)[number % len(REQUESTS)]
    tools = [{"name": name, "parameters": schema_of(names)} for name, names in TOOLS.items()]
    system = "Answer with a call of one of these tools, as JSON with name and arguments.\n" + json.dumps(tools)
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool["name"]}, "arguments": tool["parameters"]},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    messages = [{"role": "system", "content": system}, {"role": "user", "content": REQUESTS[asked].format(**slots)}]
    return {"messages": messages, "max_new_tokens": 128, "schema": {"anyOf": calls}}


KINDS: dict[str, Callable[[int, dict[str, str]], Row]] = {
    "edit": edit,
    "extract": extract,
    "schema": record,
    "call": call,
}


def rows() -> list[Row]:
    """All prompts, kinds in turns."""
    draw = Draw(21)
    return [
        {"id": f"{kind}/{number}", "kind": kind, **make(number, draw.slots())}
        for number in range(EACH)
        for kind, make in KINDS.items()
    ]


if __name__ == "__main__":
    write_text(FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows()))
