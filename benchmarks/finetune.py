"""Tokens per second of a fine-tuning beside a plain PyTorch loop over the same network, rows and precision."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import torch
import torch.nn.functional as F
import typer
from rich.console import Console

from unmask.attention import CausalMask
from unmask.cli.options import Json
from unmask.cli.report import report
from unmask.errors import UnmaskError
from unmask.objectives.masked import AR
from unmask.training.finetune import Finetuner
from unmask.training.recipe import FinetuneRecipe, read_recipe


class PlainLoop:
    """What one writes by hand: autocast, all logits, cross-entropy, AdamW; a row counts as one text."""

    def __init__(self, trainer: Finetuner) -> None:
        self.trainer = trainer
        self.network = copy.deepcopy(trainer.network)
        self.trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=trainer.config.learning_rate, fused=True)

    def step(self, number: int) -> None:
        config = self.trainer.config
        rows = self.trainer.corpus.rows(number * config.batch_size, config.batch_size)
        micro = config.micro_batch_size or config.batch_size
        for start in range(0, config.batch_size, micro):
            ids = rows.ids[start : start + micro]
            labels = torch.where(rows.supervised, rows.ids, -100)[start : start + micro]
            with torch.autocast("cpu", torch.bfloat16, enabled=self.trainer.dtype == torch.bfloat16):
                states = self.network.hidden(ids, mask=CausalMask())
                logits = self.network.head(states)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
            (loss * micro / config.batch_size).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def command(
    recipe: Annotated[Path, typer.Argument(help="A recipe of `unmask finetune` with objective ar.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Fields to change, section.field=value.")] = None,
    rounds: Annotated[int, typer.Option(help="Steps of each, in turns; the first is not counted.")] = 6,
    as_json: Json = False,
) -> None:
    """Throughput of a fine-tuning over that of a plain loop, both in turns in one process.

    Example: `unmask bench finetune recipes/assist-ar.yaml base=assist-ar`
    """
    read = read_recipe(recipe, overrides or [])
    if not isinstance(read, FinetuneRecipe) or not isinstance(read.objective, AR):
        raise UnmaskError(f"{recipe} is no recipe of `unmask finetune` with objective ar")
    forever = replace(read.training, steps=10**6, save_every=10**9, validate_every=10**9)
    seconds: dict[str, list[float]] = {"finetune": [], "plain loop": []}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Finetuner(replace(cast(FinetuneRecipe, read), training=forever), Path(folder), Console(stderr=True))
        plain = PlainLoop(trainer)
        for number in range(rounds + 1):
            for name in seconds:
                began = time.perf_counter()
                if name == "finetune":
                    trainer._train_step()
                else:
                    plain.step(number)
                seconds[name].append(time.perf_counter() - began)
    tokens = read.training.batch_size * read.data.length
    rates = {name: tokens / statistics.median(times[1:]) for name, times in seconds.items()}
    lines = [
        {"way": name, "tokens/s": f"{rate:.0f}", "over plain": f"{rate / rates['plain loop']:.2f}"}
        for name, rate in rates.items()
    ]
    title = f"{read.name}: steps of {tokens} tokens, {rounds} rounds"
    report(lines, title, list(lines[0]), [list(line.values()) for line in lines], as_json)
