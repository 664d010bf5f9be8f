"""Commit rules: which of the proposed tokens a step keeps. Pure functions of scores and masks.

All grids are [B, L]. What a step owes comes from a schedule and is known before the rule runs. Rules that rank
keep exactly that; rules that judge keep what they are confident of, the best one at any rate, and at least (or at
most, as the convention says) what is owed; `random` keeps each mask with the schedule's share as its chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from unmask.canvas import Array
from unmask.decoding.budget import ScheduleName, StepBudget
from unmask.decoding.convention import Convention
from unmask.decoding.options import option
from unmask.decoding.sampling import Scores

RuleName = Literal[
    "quota", "threshold", "factor", "entropy_bound", "margin", "random", "sequential", "entropy", "token_edit",
    "prefix", "prefix_entropy", "nearest",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RuleParameters:
    """Parameters of all rules; each rule names those that it reads."""

    threshold: float = option(0.9, ge=0, le=1)
    factor: float = option(1.0, ge=0, lt=1e6)
    entropy_bound: float = option(0.1, ge=0, lt=1e6)  # nats
    distance_penalty: float = option(0.02, ge=0, lt=1e6)  # nats for each position from the first mask
    schedule: ScheduleName = "even"
    choice_temperature: float = option(0.0, ge=0, le=100, off=0.0)  # above 0: drawn by scores over it


@dataclass(frozen=True)
class RuleOptions(RuleParameters):
    """A rule, its parameters and the convention it follows."""

    name: RuleName = "threshold"
    convention: Convention = field(default_factory=Convention)
    vocabulary: int = 2  # tokens of the network

    @property
    def draws(self) -> bool:
        """Whether it reads a draw per position."""
        return self.name == "random" or self.choice_temperature > 0

    @property
    def ranks(self) -> bool:
        """Whether it keeps exactly what is owed."""
        return RULES[self.name].ranks

    @property
    def final(self) -> bool:
        """Whether no later step of it takes back what it wrote."""
        return RULES[self.name].final


Choose = Callable[[Scores, Array, StepBudget, RuleOptions], Array]


@dataclass(frozen=True)
class Rule:
    """A commit rule: called with scores, open masks, what is owed and its options, it gives the positions to keep."""

    choose: Choose
    reads: tuple[str, ...] = ()  # its own of RuleParameters
    ranks: bool = False  # keeps exactly what is owed
    final: bool = True  # no later step takes back what it wrote

    def __call__(self, scores: Scores, masked: Array, budget: StepBudget, options: RuleOptions) -> Array:
        return self.choose(scores, masked, budget, options)


def best_first(score: Array, masked: Array, count: Array) -> Array:
    """The `count` [B] masked positions with the highest score; ties go to the leftmost, NaN is the lowest."""
    lowest = np.finfo(np.float64).min
    score = np.where(masked, np.nan_to_num(score, nan=lowest, posinf=np.inf, neginf=lowest), -np.inf)
    rank = (-score).argsort(-1, kind="stable").argsort(-1, kind="stable")
    return (rank < count[:, None]) & masked


def ranked(score_of: Callable[[Scores], Array]) -> Rule:
    """What is due by score; with a choice temperature a draw without replacement (the best of Gumbel noise)."""

    def choose(scores: Scores, masked: Array, budget: StepBudget, options: RuleOptions) -> Array:
        score = score_of(scores)
        if options.choice_temperature > 0:
            noise = -np.log(-np.log(np.where(masked, scores.draw, 0.5)))
            score = np.where(masked, score, 0.0) / options.choice_temperature + noise
        return best_first(score, masked, budget.count)

    return Rule(choose, ("schedule", "choice_temperature"), ranks=True)


def _judged(score: Array, confident: Array, masked: Array, budget: StepBudget, options: RuleOptions) -> Array:
    """The best by score: as many as are confident [B], one at any rate, within what the schedule asks or allows."""
    confident = np.maximum(confident, 1)
    if options.convention.due_is == "least":
        return best_first(score, masked, np.maximum(confident, budget.count))
    return best_first(score, masked, np.minimum(confident, np.maximum(budget.count, 1)))


def sequential(scores: Scores, masked: Array, budget: StepBudget, options: RuleOptions) -> Array:
    """The leftmost positions."""
    left = -np.arange(masked.shape[1], dtype=np.float64)
    return best_first(np.broadcast_to(left, masked.shape), masked, budget.count)


def random(scores: Scores, masked: Array, budget: StepBudget, options: RuleOptions) -> Array:
    """Ancestral sampling (MDLM, arXiv 2406.07524; Dream's origin): every mask on its own with the chance that
    the schedule reveals it now, so a step may commit none and the last commits all."""
    return masked & (scores.draw < budget.share[:, None])


def threshold(scores: Scores, masked: Array, budget: StepBudget, options: RuleOptions) -> Array:
    """Fast-dLLM (arXiv 2505.22618): all that reach the threshold.

    SDAR and LLaDA2 keep those only where they are not fewer than are due, and else the surest that are due;
    as the surest hold the others then, it is one rule.
    """
    above = (
        scores.confidence > options.threshold if options.convention.strict else scores.confidence >= options.threshold
    )
    return _judged(scores.confidence, (masked & above).sum(1), masked, budget, options)


def factor(scores: Scores, masked: Array, budget: StepBudget, options: RuleOptions) -> Array:
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
    return _judged(scores.confidence, count, masked, budget, options)


def entropy_bound(scores: Scores, masked: Array, budget: StepBudget, options: RuleOptions) -> Array:
    """DiffusionGemma's acceptance: entropies ascending, keep while the sum of the ones before is within
    the bound, so the surest is always kept. `strict`: while the sum with it is below (JetEngine, for SDAR)."""
    count = within_bound(scores.entropy, masked, options.entropy_bound, options.convention.strict)
    return _judged(-scores.entropy, count, masked, budget, options)


def within_bound(entropy: Array, masked: Array, bound: float, strict: bool = False) -> Array:
    """How many of the lowest entropies come after a sum that is within the bound, [B]; if `strict`, how many
    have a sum with them that is below it."""
    ranked = np.sort(np.where(masked, entropy, np.inf), -1)
    finite = np.where(np.isfinite(ranked), ranked, 0.0)
    before = finite.cumsum(-1) - finite
    within = before + finite < bound if strict else before <= bound
    return (within & np.isfinite(ranked)).sum(1)


def token_edit(scores: Scores, masked: Array, budget: StepBudget, options: RuleOptions) -> Array:
    """LLaDA2.1: masks surer than the threshold; beside it, `edit` revises what is written."""
    return threshold(scores, masked, budget, replace(options, convention=replace(options.convention, strict=True)))


def prefix(scores: Scores, masked: Array, budget: StepBudget, options: RuleOptions) -> Array:
    """SDLM (arXiv 2509.24007): the leftmost masks as far as they reach the threshold, one at any rate."""
    confidence = np.where(masked, scores.confidence, np.inf)
    unsure = confidence <= options.threshold if options.convention.strict else confidence < options.threshold
    run = (masked & (unsure.cumsum(-1) == 0)).sum(-1)
    left = np.broadcast_to(-np.arange(masked.shape[1], dtype=np.float64), masked.shape)
    return _judged(left, run, masked, budget, options)


def prefix_entropy(scores: Scores, masked: Array, budget: StepBudget, options: RuleOptions) -> Array:
    """SDLM's entropy_conf: as `prefix`, of one minus the entropy's share of the greatest that there could be."""
    sure = 1 - scores.entropy / np.log(options.vocabulary)
    return prefix(replace(scores, confidence=sure), masked, budget, options)


def nearest(scores: Scores, masked: Array, budget: StepBudget, options: RuleOptions) -> Array:
    """WeDLM: all whose entropy, and a penalty for each position from the first mask, is below the bound; else the one
    where that sum is lowest."""
    place = np.arange(masked.shape[1])
    cost = scores.entropy + (place - masked.argmax(-1)[:, None]) * options.distance_penalty
    below = cost < options.entropy_bound if options.convention.strict else cost <= options.entropy_bound
    return _judged(-cost, (masked & below).sum(-1), masked, budget, options)


RULES: dict[str, Rule] = {
    # LLaDA's low-confidence remasking (arXiv 2502.09992), Dream's maskgit_plus: the most confident proposals
    "quota": ranked(lambda scores: scores.confidence),
    "threshold": Rule(threshold, ("threshold", "schedule")),
    "factor": Rule(factor, ("factor", "schedule")),
    "entropy_bound": Rule(entropy_bound, ("entropy_bound", "schedule")),
    # where best and second best differ most (arXiv 2502.06768), Dream's topk_margin
    "margin": ranked(lambda scores: scores.margin),
    "random": Rule(random, ("schedule",)),
    "sequential": Rule(sequential, ("schedule",), ranks=True),
    # where the distribution is narrowest (Dream, arXiv 2508.15487)
    "entropy": ranked(lambda scores: -scores.entropy),
    "prefix": Rule(prefix, ("threshold", "schedule")),
    "prefix_entropy": Rule(prefix_entropy, ("threshold", "schedule")),
    "nearest": Rule(nearest, ("entropy_bound", "distance_penalty", "schedule")),
    "token_edit": Rule(token_edit, ("threshold", "schedule"), final=False),
}


def remask(confidence: Array, eligible: Array, count: Array) -> Array:
    """Revision: the `count` [B] committed positions that were least sure when written, to be masked again
    (ReMDM-conf's choice, arXiv 2503.00307, made deterministic)."""
    return best_first(-confidence, eligible, count)
