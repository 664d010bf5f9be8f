"""`unmask bench training`: tokens per second of a recipe, as a share of the measured GEMM rate."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from unmask.evaluation.floor import forward_operations, gemm_rate
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
        config, tokens = trainer.network.config, recipe.training.batch_size * recipe.data.length
        sizes = (min(4096, tokens), config.hidden_size, config.intermediate_size)
        before = gemm_rate(dtype, *sizes)
        trainer.run()
        rate = (before + gemm_rate(dtype, *sizes)) / 2
    seconds = statistics.median(record["seconds"] for record in trainer.history[2:])
    rows, length = recipe.training.batch_size, recipe.data.length
    fed = 2 * length if isinstance(recipe.objective, BD3LM) else length
    scored = length if config.shift and fed == length else length // 2  # masked half on average
    operations = 3 * rows * forward_operations(config, fed, fed, scored)
    return TrainingResult(tokens / seconds, operations / seconds, rate, trainer.network.num_parameters())
