"""Regular expressions against Python's own `re`, text by text."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.errors import UnmaskError
from unmask.structured.dfa import compile_language, finite, intersection, minimal, without
from unmask.structured.effort import Effort
from unmask.structured.language import Dfa, Members, Repeat, Seq, text
from unmask.structured.regex import read_regex

SHORT = ["".join(letters) for length in range(6) for letters in itertools.product("ab", repeat=length)]


def automaton(pattern: str, search: bool = False) -> Dfa:
    return compile_language(read_regex(pattern, search), Effort())


def expressions() -> st.SearchStrategy[str]:
    atoms = st.sampled_from(["a", "b", "ab", ".", "[ab]", "[^a]", r"\w", "(?:)"])

    def deeper(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        group = inner.map("({})".format)
        ends = st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{1,}", "{0}", "*?"])
        return st.one_of(
            st.lists(inner, min_size=2, max_size=3).map("".join),
            st.lists(inner, min_size=2, max_size=3).map("|".join).map("({})".format),
            st.tuples(group, ends).map("".join),
        )

    return st.recursive(atoms, deeper, max_leaves=6)


@given(expressions())
def test_any_expression_matches_what_re_matches(pattern: str) -> None:
    whole, part = automaton(pattern), automaton(pattern, search=True)
    for word in SHORT:
        assert whole.holds(word.encode()) == bool(re.fullmatch(pattern, word)), (pattern, word)
        assert part.holds(word.encode()) == bool(re.search(pattern, word)), (pattern, word)


@pytest.mark.parametrize(
    "pattern",
    [
        "^a",
        "b$",
        "^ab$",
        "^a|b$",
        "^(a|ba)$",
        "^(?:a|b)+$",
        "(^a$)|(^b+$)",
        "^$",
        "",
        "a|",
        "^(^a|b$)$",
        "(?P<x>a)b",
        "$",
    ],
)
def test_anchors_at_the_edges(pattern: str) -> None:
    whole, part = automaton(pattern), automaton(pattern, search=True)
    for word in SHORT:
        assert whole.holds(word.encode()) == bool(re.fullmatch(pattern, word)), word
        assert part.holds(word.encode()) == bool(re.search(pattern, word)), word


@pytest.mark.parametrize(
    "pattern",
    [
        r"[a-f]", r"[^a-f]", r"[]\]]"[1:], r"[\]a]", r"[a\-z]", r"[-a]", r"[a-]", r"\.", r"\/", r"\{", r"a{", r"{a}",
        r"\x41", r"\u00e9", r"[\u0400-\u04ff]", r"[^\u0000-\uffff]", r"é", r"[à-ü]", r"日", r"😀", r"[😀-😎]", r"\n",
        r"\t", r"[\n\r]", r"[\b]", r"[.]", r"[$^]", r"\$", r"\^", r"\*",
    ],
)  # fmt: skip
def test_characters_are_those_of_re(pattern: str) -> None:
    dfa = automaton(pattern)
    for code in [
        *range(0x600),
        *range(0x2000, 0x2100),
        0x65E5,
        0xD7FF,
        0xE000,
        0xFFFF,
        0x10000,
        *range(0x1F5F0, 0x1F650),
    ]:
        assert dfa.holds(chr(code).encode()) == bool(re.fullmatch(pattern, chr(code))), hex(code)


@pytest.mark.parametrize(
    "pattern", [r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", ".", r"[^\d]", r"[^\w]", r"[^\s]", r"[\s\S]", r"[^\W]"]
)
def test_shorthands_write_only_what_every_dialect_matches(pattern: str) -> None:
    dfa = automaton(pattern)
    codes = [*range(0x3100), *range(0x3100, 0xD800, 17), *range(0xE000, 0x110000, 97), 0xFEFF]
    written = [chr(code) for code in codes if dfa.holds(chr(code).encode())]
    assert all(re.fullmatch(pattern, letter) for letter in written)
    assert all(re.fullmatch(pattern, letter, re.ASCII) for letter in written)
    both = [chr(c) for c in range(128) if re.fullmatch(pattern, chr(c)) and re.fullmatch(pattern, chr(c), re.ASCII)]
    assert set(both) - set(written) <= set("\r\x1c\x1d\x1e\x1f")  # '.' and spaces, on which dialects differ


@given(st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF), st.lists(st.integers(0, 0x10FFFF), max_size=20))
def test_ranges_of_characters_in_utf8(one: int, other: int, codes: list[int]) -> None:
    low, high = sorted((one, other))
    dfa = automaton(f"[\\{chr(low)}-\\{chr(high)}]") if not chr(low).isalnum() and not chr(high).isalnum() else None
    if dfa is None or any(0xD800 <= code < 0xE000 for code in (low, high)) or "_" in (chr(low), chr(high)):
        return
    for code in [low, high, low - 1, high + 1, *codes]:
        if 0 <= code < 0x110000 and not 0xD800 <= code < 0xE000:
            assert dfa.holds(chr(code).encode()) == (low <= code <= high)


@pytest.mark.parametrize(
    "pattern",
    [
        "(", ")", "a)", "[", "[]", "[^]", "*", "+a", "a**", "a{2}{3}", "a{3,2}",
        "b(?=a)", "(b(?!a))", "(?<=a)", "(?<!a)",
        r"(a)\1", r"\b", r"\B", "(?i)a", "(?>a)", "a*+", r"\p{L}", r"\A", r"\Z", "a^b", "a$b", "(^a)b", "b(a$)b",
        "(^a)+", "^*", "$?", "a{,3}", "[z-a]",
        r"[\d-z]", "\\", r"\ud83d", r"\01", r"\q", "(?P=x)", "a(", "(" * 200 + ")" * 200, "x" * 30_000,
    ],
)  # fmt: skip
def test_refused_in_one_line(pattern: str) -> None:
    with pytest.raises(UnmaskError) as error:
        read_regex(pattern)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "pattern",
    [
        "(a|b)*a(a|b){30}", "((a{100}){100}){100}", "((((){1000}){1000}){1000}){1000}", "a{999999}", "(.{1,400}x)*",
        ".*a.{0,500}b.{0,500}",
    ],
)  # fmt: skip
def test_catastrophic_ones_are_refused(pattern: str) -> None:
    with pytest.raises(UnmaskError, match=r"the grammar is too large: .*; use smaller bounds"):
        automaton(pattern)


def test_harmless_ones_that_hang_backtrackers() -> None:
    assert automaton("(a+)+b").holds(b"a" * 5000 + b"b")
    assert not automaton("(a|a)*b").holds(b"a" * 5000)


def test_time_is_bounded() -> None:
    with pytest.raises(UnmaskError, match="takes more than 0 seconds"):
        compile_language(read_regex("(a|b){1000}"), Effort(seconds=0.0))


@given(st.lists(expressions(), min_size=2, max_size=3))
def test_intersection_is_all_at_once(patterns: list[str]) -> None:
    dfa = compile_language(intersection([read_regex(p) for p in patterns], Effort()), Effort())
    for word in SHORT:
        assert dfa.holds(word.encode()) == all(re.fullmatch(p, word) for p in patterns)


@given(st.lists(st.booleans(), max_size=4))
def test_members_in_order(required: list[bool]) -> None:
    parts = tuple((text(name), needed) for name, needed in zip("abcd", required, strict=False))
    dfa = compile_language(Members(parts, text(",")), Effort())
    valid = {
        ",".join(name for name, kept in zip("abcd", choice, strict=False) if kept)
        for choice in itertools.product([False, True], repeat=len(required))
        if all(kept or not needed for kept, needed in zip(choice, required, strict=True))
    }
    words = ["".join(letters) for n in range(8) for letters in itertools.product("ab,", repeat=n)]
    assert {word for word in [*words, *valid] if dfa.holds(word.encode())} == valid


@given(st.integers(0, 3), st.one_of(st.none(), st.integers(0, 3)), st.booleans())
def test_repetitions_with_separators(low: int, more: int | None, separated: bool) -> None:
    high = None if more is None else low + more
    node = Seq((text("<"), Repeat(text("a"), low, high, text(",") if separated else None), text(">")))
    dfa = compile_language(node, Effort())
    for count in range(9):
        word = "<" + ("," if separated else "").join("a" * count) + ">"
        assert dfa.holds(word.encode()) == (low <= count and (high is None or count <= high))
    assert not dfa.holds(b"<a,>")
    assert not dfa.holds(b"<,a>")


@pytest.mark.parametrize(
    "pattern",
    [
        "(?!ab)[ab]{1,3}", "(?=.*b)(?=.*a)[ab]*", "^(?!a$)[ab]{0,2}$", "(?!^b)a|(?=b)[ab]+", "(?!)a", "(?=)b",
        "(?!a|b)[abc]*",
    ],
)  # fmt: skip
def test_look_ahead_at_the_start(pattern: str) -> None:
    dfa = automaton(pattern)
    for length in range(5):
        for letters in itertools.product("abc", repeat=length):
            text = "".join(letters)
            assert dfa.holds(text.encode()) == bool(re.fullmatch(pattern, text)), text


@pytest.mark.parametrize("size", [0, 1, 2, 40])
def test_finite_languages_and_their_complements(size: int) -> None:
    rng = np.random.default_rng(size)
    texts = {bytes(rng.integers(97, 100, rng.integers(0, 5)).tolist()) for _ in range(size)}
    some = finite(sorted(texts), Effort())
    embedded = compile_language(Seq((some,)), Effort())
    others = without(read_regex("[abc]*"), Seq((some,)), Effort())
    for length in range(5):
        for codes in itertools.product(b"abc", repeat=length):
            text_ = bytes(codes)
            assert some.holds(text_) == embedded.holds(text_) == (text_ in texts) != others.holds(text_)


@pytest.mark.parametrize(("low", "high"), [(0, None), (2, None), (0, 2), (2, 2), (3, 9), (0, 0), (5, None)])
@pytest.mark.parametrize("required", [[False] * 4, [True, False, True, False]])
def test_members_counted(low: int, high: int | None, required: list[bool]) -> None:
    parts = tuple((text(letter), needed) for letter, needed in zip("abcd", required, strict=True))
    dfa = compile_language(Members(parts, text(","), low, high), Effort())
    for chosen in itertools.product([False, True], repeat=4):
        written = ",".join(letter for letter, here in zip("abcd", chosen, strict=True) if here)
        fits = low <= sum(chosen) <= (4 if high is None else high)
        fits = fits and all(here or not needed for here, needed in zip(chosen, required, strict=True))
        assert dfa.holds(written.encode()) == fits, written


@pytest.mark.parametrize(
    ("pattern", "states"),
    [("(ab|cb)*", 3), ("a{0,3}|b{0,3}", 7), ("(a|b)*abb", 5), ("a?", 3), ("[^x]{3}", 26), ("(aa|ba)c|[ab]ac", 5)],
)
def test_minimal(pattern: str, states: int) -> None:
    whole = automaton(pattern)
    small = minimal(whole, Effort())
    assert len(small.table) == states
    for length in range(6):
        for codes in itertools.product(b"abc", repeat=length):
            assert small.holds(bytes(codes)) == whole.holds(bytes(codes))
