"""Quality measures and floors against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from benchmarks.roofline import forward_operations, gemm_rate

from unmask import DiffusionLM, UnmaskError
from unmask.evaluation.answers import distinct, entropies, judged
from unmask.models.transformer import Transformer
from unmask.training.tokenizer import train_tokenizer

Tiny = Callable[..., Transformer]


def test_entropies() -> None:
    assert entropies([[1, 1, 1, 1]]).value == 0
    assert entropies([[1, 2, 3, 4], [5, 5, 6, 6]]).value == pytest.approx((math.log(4) + math.log(2)) / 2)
    assert entropies([[]]).value == 0


def test_distinct_runs() -> None:
    assert distinct([[1, 1, 1, 1], [1, 2, 3, 4], [7]], 2).value == pytest.approx(100 * (1 / 3 + 1) / 2)


def test_judge_scores_the_text_and_not_the_prompt(tiny: Tiny) -> None:
    """In the judge's own tokens, whatever wrote the text."""
    tokenizer = train_tokenizer("char", ["abcdefg"], 20)
    size = tokenizer.get_vocab_size()
    judge = DiffusionLM(tiny(layout="causal", shift=True, vocab_size=size, mask_token_id=1), tokenizer)
    ids = tokenizer.encode("abcde").ids
    logits = judge.logits(torch.tensor([ids]))[0].double()
    logits[:, 1] = -torch.inf  # the mask is never predicted
    log_p = logits.log_softmax(-1)
    expected = math.exp(-float(log_p[3, ids[3]] + log_p[4, ids[4]]) / 2)
    assert judged(judge, ["de"], ["abc"]).value == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UnmaskError, match="cannot judge"):
        judged(DiffusionLM(tiny(), None), ["de"], ["abc"])


def test_operations_count_every_matrix(tiny: Tiny) -> None:
    model = tiny()
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embedding" not in n)
    head = model.config.hidden_size * model.config.vocab_size
    attention = 4 * 7 * 7 * model.config.hidden_size * model.config.num_layers
    assert forward_operations(model.config, 7, 7, 3) == 2 * 7 * matrices + attention + 2 * 3 * head
    hybrid = tiny(mixers=("attention", "mamba2"), layout="causal")
    matrices = sum(p.numel() for n, p in hybrid.named_parameters() if p.dim() == 2 and "embedding" not in n)
    mixing = 4 * 7 * 7 * 32 + 4 * 7 * 64 * 128  # of attention; of a state of 128 by 64
    assert forward_operations(hybrid.config, 7, 7, 3) == 2 * 7 * matrices + mixing + 2 * 3 * head


def test_operations_count_the_experts_that_a_token_asks(tiny: Tiny) -> None:
    model = tiny(num_experts=6, experts_per_token=2, expert_size=24, shared_expert_size=16, first_dense_layers=1)
    kinds = {n: p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embedding" not in n}
    experts = sum(size for name, size in kinds.items() if ".experts." in name)
    attention = 4 * 7 * 7 * 32 * 2
    expected = 2 * 7 * (sum(kinds.values()) - experts + experts * 2 / 6) + attention + 2 * 3 * 32 * 13
    assert forward_operations(model.config, 7, 7, 3) == pytest.approx(expected)


def test_gemm_rate_is_positive() -> None:
    assert gemm_rate(torch.float32, 64, 64, 64, seconds=0.01) > 0
