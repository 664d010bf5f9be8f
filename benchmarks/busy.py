"""`unmask bench busy`: what a model keeps of its speed beside busy processes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from benchmarks.speed import PROMPTS

from unmask.cli.options import Json, Tokens, load, numbers
from unmask.cli.report import report
from unmask.evaluation.speed import chat
from unmask.lm import DiffusionLM

LOOP = "while True: pass"


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that use all they get."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(count)]
    try:
        time.sleep(0.2)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def rates(lm: DiffusionLM, mode: str, prompt: Any, length: int) -> tuple[float, float, float]:
    """Tokens for a second, tokens for a second of computing on all threads, and the share of the cores that it had."""
    began = time.perf_counter(), time.process_time()
    tokens = len(lm.generate(prompt, length, mode=mode, temperature=0.0, ignore_eos=True).token_ids)
    wall = time.perf_counter() - began[0]
    computing = time.process_time() - began[1]
    return tokens / wall, tokens / computing, computing / wall / (os.cpu_count() or 1)


def command(
    model: Annotated[str, typer.Argument(help="The model.")] = "default",
    mode: Annotated[str, typer.Option(help="How it decodes.")] = "ar",
    processes: Annotated[str, typer.Option(help="Busy processes beside it, with commas.")] = "2,4,6",
    max_new_tokens: Tokens = 64,
    rounds: Annotated[int, typer.Option(help="Rounds, with and without company in turns.")] = 5,
    as_json: Json = False,
) -> None:
    """Speed beside busy processes over the fair share of the speed alone: threads of equal priority get equal parts of
    the cores, so beside n busy ones a model with a thread a core has cores / (cores + n) of them.

    Example: `unmask bench busy default --processes 2,4,6`
    """
    lm = load(model, "cpu", None)
    prompts = [chat(lm, text) for text in PROMPTS]
    rates(lm, mode, prompts[0], max_new_tokens)
    cores = os.cpu_count() or 1
    records = list[dict[str, Any]]()
    for count in numbers("--processes", processes):
        fair = cores / (cores + count)
        alone, beside = [], []
        for number in range(rounds):
            prompt = prompts[number % len(prompts)]
            alone.append(rates(lm, mode, prompt, max_new_tokens))
            with busy(count):
                beside.append(rates(lm, mode, prompt, max_new_tokens))
        shares = [b[0] / (a[0] * fair) for a, b in zip(alone, beside, strict=True)]
        records.append(
            {
                "busy processes": count,
                "tokens/s alone": round(statistics.median(a[0] for a in alone), 1),
                "beside them": round(statistics.median(b[0] for b in beside), 1),
                "of the fair share": f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})",
                "cores it had, %": round(100 * statistics.median(b[2] for b in beside)),
                "tokens for its computing, over alone": round(
                    statistics.median(b[1] / a[1] for a, b in zip(alone, beside, strict=True)), 2
                ),
            }
        )
    columns = list(records[0])
    report(records, f"{lm.name}, mode {mode}", columns, [[str(r[c]) for c in columns] for r in records], as_json)
