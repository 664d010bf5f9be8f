"""Rows of JSONL: read, scored, answered, compared, counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unmask import DiffusionLM
from unmask.decoding.methods import DecodingDefaults
from unmask.errors import UnmaskError
from unmask.evaluation.exact import Row, answers, exact_match, likelihood, read_rows, same
from unmask.models.transformer import Transformer
from unmask.training.tokenizer import train_tokenizer

TEXT = "the cat sat on the mat. the dog sat on the log. a cat and a dog sat. 123456789." * 4


@pytest.fixture
def lm(tiny: Callable[..., Transformer]) -> DiffusionLM:
    """A masked model whose tokens are letters."""
    tokenizer = train_tokenizer("char", [TEXT], 300)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "mask_token_id": 1, "eos_token_id": 0, "bos_token_id": 0}
    return DiffusionLM(tiny(**sizes), tokenizer, DecodingDefaults(rule="quota"), "toy")


def test_rows_of_every_kind_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[dict[str, Any]] = [
        {"text": "a", "x": None},
        {"prompt": "a", "response": "b"},
        {"messages": [{"role": "user", "content": "d"}, {"role": "assistant", "content": "e"}]},
        {"canvas": "123", "given": "1.3"},
    ]
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    read = read_rows(path, 99)
    assert read == [Row("a"), Row("b", "a"), Row("e", [{"role": "user", "content": "d"}]), Row("123", given="1.3")]
    assert [row.asks for row in read] == [False, True, True, True]
    assert len(read_rows(path, 2)) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no rows"),
        ('{"text": "a"}\n{"text": ""}', "row 2 has none of"),
        ('{"messages": [{"role": "user", "content": "d"}]}', "row 1 has none of"),
        ('{"canvas": "12", "given": "1"}', "of one length"),
        ('{"prompt": "a", "response": "b"}\n{', "row 2 is not JSON"),
        ('{"prompt": "a", "response": "b"}\n\n{', "row 3 is not JSON"),
        ("[" * 100_000, "row 1 is not JSON"),
        ('{"messages": ["a", "b"]}', "row 1 has none of"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}', "row 1 has none of"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}',
            "row 1 has none of",
        ),
    ],
)
def test_rows_that_cannot_be_read(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UnmaskError, match=says):
        read_rows(path, 9)


def silent(share: float) -> None:
    """No progress shown."""


def test_responses_only_are_scored_where_there_are_prompts(lm: DiffusionLM) -> None:
    """A document, a response and open cells: the sum of what each costs by itself."""
    rows = [Row("the cat"), Row(" sat", prompt="the dog")]
    record = likelihood(lm, rows, "auto", 64, 0, silent)
    alone = [*lm.likelihood(["the cat"], samples=64), *lm.likelihood([" sat"], given=["the dog"], samples=64)]
    assert record["nats"] == pytest.approx(sum(one.nats for one in alone))
    assert (record["tokens"], record["characters"]) == (11, 11)
    assert record["nats_per_token_low"] < record["nats_per_token"] < record["nats_per_token_high"]
    cells = likelihood(lm, [Row("1234", given="1.3.")], "exact", 1, 0, silent)
    assert (cells["tokens"], cells["characters"], cells["std_error"]) == (2, 2, 0.0)
    with pytest.raises(UnmaskError, match="each character is a token"):
        likelihood(lm, [Row("1234", given="1.3."), Row("a")], "auto", 1, 0, silent)


def test_prompts_are_answered_and_canvases_filled(lm: DiffusionLM) -> None:
    options = {"temperature": 0.0, "seed": 0}
    rows = [Row("x", prompt="the cat"), Row("x", prompt="a dog")]
    outs = answers(lm, rows, 900, options, silent)
    assert len(outs[0].canvas) == len("the cat") + lm.room(len("the cat"))  # what fits is written
    rows = [Row(outs[0].text, "the cat"), Row("no", "a dog")]
    result = exact_match(rows, outs)
    assert (result["exact_match"], result["rows"]) == (50.0, 2)
    assert result["exact_match_low"] < 50 < result["exact_match_high"]
    assert [one["right"] for one in result["wrong"]] == ["no"]
    filled = answers(lm, [Row("1234", given="1.3.")], 9, options, silent)[0]
    assert (filled.text[0], filled.text[2], len(filled.token_ids)) == ("1", "3", 2)


def test_same() -> None:
    assert same("[1, 2]", "[1,2]")
    assert not same("[1, 2]", "[2,1]")
    assert same(" yes ", "yes")
