"""`unmask bench verify`: does mode verify write the ids of mode ar, and where not, how near was the tie?"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from unmask.evaluation.bench_speed import chat
from unmask.lm import DiffusionLM
from unmask.prompts import encode


@dataclass(frozen=True)
class Agreement:
    """Over all prompts. A parting is the first token in which a text differs; its gap is how far apart the two
    tokens are in nats under the torch network in float32."""

    prompts: int
    identical: int
    tokens: int  # that ar wrote
    before_parting: int  # of them, those before the first difference
    gaps: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "median_gap": statistics.median(self.gaps) if self.gaps else 0.0}


def bench_verify(
    lm: DiffusionLM, prompts: list[str], length: int, batch: int, window: int, progress: Callable[[str], None]
) -> Agreement:
    """Greedy texts of both modes, `batch` prompts at a time."""
    identical = tokens = before = 0
    gaps: list[float] = []
    for start in range(0, len(prompts), batch):
        progress(f"{start} of {len(prompts)} prompts")
        rows = [
            encode(chat(lm, p), lm.tokenizer, lm.chat_template, lm.config, lm.name)[0]
            for p in prompts[start : start + batch]
        ]
        plain = lm.generate(rows, length, mode="ar", temperature=0.0)
        checked = lm.generate(rows, length, mode="verify", temperature=0.0, block_length=window)
        for row, a, b in zip(rows, plain, checked, strict=True):
            first, second = a.token_ids, b.token_ids
            tokens += len(first)
            if first == second:
                identical, before = identical + 1, before + len(first)
                continue
            parting = next((i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), None)
            before += min(len(first), len(second)) if parting is None else parting
            if parting is not None:
                gaps.append(_gap(lm, row + first[:parting], first[parting], second[parting]))
    return Agreement(len(prompts), identical, tokens, before, tuple(gaps))


def _gap(lm: DiffusionLM, given: list[int], one: int, other: int) -> float:
    import torch

    logits = lm.logits(torch.tensor([[*given, one]]), layout="causal")[0, -1]
    return abs(float(logits[one] - logits[other]))
