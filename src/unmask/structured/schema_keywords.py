"""The keywords of one JSON schema, checked and brought into the form that `schema_merge` works on."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from unmask.errors import UnmaskError
from unmask.structured.json_numbers import DECIMALS
from unmask.structured.json_text import FORMATS
from unmask.structured.schema_merge import TYPES, Part, narrowed, same

_ANNOTATIONS = (
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment",
    "$schema", "$id", "$defs", "definitions", "contentMediaType", "contentEncoding", "discriminator",
    "$anchor", "nullable", "xml", "externalDocs", "enumNames", "enumDescriptions", "markdownDescription", "id",
    "propertyOrdering", "deprecationMessage",
)  # fmt: skip
MOST_PATTERNS = 16
_COMBINED = ("$ref", "allOf", "anyOf", "oneOf", "unevaluatedProperties")


def read_keywords(schema: Any, is_root: bool, newest: bool) -> tuple[Part | None, Part]:
    """A schema's own assertions as a part (None: no value meets them), and its references and combinations.

    newest: whether tuples are written as `prefixItems`, and not as a list of `items` and `additionalItems`.
    """
    if not isinstance(schema, dict):
        raise UnmaskError(f"JSON schema: {_short(schema)} stands where a schema belongs; use an object, true or false")
    own: Part = {}
    combined: Part = {}
    if not newest and isinstance(schema.get("items"), list):
        rest = {"items": schema["additionalItems"]} if "additionalItems" in schema else {}
        kept = {key: value for key, value in schema.items() if key not in ("items", "additionalItems")}
        schema = {**kept, "prefixItems": schema["items"], **rest}
    elif not newest and "prefixItems" in schema:
        raise UnmaskError("JSON schema: older drafts ignore 'prefixItems'; set '$schema' to draft 2020-12")
    for key, value in schema.items():
        if key in _READERS:
            read, name = _READERS[key]
            own[name] = read(key, value)
        elif key in _COMBINED:
            combined[key] = _combination(key, value)
        elif key == "$id" and not is_root:
            raise UnmaskError("JSON schema: '$id' inside the document is not supported; refer to '#/$defs/name'")
        elif key not in (*_ANNOTATIONS, "const") and not key.startswith("x-"):
            raise UnmaskError(f"JSON schema: keyword {_short(key)} is not supported; remove it, or say it another way")
    if "const" in schema:
        own["enum"] = [value for value in own.get("enum", [schema["const"]]) if same(value, schema["const"])]
    return narrowed(own), combined


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."


def _bad(key: str, value: Any, wanted: str) -> UnmaskError:
    return UnmaskError(f"JSON schema: '{key}' is {_short(value)}; it must be {wanted}")


def _combination(key: str, value: Any) -> Any:
    if key == "$ref":
        if not isinstance(value, str):
            raise _bad(key, value, "a string")
    elif key == "unevaluatedProperties":
        if not isinstance(value, bool):
            raise _bad(key, value, "true or false")
    elif not isinstance(value, list) or not value:
        raise _bad(key, value, "a list of schemas, not empty")
    return value


def _count(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or value < 0 or value % 1:
        raise _bad(key, value, "a whole number from 0")
    return int(value)


def _number(key: str, value: Any) -> Decimal:
    try:
        number = Decimal(repr(value)) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except (InvalidOperation, ValueError):
        number = None
    if number is None or not number.is_finite() or abs(number) >= Decimal("1e30"):
        raise _bad(key, value, "a number of at most 30 digits")
    return number


def _factor(key: str, value: Any) -> Decimal:
    number = _number(key, value)
    if number <= 0 or number.as_tuple().exponent < -DECIMALS:  # type: ignore[operator]
        raise _bad(key, value, f"a number above 0 of at most {DECIMALS} decimals")
    return number


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _bad(key, value, "true or false")
    return value


def _patterns(key: str, value: Any) -> dict[str, Any]:
    if len(_schemas(key, value)) > MOST_PATTERNS:
        raise _bad(key, value, f"an object of at most {MOST_PATTERNS} expressions here")
    return _schemas(key, value)


def _types(key: str, value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n in TYPES for n in names):
        raise _bad(key, value, f"one of {', '.join(TYPES)}, or a list of them")
    return [name for name in dict.fromkeys(names) if not (name == "integer" and "number" in names)]


def _values(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise _bad(key, value, "a list of values, not empty")
    return value


def _names(key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _bad(key, value, "a list of names")
    return list(dict.fromkeys(value))


def _schemas(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad(key, value, "an object of schemas")
    return value


def _schema(key: str, value: Any) -> Any:
    if not isinstance(value, bool | dict):
        hint = "a schema (a list of them is 'prefixItems')" if key == "items" else "a schema"
        raise _bad(key, value, hint)
    return value


def _list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _bad(key, value, "a list of schemas")
    return value


def _pattern(key: str, value: Any) -> list[str]:
    if not isinstance(value, str):
        raise _bad(key, value, "a regular expression")
    return [value]


def _format(key: str, value: Any) -> list[str]:
    if not isinstance(value, str):
        raise _bad(key, value, "a name")
    return [value] if value in FORMATS else []


_PLAIN: dict[str, Callable[[str, Any], Any]] = {
    "type": _types,
    "enum": _values,
    "properties": _schemas,
    "required": _names,
    "additionalProperties": _schema,
    "propertyNames": _schema,
    "items": _schema,
    "prefixItems": _list,
    "multipleOf": _factor,
    "uniqueItems": _flag,
    "patternProperties": _patterns,
    **{f"{side}{what}": _count for side in ("min", "max") for what in ("Length", "Items", "Properties")},
    **{key: _number for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")},
}
_READERS = {key: (read, key) for key, read in _PLAIN.items()}
_READERS |= {"pattern": (_pattern, "patterns"), "format": (_format, "formats")}
