"""From files to rows: reading, splitting, packing, tokenisers and what bad input says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from unmask.layout import PADDING
from unmask.training.data import Corpus, DataConfig
from unmask.training.documents import Document, Documents
from unmask.training.framing import Framing
from unmask.training.token_file import Tokens
from unmask.training.tokenizer import EOS, MASK, TokenizerKind, begin_with_eos, special_tokens, train_tokenizer

Refused = Callable[..., Any]
KINDS: tuple[TokenizerKind, ...] = ("byte", "char", "bpe")
UNICODE = "Das Mädchen,\r\n\tnaïve & 東京 — 😀🏽 e\u0301\n\n  two  spaces "


@pytest.fixture(scope="module")
def byte() -> Tokenizer:
    tokenizer = train_tokenizer("byte", [], 0)
    begin_with_eos(tokenizer)
    return tokenizer


def read(path: Path | str, **options: Any) -> list[Document]:
    return list(Documents((str(path),), DataConfig(files=(str(path),), **options)))


def corpus(
    documents: list[Document], tokenizer: Tokenizer, length: int = 8, seed: int = 0, eos: Any = "ignore", **options: Any
) -> Corpus:
    config = DataConfig(files=("x",), tokenizer="byte", length=length, **options)
    special = special_tokens(tokenizer, config, {})
    framing = Framing(tokenizer, special["eos_token_id"], special["mask_token_id"])
    return Corpus(Tokens.of(framing.pieces(documents)), config, seed, eos, framing.eos)


def three(*lengths: int) -> list[Document]:
    """Documents of one repeated letter each, so that a token says which document it is of."""
    return [Document(letter * n) for letter, n in zip("abcdefgh", lengths, strict=False)]


# reading


def test_text_files_are_one_document_each_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second\n\nparagraph\n")
    (tmp_path / "a.txt").write_text("  first é\n", encoding="utf-8")
    (tmp_path / "c.md").write_text("not asked for")
    assert [d.text for d in read(tmp_path / "*.txt")] == ["first é", "second\n\nparagraph"]


def test_split_begins_a_document_at_every_match(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("Title\nCHAPTER 1\none, see CHAPTER 2\nCHAPTER 2\ntwo\n")
    texts = [d.text for d in read(path, split="^CHAPTER ")]
    assert texts == ["Title", "CHAPTER 1\none, see CHAPTER 2", "CHAPTER 2\ntwo"]


def test_split_without_a_match_keeps_the_text_whole(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("one\ntwo")
    assert [d.text for d in read(path, split="^PART")] == ["one\ntwo"]


def test_jsonl_holds_texts_or_prompts_and_responses(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "plain ü"}, {"prompt": "2 + 2 =", "response": " 4"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(path, format="jsonl") == [Document("plain ü"), Document(" 4", "2 + 2 =")]


def test_parquet_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["q1", "q2"], "response": ["a1", "a2"], "other": [1, 2]}), path)
    assert read(path, format="parquet") == [Document("a1", "q1"), Document("a2", "q2")]


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    assert read(path)[0].text == "before"
    path.write_text("after!")
    assert read(path)[0].text == "after!"


# what bad input says


@pytest.mark.parametrize(
    ("name", "content", "format", "word"),
    [
        ("empty.txt", b"", "text", "no text"),
        ("blank.txt", b" \n\t\n", "text", "no text"),
        ("binary.txt", bytes(range(256)) * 40, "text", "UTF-8"),
        ("latin1.txt", "café".encode("latin-1"), "text", "UTF-8"),
        ("late.txt", b"a" * 70_000 + b"\xff" + b"b" * 100, "text", "byte 70000"),
        ("zeros.txt", b"ab\0cd" * 9, "text", "zero bytes"),
        ("bad.jsonl", b'{"text": "fine"}\n{"text": \n', "jsonl", "not readable as jsonl"),
        ("words.jsonl", b"just words\n", "jsonl", "not readable as jsonl"),
        ("empty.jsonl", b"", "jsonl", "no rows"),
        ("body.jsonl", b'{"body": "text under another name"}\n', "jsonl", "'body'"),
        ("number.jsonl", b'{"text": 3}\n', "jsonl", "'text'"),
        ("half.jsonl", b'{"prompt": "and no response"}\n', "jsonl", "'prompt'"),
        ("bad.parquet", b"PAR1 not really", "parquet", "not readable as parquet"),
        ("empty.parquet", b"", "parquet", "not readable as parquet"),
    ],
)
def test_a_bad_corpus_is_named(
    tmp_path: Path, refused: Refused, name: str, content: bytes, format: Any, word: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with refused(path, word):
        read(path, format=format)


def test_a_missing_corpus_is_named(tmp_path: Path, refused: Refused) -> None:
    with refused(tmp_path / "none-*.txt", "no such file"):
        read(tmp_path / "none-*.txt")


@pytest.mark.parametrize("format", ["text", "jsonl", "parquet"])
def test_a_folder_without_text_is_not_a_corpus(tmp_path: Path, refused: Refused, format: Any) -> None:
    with refused(tmp_path):
        read(tmp_path, format=format)


def test_an_invalid_split_is_named(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    with refused("data.split", "'(CHAPTER'"):
        read(path, split="(CHAPTER")


def test_the_bad_one_of_two_files_is_named(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "1-good.jsonl").write_text('{"text": "fine"}\n')
    (tmp_path / "2-bad.jsonl").write_text("{nope\n")
    with refused("2-bad.jsonl"):
        read(tmp_path / "*.jsonl", format="jsonl")


def test_a_file_name_with_brackets_is_found(tmp_path: Path) -> None:
    path = tmp_path / "novel [1].txt"
    path.write_text("text")
    assert [d.text for d in read(path)] == ["text"]


def test_a_corpus_shorter_than_a_row_is_refused(byte: Tokenizer, refused: Refused) -> None:
    with refused("5 tokens", "row of 8", "data.length"):
        corpus([Document("abc")], byte)


def test_a_tokenizer_without_end_of_text_is_refused(byte: Tokenizer, refused: Refused) -> None:
    from tokenizers import models

    with refused(EOS):
        corpus([Document("abc")], Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


def test_a_corpus_that_holds_the_mask_token_is_refused(byte: Tokenizer, refused: Refused) -> None:
    # a mask as target has probability zero, so the loss would be infinite
    with refused(MASK):
        corpus([Document(f"documentation writes {MASK} at times")], byte)


# tokenisers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [UNICODE, "".join(map(chr, range(1, 128)))], ids=["unicode", "ascii"])
def test_tokenizers_give_back_their_text(kind: TokenizerKind, text: str) -> None:
    tokenizer = train_tokenizer(kind, [text, "more text"], 300)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert not {0, 1} & set(ids)
    again = Tokenizer.from_str(tokenizer.to_str())  # as a model folder keeps it
    assert again.encode(text, add_special_tokens=False).ids == ids
    assert again.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_end_of_text_is_0_and_mask_is_1(kind: TokenizerKind) -> None:
    tokenizer = train_tokenizer(kind, ["some text, some more text"], 270)
    assert (tokenizer.token_to_id(EOS), tokenizer.token_to_id(MASK)) == (0, 1)
    assert sorted(tokenizer.get_vocab().values()) == list(range(tokenizer.get_vocab_size()))


def test_byte_and_bpe_tokenizers_write_any_text(byte: Tokenizer) -> None:
    assert byte.get_vocab_size() == 258
    assert len(byte.encode("é😀", add_special_tokens=False).ids) == 6
    bpe = train_tokenizer("bpe", ["only ascii here, only ascii"], 280)
    assert bpe.get_vocab_size() <= 280
    assert bpe.decode(bpe.encode(UNICODE, add_special_tokens=False).ids) == UNICODE


def test_char_tokenizer_has_one_token_a_character() -> None:
    tokenizer = train_tokenizer("char", ["ab\nc"], 0)
    assert tokenizer.get_vocab_size() == 3 + 4
    assert len(tokenizer.encode("a\ncb", add_special_tokens=False).ids) == 4
    assert tokenizer.encode("aXb", add_special_tokens=False).ids[1] == 2  # what it never saw


# packed rows


@pytest.mark.parametrize("lengths", [(5, 9, 1), (20,), (7,), (3, 3)])
def test_an_epoch_covers_every_token(byte: Tokenizer, lengths: tuple[int, ...]) -> None:
    source = corpus(three(*lengths), byte)
    for epoch in range(4):
        rows = source.rows(epoch * source.num_rows, source.num_rows)
        letters = byte.decode(rows.ids.flatten().tolist())
        for letter, n in zip("abcdefgh", lengths, strict=False):
            # the ring is cut anew each epoch; a row more than fits may repeat some tokens
            assert n <= letters.count(letter) <= n + 8


def test_a_document_stands_between_ends_of_text(byte: Tokenizer) -> None:
    source = corpus(three(3, 4), byte)
    texts = [byte.decode([i], skip_special_tokens=False) for i in source.tokens.ids.tolist()]
    assert texts == [EOS, *"aaa", EOS, EOS, *"bbbb", EOS]
    assert source.tokens.starts.tolist() == [0, 5, 11]
    assert source.tokens.document_at(np.arange(11)).tolist() == [0] * 5 + [1] * 6


@pytest.mark.parametrize("lengths", [(5, 9, 1), (7,), (2, 4)])
@pytest.mark.parametrize("cut", [0.0, 0.7])
def test_packing_keeps_documents_apart(byte: Tokenizer, lengths: tuple[int, ...], cut: float) -> None:
    # (7,) and (2, 4) make rows in which the ring's end meets its start: the same document twice
    source = corpus(three(*lengths), byte, length=9, cut=cut)
    rows = source.rows(0, 40)
    ring = "".join(EOS[0] + letter * n + EOS[0] for letter, n in zip("abcdefgh", lengths, strict=False))
    for ids, document, position in zip(rows.ids, rows.document, rows.position, strict=True):
        text = "".join(EOS[0] if i == 0 else byte.decode([i]) for i in ids.tolist())
        numbers = document.tolist()
        for number in set(numbers):
            where = [i for i, d in enumerate(numbers) if d == number]
            piece = text[where[0] : where[-1] + 1]
            assert where == list(range(where[0], where[-1] + 1))  # never seen again further on
            assert position[where].tolist() == list(range(len(where)))
            assert piece in ring  # in the order of the text
            assert EOS[0] * 2 not in piece  # an end with a start behind it
            assert len(set(piece) - {EOS[0]}) <= 1


def test_rows_depend_on_seed_and_index_alone(byte: Tokenizer) -> None:
    documents = three(40, 30, 20)
    first, second = corpus(documents, byte, cut=0.5), corpus(documents, byte, cut=0.5)
    whole = first.rows(0, 60)
    for start, count in [(37, 5), (0, 3), (58, 2)]:  # any order, any number at a time, over epochs' ends
        part = second.rows(start, count)
        for name in ("ids", "document", "position", "supervised"):
            torch.testing.assert_close(getattr(part, name), getattr(whole, name)[start : start + count])
    assert not torch.equal(corpus(documents, byte, seed=1).rows(0, 60).ids, whole.ids)


def test_epochs_are_cut_and_shuffled_differently(byte: Tokenizer) -> None:
    source = corpus([Document("".join(map(chr, range(33, 120))))], byte)
    epochs = [source.rows(e * source.num_rows, source.num_rows).ids[:, 0].tolist() for e in range(6)]
    assert len({tuple(starts) for starts in epochs}) == 6
    assert len({frozenset(starts) for starts in epochs}) > 2  # cut elsewhere, not only in another order


def test_cut_makes_two_documents_of_a_row(byte: Tokenizer) -> None:
    documents = [Document("a" * 400)]
    always, never, half = (corpus(documents, byte, cut=cut).rows(0, 50) for cut in (1.0, 0.0, 0.5))
    parts = [len(row.unique()) for row in always.document]
    assert set(parts) <= {2, 3}  # 3: the row in which the ring's end meets its start
    assert all(int((row == row[0]).sum()) < 8 for row in always.document)
    assert (never.document == never.document[:, :1]).all(1).float().mean() > 0.9
    assert 10 < sum(len(row.unique()) > 1 for row in half.document) < 40
    torch.testing.assert_close(always.ids, never.ids)  # the same text, only out of sight
    assert always.supervised.all()


def test_rows_are_cut_elsewhere_in_the_next_epoch(byte: Tokenizer) -> None:
    source = corpus([Document("a" * 400)], byte, cut=1.0)
    epochs = [source.rows(e * source.num_rows, source.num_rows).document for e in (0, 1)]
    first, second = (Counter((rows != rows[:, :1]).int().argmax(1).tolist()) for rows in epochs)
    assert (first - second).total() > 4  # of 51 rows


def test_prompts_are_given_and_not_learned(byte: Tokenizer) -> None:
    source = corpus([Document("yes", "ask?"), Document("plain")], byte)
    # end of text and prompt, then the response and its end; a text without prompt is learned whole
    assert source.tokens.learned.tolist() == [False] * 5 + [True] * 4 + [True] * 7


# padded rows


@pytest.mark.parametrize("eos", ["learn", "ignore"])
def test_padding_is_learned_or_ignored(byte: Tokenizer, eos: Any) -> None:
    documents = [Document("abc"), Document("de", "q"), Document("far too long for a row")]
    source = corpus(documents, byte, packed=False, eos=eos)
    assert source.num_rows == 3
    rows = source.rows(0, 3)
    order = np.argsort([byte.decode(row.tolist()) for row in rows.ids])  # abc, far..., qde
    ids, document, supervised = rows.ids[order], rows.document[order], rows.supervised[order]
    learned = eos == "learn"
    assert byte.decode(ids[0].tolist(), skip_special_tokens=False) == EOS + "abc" + EOS * 4
    assert document[0].tolist() == [0] * 5 + [0 if learned else PADDING] * 3
    assert supervised[0].tolist() == [True] * 5 + [learned] * 3
    assert byte.decode(ids[1].tolist(), skip_special_tokens=False) == EOS + "far too"
    assert supervised[1].all()
    assert supervised[2].tolist() == [False] * 2 + [True] * 3 + [learned] * 3


def test_padded_rows_may_be_longer_than_the_corpus(byte: Tokenizer) -> None:
    rows = corpus([Document("a")], byte, length=32, packed=False).rows(0, 2)
    assert int((rows.document == PADDING).sum()) == 2 * (32 - 3)
