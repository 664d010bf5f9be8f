"""The base model as we read it, against transformers' own reading of the same file (float32)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask import DiffusionLM

FIXTURE = Path(__file__).parent / "smollm2" / "logits.json"


@pytest.fixture(scope="module")
def lm(smollm2: Path) -> DiffusionLM:
    return DiffusionLM.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return json.loads(FIXTURE.read_text())


def test_logits(lm: DiffusionLM, reference: dict[str, Any]) -> None:
    """The eight best tokens and five others; row i of theirs scores position i + 1."""
    ours = lm.logits([[*reference["short_ids"], 0]])[0]
    for row in reference["logits"]:
        found, expected = ours[row["position"] + 1], torch.tensor(row["logits"])
        torch.testing.assert_close(found[row["ids"]], expected, rtol=0, atol=1e-3)
        assert found.topk(8).indices.tolist() == row["ids"][:8]
        assert float(found.double().logsumexp(0)) == pytest.approx(row["logsumexp"], abs=1e-3)


def test_likelihood(lm: DiffusionLM, reference: dict[str, Any]) -> None:
    """With rows of queries and keys in GGUF's order it would be near 6 nats a token, and still write words."""
    ids, nll = reference["long_ids"], torch.tensor(reference["nll"], dtype=torch.float64)
    scores = lm.logits([ids])[0].double().log_softmax(-1)
    ours = -scores[torch.arange(1, len(ids)), ids[1:]]
    torch.testing.assert_close(ours, nll, rtol=0, atol=1e-4)
    assert lm.tokenizer is not None
    score = lm.likelihood([lm.tokenizer.decode(ids[1:])])[0]
    assert (score.method, score.tokens) == ("exact", len(nll))
    assert score.nats == pytest.approx(float(nll.sum()), abs=1e-2)


def test_it_answers_and_stops(lm: DiffusionLM) -> None:
    assert lm.config.mask_token_id == 16  # <empty_output>, which no text of ours holds
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    out = lm.generate(prompt, max_new_tokens=30)
    assert "Paris" in out.text
    assert out.steps < 30
