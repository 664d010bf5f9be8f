"""Drafts found in the text or forced by a grammar: what is written stays what mode ar writes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask import DiffusionLM
from unmask.decoding.feed import Feed
from unmask.decoding.methods import DecodingDefaults
from unmask.decoding.planner import Planner
from unmask.decoding.suffixes import LONGEST, LOOKS, Suffixes
from unmask.layout import PADDING
from unmask.training.tokenizer import train_tokenizer

SPECIAL = {"mask_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}


def followed(tokens: list[int], most: int) -> list[int]:
    """By trying all: what followed the longest suffix that stood before, where it stood last."""
    for size in range(min(LONGEST, len(tokens)), 0, -1):
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start : start + size] == tokens[-size:]:
                return tokens[start + size : start + size + most]
    return []


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=8), st.integers(1, 6))
def test_suffixes_find_what_trying_all_finds(pieces: list[list[int]], most: int) -> None:
    suffixes = Suffixes()
    whole = list[int]()
    for piece in pieces:
        suffixes.extend(piece)
        whole += piece
        assert suffixes.follow(most)[0] == followed(whole, most)


def test_looking_up_takes_few_operations_whatever_was_written() -> None:
    class Counted(list[int]):
        asked = 0

        def __getitem__(self, place: Any) -> Any:
            self.asked += 1
            return super().__getitem__(place)

    suffixes = Suffixes()
    suffixes.extend([i // 2 % 97 * (i % 2) for i in range(20_000)])  # pairs that stood a hundred times
    for own in ("tokens", "before"):
        setattr(suffixes, own, Counted(getattr(suffixes, own)))
    suffixes.follow(5)
    assert isinstance(suffixes.tokens, Counted)
    assert suffixes.tokens.asked <= 2 * LOOKS * LONGEST


def test_where_columns_are_dear_verify_feeds_what_ar_feeds(
    letters: DiffusionLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a price for every column as high as that of the first no draft can pay, and none is fed."""
    prompts = [[5 + n, 6, 7 + n, 6, 5 + n, 6] for n in range(16)]
    fed = list[int]()
    forward = letters.backend.forward

    def counted(feed: Feed) -> Any:
        fed.append(int((feed.document != PADDING).sum()))
        return forward(feed)

    monkeypatch.setattr(letters.backend, "forward", counted)
    monkeypatch.setattr(letters.backend, "pass_costs", lambda: {1: 1.0, 2: 2.0})
    monkeypatch.setattr(Planner.of(letters.backend), "costs", None)
    plain = letters.generate(prompts, 20)
    columns, fed[:] = list(fed), []
    drafted = letters.generate(prompts, 20, mode="verify")
    assert fed == columns
    assert [out.token_ids for out in drafted] == [out.token_ids for out in plain]


@pytest.fixture(scope="module")
def letters(tiny: Any) -> DiffusionLM:
    tokenizer = train_tokenizer("bpe", ['{"name":"ab","count":12} the cat and the cat'] * 9, 300)
    size = tokenizer.get_vocab_size()
    network = tiny(4, vocab_size=size, layout="causal", shift=True, max_length=256, **SPECIAL)
    return DiffusionLM(network, tokenizer, DecodingDefaults(), "letters")


@pytest.mark.parametrize("lookup", [0, 3, 9])
def test_verify_writes_what_ar_writes(letters: DiffusionLM, lookup: int) -> None:
    for prompt in ("the cat and the cat", "a", [5, 6, 5, 6, 5]):
        plain = letters.generate(prompt, 60)
        drafted = letters.generate(prompt, 60, mode="verify", lookup=lookup)
        assert drafted.token_ids == plain.token_ids
        assert sum(drafted.accepted) + drafted.steps >= len(plain.token_ids)
    assert lookup == 0 or drafted.steps < plain.steps  # a small network repeats itself


def test_company_changes_nothing(letters: DiffusionLM) -> None:
    prompts = ["the cat and the cat", "a", "and"]
    alone = [letters.generate(prompt, 40, mode="verify").token_ids for prompt in prompts]
    together = letters.generate(prompts, 40, mode="verify")
    assert [out.token_ids for out in together] == alone


def test_sampled_text_is_that_of_mode_ar(letters: DiffusionLM) -> None:
    kept = 0
    for seed in range(20):
        plain, drafted = (
            letters.generate("the cat the", 12, mode=m, temperature=0.3, seed=seed) for m in ("ar", "verify")
        )
        assert plain.token_ids == drafted.token_ids
        kept += sum(drafted.accepted)
    assert kept > 0


def test_a_run_spells_what_the_grammar_forces(letters: DiffusionLM) -> None:
    grammar = letters.grammar(regex='\\{"name":"[ab]{2}"\\}')
    assert letters.tokenizer is not None
    run = grammar.run(grammar.start)
    assert letters.tokenizer.decode(list(run)) == '{"name":"'
    assert len(run) < len('{"name":"')  # tokens, not bytes
    assert grammar.run(grammar.read(run)) == ()
    assert (
        letters.tokenizer.decode(list(grammar.run(grammar.read(letters.tokenizer.encode('{"name":"ab').ids)))) == '"}'
    )


def test_found_drafts_stand_beside_the_adapters(drafting: Any) -> None:
    """A network that drafts writes the same with both kinds of drafts, in fewer steps where text repeats itself."""
    network = drafting(1, strength=0.3, vocab_size=40, max_length=300, **SPECIAL)[1]
    lm = DiffusionLM(network, None, DecodingDefaults(block_length=3), "talker")
    steps = {}
    for lookup in (0, 4):
        outs = [lm.generate([5, 6, 7] * 4, 60, mode=mode, **asked) for mode, asked in (
            ("ar", {}), ("verify", {"lookup": lookup}),
        )]  # fmt: skip
        assert outs[0].token_ids == outs[1].token_ids
        steps[lookup] = outs[1].steps
    assert steps[4] <= steps[0]
