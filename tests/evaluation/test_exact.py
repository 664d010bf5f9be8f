"""Rows that are answered: read, compared, counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unmask.errors import UnmaskError
from unmask.evaluation.exact import exact_match, interval, read_rows, read_texts, same


class Echo:
    """Answers with its prompt, or with the last message, where there is room for it."""

    def encode(self, prompt: Any) -> list[list[Any]]:
        return [[prompt if isinstance(prompt, str) else prompt[-1]["content"]]]

    def room(self, tokens: int) -> int:
        return 7

    def generate(self, prompts: list[Any], most: int, **options: Any) -> list[Any]:
        class Out:
            def __init__(self, text: str) -> None:
                self.text = text
                self.token_ids = [1, 2]
                self.steps = 1

        assert most == 7
        return [Out(prompt[0]) for prompt in prompts]


def test_rows_are_answered_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "response": "a"},
        {"prompt": '{"x": 1, "y": [2]}', "response": '{"y":[2],"x":1.0}'},
        {"prompt": "b", "response": "c"},
        {"messages": [{"role": "user", "content": "d"}, {"role": "assistant", "content": " d\n"}]},
    ]
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    result = exact_match(Echo(), read_rows(path, 99), 9, {}, batch=3)  # type: ignore[arg-type]
    assert (result["rows"], result["exact_match"], result["tokens_per_step"]) == (4, 75.0, 2.0)
    assert result["wrong"] == [{"prompt": "b", "answer": "b", "right": "c"}]
    assert len(read_rows(path, 2)) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no rows"),
        ('{"text": "a"}', "row 1 has neither"),
        ('{"prompt": "a", "response": "b"}\n{', "row 2 is not JSON"),
        ('{"prompt": "a", "response": "b"}\n\n{', "row 3 is not JSON"),
        ("[" * 100_000, "row 1 is not JSON"),
        ('{"messages": ["a", "b"]}', "row 1 has neither"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}', "row 1 has neither"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}',
            "row 1 has neither",
        ),
    ],
)
def test_rows_that_cannot_be_read(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UnmaskError, match=says):
        read_rows(path, 9)


def test_texts_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a", "x": null}\n{"text": "b"}\n', encoding="utf-8")
    assert read_texts(path, 9) == ["a", "b"]
    path.write_text('{"text": "a"}\n{"text": null}\n', encoding="utf-8")
    with pytest.raises(UnmaskError, match="row 2 has no text"):
        read_texts(path, 9)
    path.write_text('{"prompt": "a", "response": "b"}', encoding="utf-8")
    assert read_texts(path, 9) is None


def test_wilsons_interval() -> None:
    """Values of scipy.stats.binomtest(k, n).proportion_ci(method="wilson")."""
    assert interval(95, 100) == pytest.approx((95.0, 88.8242, 97.8466), abs=1e-3)
    assert interval(0, 10)[1] == 0.0
    assert interval(10, 10)[2] == pytest.approx(100.0)


def test_same() -> None:
    assert same("[1, 2]", "[1,2]")
    assert not same("[1, 2]", "[2,1]")
    assert same(" yes ", "yes")
