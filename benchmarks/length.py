"""`unmask bench length`: steps, seconds and quality against length, diffusion and AR in one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from benchmarks.roofline import forward_operations, gemm_rate

from unmask.cli.options import Backend, Dtype, Json, load, numbers
from unmask.cli.report import print_record
from unmask.errors import UnmaskError
from unmask.evaluation.answers import entropies, judged
from unmask.evaluation.figures import Figure, median
from unmask.evaluation.speed import Lap, timed, warm_up
from unmask.lm import DiffusionLM
from unmask.picture import picture


@dataclass(frozen=True)
class LengthResult:
    """One row: medians over the rounds, with the fastest and the slowest round (of 5, the median's 94% interval)."""

    name: str
    tokens: int
    steps: int
    seconds: Figure
    tokens_per_second: float
    over_ar: Figure  # tokens per second over those of the AR twin in the same round
    perplexity: Figure  # under the judge
    entropy: Figure  # unigram, nats
    floor_seconds: float  # operations over the measured GEMM rate
    sample: str

    def to_dict(self) -> dict[str, object]:
        named = ("seconds", "over_ar", "perplexity", "entropy")
        figures = {key: value for name in named for key, value in getattr(self, name).named(name).items()}
        return {**asdict(self), **figures}


def bench_length(
    diffusion: DiffusionLM,
    ar: DiffusionLM,
    judge: DiffusionLM,
    prompts: list[str],
    lengths: list[int],
    step_list: list[int],
    rounds: int,
    seed: int,
    progress: Callable[[str], None],
) -> list[LengthResult]:
    """Every length in turn, diffusion (at each number of steps) and AR alternating within a round, so that
    drift of the machine's speed hits both."""
    rate = gemm_rate(torch.float32, 512, diffusion.config.hidden_size, diffusion.config.intermediate_size)
    rate_one = gemm_rate(torch.float32, 1, ar.config.hidden_size, ar.config.intermediate_size)
    for lm in (diffusion, ar):
        warm_up(lm, prompts[0], max(lengths))
    results = []
    for length in lengths:
        laps: list[list[Lap]] = [[] for _ in range(len(step_list) + 1)]
        for number in range(rounds):
            prompt = prompts[number % len(prompts)]
            progress(f"{length} tokens, round {number + 1} of {rounds}")
            for place, steps in enumerate(step_list):
                laps[place].append(timed(diffusion, prompt, length, max_denoising_steps=steps, seed=seed + number))
            laps[-1].append(timed(ar, prompt, length, seed=seed + number))
        for number, some in enumerate(laps):
            lm, own = (ar, rate_one) if number == len(step_list) else (diffusion, rate)
            results.append(_summary(lm, some, laps[-1], length, judge, prompts, own))
    return results


def _summary(
    lm: DiffusionLM,
    laps: list[Lap],
    of_ar: list[Lap],
    length: int,
    judge: DiffusionLM,
    prompts: list[str],
    rate: float,
) -> LengthResult:
    rows = [lap.output for lap in laps]
    given = [prompts[number % len(prompts)] for number in range(len(rows))]
    prompt = round(statistics.mean(len(out.written) - length for out in rows))
    steps = round(statistics.median(out.steps for out in rows))
    if lm.config.layout == "causal":  # one token at a time, each seeing those before it
        operations = sum(forward_operations(lm.config, 1, prompt + i, 1) for i in range(length))
    else:  # the whole canvas each step, the head on what is still masked
        open_now = [round(length * (1 - s / steps)) for s in range(steps)]
        whole = prompt + length
        operations = sum(forward_operations(lm.config, whole, whole, n) for n in open_now)
    faster = [lap.tokens_per_second / other.tokens_per_second for lap, other in zip(laps, of_ar, strict=True)]
    return LengthResult(
        name=lm.name,
        tokens=length,
        steps=steps,
        seconds=median([lap.seconds for lap in laps]),
        tokens_per_second=statistics.median(lap.tokens_per_second for lap in laps),
        over_ar=median(faster),
        perplexity=judged(judge, [out.text for out in rows], given),
        entropy=entropies([out.token_ids for out in rows]),
        floor_seconds=operations / rate,
        sample=prompts[0] + rows[0].text,
    )


def draw(results: list[LengthResult], path: Path, title: str) -> None:
    """Three panels over length: steps, seconds, perplexity with entropy; one line a model."""
    with picture(path, size=(11, 3.6), panels=3, title=title) as (steps_axes, time_axes, quality_axes):
        colours = ("#c1440e", "#30507a")
        for name, colour in zip(dict.fromkeys(r.name for r in results), colours, strict=False):
            rows = [r for r in results if r.name == name]
            x = [r.tokens for r in rows]
            steps_axes.plot(x, [r.steps for r in rows], "o-", color=colour, label=name)
            time_axes.plot(x, [r.seconds.value for r in rows], "o-", color=colour, label=name)
            time_axes.plot(x, [r.floor_seconds for r in rows], ":", color=colour, label=f"{name}, floor")
            quality_axes.plot(x, [r.perplexity.value for r in rows], "o-", color=colour, label=name)
            for row in rows:
                quality_axes.annotate(
                    f"H={row.entropy.value:.1f}", (row.tokens, row.perplexity.value), fontsize=7, color=colour
                )
        steps_axes.set(xlabel="new tokens", ylabel="steps (forward passes)", yscale="log", title="steps")
        time_axes.set(xlabel="new tokens", ylabel="seconds", title="time (median)")
        quality_axes.set(xlabel="new tokens", ylabel="perplexity under the judge", title="quality (H: entropy, nats)")


def settings(lm: DiffusionLM, ar: DiffusionLM, steps: str, rounds: int) -> str:
    """What the figures were made with, for under the table."""
    d = lm.defaults
    computed = lm.computes if lm.computes == ar.computes else f"{lm.computes} and {ar.computes}"
    return (
        f"rule {d.rule}, {steps} steps, temperature {d.temperature}, remask budget {d.remask_budget}, batch 1, "
        f"backend {computed}, {torch.get_num_threads()} threads, "
        f"medians of {rounds} rounds"
    )


DEFAULT_PROMPTS = [
    "It is a truth universally acknowledged",
    "She had been three weeks in the country when",
    '"My dear sister," said he,',
    "The carriage was at the door, and",
    "Of all the young women in the neighbourhood,",
]


def command(
    prompt: Annotated[list[str] | None, typer.Option(help="Prompts to rotate through.")] = None,
    diffusion: Annotated[str, typer.Option(help="The diffusion model.")] = "austen",
    ar: Annotated[str, typer.Option(help="Its autoregressive twin.")] = "austen-ar",
    judge: Annotated[str, typer.Option(help="AR model that judges the texts; the twin if empty.")] = "",
    lengths: Annotated[str, typer.Option(help="New tokens, separated by commas.")] = "50,100,200,500",
    steps: Annotated[str, typer.Option(help="Denoising steps, separated by commas.")] = "32",
    rounds: Annotated[int, typer.Option(help="Timed rounds; medians are printed.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the first round.")] = 0,
    backend: Backend = "auto",
    dtype: Dtype = None,
    picture: Annotated[Path | None, typer.Option(help="Write the picture (PNG) here.")] = None,
    samples: Annotated[bool, typer.Option("--samples", help="Print one text of every row as well.")] = False,
    as_json: Json = False,
) -> None:
    """Steps, seconds and quality for several lengths, diffusion and AR in one run.

    Example: `unmask bench length --steps 32 --picture length.png`, `unmask bench length --backend native`
    """
    from rich.console import Console

    from unmask.cli.terminal import table

    first = load(diffusion, "cpu", dtype, backend)
    second = load(ar, "cpu", dtype, backend)
    third = load(judge, "cpu", None) if judge else second
    wanted = numbers("--lengths", lengths)
    step_list = numbers("--steps", steps)
    if rounds < 1:
        raise UnmaskError("--rounds must be at least 1")
    with Console(stderr=True).status("warming up") as status:
        results = bench_length(
            first,
            second,
            third,
            prompt or DEFAULT_PROMPTS,
            wanted,
            step_list,
            rounds,
            seed,
            lambda text: status.update(text),
        )
    note = settings(first, second, steps, rounds)
    if picture is not None:
        draw(results, picture, note)
    if as_json:
        print_record({"settings": note, "results": [r.to_dict() for r in results]})
        return
    rows = []
    for r in results:
        speed = [r.seconds.shown(), f"{r.floor_seconds:.2f}", f"{r.tokens_per_second:.0f}", r.over_ar.shown()]
        rows.append([r.name, str(r.tokens), str(r.steps), *speed, r.perplexity.shown(1), r.entropy.shown()])
    columns = ["model", "tokens", "steps", "seconds", "floor s", "tokens/s", "over AR", "perplexity", "entropy"]
    Console().print(table(note, columns, rows))
    if samples:
        for r in results:
            print(f"\n--- {r.name}, {r.tokens} tokens, {r.steps} steps\n{r.sample}")
