"""Grammars over tokens: what they allow equals what full enumeration of a toy vocabulary finds."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from unmask.canvas import Array
from unmask.errors import UnmaskError
from unmask.structured.effort import Effort
from unmask.structured.grammar import Grammar
from unmask.structured.vocabulary import Vocabulary, byte_letters
from unmask.training.tokenizer import train_tokenizer

# one control token (0), an end (1) and a filler (2); tokens overlap, split a character and repeat each other
TOKENS = (None, None, None, b"a", b"b", b"ab", b"ba", b"aab", "é".encode()[:1], "é".encode()[1:], b"b", b"")
TOY = Vocabulary(TOKENS, frozenset([1]), frozenset([2]))
ENDLESS = Vocabulary(TOKENS)
LENGTH = 3
CANVASES = np.array(list(itertools.product(range(len(TOKENS)), repeat=LENGTH)))
PATTERNS = ["(ab)*", "a+b", "aab|ba", "[ab]{2,4}", "é*a?", "(a|b)*ba", "aé|b", "a{3,}", "(ba){1,2}", "", "b?é{1,2}"]


def is_valid(pattern: str, ids: list[int], vocabulary: Vocabulary) -> bool:
    """The definition: text, then nothing or an end and only ends and fillers; the text matches."""
    place = next((i for i, token in enumerate(ids) if token in vocabulary.ends), len(ids))
    if any(token not in vocabulary.ends | vocabulary.fillers for token in ids[place:]):
        return False
    texts = [vocabulary.spelled[token] for token in ids[:place]]
    if any(not text for text in texts):
        return False
    try:
        return bool(re.fullmatch(pattern, b"".join(texts).decode()))  # type: ignore[arg-type]
    except UnicodeDecodeError:
        return False


def valid_canvases(pattern: str, vocabulary: Vocabulary) -> Array:
    return CANVASES[[is_valid(pattern, ids, vocabulary) for ids in CANVASES.tolist()]].reshape(-1, LENGTH)


@pytest.mark.parametrize("vocabulary", [TOY, ENDLESS])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_everything_equals_enumeration(pattern: str, vocabulary: Vocabulary) -> None:
    grammar, valid = Grammar.of_regex(pattern, vocabulary), valid_canvases(pattern, vocabulary)
    if not len(valid):
        with pytest.raises(UnmaskError, match=r"takes exactly 3 tokens|takes \d+$"):
            grammar.check(LENGTH)
        return
    grammar.check(LENGTH)
    for is_open in itertools.product([False, True], repeat=LENGTH):
        mask = np.array(is_open)
        seen = set()
        for ids in CANVASES:
            fixed = tuple(ids[~mask])
            if fixed in seen:
                continue
            seen.add(fixed)
            rest = valid[(valid[:, ~mask] == ids[~mask]).all(1)]
            assert grammar.feasible(ids, mask) == bool(len(rest))
            wanted = np.zeros((int(mask.sum()), len(vocabulary)), bool)
            for row, place in enumerate(mask.nonzero()[0]):
                wanted[row, rest[:, place]] = True
            np.testing.assert_array_equal(grammar.allowed_at(ids, mask), wanted)


EXPRESSIONS = st.recursive(
    st.sampled_from(["a", "b", "é", "[ab]", "[^b]"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map("|".join).map("({})".format),
        st.tuples(inner.map("({})".format), st.sampled_from(["*", "+", "?", "{2}", "{1,3}"])).map("".join),
    ),
    max_leaves=5,
)


@settings(max_examples=60)
@given(EXPRESSIONS, st.booleans(), st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH), st.integers(0, 10**6))
def test_random_expressions_and_partial_canvases(pattern: str, ends: bool, is_open: list[bool], seed: int) -> None:
    """Where some tokens are committed, those of a valid canvas or any, the masks allow just what is left."""
    vocabulary, rng, mask = TOY if ends else ENDLESS, np.random.default_rng(seed), np.array(is_open)
    grammar, valid = Grammar.of_regex(pattern, vocabulary), valid_canvases(pattern, vocabulary)
    for source in (CANVASES, valid):
        for ids in rng.choice(source, 3) if len(source) else []:
            rest = valid[(valid[:, ~mask] == ids[~mask]).all(1)]
            wanted = np.zeros((int(mask.sum()), len(vocabulary)), bool)
            for row, place in enumerate(mask.nonzero()[0]):
                wanted[row, rest[:, place]] = True
            np.testing.assert_array_equal(grammar.allowed_at(ids, mask), wanted)
            assert grammar.feasible(ids, mask) == bool(len(rest))


@pytest.mark.parametrize("vocabulary", [TOY, ENDLESS])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_left_to_right_equals_enumeration(pattern: str, vocabulary: Vocabulary) -> None:
    grammar, valid = Grammar.of_regex(pattern, vocabulary), valid_canvases(pattern, vocabulary)
    for length in range(LENGTH):
        for prefix in itertools.product(range(len(TOKENS)), repeat=length):
            state = grammar.read(prefix)
            rest = valid[(valid[:, :length] == np.array(prefix, int)).all(1)]
            wanted = np.zeros(len(vocabulary), bool)
            wanted[rest[:, length]] = True
            np.testing.assert_array_equal(grammar.allowed(state, LENGTH - length), wanted)
            if length:
                assert state == grammar.step(grammar.read(prefix[:-1]), prefix[-1])
            if not any(token in (1, 2) for token in prefix):
                assert grammar.automaton.final[state] == is_valid(pattern, list(prefix), ENDLESS)


@given(
    st.sampled_from(PATTERNS),
    st.sampled_from([TOY, ENDLESS]),
    st.lists(st.integers(0, len(TOKENS) - 1), min_size=LENGTH, max_size=LENGTH),
    st.permutations(range(LENGTH)),
    st.integers(1, LENGTH),
)
def test_accepted_are_those_that_go_together_in_order(
    pattern: str, vocabulary: Vocabulary, tokens: list[int], order: list[int], count: int
) -> None:
    grammar, valid = Grammar.of_regex(pattern, vocabulary), valid_canvases(pattern, vocabulary)
    places = np.array(order[:count])
    proposed = np.array(tokens)[places]
    wanted, rest = [], valid
    for place, token in zip(places, proposed, strict=True):
        narrower = rest[rest[:, place] == token]
        wanted.append(bool(len(narrower)))
        rest = narrower if len(narrower) else rest
    got = grammar.accept(np.zeros(LENGTH, int), np.ones(LENGTH, bool), places, proposed)
    assert got.tolist() == (wanted if len(valid) else [False] * count)


@settings(max_examples=60)
@given(st.sampled_from(PATTERNS), st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 5), st.booleans())
def test_any_order_of_commits_ends_valid(pattern: str, seed: int, length: int, at_once: int, ends: bool) -> None:
    """A canvas filled by chance in steps of several proposals never gets stuck and matches in the end."""
    vocabulary = TOY if ends else ENDLESS
    grammar, rng = Grammar.of_regex(pattern, vocabulary), np.random.default_rng(seed)
    try:
        grammar.check(length)
    except UnmaskError:
        return
    ids, is_open = np.zeros(length, int), np.ones(length, bool)
    while is_open.any():
        masks = grammar.allowed_at(ids, is_open)
        assert masks.any(1).all()
        places = is_open.nonzero()[0]
        tokens = np.array([rng.choice(row.nonzero()[0]) for row in masks])
        order = rng.permutation(len(places))[:at_once]
        kept = grammar.accept(ids, is_open, places[order], tokens[order])
        assert kept[0]
        ids[places[order][kept]], is_open[places[order][kept]] = tokens[order][kept], False
    assert is_valid(pattern, ids.tolist(), vocabulary)


@settings(max_examples=60)
@given(st.sampled_from(PATTERNS), st.integers(0, 2**31), st.integers(2, 10), st.integers(1, 4))
def test_windows_after_a_prefix(pattern: str, seed: int, length: int, window: int) -> None:
    """A sliding window asks about itself, the state before it and the room behind it; so does a whole canvas."""
    grammar, rng = Grammar.of_regex(pattern, TOY), np.random.default_rng(seed)
    if grammar.shortest > length:
        return
    ids, is_open = np.zeros(length, int), np.ones(length, bool)
    while is_open.any():
        start = int(is_open.argmax())
        end = min(start + window, length)
        state, here = grammar.read(ids[:start]), slice(start, end)
        masks = grammar.allowed_at(ids[here], is_open[here], state, length - end)
        whole = grammar.allowed_at(ids, is_open)
        np.testing.assert_array_equal(masks, whole[: len(masks)])
        assert not (masks[0] & ~grammar.allowed(state, length - start)).any()
        places = is_open[here].nonzero()[0]
        tokens = np.array([rng.choice(row.nonzero()[0]) for row in masks])
        kept = grammar.accept(ids[here], is_open[here], places, tokens, state, length - end)
        ids[start + places[kept]], is_open[start + places[kept]] = tokens[kept], False
    assert is_valid(pattern, ids.tolist(), TOY)


def test_shortest_and_too_small_a_budget() -> None:
    grammar = Grammar.of_regex("(aab){4}b", TOY)
    assert grammar.shortest == 5
    grammar.check(5)
    with pytest.raises(UnmaskError) as error:
        grammar.check(4)
    assert str(error.value) == ("4 new tokens are too few: the shortest text that fits the regular expression takes 5")


def test_nothing_follows_a_complete_text() -> None:
    grammar = Grammar.of_regex("aab?", TOY)
    state = grammar.read([3, 3])
    assert grammar.automaton.final[state]
    assert grammar.allowed(state, 4)[4]
    done = grammar.read([5 - 2, 3, 4])
    assert grammar.allowed(done, 4).nonzero()[0].tolist() == [1]
    after = grammar.step(done, 1)
    assert grammar.allowed(after, 3).nonzero()[0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("pattern", "vocabulary", "message"),
    [
        ("[^\\s\\S]", TOY, "no text fits the regular expression: "),
        ("c", TOY, "cannot|can be spelled with the tokens"),
        ("(a|b)*a(a|b){40}", TOY, "the grammar is too large"),
    ],
)
def test_impossible_grammars(pattern: str, vocabulary: Vocabulary, message: str) -> None:
    with pytest.raises(UnmaskError, match=message):
        Grammar.of_regex(pattern, vocabulary)


def test_a_large_table_is_refused() -> None:
    with pytest.raises(UnmaskError, match="entries"):
        Grammar.of_regex("(ab){100}", TOY, Effort(entries=100))


def test_byte_letters_are_those_of_the_tokenizers() -> None:
    assert set(byte_letters().values()) == set(pre_tokenizers.ByteLevel.alphabet())
    for byte, letter in byte_letters().items():
        if byte < 128:
            assert decoders.ByteLevel().decode([letter]) == chr(byte)


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_tokens_spell_what_the_tokenizer_writes(kind: str) -> None:
    sample = "Aren't 12 \t naïve cafés — 日本語 😀\nfun? " * 3
    tokenizer = train_tokenizer(kind, [sample], 300)  # type: ignore[arg-type]
    vocabulary = Vocabulary.of(tokenizer, 320, [0], None, 1)
    assert len(vocabulary) == 320
    assert vocabulary.spelled[0] is vocabulary.spelled[1] is vocabulary.spelled[319] is None
    ids = tokenizer.encode(sample).ids
    assert b"".join(vocabulary.spelled[i] or b"" for i in ids).decode() == sample == tokenizer.decode(ids)


def test_words_added_to_a_tokenizer_are_spelled() -> None:
    tokenizer = train_tokenizer("byte", [], 0)
    tokenizer.add_tokens(["\n\n", "word"])
    vocabulary = Vocabulary.of(tokenizer, tokenizer.get_vocab_size())
    for text in ("\n\n", "word"):
        token = tokenizer.token_to_id(text)
        assert vocabulary.spelled[token] == text.encode() == tokenizer.decode([token]).encode()


def test_tokens_may_stand_for_no_text() -> None:
    """Tokens that only keep places of what follows are spelled in the grammar, and no text is written for them."""
    tokenizer = train_tokenizer("byte", [], 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("ĉ", ""), decoders.ByteLevel()])
    vocabulary = Vocabulary.of(tokenizer, tokenizer.get_vocab_size())
    ids = tokenizer.encode("[1\t\t,2]").ids
    assert b"".join(vocabulary.spelled[i] or b"" for i in ids) == b"[1\t\t,2]"
    assert tokenizer.decode(ids) == "[1,2]"


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Metaspace(),
        decoders.Sequence([decoders.Replace("ĉ", "ĵ"), decoders.ByteLevel()]),
        decoders.Sequence([decoders.Replace("ab", ""), decoders.ByteLevel()]),  # no token
        decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]),
    ],
    ids=range(4),
)
def test_tokenizers_that_decode_otherwise_are_refused(decoder: decoders.Decoder) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoder
    with pytest.raises(UnmaskError, match=r"decodes by '(Metaspace|Sequence)'"):
        Vocabulary.of(tokenizer, 10)


FORKED = Vocabulary([None, b"a", b"b", b"c", b"ab", b"cc"], frozenset([0]))


@pytest.mark.parametrize("pattern", ["cab", "c(a|b)c", "bc|b{3}", "(ba)*", "b{2,3}", "c?b", "bbbb", "(bbc|bba)b"])
@pytest.mark.parametrize("vocabulary", [FORKED, Vocabulary(FORKED.spelled), TOY])
def test_forced_is_the_only_continuation(pattern: str, vocabulary: Vocabulary) -> None:
    """As long as it goes just one token is allowed; where it stops there are others, none, or the text is complete."""
    try:
        grammar = Grammar.of_regex(pattern, vocabulary)
    except UnmaskError:
        assert vocabulary is TOY
        assert "c" in pattern
        return
    states = {grammar.start}
    for _ in range(3):
        states |= {grammar.step(s, t) for s in states for t in grammar.allowed(s, 5).nonzero()[0].tolist()}
    for state, left in itertools.product(states, range(1, 6)):
        run = grammar.forced(state, left)
        for place, token in enumerate(run):
            assert grammar.allowed(state, left - place).nonzero()[0].tolist() == [token]
            state = grammar.step(state, token)
        rest = left - len(run)
        assert rest == 0 or grammar.automaton.final[state] or grammar.allowed(state, rest).sum() != 1


@pytest.mark.parametrize(
    ("pattern", "run"), [("cab", (3, 4)), ("c(a|b)c", (3,)), ("(a|b)c", ()), ("ab(cc|ca)", (4, 3)), ("c?b", ())]
)
def test_a_run_spells_what_must_come_by_the_longest_tokens(pattern: str, run: tuple[int, ...]) -> None:
    """In a vocabulary that lacks most single bytes, as many lack some."""
    grammar = Grammar.of_regex(pattern, FORKED)
    assert grammar.run(grammar.start) == run
