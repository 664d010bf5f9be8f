"""The keywords of one JSON schema, checked; and schemas put together: what holds when several hold at once.

A part is a dict of the keywords that `json_schema` builds from. `patterns` and `formats` are lists, `enum` stands for
`const` too, `type` is always a list, and `minimum`, `maximum` (and their exclusive forms) are Decimals.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from unmask.errors import UnmaskError
from unmask.structured.dfa import compile_language
from unmask.structured.effort import Effort
from unmask.structured.json_numbers import DECIMALS
from unmask.structured.json_text import FORMATS
from unmask.structured.language import Dfa
from unmask.structured.regex import read_regex

Part = dict[str, Any]
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
FAMILIES = {  # which type each keyword is about
    "object": (
        "properties",
        "required",
        "additionalProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "patternProperties",
    ),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("minLength", "maxLength", "patterns", "formats"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_SIZES = {"string": "Length", "array": "Items", "object": "Properties"}  # what bounds are named by
_ANNOTATIONS = (
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment",
    "$schema", "$id", "$defs", "definitions", "contentMediaType", "contentEncoding", "discriminator",
    "$anchor", "nullable", "xml", "externalDocs", "enumNames", "enumDescriptions", "markdownDescription", "id",
    "propertyOrdering", "deprecationMessage",
)  # fmt: skip
MOST_PATTERNS = 16


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
        if key in _COMBINED:
            combined[key] = _read(key, value, *_COMBINED[key])
        elif key in _OWN:
            own[_LISTS.get(key, key)] = _read(key, value, *_OWN[key])
        elif key == "$id" and not is_root:
            raise UnmaskError("JSON schema: '$id' inside the document is not supported; refer to '#/$defs/name'")
        elif key not in (*_ANNOTATIONS, "const") and not key.startswith("x-"):
            raise UnmaskError(f"JSON schema: keyword {_short(key)} is not supported; remove it, or say it another way")
    if "const" in schema:
        own["enum"] = [value for value in own.get("enum", [schema["const"]]) if same(value, schema["const"])]
    return narrowed(own), combined


def _read(key: str, value: Any, reader: Callable[[Any], Any], wanted: str) -> Any:
    read = reader(value)
    if read is None:
        raise UnmaskError(f"JSON schema: '{key}' is {_short(value)}; it must be {wanted}")
    return read


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."


# readers of a keyword's value: None refuses it
def _is(*kinds: type) -> Callable[[Any], Any]:
    return lambda value: value if isinstance(value, kinds) else None


def _count(value: Any) -> int | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if number and value >= 0 and value % 1 == 0 else None


def _number(value: Any) -> Decimal | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = Decimal(repr(value))
    except (InvalidOperation, ValueError):
        return None
    return number if number.is_finite() and abs(number) < Decimal("1e30") else None


def _factor(value: Any) -> Decimal | None:
    number = _number(value)
    fits = number is not None and number > 0 and int(number.as_tuple().exponent) >= -DECIMALS
    return number if fits else None


def _types(value: Any) -> list[str] | None:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n in TYPES for n in names):
        return None
    return [name for name in dict.fromkeys(names) if not (name == "integer" and "number" in names)]


def _names(value: Any) -> list[str] | None:
    known = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return list(dict.fromkeys(value)) if known else None


def _some(value: Any) -> list[Any] | None:
    return value if isinstance(value, list) and value else None


def _format(value: Any) -> list[str] | None:
    return ([value] if value in FORMATS else []) if isinstance(value, str) else None


_LISTS = {"pattern": "patterns", "format": "formats"}  # what a part calls keywords of which it may hold several
_COMBINED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "$ref": (_is(str), "a string"),
    "unevaluatedProperties": (_is(bool), "true or false"),
    **dict.fromkeys(("allOf", "anyOf", "oneOf"), (_some, "a list of schemas, not empty")),
}
_OWN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "type": (_types, f"one of {', '.join(TYPES)}, or a list of them"),
    "enum": (_some, "a list of values, not empty"),
    "properties": (_is(dict), "an object of schemas"),
    "patternProperties": (
        lambda value: value if isinstance(value, dict) and len(value) <= MOST_PATTERNS else None,
        f"an object of at most {MOST_PATTERNS} schemas by expression",
    ),
    "required": (_names, "a list of names"),
    **dict.fromkeys(("additionalProperties", "propertyNames"), (_is(bool, dict), "a schema")),
    "items": (_is(bool, dict), "a schema (a list of them is 'prefixItems')"),
    "prefixItems": (_is(list), "a list of schemas"),
    "uniqueItems": (_is(bool), "true or false"),
    "pattern": (lambda value: [value] if isinstance(value, str) else None, "a regular expression"),
    "format": (_format, "a name"),
    "multipleOf": (_factor, f"a number above 0 of at most {DECIMALS} decimals and 30 digits"),
    **dict.fromkeys(
        [f"{side}{what}" for side in ("min", "max") for what in ("Length", "Items", "Properties")],
        (_count, "a whole number from 0"),
    ),
    **dict.fromkeys(
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), (_number, "a number of at most 30 digits")
    ),
}


def merge(one: Part, other: Part) -> Part | None:
    """What holds when both parts hold; None where nothing can."""
    out = {**one, **other}
    for key in one.keys() & other.keys() & _BOTH.keys():
        out[key] = _BOTH[key](one[key], other[key])
    _merge_properties(one, other, out)
    _merge_items(one, other, out)
    return narrowed(out)


def member_schema(part: Part, name: str) -> Any:
    """The schema of the member of this name."""
    found = [schema for pattern, schema in part.get("patternProperties", {}).items() if _matches(pattern, name)]
    if name in part.get("properties", {}):
        found.append(part["properties"][name])
    return functools.reduce(both, found) if found else part.get("additionalProperties", True)


def _matches(pattern: str, name: str) -> bool:
    return _automaton(pattern).holds(name.encode(errors="replace"))


@functools.lru_cache(maxsize=256)
def _automaton(pattern: str) -> Dfa:
    effort = Effort(seconds=0.1, states=2000)
    return compile_language(read_regex(pattern, search=True, effort=effort), effort)


def _merge_properties(one: Part, other: Part, out: Part) -> None:
    """A name that one part does not list is ruled by its patternProperties or additionalProperties."""
    names = dict.fromkeys((*one.get("properties", {}), *other.get("properties", {})))
    if names:
        out["properties"] = {name: both(member_schema(one, name), member_schema(other, name)) for name in names}
    for part, beside in ((one, other), (other, one)):
        for pattern in part.get("patternProperties", {}):
            if pattern not in beside.get("patternProperties", {}):
                out["patternProperties"][pattern] = both(
                    out["patternProperties"][pattern], beside.get("additionalProperties", True)
                )
    if any("additionalProperties" in part for part in (one, other)):
        out["additionalProperties"] = both(*(part.get("additionalProperties", True) for part in (one, other)))


def _merge_items(one: Part, other: Part, out: Part) -> None:
    if not any(key in part for key in ("items", "prefixItems") for part in (one, other)):
        return
    sides = [(part.get("prefixItems", []), part.get("items", True)) for part in (one, other)]
    length = max(len(first) for first, _ in sides)
    out["prefixItems"] = [both(*(first[i] if i < len(first) else rest for first, rest in sides)) for i in range(length)]
    out["items"] = both(*(rest for _, rest in sides))


def both(a: Any, b: Any) -> Any:
    """The schema of what is valid under both schemas."""
    if a is True or b is True:
        return b if a is True else a
    return False if a is False or b is False else {"allOf": [a, b]}


def common_types(a: list[str], b: list[str]) -> list[str]:
    """Types in both; an integer is a number."""
    wide = [[*x, "integer"] if "number" in x and "integer" not in x else x for x in (a, b)]
    out = [name for name in wide[0] if name in wide[1]]
    return [name for name in out if not (name == "integer" and "number" in out)]


def same(a: Any, b: Any) -> bool:
    """Equality of JSON values, in which true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def type_of(value: Any) -> str:
    """The JSON Schema type of a value; a float without fraction is an integer."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    names = {dict: "object", list: "array", str: "string", float: "number", type(None): "null"}
    return names[type(value)]


def narrowed(part: Part) -> Part | None:
    """The part with its listed values checked against its other keywords; None where nothing is left of it."""
    if "enum" in part:
        left = [value for value in part["enum"] if _allows(part, value)]
        for name in part.get("formats", []):  # values of another form say that it is only an annotation
            left = [
                value for value in left if not isinstance(value, str) or _matches(f"^({FORMATS[name]})$", value)
            ] or left
        return {"enum": left} if left else None
    if part.get("type") == []:
        return None
    kinds = part.get("type")
    if kinds is not None and all(empty_range(part, kind) for kind in kinds):
        return None
    if kinds == ["object"] and any(member_schema(part, name) is False for name in part.get("required", [])):
        return None
    return part


def empty_range(part: Part, kind: str) -> bool:
    """Whether bounds leave nothing of this type."""
    if kind in ("number", "integer"):
        low, high = bounds(part)
        return low is not None and high is not None and (low[0] > high[0] or (low[0] == high[0] and low[1] | high[1]))
    what = _SIZES.get(kind)
    return what is not None and bool(part.get(f"min{what}", 0) > part.get(f"max{what}", math.inf))


def bounds(part: Part) -> tuple[tuple[Decimal, bool] | None, tuple[Decimal, bool] | None]:
    """The lower and the upper bound of numbers, each with whether it is exclusive."""
    lows = [(part[key], key[0] == "e") for key in ("minimum", "exclusiveMinimum") if key in part]
    highs = [(part[key], key[0] == "e") for key in ("maximum", "exclusiveMaximum") if key in part]
    return max(lows, default=None), min(highs, key=lambda b: (b[0], not b[1]), default=None)


def _allows(part: Part, value: Any) -> bool:
    """Whether a listed value is valid under the other keywords; those too intricate to ask are refused."""
    kind = type_of(value)
    if "type" in part and kind not in part["type"] and not (kind == "integer" and "number" in part["type"]):
        return False
    fits = True
    asked: tuple[str, ...] = ()  # keywords that are decided here
    if kind == "string":
        asked = FAMILIES["string"]
        fits = part.get("minLength", 0) <= len(value) <= part.get("maxLength", math.inf)
        fits = fits and all(_matches(pattern, value) for pattern in part.get("patterns", []))
    elif kind in ("integer", "number"):
        kind = "number"
        asked = FAMILIES["number"][:4]
        low, high = bounds(part)
        exact = Decimal(repr(value))
        fits = low is None or (exact > low[0] if low[1] else exact >= low[0])
        fits = fits and (high is None or (exact < high[0] if high[1] else exact <= high[0]))
    for key in FAMILIES.get(kind, ()):
        if fits and key in part and key not in asked and (key, part[key]) != ("uniqueItems", False):
            raise UnmaskError(f"JSON schema: '{key}' beside 'enum' or 'const' is not supported; drop one of them")
    return fits


def _joined(a: list[Any], b: list[Any]) -> list[Any]:
    return [*a, *(x for x in b if x not in a)]


def _common_multiple(a: Decimal, b: Decimal) -> Decimal:
    places = max(0, *(-int(x.as_tuple().exponent) for x in (a, b)))
    return Decimal(math.lcm(int(a.scaleb(places)), int(b.scaleb(places)))).scaleb(-places)


_BOTH: dict[str, Callable[[Any, Any], Any]] = {  # what becomes of a keyword that both parts have
    **dict.fromkeys(("minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum"), max),
    **dict.fromkeys(("maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum"), min),
    **dict.fromkeys(("patterns", "formats", "required"), _joined),
    "type": common_types,
    "enum": lambda a, b: [x for x in a if any(same(x, y) for y in b)],
    "propertyNames": both,
    "multipleOf": _common_multiple,
    "uniqueItems": lambda a, b: a or b,
    "patternProperties": lambda a, b: {**a, **b, **{pattern: both(a[pattern], b[pattern]) for pattern in a.keys() & b}},
}
