"""Schemas whose texts come from lists in the prompt."""

from __future__ import annotations

from typing import Any

from unmask.structured.prompt_lists import AnswerRule, answers_to, prompt_lists, reads_prompt

HOME = "areas: Den, Master Bedroom\nlight: Desk Lamp, Desk Lamp\nfan: Big Fan\n> play songs: the best of, turn on\n"


def schema(*required: str) -> dict[str, Any]:
    text = {"type": "string", "pattern": "^a*$"}
    members = {
        "name": {**text, "x-from-prompt": "(?!areas$|floors$).*"},
        "area": {**text, "x-from-prompt": "areas"},
        "floor": {**text, "x-from-prompt": "floors"},
        "item": text,
    }
    return {"type": "array", "items": {"anyOf": [{"type": "object", "properties": members, "required": [*required]}]}}


def members(prompt: str, *required: str) -> Any:
    return answers_to(schema(*required), prompt)["items"]["anyOf"][0]["properties"]


def test_lists_end_where_another_line_begins() -> None:
    assert prompt_lists(HOME) == {
        "areas": ["Den", "Master Bedroom"],
        "light": ["Desk Lamp", "Desk Lamp"],
        "fan": ["Big Fan"],
    }
    assert prompt_lists("\n a: x\na: y, \n") == {"a": ["x", "y"]}
    assert prompt_lists("> a: x") == prompt_lists("") == prompt_lists("no list\na: x") == {}


def test_texts_are_those_of_the_lists_and_members_without_any_are_left_out() -> None:
    text = {"type": "string", "pattern": "^a*$"}
    made = members(HOME)
    assert list(made) == ["name", "area", "item"]
    assert made == {
        "name": {"enum": ["Desk Lamp", "Big Fan"]},
        "area": {"enum": ["Den", "Master Bedroom"]},
        "item": text,
    }
    assert members(HOME, "floor")["floor"] == text
    assert members("> turn on the lamp\n") == dict.fromkeys(("name", "area", "floor", "item"), text)


def test_another_schema_stays_as_it_is() -> None:
    plain = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert not reads_prompt(plain)
    assert answers_to(plain, HOME) is plain


def test_a_rule_is_found_again_by_the_lists_alone() -> None:
    one = AnswerRule.of(schema(), HOME)
    assert one == AnswerRule.of(schema(), HOME + "another command")
    assert hash(one) == hash(AnswerRule.of(schema(), HOME + "another command"))
    assert one != AnswerRule.of(schema(), "areas: Den\n" + HOME)
    assert AnswerRule.of({"type": "object"}, HOME).text == "{}"
