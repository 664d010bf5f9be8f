"""JSON Schema as a language: every text of it parses, and is valid under the schema.

It is a part of what is valid, chosen so that it can be decided token by token within a budget:
- values are written as `json_text` says; members stand in the order of `properties`;
- honoured: `type` (or a list), `enum`, `const`, `properties`, `required`, `additionalProperties`, `items`,
  `prefixItems`, `minItems`, `maxItems`, `minLength`, `maxLength`, `pattern` (see `regex`), `format` (those in
  `json_text.FORMATS`; others are annotations), `minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum`,
  `multipleOf`, `uniqueItems`, `anyOf`, `allOf`, `oneOf` (of alternatives that surely exclude each other), `$ref`
  within the document, `minProperties`, `maxProperties`, `propertyNames`, `patternProperties`,
  `unevaluatedProperties` false, annotations;
- members that `properties` does not list are written only if `required` names them, or if no member is listed (a name
  may then come twice); where `patternProperties` are given only their names, and no name that several of them match;
  items after `prefixItems` only if `items` describes them;
- items that must be unique stand in a fixed order: listed values in theirs, strings by their first letter, numbers by
  their length and first digit, and at most one array and one object, since two might be equal;
- a value without a type has the type that its keywords are about, or else any, nested up to `Sizes.any_depth`;
- a schema that contains itself is followed `Sizes.unrolled` times, and deeper values are not written;
- where lengths are bounded, strings of more than `Sizes.longest` characters and arrays of more than `Sizes.most_items`
  are written only if they must be.
Every other keyword (`not`, `if`, `contains`, ...) raises UnmaskError: a
constraint is honoured or refused, never ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from unmask.errors import UnmaskError
from unmask.structured import json_numbers, json_text
from unmask.structured.dfa import apart, compile_language, intersection, minimal, without
from unmask.structured.effort import Effort, too_large
from unmask.structured.json_text import COLON, COMMA, member, quoted
from unmask.structured.language import NOTHING, Alt, Language, Members, Repeat, Seq, Text, text
from unmask.structured.regex import read_regex
from unmask.structured.schema_alternatives import ANYTHING, Alternatives, Path, kinds
from unmask.structured.schema_parts import Part, bounds, empty_range, member_schema, same, type_of

DEEPEST = 30
LONGEST_TEXT = 500_000
MOST_OF_SET = 64  # characters of a string with a bound, among items that have to differ


@dataclass(frozen=True)
class Sizes:
    """How much of what a schema leaves open is written."""

    longest: int = 512  # characters of a string with a bound
    most_items: int = 64
    unrolled: int = 3
    any_depth: int = 2


SIZES = (Sizes(), Sizes(128, 16, 2, 1), Sizes(32, 8, 1, 0))  # from the widest to what is tried last


def read_schema(schema: Any, effort: Effort, sizes: Sizes = SIZES[0]) -> Language:
    """The language of a schema: a dict, true, false, or its JSON text. Raises UnmaskError where it is refused."""
    try:
        if isinstance(schema, str):
            if len(schema) > LONGEST_TEXT:
                raise too_large(f"the JSON schema has more than {LONGEST_TEXT} characters")
            schema = json.loads(schema)
        _check_size(schema)
        schema = json.loads(json.dumps(schema, allow_nan=False))  # nothing but JSON from here on
    except (TypeError, ValueError, RecursionError) as error:
        raise UnmaskError(f"the JSON schema is not JSON: {error}") from None
    language = _Reader(schema, effort, sizes).value(schema, (), 0)
    return _spaced(language, schema.get("x-guidance", {}), effort) if isinstance(schema, dict) else language


def _spaced(language: Language, options: Any, effort: Effort) -> Language:
    """A language with the separators of llguidance's `x-guidance`."""
    flexible = options.get("whitespace_flexible", True) if isinstance(options, dict) else None
    if not isinstance(flexible, bool):
        raise UnmaskError("JSON schema: 'x-guidance' is an object whose 'whitespace_flexible' is true or false")
    separators = list[Language]()
    for name, own in (("item_separator", COMMA), ("key_separator", COLON)):
        mark = "," if own is COMMA else ":"
        if name not in options:
            separators.append(own if flexible else text(mark))
            continue
        separator = read_regex(str(options[name]), effort=effort)
        if not without(separator, read_regex(rf"[ \t\r\n]*{mark}[ \t\r\n]*"), effort).is_empty:
            raise UnmaskError(
                f"JSON schema: '{name}' of 'x-guidance' is a regular expression of '{mark}' between spaces"
            )
        separators.append(separator)
    return json_text.separated_by(language, *separators)


def _check_size(schema: Any) -> None:
    """Bounds on depth and size, before anything walks the schema by recursion."""
    level = [schema]
    depth = 0
    count = 0
    while level:
        depth = depth + 1
        count = count + len(level)
        if depth > 4 * DEEPEST:
            raise too_large(f"the JSON schema is nested deeper than {4 * DEEPEST} levels")
        if count > 50_000:
            raise too_large("the JSON schema has more than 50000 parts")
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [value for values in inner for value in values]


class _Reader:
    """Builds the language of every schema within one document."""

    def __init__(self, root: Any, effort: Effort, sizes: Sizes) -> None:
        self.effort = effort
        self.sizes = sizes
        self.strings: dict[str, Language] = {}
        self.alternatives = Alternatives(root, effort, sizes.unrolled)

    def value(self, schema: Any, path: Path, depth: int) -> Language:
        """What is valid under a schema that stands `depth` values deep."""
        if depth > DEEPEST:
            raise too_large(f"the JSON schema describes values nested deeper than {DEEPEST} levels")
        parts = self.alternatives.of(schema, path)
        return Alt(tuple(self._of_part(part, inner, depth) for part, inner in parts))

    def _of_part(self, part: Part, path: Path, depth: int) -> Language:
        if "enum" in part:
            try:
                return json_text.literals(part["enum"], self.effort)
            except ValueError as error:
                raise UnmaskError(f"JSON schema: a value of 'enum' or 'const' is not JSON: {error}") from None
        written = kinds(part)
        if len(written) == len(ANYTHING) and part.keys() <= {"type"}:
            return anything(self.sizes.any_depth)
        return Alt(tuple(self._of_type(kind, part, path, depth) for kind in written))

    def _of_type(self, kind: str, part: Part, path: Path, depth: int) -> Language:
        if empty_range(part, kind):
            return NOTHING
        match kind:
            case "object":
                return self._object(part, path, depth)
            case "array":
                return self._array(part, path, depth)
            case "string":
                return self._string(part)
            case "boolean":
                return Alt((Text(b"true"), Text(b"false")))
            case "null":
                return Text(b"null")
        return self._number(part, kind == "integer")

    def _object(self, part: Part, path: Path, depth: int) -> Language:
        required = part.get("required", [])
        least = part.get("minProperties", 0)
        most = part.get("maxProperties")
        listed = list(dict.fromkeys((*part.get("properties", {}), *required)))
        if not listed:
            return self._open_object(part, path, depth, least, most)
        if "propertyNames" in part:
            names = compile_language(self._name(part, {}, path, depth), self.effort)
            spelled = {one: json.dumps(one, ensure_ascii=False).encode(errors="replace") for one in listed}
            listed = [one for one in listed if names.holds(spelled[one])]
            if not set(required) <= set(listed):
                return NOTHING
        members = tuple(
            (member(one, self.value(member_schema(part, one), path, depth + 1)), one in required) for one in listed
        )
        # bounds that always hold cost nothing
        low = 0 if least <= len(required) else least
        high = None if most is None or most >= len(listed) else most
        return Seq((Text(b"{"), Members(members, COMMA, low, high), Text(b"}")))

    def _name(self, part: Part, narrower: Part, path: Path, depth: int) -> Language:
        """A member's name."""
        named = {"allOf": [{"type": "string", **narrower}, part.get("propertyNames", True)]}
        return self.value(named, path, depth + 1)

    def _open_object(self, part: Part, path: Path, depth: int, least: int, most: int | None) -> Language:
        """An object whose members have any names, or those of `patternProperties`."""
        rest = part.get("additionalProperties", True)
        schemas = part.get("patternProperties", {})
        if not schemas and rest is False:
            return NOTHING if least else Text(b"{}")
        narrowing = [{"pattern": pattern} for pattern in schemas] or [{}]
        names = [self._name(part, narrower, path, depth) for narrower in narrowing]
        values = [self.value(schema, path, depth + 1) for schema in list(schemas.values()) or [rest]]
        if len(names) > 1:  # of those that several patterns match nothing is written
            names = [
                without(name, Alt(tuple(other for other in names if other is not name)), self.effort) for name in names
            ]
        most = None if most is None else max(least, min(most, self.sizes.most_items))
        if least < 2:
            pairs = tuple(Seq((name, COLON, value)) for name, value in zip(names, values, strict=True))
            return Seq((Text(b"{"), Repeat(Alt(pairs), least, most, COMMA), Text(b"}")))
        # a name must not come twice: names of different first letters, in their order
        pairs = tuple(
            Seq((piece, COLON, value))
            for name, value in zip(names, values, strict=True)
            for piece in apart([name], json_text.APART, self.effort)
        )
        if len(pairs) < least:
            raise UnmaskError(f"JSON schema: 'minProperties' {least} is more than can be told apart; use 'required'")
        return Seq((Text(b"{"), Members(tuple((pair, False) for pair in pairs), COMMA, least, most), Text(b"}")))

    def _array(self, part: Part, path: Path, depth: int) -> Language:
        low = part.get("minItems", 0)
        high = part.get("maxItems")
        if low > SIZES[0].most_items:
            raise too_large(f"the JSON schema asks for more than {SIZES[0].most_items} items")
        if part.get("uniqueItems") and (high is None or high > 1):
            return self._set(part, path, depth, low, high)
        first = [self.value(schema, path, depth + 1) for schema in part.get("prefixItems", [])[:high]]
        if first and "items" not in part:  # what the schema says nothing about is written only if it must be
            high = max(low, len(first))
        rest = self.value(part.get("items", True), path, depth + 1)
        most = None if high is None else max(low, len(first), min(high, self.sizes.most_items))
        if not first:
            return Seq((Text(b"["), Repeat(rest, low, most, COMMA), Text(b"]")))
        # lengths below that of the prefix one by one, then the whole prefix with what follows it
        options = [json_text.array(first[:length]) for length in range(low, len(first))]
        more = Repeat(Seq((COMMA, rest)), max(0, low - len(first)), None if most is None else most - len(first))
        return Alt((*options, json_text.array(first, more)))

    def _set(self, part: Part, path: Path, depth: int, low: int, high: int | None) -> Language:
        """Items that surely differ: values of a list in its order, or strings and numbers by their first characters."""
        if part.get("prefixItems"):
            raise UnmaskError("JSON schema: 'uniqueItems' beside 'prefixItems' is not supported; drop one of them")
        by_kind: dict[str, list[Language]] = {kind: [] for kind in ANYTHING}
        listed: list[Any] = []
        all_listed = True
        for inner, way in self.alternatives.of(part.get("items", True), path):
            kinds_here = kinds(inner)
            values = inner.get("enum", [True, False] if kinds_here == ["boolean"] else None)
            for value in values or []:
                if not any(same(value, other) for other in listed):
                    listed.append(value)
            all_listed &= values is not None
            short = {**inner, "maxLength": min(inner["maxLength"], MOST_OF_SET)} if "maxLength" in inner else inner
            if "enum" in inner:
                written = [(type_of(value), json_text.literal(value)) for value in inner["enum"]]
            else:
                written = [(kind, self._of_type(kind, short, way, depth + 1)) for kind in kinds_here]
            for kind, language in written:
                by_kind[kind.replace("integer", "number")].append(language)
        if all_listed and len(listed) <= self.sizes.most_items:
            items = [json_text.literal(value) for value in listed]
        else:
            pieces = {"string": json_text.APART, "number": json_numbers.APART, "boolean": json_text.BOOLEANS}
            items = []
            for kind, languages in by_kind.items():
                if languages:
                    items += apart(languages, pieces.get(kind, ()), self.effort)
        if low > len(items):
            raise UnmaskError(
                f"JSON schema: {low} items of 'uniqueItems' are more than can be told apart; ask for fewer"
            )
        most = None if high is None or high >= len(items) else high
        return Seq((Text(b"["), Members(tuple((item, False) for item in items), COMMA, low, most), Text(b"]")))

    def _string(self, part: Part) -> Language:
        low = part.get("minLength", 0)
        high = part.get("maxLength")
        if low > SIZES[0].longest:
            raise too_large(f"the JSON schema asks for strings of more than {SIZES[0].longest} characters")
        wanted: list[Language] = [
            read_regex(pattern, search=True, write=json_text.character, effort=self.effort)
            for pattern in part.get("patterns", [])
        ]
        wanted += [read_regex(json_text.FORMATS[name]) for name in part.get("formats", [])]
        if low or high is not None or not wanted:
            high = None if high is None else max(low, min(high, self.sizes.longest))
            wanted.append(Repeat(json_text.ANY_CHARACTER, low, high))
        key = repr((low, high, part.get("patterns"), part.get("formats")))
        if key not in self.strings:  # each is compiled once, however often it comes
            content = intersection(wanted, self.effort)
            self.strings[key] = (
                content if high is None else minimal(compile_language(content, self.effort), self.effort)
            )
        return quoted(self.strings[key])

    def _number(self, part: Part, whole: bool) -> Language:
        low, high = bounds(part)
        factor = part.get("multipleOf")
        if low is None and high is None and factor is None:
            return json_numbers.INTEGER if whole else json_numbers.NUMBER
        digits = max(len(str(abs(int(bound[0])))) for bound in (low, high, (Decimal(0), False)) if bound)
        if digits > 30:
            raise UnmaskError("JSON schema: bounds of numbers with more than 30 digits are not supported")
        # few enough digits that two numbers written differently are two numbers in floating point
        places = 0 if whole else max(0, min(json_numbers.DECIMALS, json_numbers.DIGITS - 1 - digits))
        least = json_numbers.rounded(low, places, up=True)
        most = json_numbers.rounded(high, places, up=False)
        if least is not None and most is not None and least > most:
            return NOTHING
        if low is None and high is None:
            ranged = json_numbers.INTEGER if whole else json_numbers.PLAIN
        else:
            ranged = json_numbers.decimals(least, most, places)
        if factor is None:
            return ranged
        return intersection([ranged, json_numbers.multiples_of(factor, whole, self.effort)], self.effort)


@lru_cache
def anything(depth: int) -> Language:
    """Any JSON value, nested up to a depth."""
    scalars: tuple[Language, ...] = (
        quoted(Repeat(json_text.ANY_CHARACTER)),
        json_numbers.NUMBER,
        *map(text, ("true", "false", "null")),
    )
    if not depth:
        return Alt(scalars)
    inner = anything(depth - 1)
    array = Seq((Text(b"["), Repeat(inner, 0, None, COMMA), Text(b"]")))
    members = Repeat(Seq((scalars[0], COLON, inner)), 0, None, COMMA)
    return Alt((*scalars, array, Seq((Text(b"{"), members, Text(b"}")))))
