"""JSON Schema: what is written parses and is valid, and what is not honoured is refused."""

import itertools
import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemas import SCHEMAS

from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM
from unmask.structured.dfa import compile_language
from unmask.structured.effort import Effort
from unmask.structured.grammar import Grammar
from unmask.structured.json_schema import SIZES, read_schema
from unmask.structured.language import Dfa
from unmask.structured.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    """4,096 tokens of a real tokenizer."""
    lm = DiffusionLM.from_pretrained("austen")
    assert lm.tokenizer is not None
    return Vocabulary.of(lm.tokenizer, lm.config.vocab_size, [0], 0, lm.config.mask_token_id)


def automaton(schema: Any) -> Dfa:
    effort = Effort()
    return compile_language(read_schema(schema, effort), effort)


def validator(schema: Any) -> Draft202012Validator:
    read = json.loads(schema) if isinstance(schema, str) else schema
    return Draft202012Validator(read, format_checker=Draft202012Validator.FORMAT_CHECKER)


@pytest.mark.parametrize("name", SCHEMAS)
def test_examples_are_in_the_language(name: str) -> None:
    schema, examples = SCHEMAS[name]
    dfa = automaton(schema)
    for value in examples:
        assert validator(schema).is_valid(value)
        for separators in ((", ", ": "), (",", ":")):
            assert dfa.holds(json.dumps(value, ensure_ascii=False, separators=separators).encode()), value


def check(schema: Any, ids: Any, vocabulary: Vocabulary) -> None:
    kept = list(itertools.takewhile(lambda token: token != 0, ids.tolist()))
    assert not any(ids[len(kept) :])
    value = json.loads(b"".join(vocabulary.spelled[token] or b"" for token in kept).decode())
    errors = [error.message for error in validator(schema).iter_errors(value)]
    assert not errors, (value, errors)


def pick(mask: Any, rng: np.random.Generator) -> int:
    return int(rng.choice(mask.nonzero()[0]))


@pytest.mark.parametrize("name", SCHEMAS)
def test_by_chance_alone_everything_written_is_valid(name: str, vocabulary: Vocabulary) -> None:
    """Random tokens out of those allowed (temperature infinity), in every mode, in tight and wide canvases."""
    schema = SCHEMAS[name][0]
    grammar, rng = Grammar.of_schema(schema, vocabulary), np.random.default_rng(len(name))
    shortest = grammar.shortest
    for length in (shortest, shortest + 1, shortest + 4, max(40, shortest + 9), max(90, shortest + 20)):
        grammar.check(length)
        for _ in range(3):
            check(schema, left_to_right(grammar, length, rng), vocabulary)
            check(schema, in_windows(grammar, length, int(rng.integers(1, 12)), rng), vocabulary)
            check(schema, full_canvas(grammar, length, int(rng.integers(1, 20)), rng), vocabulary)
    if shortest > 1:
        with pytest.raises(UnmaskError, match=f"fits the JSON schema takes {shortest}$"):
            grammar.check(shortest - 1)


def left_to_right(grammar: Grammar, length: int, rng: np.random.Generator, end: int = 0) -> Any:
    ids, state = np.full(length, end), grammar.start
    for place in range(length):
        ids[place] = pick(grammar.allowed(state, length - place), rng)
        if ids[place] == end:
            break
        state = grammar.step(state, ids[place])
    return ids


def in_windows(grammar: Grammar, length: int, window: int, rng: np.random.Generator) -> Any:
    ids, is_open = np.zeros(length, int), np.ones(length, bool)
    for start in range(0, length, window):
        end = min(start + window, length)
        state, here = grammar.read(ids[:start]), slice(start, end)
        while is_open[here].any():
            masks = grammar.allowed_at(ids[here], is_open[here], state, length - end)
            places = is_open[here].nonzero()[0]
            tokens = np.array([pick(row, rng) for row in masks])
            order = rng.permutation(len(places))[: max(1, window // 2)]
            kept = grammar.accept(ids[here], is_open[here], places[order], tokens[order], state, length - end)
            assert kept[0]
            ids[start + places[order][kept]], is_open[start + places[order][kept]] = tokens[order][kept], False
    return ids


def full_canvas(grammar: Grammar, length: int, at_once: int, rng: np.random.Generator) -> Any:
    ids, is_open = np.zeros(length, int), np.ones(length, bool)
    while is_open.any():
        places = is_open.nonzero()[0]
        tokens = np.array([pick(row, rng) for row in grammar.allowed_at(ids, is_open)])
        order = rng.permutation(len(places))[:at_once]
        kept = grammar.accept(ids, is_open, places[order], tokens[order])
        assert kept[0]
        ids[places[order][kept]], is_open[places[order][kept]] = tokens[order][kept], False
    return ids


NOT_HONOURED: list[Any] = [
    {"not": {"type": "null"}}, {"if": {}, "then": {}}, {"contentSchema": {}}, {"minLenght": 3},
    {"type": "array", "uniqueItems": True, "prefixItems": [{}]}, {"type": "array", "contains": {"const": 1}},
    {"dependentRequired": {}}, {"type": "array", "uniqueItems": True, "items": {"type": "object"}, "minItems": 2},
    {"type": "object", "dependentSchemas": {}}, {"unevaluatedItems": False}, {"$dynamicRef": "#a"},
    {"type": "number", "multipleOf": 1e-7}, {"type": "number", "multipleOf": 12345.5}, {"$ref": "#a"},
    {"type": "object", "minProperties": 50, "additionalProperties": {"type": "null"}},
    {"type": "object", "patternProperties": {f"^{i}": {} for i in range(99)}},
    {"$ref": "https://example.com/schema.json"}, {"properties": {"a": {"$id": "x"}}},
    {"oneOf": [{"type": "integer"}, {"type": "number"}]}, {"oneOf": [{"type": "string"}, {"maxLength": 3}]},
    {"oneOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "required": ["a"]}]},
    {"oneOf": [{"minimum": 3}, {"type": "string"}]}, {"oneOf": [{"type": "null"}, {"oneOf": [{"minLength": 0}]}]},
    {"enum": [[1], [2]], "minItems": 1},
    {"const": {"a": 1}, "unevaluatedProperties": False}, {"type": "string", "pattern": "a(?=a)"},
    {"type": "string", "pattern": "(?=a)"}, {"type": "string", "pattern": "^(?<=a)b"},
    {"$schema": "http://json-schema.org/draft-07/schema#", "$defs": {"a": {}}, "$ref": "#/$defs/a", "minLength": 3},
    {"$schema": "https://json-schema.org/draft/2019-09/schema", "prefixItems": [{"type": "string"}]},
    {"$schema": "http://json-schema.org/draft-04/schema#"}, {"type": "array", "items": {}, "additionalItems": False},
    {"type": "array", "items": [{"type": "string"}]}, {"type": "number", "minimum": 0, "exclusiveMinimum": True},
]  # fmt: skip


@pytest.mark.parametrize("schema", NOT_HONOURED, ids=json.dumps)
def test_what_is_not_honoured_is_refused(schema: Any) -> None:
    with pytest.raises(UnmaskError) as error:
        automaton(schema)
    assert str(error.value).startswith(("JSON schema: ", "regular expression"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "schema",
    [
        None, 3, [], "", "{", "[1", '"a"', {"type": "strng"}, {"type": 3}, {"type": []}, {"minLength": -1},
        {"minLength": "3"}, {"maxItems": 1.5}, {"minimum": "a"}, {"minimum": True}, {"minimum": 10**40},
        {"enum": []}, {"enum": "a"},
        {"properties": []}, {"properties": {"a": 3}}, {"required": "a"}, {"required": [1]}, {"items": 3}, {"anyOf": []},
        {"anyOf": {}}, {"allOf": [3]}, {"$ref": 3}, {"$ref": "#/$defs/a\nb"}, {"const": float("nan")},
        {"const": b"no JSON"},
        {"prefixItems": {}}, {"pattern": 3}, {"format": 3}, {"multipleOf": 0}, {"additionalProperties": "no"},
    ],
    ids=repr,
)  # fmt: skip
def test_malformed_schemas(schema: Any) -> None:
    with pytest.raises(UnmaskError, match=r"^(the )?JSON schema") as error:
        automaton(schema)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "schema",
    [
        False, {"type": "integer", "minimum": 5, "maximum": 3}, {"allOf": [{"type": "string"}, {"type": "null"}]},
        {"type": "integer", "minimum": 0.2, "maximum": 0.8}, {"$ref": "#"}, {"enum": [1], "type": "string"},
        {"type": "object", "properties": {"a": False}, "required": ["a"]}, {"allOf": [{"$ref": "#"}]},
        {"type": "object", "properties": {}, "required": ["a"], "additionalProperties": False},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "string", "pattern": "^a$", "minLength": 2}, {"type": "array", "items": False, "minItems": 1},
        {"type": "number", "exclusiveMinimum": 1, "maximum": 1},
        {"minLength": 5, "maxLength": 3}, {"minItems": 2, "maxItems": 1}, {"minimum": 2, "exclusiveMaximum": 2},
        {"const": 1, "enum": [True]},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_impossible_schemas(schema: Any, vocabulary: Vocabulary) -> None:
    with pytest.raises(UnmaskError, match="no text fits the JSON schema"):
        Grammar.of_schema(schema, vocabulary)


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


LAUGHS = {f"a{i}": {"prefixItems": [{"$ref": f"#/$defs/a{i + 1}"}] * 10, "minItems": 10} for i in range(25)}
EMPTY_LAUGHS = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}


@pytest.mark.parametrize(
    "schema",
    [
        deep(60), deep(1000), '{"items":' * 200_000,
        {"$defs": {**LAUGHS, "a25": {"type": "null"}}, "$ref": "#/$defs/a0"},
        {"$defs": {**EMPTY_LAUGHS, "a40": False}, "$ref": "#/$defs/a0"}, {"type": "string", "minLength": 10**7},
        {"type": "array", "minItems": 10**9}, {"type": "string", "pattern": "(a|b)*a(a|b){30}"},
        {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(9)]} for i in range(9)]},
        {"enum": [{"a": list(range(500))} for _ in range(500)]},
    ],
    ids=range(10),
)  # fmt: skip
def test_hostile_schemas_are_refused(schema: Any, vocabulary: Vocabulary) -> None:
    with pytest.raises(UnmaskError, match="the grammar is too large") as error:
        Grammar.of_schema(schema, vocabulary)
    assert "\n" not in str(error.value)


def test_what_would_be_too_large_is_written_shorter(vocabulary: Vocabulary) -> None:
    schema = {"type": "array", "items": {"type": "string", "maxLength": 400}, "maxItems": 50}
    grammar = Grammar.of_schema(schema, vocabulary, Effort(seconds=60))  # its size decides, not a slow machine
    rng = np.random.default_rng(0)
    for _ in range(3):
        check(schema, full_canvas(grammar, 60, 20, rng), vocabulary)


def test_sizes_that_must_be_are_kept() -> None:
    schema = {"type": "string", "minLength": 40, "maxLength": 45}
    dfa = compile_language(read_schema(schema, Effort(), SIZES[-1]), Effort())
    assert [length for length in range(60) if dfa.holds(b'"' + b"x" * length + b'"')] == [40]


BYTES = Vocabulary([*(bytes([byte]) for byte in range(256)), None], frozenset([256]))
COUNTS = st.integers(0, 3)
LEAVES = st.one_of(
    st.sampled_from([True, {}, {"type": "null"}, {"type": "boolean"}, {"type": ["string", "integer"]}]),
    st.fixed_dictionaries({"type": st.sampled_from(["integer", "number"])}, optional={
        "minimum": st.integers(-20, 20), "maximum": st.floats(-20, 20), "exclusiveMinimum": st.integers(-20, 20),
        "exclusiveMaximum": st.integers(-20, 20), "multipleOf": st.integers(1, 9),
    }),
    st.fixed_dictionaries({}, optional={
        "type": st.sampled_from(["string", ["string", "null"]]), "minLength": COUNTS, "maxLength": COUNTS,
        "pattern": st.sampled_from(["^[ab]*$", "a", "^.b?$"]),
    }),
    st.lists(st.sampled_from([1, 1.0, True, "a", "ab", None, [1]]), min_size=1).map(lambda values: {"enum": values}),
    st.builds(lambda value: {"const": value}, st.sampled_from([1, True, "a", "b", {"a": 1}])),
)  # fmt: skip


def combined(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    members = st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    several = st.lists(inner, min_size=1, max_size=3)
    objects = {
        "type": st.sampled_from(["object", ["object", "null"]]), "properties": members,
        "required": st.lists(st.sampled_from("abc"), unique=True, max_size=2), "additionalProperties": inner,
        "unevaluatedProperties": st.just(False), "maxProperties": COUNTS, "minProperties": COUNTS,
    }  # fmt: skip
    arrays = {
        "type": st.just("array"), "items": inner, "prefixItems": several, "minItems": COUNTS, "maxItems": COUNTS,
    }  # fmt: skip
    choices = {key: several for key in ("anyOf", "oneOf", "allOf")}
    some = st.sampled_from([objects, arrays, choices, {**objects, **choices}, {**arrays, **choices}])
    return some.flatmap(lambda keys: st.fixed_dictionaries({}, optional=keys))


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.recursive(LEAVES, combined, max_leaves=8), st.integers(0, 2**31))
def test_random_schemas(schema: Any, seed: int) -> None:
    """Schemas put together by chance are refused, impossible, or hold in all that is written."""
    try:
        grammar = Grammar.of_schema(schema, BYTES)
    except UnmaskError:
        return
    rng, schema_of = np.random.default_rng(seed), validator(schema)
    for extra in (0, 3, 20):
        ids = left_to_right(grammar, grammar.shortest + extra, rng, 256)
        written = bytes(itertools.takewhile(lambda token: token != 256, ids.tolist())).decode()
        assert schema_of.is_valid(json.loads(written)), written


def test_2500_names(vocabulary: Vocabulary) -> None:
    """As the bounds of a server have them, with names that share little."""
    rng = np.random.default_rng(0)
    names = sorted({"".join(map(chr, rng.integers(97, 123, rng.integers(4, 20)))) for _ in range(2500)})
    schema = {"type": "object", "properties": {"name": {"enum": names}, "n": {"type": "integer"}}, "required": ["name"]}
    grammar = Grammar.of_schema(schema, vocabulary, Effort(seconds=5, entries=2_000_000))
    for length in (grammar.shortest, 24):
        check(schema, left_to_right(grammar, length, rng), vocabulary)
        check(schema, full_canvas(grammar, length, 4, rng), vocabulary)


NESTED_SETS = {"type": "object", "minProperties": 5, "additionalProperties": {"type": "array", "uniqueItems": True}}
MANY_PATTERNS = {"patternProperties": {f"(a|b)*a(a|b){{{n}}}$": {"minimum": n} for n in range(9, 16)}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "uniqueItems": True, "minItems": 9, "items": NESTED_SETS},
        {"type": "array", "uniqueItems": True, "items": {"type": "string", "pattern": "^(a|b)*a(a|b){14}$"}},
        {"allOf": [{**MANY_PATTERNS, "properties": {f"{i}{j}": {} for j in range(99)}} for i in range(30)]},
        {"type": "string", "pattern": "^(?=(a|b)*a(a|b){15})(?=(a|b)*b(a|b){15}).*$"},
        {"properties": {f"p{i}": {"type": "number", "multipleOf": i + 0.7} for i in range(300)}},
        {"enum": [f"{i * 7919 % 100_003:x}{i * 104_729 % 1_000_003:x}" for i in range(20_000)]},
    ],
    ids=range(6),
)
def test_hostile_sets_patterns_and_names_are_refused_in_time(schema: Any, vocabulary: Vocabulary) -> None:
    began = time.thread_time()
    with pytest.raises(UnmaskError) as error:
        Grammar.of_schema(schema, vocabulary, Effort(seconds=1.0, entries=1_000_000))
    assert time.thread_time() - began < 4
    assert "\n" not in str(error.value)


def test_whitespace_is_left_out_on_demand() -> None:
    """llguidance's `x-guidance`, which schemas of other tools carry."""
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}, "b": True}}
    for flexible in (True, False):
        dfa = compile_language(
            read_schema({**schema, "x-guidance": {"whitespace_flexible": flexible}}, Effort()), Effort()
        )
        assert dfa.holds(b'{"a":[1,2],"b":{"c":[null,"x, y: z"]}}')
        assert dfa.holds(b'{"a":[1, 2],"b":0}') is flexible
        assert dfa.holds(b'{"a": [1],"b":0}') is flexible
        assert dfa.holds(b'{"b":{"c": 0}}') is flexible
    with pytest.raises(UnmaskError, match="whitespace_flexible"):
        read_schema({"x-guidance": {"whitespace_flexible": "no"}}, Effort())


def test_separators_are_regular_expressions_of_spaces_and_their_mark() -> None:
    spaces = {"whitespace_flexible": False, "item_separator": r"\n*,"}
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}, "b": True}}
    dfa = compile_language(read_schema({**schema, "x-guidance": spaces}, Effort()), Effort())
    assert dfa.holds(b'{"a":[1\n\n,2],"b":{"c":[null\n,0]}}')
    assert dfa.holds(b'{"a":[1,2]\n\n\n,"b":0}')
    assert not dfa.holds(b'{"a":[1,\n2],"b":0}')
    assert not dfa.holds(b'{"a":\n[1],"b":0}')
    for separator in (",x", "", ",|;", "\\s*"):
        with pytest.raises(UnmaskError, match="item_separator"):
            read_schema({**schema, "x-guidance": {"item_separator": separator}}, Effort())
    with pytest.raises(UnmaskError, match="key_separator"):
        read_schema({**schema, "x-guidance": {"key_separator": ","}}, Effort())
