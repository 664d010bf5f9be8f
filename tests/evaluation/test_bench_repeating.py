"""The prompts whose answers repeat are those that their script writes, and each mode's figures are of its own runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import repeats
from benchmarks.repeating import MODES, PROMPTS, bench, read

from unmask.errors import UnmaskError


def test_the_file_is_what_the_script_writes() -> None:
    assert [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()] == repeats.rows()
    prompts = read(PROMPTS)
    assert Counter(prompt.kind for prompt in prompts) == dict.fromkeys(repeats.KINDS, repeats.EACH)
    assert len({json.dumps(prompt.messages) for prompt in prompts}) == len(prompts)
    assert not any("{" in prompt.messages[-1]["content"] for prompt in prompts)


def test_a_file_of_other_things_is_refused(tmp_path: Path) -> None:
    for text in ("no json", '{"kind": "edit"}', "[1]"):
        (tmp_path / "prompts.jsonl").write_text(text)
        with pytest.raises(UnmaskError, match="no file of prompts"):
            read(tmp_path / "prompts.jsonl")


class Model:
    """Writes four tokens in any mode, in half the steps in verify; other ones in diffusion."""

    def __init__(self) -> None:
        self.asked = list[tuple[str, Any]]()

    def grammar(self, schema: Any) -> str:
        return "held"

    def generate(self, messages: Any, count: int, *, mode: str, temperature: float, grammar: Any) -> SimpleNamespace:
        self.asked.append((mode, grammar))
        return SimpleNamespace(token_ids=[1, 2, 3, int(mode == "diffusion")], steps=4 if mode == "ar" else 2)


def test_every_prompt_is_counted_once_in_every_mode() -> None:
    model = Model()
    prompts = read(PROMPTS)
    tallies = bench(model, prompts, MODES, 5, lambda text: None)  # type: ignore[arg-type]
    warmed = len(repeats.KINDS)
    assert [mode for mode, _ in model.asked] == list(MODES) * (60 + warmed)
    assert sum(grammar is None for _, grammar in model.asked) == 3 * (30 + 2)
    for (mode, _), tally in tallies.items():
        assert tally.texts == repeats.EACH
        assert tally.alike == (0 if mode == "diffusion" else repeats.EACH)
        assert tally.rounds[:, 0].tolist() == [12] * 5
        assert tally.rounds[:, 1].tolist() == [12 if mode == "ar" else 6] * 5
        assert (tally.rates > 0).all()
