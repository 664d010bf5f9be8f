"""Quality measures and floors against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from unmask import DiffusionLM, UnmaskError
from unmask.evaluation.answers import judge_perplexity, unigram_entropy
from unmask.evaluation.roofline import forward_operations, gemm_rate
from unmask.models.transformer import Transformer

Tiny = Callable[..., Transformer]


def test_unigram_entropy() -> None:
    assert unigram_entropy([[1, 1, 1, 1]]) == 0
    assert unigram_entropy([[1, 2, 3, 4], [5, 5, 6, 6]]) == pytest.approx((math.log(4) + math.log(2)) / 2)
    assert unigram_entropy([[]]) == 0


def test_judge_scores_the_text_and_not_the_prompt(tiny: Tiny) -> None:
    judge = DiffusionLM(tiny(layout="causal", shift=True), None)
    prompt, text = [1, 2, 3], [4, 5]
    logits = judge.logits(torch.tensor([prompt + text]))[0].double()
    logits[:, 12] = -torch.inf  # the mask is never predicted
    log_p = logits.log_softmax(-1)
    expected = math.exp(-float(log_p[3, 4] + log_p[4, 5]) / 2)
    assert judge_perplexity(judge, [prompt], [text]) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UnmaskError, match="cannot judge"):
        judge_perplexity(DiffusionLM(tiny(), None), [prompt], [text])


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


def test_gemm_rate_is_positive() -> None:
    assert gemm_rate(torch.float32, 64, 64, 64, seconds=0.01) > 0
