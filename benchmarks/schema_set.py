"""Thirty JSON schemas as requests have them, with what each is asked for: the set of `unmask bench schema`."""

from __future__ import annotations

from typing import Any

STRING = {"type": "string", "maxLength": 40}


def _object(required: int | None = None, **properties: Any) -> dict[str, Any]:
    """An object of these members only; the first `required` of them must be there, all by default."""
    names = list(properties)
    needed = names if required is None else names[:required]
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def _integer(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


def _number(low: float, high: float) -> dict[str, Any]:
    return {"type": "number", "minimum": low, "maximum": high}


def _list(items: Any, low: int = 0, high: int | None = None) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": low, **({} if high is None else {"maxItems": high})}


def _enum(*values: Any) -> dict[str, Any]:
    return {"enum": list(values)}


def _format(name: str) -> dict[str, Any]:
    return {"type": "string", "format": name}


def _pattern(expression: str) -> dict[str, Any]:
    return {"type": "string", "pattern": expression}


ADDRESS = _object(street=STRING, city=STRING, postcode=_pattern(r"^\d{5}$"))
ITEM = _object(sku=_pattern(r"^[A-Z]{2}-\d{3}$"), count=_integer(1, 99))

# what to write: its schema
SCHEMAS: dict[str, Any] = {
    "a person": _object(name=STRING, age=_integer(0, 120)),
    "a person with an address": _object(name=STRING, address=ADDRESS),
    "a shopping list": _list(STRING, 1, 5),
    "the sentiment of 'what a lovely day'": _object(
        label=_enum("positive", "negative", "neutral"), score=_number(0, 1)
    ),
    "an order": _object(id=_format("uuid"), items=_list(ITEM, 1, 3), note={"type": ["string", "null"]}),
    "the weather in Paris": _object(city={"const": "Paris"}, celsius=_number(-30, 45), rain={"type": "boolean"}),
    "a circle or a square": {
        "anyOf": [
            _object(kind={"const": "circle"}, radius={"type": "number", "exclusiveMinimum": 0, "maximum": 10}),
            _object(kind={"const": "square"}, side={"type": "number", "exclusiveMinimum": 0, "maximum": 10}),
        ]
    },
    "a matrix": _list(_list(_integer(-9, 9), 2, 2), 2, 2),
    "a meeting": _object(2, title=STRING, day=_format("date"), starts=_format("time"), people=_list(STRING, 0, 3)),
    "a web page": _object(address=_format("uri"), title=STRING, links=_list(_format("uri"), 0, 2)),
    "an account": _object(2, user=_pattern("^[a-z][a-z0-9_]{2,11}$"), mail=_format("email"), admin={"type": "boolean"}),
    "a server": _object(host=_format("hostname"), address=_format("ipv4"), port={"type": "integer", "minimum": 1}),
    "a colour": _pattern("^#[0-9a-f]{6}$"),
    "a yes or no question's answer": {"type": "boolean"},
    "a die's face": _integer(1, 6),
    "a price": _object(amount=_number(0.5, 99.95), currency=_enum("EUR", "USD", "GBP")),
    "a book": _object(
        2,
        title=STRING,
        author=STRING,
        year=_integer(1450, 2030),
        isbn=_pattern(r"^97[89]-\d{10}$"),
        genres=_list(_enum("novel", "history", "science", "poetry"), 0, 3),
    ),
    "a family tree": {
        "$ref": "#/$defs/node",
        "$defs": {"node": _object(name=STRING, children=_list({"$ref": "#/$defs/node"}, 0, 2))},
    },
    "settings that are all left open": _object(
        0, theme=_enum("light", "dark"), size=_integer(8, 32), sound={"type": "boolean"}
    ),
    "a point": {"type": "array", "prefixItems": [_number(-1, 1), {"type": "number"}], "minItems": 2, "items": False},
    "a value of any scalar type": {"anyOf": [STRING, _integer(0, 1000), {"type": "boolean"}, {"type": "null"}]},
    "scores by name": {"type": "object", "additionalProperties": _integer(0, 1000)},
    "a number of dozens": {"type": "integer", "multipleOf": 12, "minimum": 12, "maximum": 600},
    "a phone number": _object(country=_pattern(r"^\+[1-9]\d{0,2}$"), number=_pattern(r"^\d{3}( \d{2,4}){1,3}$")),
    "a step of a plan": _object(
        thought={"type": "string", "minLength": 10, "maxLength": 60}, action=_enum("search", "stop"), input=STRING
    ),
    "a quiz question": _object(question=STRING, answers=_list(STRING, 4, 4), right=_integer(0, 3)),
    "a log line": _object(
        time=_format("date-time"), level=_enum("debug", "info", "error"), code={"type": ["integer", "null"]}
    ),
    "a contact by mail or by phone": {
        "oneOf": [_object(mail=_format("email")), _object(phone=_pattern(r"^\d{6,10}$"))],
    },
    "a recipe": _object(
        name=STRING,
        minutes={"type": "integer", "exclusiveMinimum": 0, "maximum": 240},
        parts=_list(_object(what=STRING, grams=_number(1, 2000)), 1, 3),
    ),
    "deeply nested boxes": _object(box=_object(box=_object(box=_object(box=_object(holds=_enum("a cat", "nothing")))))),
}
