"""`unmask bench few`: a step is a forward, for masks and for random tokens alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import few

from unmask.lm import DiffusionLM

FIXTURES = Path(__file__).parent.parent / "conformance"


@pytest.mark.parametrize("steps", [1, 4])
def test_random_tokens_take_as_many_forwards_as_were_asked_for(steps: int) -> None:
    lm = DiffusionLM.from_pretrained(FIXTURES / "duo")
    out = lm.generate([1, 2, 3], max_new_tokens=8, seed=7, **few.sampling(lm.config, steps))
    assert out.steps == steps
    assert len(out.canvas) == 11


def test_texts_without_prompts_beside_held_out_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It is a truth universally acknowledged, that a single man must be in want of a wife.")
    options = {"judge": "austen-ar", "ar": "", "texts": 2, "tokens": 8, "given": 0, "as_json": True}
    few.command(["austen"], text=text, steps="1,2", temperatures="1.0", **options)
    results = json.loads(capsys.readouterr().out)["results"]
    assert [(r["model"], r["steps"]) for r in results] == [("text.txt", None), ("austen", 1), ("austen", 2)]
    held, *written = (r["perplexity"][0] for r in results)
    assert held < min(written)
