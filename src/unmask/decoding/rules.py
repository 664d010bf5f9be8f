"""Commit rules: which of the proposed tokens a step keeps. Pure functions of scores and masks.

All grids are [B, L]. `steps_left` [B] counts the steps of the budget that remain, this one included; every
rule but `random` commits at least what the budget demands now, and `random` ends with it too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from unmask.decoding.sampling import Scores

RuleName = Literal["quota", "threshold", "factor", "entropy_bound", "margin", "random", "sequential"]
RULE_NAMES: tuple[str, ...] = get_args(RuleName)


@dataclass(frozen=True)
class RuleOptions:
    """A rule and its parameters; each parameter is read by the rule of its name only."""

    name: RuleName = "threshold"
    threshold: float = 0.9
    factor: float = 1.0
    entropy_bound: float = 0.1


def best_first(score: Tensor, masked: Tensor, count: Tensor) -> Tensor:
    """The `count` [B] masked positions with the highest score; ties go to the leftmost."""
    score = score.masked_fill(~masked, -torch.inf)
    rank = score.argsort(stable=True, dim=-1, descending=True).argsort(-1)
    return (rank < count[:, None]) & masked


def due(masked: Tensor, steps_left: Tensor) -> Tensor:
    """Tokens due now so that the last step ends with no mask: ceil(remaining / steps left), [B].

    Over a whole block this is LLaDA's schedule (one more for the first `remainder` steps).
    """
    return -(-masked.sum(1) // steps_left.clamp(min=1))


def quota(scores: Scores, masked: Tensor, steps_left: Tensor, options: RuleOptions) -> Tensor:
    """LLaDA's low-confidence remasking (arXiv 2502.09992): as many of the most confident
    proposals as are due."""
    return best_first(scores.confidence, masked, due(masked, steps_left))


def margin(scores: Scores, masked: Tensor, steps_left: Tensor, options: RuleOptions) -> Tensor:
    """As many as are due of the positions where best and second best differ most (arXiv 2502.06768)."""
    return best_first(scores.margin, masked, due(masked, steps_left))


def sequential(scores: Scores, masked: Tensor, steps_left: Tensor, options: RuleOptions) -> Tensor:
    """As many of the leftmost positions as are due."""
    left = -torch.arange(masked.shape[1], device=masked.device, dtype=torch.float64)
    return best_first(left.expand(masked.shape), masked, due(masked, steps_left))


def random(scores: Scores, masked: Tensor, steps_left: Tensor, options: RuleOptions) -> Tensor:
    """Ancestral sampling (MDLM, arXiv 2406.07524, linear schedule): every mask on its own with chance
    (t - s) / t = 1 / steps left, so a step may commit none and the last commits all."""
    return masked & (scores.draw < 1 / steps_left.clamp(min=1)[:, None])


def threshold(scores: Scores, masked: Tensor, steps_left: Tensor, options: RuleOptions) -> Tensor:
    """Fast-dLLM (arXiv 2505.22618): all with confidence >= threshold, and always the best."""
    sure = masked & (scores.confidence >= options.threshold)
    return sure | best_first(scores.confidence, masked, due(masked, steps_left))


def factor(scores: Scores, masked: Tensor, steps_left: Tensor, options: RuleOptions) -> Tensor:
    """Fast-dLLM's factor rule: the largest n such that every c_i >= 1 - factor / (i + 1) for i <= n,
    confidences sorted; the best is always kept. The reference's scan keeps one rank more when it ends at
    the first or the last rank, and so does this."""
    ranked = scores.confidence.masked_fill(~masked, -torch.inf).sort(stable=True, dim=-1, descending=True).values
    order = torch.arange(1, masked.shape[1] + 1, device=masked.device)
    passes = ranked >= 1 - options.factor / (order + 1)
    passes[:, 0] = True
    remaining = masked.sum(1)
    passing = (passes & (order <= remaining[:, None])).long().cumprod(1).sum(1)
    # the reference scans ranks 1 .. n-1 and stops at the first that fails, or at the last
    last = remaining - 1
    stop = torch.minimum(passing, last)
    count = torch.where((stop == 0) | (stop == last), stop + 1, stop)
    return best_first(scores.confidence, masked, torch.maximum(count, due(masked, steps_left)))


def entropy_bound(scores: Scores, masked: Tensor, steps_left: Tensor, options: RuleOptions) -> Tensor:
    """DiffusionGemma's acceptance: entropies ascending, keep while the sum of the ones before is within
    the bound, so the surest is always kept."""
    entropy = scores.entropy.masked_fill(~masked, torch.inf)
    ranked = entropy.sort(stable=True, dim=-1).values
    before = ranked.cumsum(-1) - ranked
    count = ((before <= options.entropy_bound) & ranked.isfinite()).sum(1)
    return best_first(-entropy, masked, torch.maximum(count, due(masked, steps_left)))


RULES: dict[str, Callable[[Scores, Tensor, Tensor, RuleOptions], Tensor]] = {
    "quota": quota,
    "threshold": threshold,
    "factor": factor,
    "entropy_bound": entropy_bound,
    "margin": margin,
    "random": random,
    "sequential": sequential,
}


def remask(confidence: Tensor, eligible: Tensor, count: Tensor) -> Tensor:
    """Revision: the `count` [B] committed positions that were least sure when written, to be masked again
    (ReMDM-conf's choice, arXiv 2503.00307, made deterministic)."""
    return best_first(-confidence, eligible, count)
