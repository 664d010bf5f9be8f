"""JSON schemas as tools, protocols and interfaces write them, each with a value that is written for it."""

from typing import Any

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
ENTITIES = [f"light.{room}_{number}" for room in ("kitchen", "hall", "bath") for number in range(40)]

# name: (schema, a value)
WRITTEN: dict[str, tuple[Any, Any]] = {
    "tool with nullable": (
        {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "City"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "nullable": True},
            },
            "required": ["location"],
            "x-order": 3,
        },
        {"location": "Paris", "unit": "celsius"},
    ),
    "MCP file tool": (
        {
            "$schema": DRAFT_7,
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "edits": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"oldText": {"type": "string"}, "newText": {"type": "string"}},
                        "required": ["oldText", "newText"],
                        "additionalProperties": False,
                    },
                },
                "dryRun": {"type": "boolean", "default": False},
            },
            "required": ["path", "edits"],
            "additionalProperties": False,
        },
        {"path": "/a", "edits": [{"oldText": "x", "newText": "y"}], "dryRun": True},
    ),
    "Home Assistant turn on": (
        {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "area": {"type": "string"},
                "domain": {
                    "type": "array",
                    "items": {"type": "string", "enum": ["light", "switch"]},
                    "uniqueItems": True,
                },
                "device_class": {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "maxItems": 3},
                "entity_id": {"enum": ENTITIES},
                "brightness": {"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": 5},
                "transition": {"type": "number", "multipleOf": 0.1, "minimum": 0, "maximum": 60},
            },
            "required": [],
        },
        {"name": "lamp", "domain": ["light"], "entity_id": "light.hall_7", "brightness": 35, "transition": 0.5},
    ),
    "Home Assistant calls": (
        {
            "type": "array",
            "items": {
                "oneOf": [
                    {
                        "type": "object",
                        "properties": {"intent": {"const": f"Hass{name}"}, "area": {"type": "string"}},
                        "required": ["intent"],
                    }
                    for name in ("TurnOn", "TurnOff", "GetState", "ListAddItem")
                ]
            },
            "minItems": 1,
        },
        [{"intent": "HassTurnOn", "area": "hall"}, {"intent": "HassGetState"}],
    ),
    "OpenAPI pet": (
        {
            "$ref": "#/$defs/Pet",
            "$defs": {
                "Pet": {
                    "type": "object",
                    "required": ["id", "name"],
                    "properties": {
                        "id": {"type": "integer", "format": "int64"},
                        "name": {"type": "string", "example": "doggie"},
                        "photoUrls": {"type": "array", "xml": {"wrapped": True}, "items": {"type": "string"}},
                        "weight": {"type": "number", "format": "double"},
                        "secret": {"type": "string", "format": "password"},
                        "picture": {"type": "string", "format": "byte"},
                        "tags": {"type": "array", "items": {"$ref": "#/$defs/Tag"}},
                    },
                    "externalDocs": {"url": "https://example.com"},
                },
                "Tag": {"type": "object", "properties": {"id": {"type": "integer"}, "name": {"type": "string"}}},
            },
        },
        {"id": 3, "name": "x", "picture": "YWI=", "tags": [{"name": "a"}]},
    ),
    "OpenAPI all of": (
        {
            "allOf": [{"$ref": "#/$defs/Base"}, {"type": "object", "properties": {"extra": {"type": "string"}}}],
            "$defs": {
                "Base": {
                    "type": "object",
                    "properties": {"id": {"type": "string", "format": "uuid"}},
                    "required": ["id"],
                }
            },
        },
        {"id": "123e4567-e89b-12d3-a456-426614174000", "extra": "a"},
    ),
    "pattern properties": (
        {
            "type": "object",
            "patternProperties": {"^S_": {"type": "string"}, "^I_": {"type": "integer"}},
            "additionalProperties": False,
        },
        {"S_25": "this", "I_0": 42},
    ),
    "patterns that overlap": (
        {"patternProperties": {"a": {"type": "integer"}, "b$": {"maximum": 5}}, "type": "object"},
        {"xa": 3, "b": 2},
    ),
    "patterns beside members": (
        {
            "type": "object",
            "properties": {"x_a": {"minimum": 3}, "b": {"type": "string"}},
            "patternProperties": {"^x_": {"type": "integer"}},
            "required": ["x_a", "x_c"],
            "additionalProperties": False,
        },
        {"x_a": 5, "b": "", "x_c": 1},
    ),
    "names of members": (
        {
            "properties": {"ab": {"type": "null"}, "abcd": {"type": "null"}},
            "propertyNames": {"maxLength": 3},
            "type": "object",
        },
        {"ab": None},
    ),
    "counted members": (
        {
            "type": "object",
            "properties": {n: {"type": "boolean"} for n in "abcd"},
            "minProperties": 2,
            "maxProperties": 3,
        },
        {"a": True, "c": False},
    ),
    "at least one of": (
        {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "minProperties": 1},
        {"b": None},
    ),
    "map of two and more": (
        {"type": "object", "minProperties": 2, "additionalProperties": {"type": "null"}},
        {"a": None, "b": None},
    ),
    "unique numbers": (
        {"type": "array", "items": {"type": "number"}, "uniqueItems": True},
        [0.5, 1, 2, 10, 25.5, 100, -3],
    ),
    "unique strings": (
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "minItems": 2},
        ["", "1st", "bread", "Milk"],
    ),
    "unique values": (
        {"type": "array", "items": {"enum": [1, True, "a", None, 1.0]}, "uniqueItems": True},
        [1, True, None],
    ),
    "unique of anything": ({"type": "array", "uniqueItems": True}, ["a", 3, True, None]),
    "unique counted": (
        {"type": "array", "items": {"enum": list("abcdef")}, "uniqueItems": True, "minItems": 2, "maxItems": 3},
        ["a", "c", "f"],
    ),
    "unique codes": (
        {"type": "array", "items": {"type": "string", "pattern": "^[A-Z]{2}$"}, "uniqueItems": True},
        ["DE", "FR"],
    ),
    "unique objects": (
        {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "integer"}}}, "uniqueItems": True},
        [{"a": 1}],
    ),
    "decimal of older pydantic": (
        {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$"}]},
        "12.50",
    ),
    "password rule": (
        {"type": "string", "pattern": "^(?=.*[A-Z])(?=.*\\d)[A-Za-z0-9]{8,12}$"},
        "Passw0rd1",
    ),
    "steps of 0.05": ({"type": "number", "multipleOf": 0.05, "minimum": -1, "maximum": 1}, 0.25),
    "price": ({"type": "number", "multipleOf": 0.01, "exclusiveMinimum": 0}, 12.5),
    "integer steps of a half": ({"type": "integer", "multipleOf": 0.5, "maximum": 9}, 7),
    "large steps": ({"type": "integer", "multipleOf": 5000}, 25000),
    "all of multiples": ({"allOf": [{"multipleOf": 0.5}, {"multipleOf": 0.75}], "type": "number"}, 1.5),
    "duration": ({"type": "string", "format": "duration"}, "P1DT2H3M"),
    "unknown format": ({"type": "string", "format": "my-format", "maxLength": 8}, "anything"),
    "format beside enum": ({"type": "string", "format": "date", "enum": ["today", "2024-01-01"]}, "2024-01-01"),
    "many names": ({"enum": [*ENTITIES, None, 3]}, "light.bath_39"),
    "tuple of draft 7": (
        {"$schema": DRAFT_7, "type": "array", "items": [{"type": "string"}, {"type": "integer"}], "minItems": 2},
        ["a", 1],
    ),
    "tuple and more of draft 7": (
        {"$schema": DRAFT_7, "type": "array", "items": [{"const": 1}], "additionalItems": {"type": "boolean"}},
        [1, True],
    ),
    "pattern beside enum": ({"enum": ["ab", "b", 3], "pattern": "^a"}, "ab"),
}
