"""`unmask bench verify`: does mode verify write the ids of mode ar, how near are ties, and is it faster?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import typer

from unmask.cli.options import Backend, Dtype, Json, Tokens, load
from unmask.cli.report import print_record
from unmask.decoding.planner import Planner
from unmask.errors import UnmaskError
from unmask.evaluation.speed import chat
from unmask.lm import DiffusionLM


@dataclass(frozen=True)
class Agreement:
    """Over all prompts. A parting is the first token in which a text differs; its gap is how far apart the two
    tokens are in nats under the torch network in float32. Rates are verify's tokens for a time over ar's, by batch of
    prompts, both modes in turns; computing time does not count what others do with the cores."""

    prompts: int
    identical: int
    tokens: int  # that ar wrote
    before_parting: int  # of them, those before the first difference
    gaps: tuple[float, ...]
    rates: tuple[float, ...]
    computing_rates: tuple[float, ...]
    tokens_per_step: float  # of verify
    planning: float  # share of verify's seconds that went into planning drafts

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "median_gap": statistics.median(self.gaps) if self.gaps else 0.0}


def bench_verify(
    lm: DiffusionLM, prompts: list[str], length: int, batch: int, window: int, progress: Callable[[str], None]
) -> Agreement:
    """Greedy texts of both modes, `batch` prompts at a time."""
    identical = tokens = before = 0
    steps = 0
    gaps: list[float] = []
    rates: list[float] = []
    computing_rates: list[float] = []
    planner = Planner.of(lm.backend)
    planned = planner.seconds
    checking = 0.0
    for start in range(0, len(prompts), batch):
        progress(f"{start} of {len(prompts)} prompts")
        rows = [lm.encode(chat(lm, p))[0] for p in prompts[start : start + batch]]
        outs = []
        seconds = []
        for options in ({"mode": "ar"}, {"mode": "verify", "block_length": window}):
            began = np.array([time.perf_counter(), time.process_time()])
            outs.append(lm.generate(rows, length, temperature=0.0, **options))
            taken = np.array([time.perf_counter(), time.process_time()]) - began
            seconds.append(taken / sum(len(out.token_ids) for out in outs[-1]))
        plain, checked = outs
        checking += taken[0]
        if start:  # the first batch warms up
            rates.append(seconds[0][0] / seconds[1][0])
            computing_rates.append(seconds[0][1] / seconds[1][1])
        steps += sum(out.steps for out in checked)
        for row, a, b in zip(rows, plain, checked, strict=True):
            first = a.token_ids
            second = b.token_ids
            tokens += len(first)
            if first == second:
                identical = identical + 1
                before = before + len(first)
                continue
            parting = next((i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), None)
            before += min(len(first), len(second)) if parting is None else parting
            if parting is not None:
                gaps.append(_gap(lm, row + first[:parting], first[parting], second[parting]))
    found = (tuple(gaps), tuple(rates), tuple(computing_rates), tokens / max(1, steps))
    share = (planner.seconds - planned) / checking
    return Agreement(len(prompts), identical, tokens, before, *found, share)


def _gap(lm: DiffusionLM, given: list[int], one: int, other: int) -> float:
    import torch

    logits = lm.logits(torch.tensor([[*given, one]]), layout="causal")[0, -1]
    return abs(float(logits[one] - logits[other]))


def command(
    model: Annotated[str, typer.Argument(help="A model with the modes ar and verify.")] = "default",
    prompts: Annotated[int, typer.Option(help="How many, from the quality set.")] = 200,
    max_new_tokens: Tokens = 64,
    batch: Annotated[int, typer.Option(help="Prompts at a time.")] = 10,
    window: Annotated[int, typer.Option(help="Block length of verify.")] = 3,
    backend: Backend = "auto",
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Whether verify writes the ids of ar, and how fast: identical texts, the logit gap where they part, rates over ar.

    Example: `unmask bench verify default --dtype float32`
    """
    from rich.console import Console

    from unmask.evaluation.tasks import load as load_items

    items, _ = load_items()
    if not 1 <= prompts <= len(items) or batch < 1:
        raise UnmaskError(f"--prompts must be from 1 to {len(items)}, --batch at least 1")
    chosen = [items[i * len(items) // prompts].prompt for i in range(prompts)]
    lm = load(model, "cpu", dtype, backend)
    with Console(stderr=True).status("starting") as status:
        result = bench_verify(lm, chosen, max_new_tokens, batch, window, lambda text: status.update(text))
    record = result.to_dict()
    if as_json:
        print_record(record)
        return
    share = result.before_parting / max(1, result.tokens)
    print(
        f"{lm.name}: {result.identical} of {result.prompts} texts identical; {share:.2%} of {result.tokens} tokens "
        f"before a parting; median gap at a parting {record['median_gap']:.3f} nats"
    )
    for name, rates in (("seconds", result.rates), ("computing time", result.computing_rates)):
        if rates:
            middle = statistics.median(rates)
            print(f"tokens for {name} over ar: median {middle:.3f}, {min(rates):.3f} to {max(rates):.3f}")
    print(f"{result.tokens_per_step:.2f} tokens a step in mode verify, {result.planning:.1%} of its time for planning")
