"""Commit rules: which of the proposed tokens a step keeps. Pure functions of scores and masks.

All grids are [B, L]. `steps_left` [B] counts the steps of the budget that remain, this one included; every
rule but `random` commits at least what the budget demands now, and `random` ends with it too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unmask.canvas import Array
from unmask.decoding.sampling import Scores

RuleName = Literal["quota", "threshold", "factor", "entropy_bound", "margin", "random", "sequential", "checked"]


@dataclass(frozen=True)
class RuleOptions:
    """A rule and its parameters; each parameter is read by the rule of its name only."""

    name: RuleName = "threshold"
    threshold: float = 0.9
    factor: float = 1.0
    entropy_bound: float = 0.1


def best_first(score: Array, masked: Array, count: Array) -> Array:
    """The `count` [B] masked positions with the highest score; ties go to the leftmost."""
    score = np.where(masked, score, -np.inf)
    rank = (-score).argsort(-1, kind="stable").argsort(-1, kind="stable")
    return (rank < count[:, None]) & masked


def due(masked: Array, steps_left: Array) -> Array:
    """Tokens due now so that the last step ends with no mask: ceil(remaining / steps left), [B].

    Over a whole block this is LLaDA's schedule (one more for the first `remainder` steps).
    """
    return -(-masked.sum(1) // np.maximum(steps_left, 1))


def quota(scores: Scores, masked: Array, steps_left: Array, options: RuleOptions) -> Array:
    """LLaDA's low-confidence remasking (arXiv 2502.09992): as many of the most confident
    proposals as are due."""
    return best_first(scores.confidence, masked, due(masked, steps_left))


def margin(scores: Scores, masked: Array, steps_left: Array, options: RuleOptions) -> Array:
    """As many as are due of the positions where best and second best differ most (arXiv 2502.06768)."""
    return best_first(scores.margin, masked, due(masked, steps_left))


def sequential(scores: Scores, masked: Array, steps_left: Array, options: RuleOptions) -> Array:
    """As many of the leftmost positions as are due."""
    left = -np.arange(masked.shape[1], dtype=np.float64)
    return best_first(np.broadcast_to(left, masked.shape), masked, due(masked, steps_left))


def random(scores: Scores, masked: Array, steps_left: Array, options: RuleOptions) -> Array:
    """Ancestral sampling (MDLM, arXiv 2406.07524, linear schedule): every mask on its own with chance
    (t - s) / t = 1 / steps left, so a step may commit none and the last commits all."""
    return masked & (scores.draw < 1 / np.maximum(steps_left, 1)[:, None])


def threshold(scores: Scores, masked: Array, steps_left: Array, options: RuleOptions) -> Array:
    """Fast-dLLM (arXiv 2505.22618): all with confidence >= threshold, and always the best."""
    sure = masked & (scores.confidence >= options.threshold)
    return sure | best_first(scores.confidence, masked, due(masked, steps_left))


def factor(scores: Scores, masked: Array, steps_left: Array, options: RuleOptions) -> Array:
    """Fast-dLLM's factor rule: the largest n such that every c_i >= 1 - factor / (i + 1) for i <= n,
    confidences sorted; the best is always kept. The reference's scan keeps one rank more when it ends at
    the first or the last rank, and so does this."""
    ranked = -np.sort(np.where(masked, -scores.confidence, np.inf), -1)
    order = np.arange(1, masked.shape[1] + 1)
    passes = ranked >= 1 - options.factor / (order + 1)
    passes[:, 0] = True
    remaining = masked.sum(1)
    passing = (passes & (order <= remaining[:, None])).cumprod(1).sum(1)
    # the reference scans ranks 1 .. n-1 and stops at the first that fails, or at the last
    last = remaining - 1
    stop = np.minimum(passing, last)
    count = np.where((stop == 0) | (stop == last), stop + 1, stop)
    return best_first(scores.confidence, masked, np.maximum(count, due(masked, steps_left)))


def entropy_bound(scores: Scores, masked: Array, steps_left: Array, options: RuleOptions) -> Array:
    """DiffusionGemma's acceptance: entropies ascending, keep while the sum of the ones before is within
    the bound, so the surest is always kept."""
    count = within_bound(scores.entropy, masked, options.entropy_bound)
    return best_first(-scores.entropy, masked, np.maximum(count, due(masked, steps_left)))


def within_bound(entropy: Array, masked: Array, bound: float) -> Array:
    """How many of the lowest entropies come after a sum that is within the bound, [B]."""
    ranked = np.sort(np.where(masked, entropy, np.inf), -1)
    finite = np.where(np.isfinite(ranked), ranked, 0.0)
    before = finite.cumsum(-1) - finite
    return ((before <= bound) & np.isfinite(ranked)).sum(1)


RULES: dict[str, Callable[[Scores, Array, Array, RuleOptions], Array]] = {
    "quota": quota,
    "threshold": threshold,
    "factor": factor,
    "entropy_bound": entropy_bound,
    "margin": margin,
    "random": random,
    "sequential": sequential,
}
RULE_NAMES: tuple[str, ...] = tuple(RULES)  # `checked` judges by the base's scores of the drafts: decoding.drafting


def remask(confidence: Array, eligible: Array, count: Array) -> Array:
    """Revision: the `count` [B] committed positions that were least sure when written, to be masked again
    (ReMDM-conf's choice, arXiv 2503.00307, made deterministic)."""
    return best_first(-confidence, eligible, count)
