"""Distillation: a student learns from a teacher's likeliest tokens, or to be sure where it is right already.

Shapes: N scored tokens, V vocabulary, K of a teacher's likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unmask.layout import Layout
from unmask.models.transformer import Transformer
from unmask.objectives.masked import BD3LM
from unmask.objectives.objective import Noised, scored_loss, training_mask

CHUNK = 512  # scored tokens whose logits are held at once


def top_k_cross_entropy(logits_NV: Tensor, ids_NK: Tensor, p_NK: Tensor) -> Tensor:
    """-sum_k p_k log q(k) [N], q the student's whole softmax: its gradient is that of KL(p || q) for a teacher that
    gives its likeliest K tokens chances p which sum to one."""
    return -(p_NK * logits_NV.log_softmax(-1).gather(-1, ids_NK)).sum(-1)


def certainty(logits_NV: Tensor, target_N: Tensor, temperature: float) -> Tensor:
    """Entropy [N], nats, of softmax(logits / temperature) where the likeliest token is the target, else 0: what
    certainty forcing (dParallel, arXiv 2509.26488) makes small, so that more tokens pass a threshold at once."""
    log_p = (logits_NV / temperature).log_softmax(-1)
    entropy = -(log_p.exp() * log_p.clamp(min=-1e4)).sum(-1)
    return torch.where(logits_NV.argmax(-1) == target_N, entropy, 0.0)


def without(logits_NV: Tensor, token: int | None) -> Tensor:
    """The logits with a token that has no chance."""
    if token is None:
        return logits_NV
    return logits_NV.index_fill(-1, torch.tensor([token], device=logits_NV.device), -1e9)


def over_chunks(
    score: Callable[..., Tensor], hidden_ND: Tensor, model: Any, banned: int | None, *per_token: Tensor
) -> Tensor:
    """Sum of score(logits [n, V], *per_token [n, ...]) over chunks of scored tokens, whose logits are made again in the
    backward pass rather than kept."""

    def part(hidden: Tensor, *values: Tensor) -> Tensor:
        return score(without(model.head(hidden).float(), banned), *values)

    total = hidden_ND.new_zeros((), dtype=torch.float32)
    for start in range(0, len(hidden_ND), CHUNK):
        piece = slice(start, start + CHUNK)
        values = [value[piece] for value in per_token]
        total = total + checkpoint(part, hidden_ND[piece], *values, use_reentrant=False)
    return total


@dataclass(frozen=True, kw_only=True)
class Taught(Noised):
    """A corrupted batch with what a teacher says of each token: its likeliest ones [B, L, K] and their chances."""

    soft_ids: Tensor
    soft_p: Tensor


@dataclass(frozen=True)
class Distilled(BD3LM):
    """Block diffusion that learns a teacher's distribution: the base as the run began.

    reads: the teacher reads the clean text causally (an autoregressive base), or the noised text as the student does (a
    diffusion model). hard: share of the loss that is plain cross-entropy of the text.
    """

    needs_teacher: ClassVar[bool] = True
    top_k: int = 32
    temperature: float = 1.0  # of the teacher
    hard: float = 0.2
    reads: Literal["clean", "noised"] = "clean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 1 or not 0 <= self.hard <= 1 or not self.temperature > 0:
            raise ValueError("top_k must be at least 1, hard in [0, 1] and temperature above 0")
        if self.reads == "clean" and not self.shift:
            raise ValueError("reads: clean has an autoregressive teacher, whose head's shift is kept: say shift: true")

    def teach(self, teacher: Any, noised: Noised) -> Taught:
        rows = noised.rows
        if self.reads == "clean":
            mask = training_mask(Layout("causal"), rows)
            hidden = teacher.unshift(teacher.hidden(rows.ids, rows.position, mask, time_B=None), rows.position)
        else:
            hidden = self.states(teacher, noised)
        ids = torch.zeros((*noised.targets.shape, self.top_k), dtype=torch.long, device=hidden.device)
        p = torch.zeros(ids.shape, device=hidden.device)
        row, column = noised.weights.nonzero(as_tuple=True)
        for start in range(0, len(row), CHUNK):
            at = (row[start : start + CHUNK], column[start : start + CHUNK])
            best = without(teacher.head(hidden[at]).float(), teacher.config.mask_token_id).topk(self.top_k)
            ids[at] = best.indices
            p[at] = (best.values / self.temperature).softmax(-1)
        return Taught(**{**vars(noised), "soft_ids": ids, "soft_p": p})

    def loss(self, model: Transformer, noised: Taught) -> Tensor:
        hidden = self.states(model, noised)
        at = noised.weights.nonzero(as_tuple=True)

        def score(logits_NV: Tensor, ids_NK: Tensor, p_NK: Tensor, weight_N: Tensor) -> Tensor:
            return (top_k_cross_entropy(logits_NV, ids_NK, p_NK) * weight_N).sum()

        per_token = (noised.soft_ids[at], noised.soft_p[at], noised.weights[at])
        soft = over_chunks(score, hidden[at], model, self.banned(model), *per_token)
        return (1 - self.hard) * soft + self.hard * scored_loss(model, hidden, noised, self.banned(model))


@dataclass(frozen=True)
class CertaintyForcing(BD3LM):
    """Few-step distillation of a diffusion model (dParallel, arXiv 2509.26488): cross-entropy on masked tokens, each
    row with complementary masks, and the entropy at a low temperature of those that are right already."""

    weight: Literal["nelbo", "none", "cart"] = "none"
    complementary: bool = True
    entropy: float = 2.0  # of the entropy's sum beside the cross-entropy's
    entropy_temperature: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.entropy < 0 or not self.entropy_temperature > 0:
            raise ValueError("entropy must be at least 0 and entropy_temperature above 0")

    def loss(self, model: Transformer, noised: Noised) -> Tensor:
        hidden = self.states(model, noised)
        at = noised.weights.nonzero(as_tuple=True)

        def score(logits_NV: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
            return (certainty(logits_NV, target_N, self.entropy_temperature) * weight_N).sum()

        unsure = over_chunks(score, hidden[at], model, self.banned(model), noised.targets[at], noised.weights[at])
        return scored_loss(model, hidden, noised, self.banned(model)) + self.entropy * unsure

    def decoding(self) -> dict[str, Any]:
        return {"rule": "threshold", "threshold": 0.9}
