"""`unmask bench rules`: what each commit rule, temperature and amount of revising does to quality."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from benchmarks.length import DEFAULT_PROMPTS

from unmask.cli.options import Json, Tokens, load
from unmask.cli.report import print_record
from unmask.decoding.rules import RULES
from unmask.errors import UnmaskError
from unmask.evaluation.answers import entropies, judged
from unmask.evaluation.figures import Figure
from unmask.lm import DiffusionLM


@dataclass(frozen=True)
class RuleResult:
    """One way of decoding, over all texts."""

    rule: str
    temperature: float
    remask_budget: int
    steps: float  # median
    perplexity: Figure  # under the judge
    entropy: Figure  # unigram, nats

    def to_dict(self) -> dict[str, object]:
        figures = self.perplexity.named("perplexity") | self.entropy.named("entropy")
        return {**asdict(self), **figures}


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
    ways = [(rule, t, 0) for rule in RULES for t in temperatures]
    ways += [("random", t, budget) for budget in budgets for t in temperatures]
    for rule, temperature, budget in ways:
        progress(f"{rule}, temperature {temperature}, {budget} revisions")
        options: dict[str, Any] = {"rule": rule, "temperature": temperature, "remask_budget": budget, "seed": seed}
        outs = diffusion.generate(prompts, length, max_denoising_steps=steps, **options)
        perplexity = judged(judge, [out.text for out in outs], prompts)
        entropy = entropies([out.token_ids for out in outs])
        taken = statistics.median(out.steps for out in outs)
        yield RuleResult(rule, temperature, budget, taken, perplexity, entropy)


def command(
    diffusion: Annotated[str, typer.Option(help="The diffusion model.")] = "austen",
    ar: Annotated[str, typer.Option(help="The autoregressive model that judges.")] = "austen-ar",
    max_new_tokens: Tokens = 100,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 32,
    texts: Annotated[int, typer.Option(help="Texts per line, over the default prompts in turn.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the first text.")] = 11,
    as_json: Json = False,
) -> None:
    """Quality of every commit rule at several temperatures, and of revising, under the AR judge.

    Example: `unmask bench rules --steps 32 --texts 10`
    """
    from rich.console import Console

    from unmask.cli.terminal import table

    if texts < 1 or steps < 1:
        raise UnmaskError("--texts and --steps must be at least 1")
    first = load(diffusion, "cpu", "float32")
    judge = load(ar, "cpu", "float32")
    prompts = [DEFAULT_PROMPTS[i % len(DEFAULT_PROMPTS)] for i in range(texts)]
    sizes = (max_new_tokens, steps)
    grid = ([0.6, 0.8, 1.0], [30, 100])
    with Console(stderr=True).status("starting") as status:
        results = list(bench_rules(first, judge, prompts, *sizes, *grid, seed, lambda text: status.update(text)))
    if as_json:
        print_record([r.to_dict() for r in results])
        return
    rows = []
    for r in results:
        made = [f"{r.temperature}", str(r.remask_budget), f"{r.steps:.0f}"]
        rows.append([r.rule, *made, r.perplexity.shown(1), r.entropy.shown()])
    columns = ["rule", "temperature", "revisions", "steps", "perplexity", "entropy"]
    Console().print(table(f"{max_new_tokens} tokens, {texts} texts a line, seed {seed}", columns, rows))
