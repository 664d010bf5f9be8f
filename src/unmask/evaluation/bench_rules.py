"""`unmask bench rules`: what each commit rule, temperature and amount of revising does to quality."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from unmask.decoding.rules import RULE_NAMES
from unmask.evaluation.quality import judge_perplexity, unigram_entropy
from unmask.lm import DiffusionLM


@dataclass(frozen=True)
class RuleResult:
    """One way of decoding, over all texts."""

    rule: str
    temperature: float
    remask_budget: int
    steps: float  # median
    perplexity: float  # under the judge
    entropy: float  # unigram, nats

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def bench_rules(
    diffusion: DiffusionLM,
    judge: DiffusionLM,
    prompts: list[str],
    length: int,
    steps: int,
    temperatures: list[float],
    budgets: list[int],
    seed: int,
    progress: Callable[[str], None],
) -> Iterator[RuleResult]:
    """Every rule at every temperature without revising, then `random` with every budget of revisions."""
    ways = [(rule, t, 0) for rule in RULE_NAMES for t in temperatures]
    ways += [("random", t, budget) for budget in budgets for t in temperatures]
    for rule, temperature, budget in ways:
        progress(f"{rule}, temperature {temperature}, {budget} revisions")
        options: dict[str, Any] = {"rule": rule, "temperature": temperature, "remask_budget": budget, "seed": seed}
        outs = diffusion.generate(prompts, length, max_denoising_steps=steps, **options)
        given = [out.canvas.tolist()[: len(out.canvas) - length] for out in outs]
        texts = [out.token_ids for out in outs]
        perplexity = judge_perplexity(judge, given, texts)
        taken = statistics.median(out.steps for out in outs)
        yield RuleResult(rule, temperature, budget, taken, perplexity, unigram_entropy(texts))
