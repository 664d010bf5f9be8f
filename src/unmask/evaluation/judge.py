"""How good generated text is, without a reader: perplexity under a judge model, and entropy beside it."""

from __future__ import annotations

import math
from collections import Counter

import torch

from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM
from unmask.objectives.likelihood import exact_causal


@torch.inference_mode()
def judge_perplexity(judge: DiffusionLM, prompts: list[list[int]], texts: list[list[int]]) -> float:
    """Perplexity per token of generated ids under an AR judge, each given its prompt (not scored).

    Low perplexity alone means little: repetition has it too, so print entropy beside it.
    """
    if judge.config.layout != "causal":
        raise UnmaskError(f"model '{judge.name}' cannot judge: exact likelihood needs an autoregressive model")
    nats = 0.0
    count = 0
    for prompt, text in zip(prompts, texts, strict=True):
        whole = prompt + text
        both = exact_causal(judge.model, torch.tensor([whole]))
        given = exact_causal(judge.model, torch.tensor([prompt])) if len(prompt) > 1 else torch.zeros(1)
        nats = nats + float(both - given)
        count = count + len(text) - (0 if prompt else 1)
    return math.exp(nats / max(1, count))


def unigram_entropy(texts: list[list[int]]) -> float:
    """Mean over texts of the entropy of each text's own token frequencies, in nats."""
    values = []
    for text in texts:
        counts = Counter(text)
        values.append(-sum(c / len(text) * math.log(c / len(text)) for c in counts.values()) if text else 0.0)
    return sum(values) / max(1, len(values))
