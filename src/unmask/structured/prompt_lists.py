"""Schemas of answers whose texts come from lists in the prompt, such as the rooms of a home.

A schema says `"x-from-prompt": NAMES` beside a text, a regular expression of lists' names. In a prompt that begins with
lines `name: value, value` the text is then one of the values of those lists.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from unmask.structured.effort import Effort
from unmask.structured.grammar import Grammar
from unmask.structured.grammars import Rule, SchemaRule, json_text
from unmask.structured.vocabulary import Vocabulary

FROM_PROMPT = "x-from-prompt"
LIST = re.compile(r"(\w+): (.+)")


def prompt_lists(text: str) -> dict[str, list[str]]:
    """The lists that a prompt begins with, by name."""
    found: dict[str, list[str]] = {}
    for line in text.lstrip().splitlines():
        match = LIST.fullmatch(line.strip())
        if match is None:
            break
        values = (value.strip() for value in match[2].split(","))
        found.setdefault(match[1], []).extend(value for value in values if value)
    return found


def reads_prompt(schema: Any) -> bool:
    """Whether a schema has texts that come from lists in the prompt."""
    if isinstance(schema, dict):
        return FROM_PROMPT in schema or any(map(reads_prompt, schema.values()))
    return isinstance(schema, list) and any(map(reads_prompt, schema))


def with_lists(schema: Any, lists: dict[str, list[str]]) -> Any:
    """The schema with the values of a prompt's lists in the place of their names.

    An optional member without any value is no member; where the prompt has no lists at all, texts stay free.
    """
    if isinstance(schema, list):
        return [with_lists(part, lists) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if FROM_PROMPT in schema:
        free = {key: value for key, value in schema.items() if key != FROM_PROMPT}
        return {"enum": _values(schema, lists)} if _values(schema, lists) else free
    whole = {key: with_lists(value, lists) for key, value in schema.items()}
    members = schema.get("properties")
    if lists and isinstance(members, dict):
        needed = schema.get("required", ())
        whole["properties"] = {
            name: whole["properties"][name]
            for name, part in members.items()
            if name in needed or not (isinstance(part, dict) and FROM_PROMPT in part) or _values(part, lists)
        }
    return whole


def _values(schema: dict[str, Any], lists: dict[str, list[str]]) -> list[str]:
    names = re.compile(schema[FROM_PROMPT])
    return list(dict.fromkeys(value for name, values in lists.items() if names.fullmatch(name) for value in values))


def answers_to(schema: Any, prompt: str) -> Any:
    """The schema of the answers to a prompt."""
    return with_lists(schema, prompt_lists(prompt)) if reads_prompt(schema) else schema


@dataclass(frozen=True)
class AnswerRule(Rule):
    """A model's schema of answers with a prompt's lists, which are its `text` as JSON: found again by them alone."""

    schema: Any = field(compare=False)

    @staticmethod
    def of(schema: Any, prompt: str) -> AnswerRule:
        return AnswerRule(json_text(prompt_lists(prompt) if reads_prompt(schema) else {}), schema)

    def compiled(self, vocabulary: Vocabulary, effort: Effort) -> Grammar:
        return SchemaRule.of(with_lists(self.schema, json.loads(self.text))).compiled(vocabulary, effort)
