"""Text keeps its spaces where a tokenizer puts one before every text and its decoder takes that off again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from unmask.decoding.detokenize import ids_after, text_after
from unmask.decoding.infill import parse_template
from unmask.decoding.methods import DecodingDefaults
from unmask.lm import DiffusionLM
from unmask.training.tokenizer import train_tokenizer

WORDS = "abcdehlorstw.,▁\n"


@pytest.fixture(scope="module")
def prepending() -> Tokenizer:
    """As Llama's: letters and a few words, the space before a word its own."""
    pieces = ["<s>", "<mask>", *WORDS, "▁s", "▁sa", "▁sat", "th", "▁th", "▁the", "he"]
    merges = [("▁", "s"), ("▁s", "a"), ("▁sa", "t"), ("t", "h"), ("▁", "th"), ("▁th", "e"), ("h", "e")]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(["<s>", "<mask>"])
    return made


def test_a_completion_keeps_its_first_space(prepending: Tokenizer) -> None:
    before, ids = prepending.encode("the c").ids, prepending.encode("sat.").ids
    assert prepending.decode(ids) == "sat."  # what the decoder makes of it alone
    assert text_after(prepending, before, ids) == " sat."
    assert text_after(prepending, [], ids) == "sat."
    assert text_after(prepending, prepending.encode("the").ids, prepending.encode("sat").ids[1:]) == ""


@given(st.text("abcdehlorst .,", max_size=12), st.text("abcdehlorst .,", min_size=1, max_size=12))
def test_a_text_that_goes_on_is_the_text(prepending: Tokenizer, head: str, text: str) -> None:
    before = prepending.encode("a" + head).ids
    assert prepending.decode([*before, *ids_after(prepending, text)]) == "a" + head + text


def test_byte_level_tokenizers_are_as_they_were() -> None:
    made = train_tokenizer("bpe", ["the cat sat on the mat, é 🦙. " * 9], 330)
    whole = made.encode("the cat sat, é 🦙.").ids
    for cut in range(len(whole)):
        assert text_after(made, whole[:cut], whole[cut:]) == made.decode(whole[cut:])
        assert ids_after(made, " cat") == made.encode(" cat").ids


def test_given_text_appears_as_given(prepending: Tokenizer, tiny: Any) -> None:
    network = tiny(1, vocab_size=prepending.get_vocab_size(), mask_token_id=1, pad_token_id=0, bos_token_id=0)
    lm = DiffusionLM(network, prepending, DecodingDefaults(rule="quota"), "toy")
    out = lm.fill("the [[mask:2]] sat, the [[mask:1]].", seed=1)
    assert out.text == f"the{out.gaps[0]} sat, the{out.gaps[1]}."
    template = parse_template("the [[mask:2]] sat.", prepending)
    assert prepending.decode(template.segments[1]) == "sat."
    assert [prepending.id_to_token(i) for i in template.segments[1]] == ["▁sat", "."]
    said = lm.generate("the", 4, seed=1)
    assert prepending.decode([*prepending.encode("the").ids, *said.token_ids]) == "the" + said.text
