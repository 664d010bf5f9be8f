"""What a run shows: a progress bar with tokens/s and time left, and TensorBoard scalars of a training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_SECONDS = 20.0  # between the lines of a log


class TrainingProgress:
    """A bar on a terminal, a line every so often in a log; scalars under `folder`/tensorboard."""

    def __init__(self, folder: Path, steps: int, tokens_per_step: int, console: Console, active: bool) -> None:
        self.folder = folder
        self.steps = steps
        self.tokens = tokens_per_step
        self.console = console
        self.active = active
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TextColumn("{task.fields[speed]:,.0f} tokens/s"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, disable=not (active and console.is_terminal))
        self.task = self.bar.add_task("training", total=steps, loss=float("nan"), speed=0.0)
        self.speed = 0.0

    def __enter__(self) -> TrainingProgress:
        self.writer: Any = None
        if self.active:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder / "tensorboard"))
        self.bar.start()
        return self

    def __exit__(self, *args: Any) -> None:
        self.bar.stop()
        if self.writer is not None:
            self.writer.close()

    def start_at(self, step: int) -> None:
        self.bar.update(self.task, completed=step)

    def advance(self, record: dict[str, float]) -> None:
        """Shows one step's record (step, loss, learning_rate, grad_norm, seconds, maybe validation)."""
        if not self.active:
            return
        step = int(record["step"])
        now = self.tokens / record["seconds"]
        self.speed = now if not self.speed else 0.9 * self.speed + 0.1 * now
        self.bar.update(self.task, completed=step, loss=record["loss"], speed=self.speed)
        for name in ("loss", "validation", "learning_rate", "grad_norm"):
            if name in record:
                self.writer.add_scalar(name, record[name], step)
        if not self.console.is_terminal and (step % 20 == 0 or "validation" in record or step == self.steps):
            left = (self.steps - step) * self.tokens / self.speed / 60
            check = f" validation {record['validation']:.4f}" if "validation" in record else ""
            speed = f"{self.speed:,.0f} tokens/s, {left:.1f} min left"
            self.console.print(f"step {step}/{self.steps} loss {record['loss']:.4f}{check} {speed}", highlight=False)


class TextProgress:
    """Progress of text being written: a bar on a terminal, a line every so often in a log."""

    def __init__(self, total: int, console: Console) -> None:
        self.total = total
        self.console = console
        columns = (
            TextColumn("text"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
            TextColumn("{task.fields[speed]:,.0f} tokens/s"),
            TextColumn("{task.fields[left]}"),
        )
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("text", total=total, speed=0.0, left="")
        self.first = -1  # tokens that were there already
        self.began = self.logged = self.shown = 0.0

    def __enter__(self) -> TextProgress:
        self.bar.start()
        return self

    def __exit__(self, *args: Any) -> None:
        self.bar.stop()

    def update(self, tokens: int) -> None:
        """Told of every token; shows some of them."""
        now = time.perf_counter()
        if self.first < 0:
            self.first = tokens
            self.began = now
            self.logged = now
        elif tokens < self.total and now - self.shown < 0.2:
            return
        self.shown = now
        speed = (tokens - self.first) / max(now - self.began, 1e-9)
        minutes = max(0, self.total - tokens) / speed / 60 if speed else 0.0
        left = f"{minutes:.1f} min left" if speed else ""
        self.bar.update(self.task, completed=min(tokens, self.total), speed=speed, left=left)
        if not self.console.is_terminal and now - self.logged >= LOG_SECONDS:
            self.logged = now
            line = f"text {tokens:,}/{self.total:,} tokens, {speed:,.0f} tokens/s, {left}"
            self.console.print(line, highlight=False)
