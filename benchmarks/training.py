"""`unmask bench training`: tokens per second of a recipe, as a share of the measured GEMM rate."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from benchmarks.roofline import forward_operations, gemm_rate
from rich.console import Console

from unmask.cli.options import Json
from unmask.cli.report import print_record
from unmask.objectives.masked import BD3LM
from unmask.training.recipe import Recipe
from unmask.training.trainer import Trainer


@dataclass(frozen=True)
class TrainingResult:
    tokens_per_second: float
    operations_per_second: float
    gemm_per_second: float
    parameters: int

    @property
    def share(self) -> float:
        return self.operations_per_second / self.gemm_per_second


def bench_training(recipe: Recipe, steps: int) -> TrainingResult:
    """Runs the recipe for `steps` steps (the first two not counted) and takes the median step.

    Operations are those of the matrices and of attention, forward once and backward twice; the head counts
    on scored rows only. The GEMM rate is measured before and after, in the recipe's precision.
    """
    short = replace(recipe.training, steps=steps + 2, save_every=10**9, validate_every=10**9)
    dtype = torch.bfloat16 if recipe.training.precision == "bf16" else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(replace(recipe, training=short), Path(folder), Console(stderr=True))
        config = trainer.network.config
        tokens = recipe.training.batch_size * recipe.data.length
        sizes = (min(4096, tokens), config.hidden_size, config.intermediate_size)
        before = gemm_rate(dtype, *sizes)
        trainer.run()
        rate = (before + gemm_rate(dtype, *sizes)) / 2
    seconds = statistics.median(record["seconds"] for record in trainer.history[2:])
    rows = recipe.training.batch_size
    length = recipe.data.length
    fed = 2 * length if isinstance(recipe.objective, BD3LM) else length
    scored = length if config.shift and fed == length else length // 2  # masked half on average
    operations = 3 * rows * forward_operations(config, fed, fed, scored)
    return TrainingResult(tokens / seconds, operations / seconds, rate, trainer.network.num_parameters())


def command(
    recipe: Annotated[Path, typer.Argument(help="The recipe to measure.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Fields to change, section.field=value.")] = None,
    steps: Annotated[int, typer.Option(help="Steps to time.")] = 8,
    as_json: Json = False,
) -> None:
    """Training throughput of a recipe and its share of this machine's measured GEMM rate.

    Example: `unmask bench training recipes/austen.yaml --steps 8`
    """
    from unmask.training.recipe import read_recipe

    read = read_recipe(recipe, overrides or [])

    result = bench_training(read, steps)
    record = {
        "parameters": result.parameters,
        "tokens_per_second": round(result.tokens_per_second, 1),
        "gflops": round(result.operations_per_second / 1e9, 1),
        "gemm_gflops": round(result.gemm_per_second / 1e9, 1),
        "share": round(result.share, 3),
    }
    if as_json:
        print_record(record)
        return
    print(
        f"{read.name}: {result.parameters / 1e6:.2f}M parameters, {record['tokens_per_second']} tokens/s, "
        f"{record['gflops']} of {record['gemm_gflops']} GFLOP/s measured GEMM = {result.share:.0%}"
    )
