from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unmask.decoding.rules import RULE_NAMES, RULES, RuleName, RuleOptions, best_first, due, remask
from unmask.decoding.sampling import Scores, propose

Fixture = Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]


def score(logits_BLV: Tensor, masked: Tensor, banned: int | None = None) -> Scores:
    """Greedy scores of the masked positions, on the grid."""
    flat = logits_BLV[masked]
    zeros = torch.zeros(len(flat), dtype=torch.float64)
    return propose(flat, zeros, zeros.long(), zeros + 1, zeros, zeros + 0.5, banned).grid(masked)


def grid(confidence: list[list[float]], masked: Tensor | None = None) -> Scores:
    """Scores with given confidences; margins are their squares and entropies fall with them."""
    c = torch.tensor(confidence, dtype=torch.float64)
    return Scores(torch.zeros_like(c, dtype=torch.long), c, -c.log(), c**2, 1 - c)


ONE_STEP_OF_MANY = torch.tensor([1000])  # nothing but the least is due


def test_rules_agree_with_fast_dllm(conformance: Fixture) -> None:
    """threshold, factor (with the scan's one rank more) and quota, on the reference's own canvases."""
    fixture, tensors = conformance("llada/commit_rules")
    mask_id = fixture["mask_id"]
    for case in fixture["cases"]:
        canvas, logits = tensors[f"{case['tensor']}.x"], tensors[f"{case['tensor']}.logits"]
        masked = canvas == mask_id
        scores = score(logits, masked, banned=mask_id)
        name, value = case["rule"], case["value"]
        if name == "quota":  # a value is a number of tokens
            chosen = best_first(scores.confidence, masked, torch.tensor([value]))
            steps_left = -(-masked.sum(1) // value)
            if (due(masked, steps_left) == value).all():  # where whole steps can express it
                assert torch.equal(RULES["quota"](scores, masked, steps_left, RuleOptions("quota")), chosen)
        else:
            chosen = RULES[name](scores, masked, ONE_STEP_OF_MANY, RuleOptions(name, **{name: value}))
        assert chosen[0].nonzero().flatten().tolist() == case["committed_positions"], case
        assert torch.where(chosen, scores.token, canvas)[0].tolist() == case["x_after"], case


def test_entropy_bound_agrees_with_transformers(conformance: Fixture) -> None:
    fixture, tensors = conformance("samplers/entropy_bound")
    for case in fixture["transformers_accept_canvas"]["cases"]:
        logits = tensors[f"{case['tensor']}.logits"]
        everything = torch.ones(logits.shape[:2], dtype=torch.bool)
        options = RuleOptions("entropy_bound", entropy_bound=case["entropy_bound"])
        steps = ONE_STEP_OF_MANY.expand(len(logits))
        chosen = RULES["entropy_bound"](score(logits, everything), everything, steps, options)
        assert chosen.int().tolist() == case["accepted_mask"], case


def test_quota_keeps_lladas_schedule(conformance: Fixture) -> None:
    """Ours ends when nothing is left, where the reference pays for steps that write nothing."""
    for case in conformance("samplers/schedules")[0]["cases"]:
        masked, counts = torch.ones(1, case["masked"], dtype=torch.bool), []
        for left in range(case["steps"], 0, -1):
            scores = grid([torch.rand(case["masked"], generator=torch.Generator().manual_seed(left)).tolist()])
            assert due(masked, torch.tensor([left])).item() <= masked.sum()
            chosen = RULES["quota"](scores, masked, torch.tensor([left]), RuleOptions("quota"))
            counts.append(int(chosen.sum()))
            masked = masked & ~chosen
        assert counts == case["llada"]


@st.composite
def situations(draw: st.DrawFn) -> tuple[Scores, Tensor, Tensor]:
    """Scores, masks and steps left of a few requests; confidences often tie."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    level = st.sampled_from([0.01, 0.2, 0.5, 0.9, 0.95, 1.0]) | st.floats(1e-6, 1.0)
    confidence = draw(st.lists(st.lists(level, min_size=length, max_size=length), min_size=rows, max_size=rows))
    masked = torch.tensor(
        draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=rows, max_size=rows))
    )
    steps_left = torch.tensor(draw(st.lists(st.integers(1, 12), min_size=rows, max_size=rows)))
    flat = grid(confidence)
    fields = (flat.token, flat.confidence, flat.entropy, flat.margin, flat.draw)
    return Scores(*(f[masked] for f in fields)).grid(masked), masked, steps_left


parameter_sets = st.builds(
    RuleOptions,
    threshold=st.floats(0, 1.1),
    factor=st.floats(0, 8),
    entropy_bound=st.floats(0, 8),
)


@pytest.mark.parametrize("name", RULE_NAMES)
@given(situations(), parameter_sets)
def test_rules_write_masks_only_and_meet_their_budget(
    name: RuleName, situation: tuple[Scores, Tensor, Tensor], parameters: RuleOptions
) -> None:
    scores, masked, steps_left = situation
    chosen = RULES[name](scores, masked, steps_left, parameters)
    assert chosen.dtype == torch.bool
    assert not (chosen & ~masked).any()
    if name != "random":
        assert (chosen.sum(1) >= due(masked, steps_left)).all()
        assert (chosen.any(1) == masked.any(1)).all()  # every step makes progress
    last = RULES[name](scores, masked, torch.ones_like(steps_left), parameters)
    assert torch.equal(last, masked)
    # a request's commits do not depend on the others
    for row in range(len(masked)):
        alone = RULES[name](
            scores.rows(torch.tensor([row])), masked[row : row + 1], steps_left[row : row + 1], parameters
        )
        assert torch.equal(alone[0], chosen[row])


@given(situations())
def test_rules_prefer_the_surest(situation: tuple[Scores, Tensor, Tensor]) -> None:
    scores, masked, steps_left = situation
    for name in ("quota", "threshold", "factor", "margin", "entropy_bound"):
        chosen = RULES[name](scores, masked, steps_left, RuleOptions(name))
        kept, left = scores.confidence.masked_fill(~chosen, 2), scores.confidence.masked_fill(~masked | chosen, -1)
        assert (kept.amin(1) >= left.amax(1)).all(), name


def scan(confidence: list[float], factor: float) -> int:
    """Fast-dLLM's get_transfer_index_dynamic: how many of the sorted confidences it commits."""
    thresholds = [-1.0] + [1 - factor / (n + 1) for n in range(2, len(confidence) + 1)]
    stop = 0
    for stop, (c, least) in enumerate(zip(confidence, thresholds, strict=True)):  # noqa: B007
        if c < least:
            break
    return stop + 1 if stop in (0, len(thresholds) - 1) else stop


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=9), st.floats(0, 4), st.integers(0, 3))
def test_factor_counts_as_the_reference_scans(confidence: list[float], factor: float, committed: int) -> None:
    """Its last rank in particular, where it keeps one more than passes."""
    masked = torch.tensor([[True] * len(confidence) + [False] * committed])
    scores = grid([confidence + [0.99] * committed])
    chosen = RULES["factor"](scores, masked, ONE_STEP_OF_MANY, RuleOptions("factor", factor=factor))
    assert chosen.sum().item() == scan(sorted(confidence, reverse=True), factor)


def test_ties_go_to_the_leftmost() -> None:
    masked = torch.tensor([[False, True, True, True]])
    chosen = best_first(torch.full((1, 4), 0.5), masked, torch.tensor([2]))
    assert chosen.tolist() == [[False, True, True, False]]


def test_threshold_keeps_what_equals_it() -> None:
    masked = torch.ones(1, 3, dtype=torch.bool)
    chosen = RULES["threshold"](grid([[0.9, 0.5, 0.95]]), masked, ONE_STEP_OF_MANY, RuleOptions(threshold=0.9))
    assert chosen.tolist() == [[True, False, True]]


def test_sequential_writes_from_left_to_right() -> None:
    masked = torch.tensor([[False, True, False, True, True]])
    scores = grid([[0.5, 0.1, 0.5, 0.2, 0.9]])
    chosen = RULES["sequential"](scores, masked, torch.tensor([2]), RuleOptions("sequential"))
    assert chosen.tolist() == [[False, True, False, True, False]]


def test_random_commits_each_mask_with_the_chance_of_ancestral_sampling() -> None:
    masked = torch.ones(1, 20_000, dtype=torch.bool)
    uniform = torch.rand(1, 20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    blank = torch.zeros_like(uniform)
    scores = Scores(blank.long(), blank, blank, blank, uniform)
    share = RULES["random"](scores, masked, torch.tensor([4]), RuleOptions("random")).double().mean()
    assert share.item() == pytest.approx(0.25, abs=0.012)


def test_remask_takes_back_the_least_sure() -> None:
    confidence = torch.tensor([[0.9, 0.2, 0.5, 0.1], [0.3, 0.4, 0.5, 0.6]])
    eligible = torch.tensor([[True, True, True, False], [True, True, False, False]])
    assert remask(confidence, eligible, torch.tensor([2, 0])).tolist() == [
        [False, True, True, False],
        [False, False, False, False],
    ]
