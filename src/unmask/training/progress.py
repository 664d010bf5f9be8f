"""What a run shows: a progress bar with tokens/s and time left, TensorBoard scalars and pictures of its curve."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unmask.picture import picture

LOG_SECONDS = 20.0  # between the lines of a log


class TrainingProgress(Progress):
    """A bar on a terminal, a line every so often in a log; scalars under `folder`/tensorboard."""

    def __init__(
        self, folder: Path, steps: int, done: int, tokens_per_step: int, console: Console, active: bool
    ) -> None:
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TextColumn("{task.fields[speed]:,.0f} tokens/s"),
            TimeRemainingColumn(),
        )
        super().__init__(*columns, console=console, disable=not (active and console.is_terminal))
        self.steps = steps
        self.tokens = tokens_per_step
        self.active = active
        self.task = self.add_task("training", total=steps, completed=done, loss=float("nan"), speed=0.0)
        self.speed = 0.0
        if active:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tensorboard"))

    def stop(self) -> None:
        super().stop()
        if self.active:
            self.writer.close()

    def show(self, record: dict[str, float]) -> None:
        """Shows one step's record (step, loss, learning_rate, grad_norm, seconds, maybe validation)."""
        if not self.active:
            return
        step = int(record["step"])
        now = self.tokens / record["seconds"]
        self.speed = now if not self.speed else 0.9 * self.speed + 0.1 * now
        self.update(self.task, completed=step, loss=record["loss"], speed=self.speed)
        for name in ("loss", "validation", "learning_rate", "grad_norm"):
            if name in record:
                self.writer.add_scalar(name, record[name], step)
        if not self.console.is_terminal and (step % 20 == 0 or "validation" in record or step == self.steps):
            left = (self.steps - step) * self.tokens / self.speed / 60
            check = f" validation {record['validation']:.4f}" if "validation" in record else ""
            speed = f"{self.speed:,.0f} tokens/s, {left:.1f} min left"
            self.console.print(f"step {step}/{self.steps} loss {record['loss']:.4f}{check} {speed}", highlight=False)


class TextProgress(Progress):
    """Progress of text being written: a bar on a terminal, a line every so often in a log."""

    def __init__(self, total: int, console: Console) -> None:
        columns = (
            TextColumn("text"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
            TextColumn("{task.fields[speed]:,.0f} tokens/s"),
            TextColumn("{task.fields[left]}"),
        )
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self.total = total
        self.task = self.add_task("text", total=total, speed=0.0, left="")
        self.first = -1  # tokens that were there already
        self.began = self.logged = self.shown = 0.0

    def show(self, tokens: int) -> None:
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
        self.update(self.task, completed=min(tokens, self.total), speed=speed, left=left)
        if not self.console.is_terminal and now - self.logged >= LOG_SECONDS:
            self.logged = now
            line = f"text {tokens:,}/{self.total:,} tokens, {speed:,.0f} tokens/s, {left}"
            self.console.print(line, highlight=False)


def plot_loss(history: list[dict[str, float]], path: Path, title: str) -> None:
    """Training and validation loss (nats per token) over steps."""
    steps = [r["step"] for r in history]
    losses = [r["loss"] for r in history]
    with picture(path) as (axes,):
        axes.set(title=title, xlabel="step", ylabel="loss (nats per token)")
        axes.plot(steps, losses, color="#b8c4d6", linewidth=0.6, label="training, each step")
        window = max(1, len(losses) // 50)
        smooth = [sum(losses[max(0, i - window) : i + 1]) / (i + 1 - max(0, i - window)) for i in range(len(losses))]
        axes.plot(steps, smooth, color="#30507a", label=f"training, mean of {window + 1}")
        checks = [(r["step"], r["validation"]) for r in history if "validation" in r]
        if checks:
            label = "held out, averaged weights"
            axes.plot(*zip(*checks, strict=True), "o-", color="#c1440e", markersize=3, label=label)
        high = sorted(losses)[int(0.98 * (len(losses) - 1))]
        axes.set_ylim(min(losses) - 0.1, high + 0.3)


def plot_accepted(history: list[dict[str, float]], slots: int, path: Path, title: str) -> None:
    """Held-out agreement of the first slots and accepted drafts over trained slots; nothing where none was checked."""
    checks = [r for r in history if "accepted" in r]
    if not checks:
        return
    trained = [r["step"] * slots / 1e3 for r in checks]
    with picture(path) as (axes,):
        axes.set(title=title, xlabel="slots trained on, thousands", ylabel="share, or tokens")
        axes.set_xscale("log")
        axes.plot(trained, [1 + r["accepted"] for r in checks], "o-", color="#c1440e", label="tokens a step in verify")
        for j, colour in ((1, "#30507a"), (2, "#6d8ab5"), (3, "#b8c4d6")):
            label = f"slot {j} names the base's best token"
            axes.plot(trained, [r[f"agree_{j}"] for r in checks], "o-", color=colour, markersize=3, label=label)
