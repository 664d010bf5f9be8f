"""Schemas put together: what holds when several hold at once, for `allOf`, `$ref`, `anyOf` and `oneOf`.

A part is a dict of the keywords that `json_schema` builds from. `patterns` and `formats` are lists, `enum` stands for
`const` too, `type` is always a list, and `minimum`, `maximum` (and their exclusive forms) are Decimals.
"""

from __future__ import annotations

import functools
import math
from decimal import Decimal
from typing import Any

from unmask.errors import UnmaskError
from unmask.structured.dfa import compile_language
from unmask.structured.effort import Effort
from unmask.structured.json_text import FORMATS
from unmask.structured.language import Dfa
from unmask.structured.regex import read_regex

Part = dict[str, Any]
_LARGER = ("minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum")
_SMALLER = ("maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum")
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


def merge(one: Part, other: Part) -> Part | None:
    """What holds when both parts hold; None where nothing can."""
    out = {**one, **other}
    for key in one.keys() & other.keys():
        a = one[key]
        b = other[key]
        if key in _LARGER:
            out[key] = max(a, b)
        elif key in _SMALLER:
            out[key] = min(a, b)
        elif key in ("patterns", "formats", "required"):
            out[key] = [*a, *(x for x in b if x not in a)]
        elif key == "type":
            out[key] = common_types(a, b)
        elif key == "enum":
            out[key] = [x for x in a if any(same(x, y) for y in b)]
        elif key == "propertyNames":
            out[key] = both(a, b)
        elif key == "multipleOf":
            places = max(0, *(-int(x.as_tuple().exponent) for x in (a, b)))
            out[key] = Decimal(math.lcm(int(a.scaleb(places)), int(b.scaleb(places)))).scaleb(-places)
        elif key == "uniqueItems":
            out[key] = a or b
        elif key == "patternProperties":
            out[key] = {**a, **b, **{pattern: both(a[pattern], b[pattern]) for pattern in a.keys() & b.keys()}}
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
    keys = {
        "string": ("minLength", "maxLength"),
        "array": ("minItems", "maxItems"),
        "object": ("minProperties", "maxProperties"),
    }
    if kind in ("number", "integer"):
        low, high = bounds(part)
        return low is not None and high is not None and (low[0] > high[0] or (low[0] == high[0] and low[1] | high[1]))
    if kind not in keys:
        return False
    least, most = keys[kind]
    return bool(part.get(least, 0) > part.get(most, math.inf))


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
    family = "number" if kind == "integer" else kind
    present = [key for key in FAMILIES.get(family, ()) if key in part and (key, part[key]) != ("uniqueItems", False)]
    if family == "string":
        short = part.get("minLength", 0)
        long = part.get("maxLength", math.inf)
        present = []
        fits = short <= len(value) <= long and all(_matches(pattern, value) for pattern in part.get("patterns", []))
    elif family == "number":
        low, high = bounds(part)
        exact = Decimal(repr(value))
        fits = low is None or (exact > low[0] if low[1] else exact >= low[0])
        fits = fits and (high is None or (exact < high[0] if high[1] else exact <= high[0]))
        present = [key for key in present if key == "multipleOf"]
    else:
        fits = True
    if present and fits:
        raise UnmaskError(f"JSON schema: '{present[0]}' beside 'enum' or 'const' is not supported; drop one of them")
    return fits
