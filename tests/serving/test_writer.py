"""Text that grows: what was given out is never taken back, and all of it is the text of the tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from unmask.canvas import Frame
from unmask.decoding.stops import Stops, cut
from unmask.serving.api.writer import BROKEN, SHADE, Detokenizer, Region, Writer
from unmask.serving.engine import Done, Step
from unmask.training.tokenizer import train_tokenizer

TEXT = "the cat sat. été ☕ 猫 👩‍👧 naïve " * 3
WORDS = ["▁the", "▁cat", "s", "▁", "a", "▁sat", "!", "<0xE2>", "<0x98>", "<0x95>"]


def sentencepiece() -> Tokenizer:
    """Words that carry their space, and bytes for what is missing, as Llama 2 has them."""
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(WORDS)}, [], byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


TOKENIZERS = {
    "byte": train_tokenizer("byte", [TEXT], 0),
    "bpe": train_tokenizer("bpe", [TEXT], 300),
    "char": train_tokenizer("char", [TEXT], 0),
    "pieces": sentencepiece(),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60)
@given(data=st.data())
def test_pieces_add_up_to_the_text(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    sizes = st.integers(0, tokenizer.get_vocab_size() - 1)
    parts = data.draw(st.lists(st.lists(sizes, max_size=6), max_size=40))
    if data.draw(st.booleans()):  # real text, cut anywhere
        ids = tokenizer.encode(TEXT).ids
        cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=30)))
        parts = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    reader, given_out, ids = Detokenizer(tokenizer.decode), "", []
    for part in parts:
        ids += part
        given_out += reader.push(part)
        assert tokenizer.decode(ids).startswith(given_out)
    assert given_out == tokenizer.decode(ids).rstrip(BROKEN)


def step(positions: list[int], tokens: list[int], final: int) -> Step:
    n = len(positions)
    return Step(Frame(1, tuple(positions), tuple(tokens), (0.5,) * n, ("unmask",) * n), final, {})


@settings(max_examples=60)
@given(st.data())
def test_stops_hold_back_only_what_could_become_one(data: st.DataObject) -> None:
    """Tokens are characters, written from the left in runs; the stream is the text up to the first stop."""
    tokenizer = TOKENIZERS["char"]
    text = data.draw(st.text("theca ", min_size=1, max_size=24))
    stops = data.draw(st.lists(st.text("theca ", min_size=1, max_size=4), min_size=1, max_size=3))
    ids = tokenizer.encode(text).ids
    writer = Writer([1] * len(ids), Region(0, len(ids), 1, frozenset([0]), tuple(stops)), tokenizer.decode)
    asked, shown, at, stopped = Stops(stops, tokenizer.decode), "", 0, False
    while at < len(ids) and not stopped:
        n = data.draw(st.integers(1, 5))
        part = ids[at : at + n]
        shown += writer.take(step(list(range(at, at + len(part))), part, at + len(part)))
        at += len(part)
        stopped = asked(ids[:at])
        assert stopped == any(stop in text[:at] for stop in stops)
        assert cut(text, stops).startswith(shown)
    done = Done(ids[:at] + [1] * (len(ids) - at), 1, 0, (), at)
    rest, written = writer.finish(done)
    assert shown + rest == written.text == cut(text[:at], stops)
    if stopped:
        assert written.finish_reason == "stop"
        assert any(stop in text[: len(written.ids)] for stop in stops)
        assert not any(stop in text[: len(written.ids) - 1] for stop in stops)


def test_only_what_is_final_is_appended_and_snapshots_show_the_rest() -> None:
    tokenizer = TOKENIZERS["char"]
    ids = tokenizer.encode("the cat").ids
    writer = Writer([1] * 7, Region(0, 7, 1, frozenset([0])), tokenizer.decode)
    assert writer.take(step([0, 2, 4, 5, 6], [ids[i] for i in (0, 2, 4, 5, 6)], 1)) == "t"
    assert writer.snapshot() == f"t{SHADE}e{SHADE}cat"
    assert writer.take(step([1, 3], [ids[1], ids[3]], 3)) == "he"
    assert writer.take(step([4], [0], 7)) == " "  # an end of text: what is behind it does not count
    assert writer.snapshot() == "the "
    rest, written = writer.finish(Done([*ids[:4], 0, *ids[5:]], 3, 0, (), 7))
    assert (rest, written.text, len(written.ids), written.finish_reason) == ("", "the ", 4, "stop")


def test_stops_read_new_tokens_only() -> None:
    tokenizer, read = TOKENIZERS["char"], list[int]()

    def decode(ids: list[int]) -> str:
        read.append(len(ids))
        return str(tokenizer.decode(ids))

    ids: list[Any] = tokenizer.encode("the cat " * 100).ids
    stops = Stops(["cats"], decode)
    assert not any(stops(ids[:n]) for n in range(1, len(ids), 3))
    assert max(read) <= 3 + stops.margin
    assert stops([*ids[:-1], *tokenizer.encode("s").ids])


def test_shipped_tokenizer_streams_its_own_text() -> None:
    from unmask.checkpoints.hub import SHIPPED

    path = Path(SHIPPED) / "austen" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    ids = tokenizer.encode("“It is a truth”, said Émile — naïvely… 👩‍👧").ids
    reader = Detokenizer(tokenizer.decode)
    assert "".join(reader.push([i]) for i in ids) == tokenizer.decode(ids)
