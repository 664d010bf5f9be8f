"""Numbers within bounds, text by text."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from unmask.structured.dfa import compile_language, intersection
from unmask.structured.effort import Effort
from unmask.structured.json_numbers import INTEGER, decimals, multiples
from unmask.structured.json_schema import read_schema
from unmask.structured.json_text import literal
from unmask.structured.language import Dfa, Language

SMALL = st.integers(-2000, 2000)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def automaton(node: Language) -> Dfa:
    return compile_language(node, Effort())


def integers(low: int | None, high: int | None) -> Language:
    return INTEGER if low is None and high is None else decimals(low, high, 0)


def of_schema(schema: object) -> Dfa:
    effort = Effort()
    return compile_language(read_schema(schema, effort), effort)


@given(SMALL, SMALL, st.lists(SMALL, max_size=20))
def test_integers_between(one: int, other: int, numbers: list[int]) -> None:
    low, high = sorted((one, other))
    dfa = automaton(integers(low, high))
    for number in [low, high, low - 1, high + 1, 0, *numbers, *(10**n for n in range(5))]:
        assert dfa.holds(str(number).encode()) == (low <= number <= high)
    assert not any(dfa.holds(text) for text in (b"", b"-", b"-0", b"00", b"01", b"+1", b"1.0", b" 1"))


@given(st.one_of(st.none(), SMALL), st.one_of(st.none(), SMALL), st.integers(-(10**6), 10**6))
def test_integers_bounded_on_one_side(low: int | None, high: int | None, number: int) -> None:
    if low is not None and high is not None:
        return
    fits = (low is None or number >= low) and (high is None or number <= high)
    assert automaton(integers(low, high)).holds(str(number).encode()) == fits


@pytest.mark.parametrize(("low", "high"), [(0, 100), (-30, 117), (5, 5), (99, 101), (-250, -7), (1, 999), (100, 200)])
def test_decimals_between(low: int, high: int) -> None:
    """Every spelling with up to two places against its value in hundredths."""
    dfa = automaton(decimals(low, high, 2))
    for hundredths in range(-1200, 1201):
        sign, size = "-" if hundredths < 0 else "", abs(hundredths)
        spellings = {f"{sign}{size / 100:.2f}"}
        spellings |= {f"{sign}{size / 100:.1f}"} if size % 10 == 0 else set()
        spellings |= {f"{sign}{size // 100}"} if size % 100 == 0 else set()
        for spelling in spellings:
            assert dfa.holds(spelling.encode()) == (low <= hundredths <= high), spelling
    assert not any(dfa.holds(text) for text in (b"-0", b"-0.0", b"1.", b".5", b"0.123", b"00.5", b"1e0"))


@given(st.integers(1, 60), st.integers(-5000, 5000))
def test_multiples(factor: int, number: int) -> None:
    assert automaton(intersection([integers(None, None), multiples(factor)], Effort())).holds(str(number).encode()) == (
        number % factor == 0
    )


BOUND = st.one_of(st.integers(-1000, 1000), st.decimals(-1000, 1000, places=3).map(float), st.floats(-1e6, 1e6))


@given(
    st.dictionaries(st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]), BOUND, min_size=1),
    st.sampled_from(["number", "integer"]),
    st.lists(BOUND, max_size=5),
)
def test_bounds_of_schemas_are_kept(bounds: dict[str, float], kind: str, numbers: list[float]) -> None:
    """What is written is valid, at the very bounds too; and what is valid and short is written."""
    schema = {"type": kind, **bounds}
    dfa, validator = of_schema(schema), Draft202012Validator(schema)
    tried = [*numbers, *bounds.values()]
    tried += [x + d for x in tried for d in (-1, 1, -1e-6, 1e-6, -0.5)]
    for number in tried:
        for places in range(8):
            text = f"{number:.{places}f}"
            written = dfa.holds(text.encode())
            valid = validator.is_valid(json.loads(text))
            assert valid or not written, text
            if places in (0, 1, 2, 6) and (kind == "number" or places == 0) and not text.startswith("-0"):
                exact = Decimal(text)
                keeps = all(
                    {"m": (exact >= b, exact <= b), "e": (exact > b, exact < b)}[key[0]][
                        key.lower().endswith("maximum")
                    ]
                    for key, b in ((key, Decimal(repr(bound))) for key, bound in bounds.items())
                )
                assert written == keeps, text


@given(JSON_VALUES)
def test_literals_are_the_value(value: object) -> None:
    dfa = automaton(literal(value))
    assert dfa.holds(json.dumps(value, ensure_ascii=False).encode())
    assert dfa.holds(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
