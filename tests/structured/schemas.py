"""Schemas of many kinds, each with values that are written for it; used by several tests."""

from typing import Any

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}
TREE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
    "required": ["value", "next"],
    "additionalProperties": False,
}
SHAPES = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"kind": {"const": "circle"}, "radius": {"type": "number", "exclusiveMinimum": 0}},
            "required": ["kind", "radius"],
        },
        {
            "type": "object",
            "properties": {"kind": {"const": "square"}, "side": {"type": "number", "minimum": 1, "maximum": 2.5}},
            "required": ["kind", "side"],
        },
    ]
}
ORDER = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Order",
    "type": "object",
    "properties": {
        "id": {"type": "string", "format": "uuid"},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}, "minItems": 1, "maxItems": 3},
        "note": {"type": ["string", "null"], "maxLength": 12, "description": "free text"},
    },
    "required": ["items"],
    "additionalProperties": False,
    "$defs": {
        "item": {
            "type": "object",
            "properties": {
                "sku": {"type": "string", "pattern": "^[A-Z]{2}\\d{2}$"},
                "n": {"type": "integer", "minimum": 1},
            },
            "required": ["sku", "n"],
        }
    },
}

# name: (schema, values that can be written)
SCHEMAS: dict[str, tuple[Any, list[Any]]] = {
    "anything": (True, [None, 3, "a", [1, "b"], {"x": [True]}, -1.5e10]),
    "no keywords": ({}, [{"a": {}}, []]),
    "null": ({"type": "null"}, [None]),
    "boolean": ({"type": "boolean"}, [True, False]),
    "integer": ({"type": "integer"}, [0, -12, 99]),
    "number": ({"type": "number"}, [0, -1.25, 3e10]),
    "string": ({"type": "string"}, ["", 'a\nb"c\\', "é日😀"]),
    "types": ({"type": ["integer", "string", "null"]}, [1, "x", None]),
    "enum": ({"enum": ["red", 'a"b', 3, 2.5, None, True, [1, {"a": "ü"}], "\x01"]}, ["red", 'a"b', 3, 2.5, None, True]),
    "const": ({"const": {"b": [1, 2], "a": ""}}, [{"b": [1, 2], "a": ""}]),
    "typed enum": ({"type": "string", "enum": ["a", 1, "bcd", "efghij"], "maxLength": 3}, ["a", "bcd"]),
    "bounded integer": ({"type": "integer", "minimum": -3, "maximum": 120}, [-3, 0, 120]),
    "exclusive bounds": ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, [0.5, 0.001]),
    "one bound": ({"type": "number", "maximum": -2.5}, [-2.5, -100]),
    "multiple": ({"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 100}, [14, 98]),
    "any multiple": ({"type": "number", "multipleOf": 25}, [0, 75, -100]),
    "lengths": ({"type": "string", "minLength": 2, "maxLength": 5}, ["ab", "日本語😀é"]),
    "long": ({"type": "string", "maxLength": 100_000}, ["x" * 200]),
    "pattern": ({"type": "string", "pattern": "^[a-z]+-\\d{1,3}$"}, ["ab-12"]),
    "unanchored pattern": ({"type": "string", "pattern": "b[0-9]"}, ["b1", 'a"b2 c']),
    "pattern and length": ({"type": "string", "pattern": "^(ab)*c?$", "minLength": 3, "maxLength": 6}, ["abab", "abc"]),
    "pattern with escapes": ({"type": "string", "pattern": '^["\\\\\\n]{2}x$'}, ['"\\x', "\n\nx"]),
    "two patterns": ({"allOf": [{"type": "string", "pattern": "a"}, {"pattern": "b"}], "maxLength": 4}, ["ab", "xbya"]),
    "date": ({"type": "string", "format": "date"}, ["2024-02-28", "1999-12-31"]),
    "time": ({"type": "string", "format": "time"}, ["23:59:00Z"]),
    "date-time": ({"type": "string", "format": "date-time"}, ["2024-01-30T01:02:03.5+01:00"]),
    "email": ({"type": "string", "format": "email"}, ["jane.doe@example.com"]),
    "uuid": ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"]),
    "ipv4": ({"type": "string", "format": "ipv4"}, ["127.0.0.1", "255.255.255.255"]),
    "ipv6": ({"type": "string", "format": "ipv6"}, ["1:2:3:4:5:6:7:abcd"]),
    "hostname": ({"type": "string", "format": "hostname"}, ["www.example.com"]),
    "uri": ({"type": "string", "format": "uri"}, ["https://example.com/a/b?c=d#e"]),
    "array": ({"type": "array", "items": {"type": "integer"}}, [[], [1], [1, 2, 3]]),
    "array of anything": ({"type": "array"}, [[], [1, "a", {"b": None}]]),
    "counted array": ({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}, [[True, False]]),
    "empty array": ({"type": "array", "maxItems": 0}, [[]]),
    "nested array": (
        {"type": "array", "items": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2}},
        [[[1], []]],
    ),
    "tuple": ({"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "minItems": 2}, [["a", 1]]),
    "tuple and more": (
        {"prefixItems": [{"const": "x"}], "items": {"type": "null"}, "minItems": 1, "maxItems": 3},
        [["x"], ["x", None, None]],
    ),
    "closed tuple": ({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False}, [[], [1], [1, 2]]),
    "object": (PERSON, [{"name": "Emma"}, {"name": "", "age": 21}]),
    "object of anything": ({"type": "object"}, [{}, {"a": 1, "b": {"c": [None]}}]),
    "all optional": ({"properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}}, [{}, {"a": 1, "c": 3}]),
    "closed object": (
        {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": False, "maxProperties": 1},
        [{}, {"a": None}],
    ),
    "map": ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"x": 1, "y z": -2}]),
    "map of names": (
        {"type": "object", "propertyNames": {"pattern": "^k\\d$"}, "additionalProperties": {"type": "boolean"}},
        [{"k1": True}],
    ),
    "required unlisted": ({"type": "object", "required": ["a", 'q"']}, [{"a": 1, 'q"': "x"}]),
    "nested object": (
        {"type": "object", "properties": {"p": PERSON, "q": {"properties": {"r": PERSON}, "required": ["r"]}}},
        [{"p": {"name": "a"}, "q": {"r": {"name": "b", "age": 1}}}],
    ),
    "anyOf": ({"anyOf": [{"type": "integer", "minimum": 5}, {"type": "string", "maxLength": 2}, PERSON]}, [7, "ab"]),
    "anyOf beside": (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
            "anyOf": [{"properties": {"b": {"const": "x"}}, "required": ["b"]}, {"properties": {"a": {"maximum": 3}}}],
        },
        [{"a": 2}, {"a": 9, "b": "x"}],
    ),
    "allOf": (
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"properties": {"a": {"minimum": 3}, "b": {"type": "null"}}, "required": ["b"]},
            ],
            "unevaluatedProperties": False,
        },
        [{"a": 3, "b": None}],
    ),
    "oneOf": (SHAPES, [{"kind": "circle", "radius": 1}, {"kind": "square", "side": 2.5}]),
    "oneOf types": (
        {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "string"}, {"type": "null"}]},
        [1, "a", None],
    ),
    "oneOf ranges": ({"type": "integer", "oneOf": [{"maximum": 3}, {"minimum": 4, "maximum": 99}]}, [-5, 50]),
    "reference": (
        {"$defs": {"a/b": {"type": "integer"}}, "type": "array", "items": {"$ref": "#/$defs/a~1b"}},
        [[1, 2]],
    ),
    "draft 7": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "definitions": {"n": {"type": "integer", "minimum": 0}},
            "type": "array",
            "items": {"$ref": "#/definitions/n"},
            "uniqueItems": False,
        },
        [[0, 12]],
    ),
    "long tuple": ({"type": "array", "prefixItems": [{"const": 1}] * 70, "maxItems": 90}, [[], [1] * 70]),
    "empty range beside": ({"type": ["string", "null"], "minLength": 3, "maxLength": 1}, [None]),
    "itself": (TREE, [{"value": 1, "next": None}, {"value": 1, "next": {"value": 2, "next": None}}]),
    "order": (ORDER, [{"items": [{"sku": "AB12", "n": 1}], "note": None}]),
    "text": ('{"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]}', [{"a": 0.5}]),
}
